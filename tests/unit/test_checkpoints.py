"""Checkpoints on the disk: what is damaged or of other work is found, and said, before anything is loaded."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from lorawatch.errors import CheckpointError
from lorawatch.recipe import loading
from lorawatch.run import checkpoints
from lorawatch.run.checkpoints import Manifest


def save(root: Path, step: int, *, attempt: int = 0, overrides: tuple[str, ...] = (), ranks: int = 2) -> Path:
    temporary = root / f".step.{step}"
    temporary.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        (temporary / name).write_bytes(f"{name} {step}".encode() * 100)
    manifest = Manifest(
        run_id="r",
        step=step,
        attempt=attempt,
        world_size=ranks,
        epoch=0.5,
        batches_into_epoch=step,
        created_at=time.time(),
        recipe=loading.load("tiny", overrides).to_dict(),
        data="d",
        versions={"torch": "2"},
        files={p.name: checkpoints.stored(p) for p in temporary.iterdir()},
    )
    checkpoints.write_manifest(temporary, manifest)
    target = root / checkpoints.folder_name(step)
    checkpoints.put_in_place(temporary, target)
    return target


def test_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    found = checkpoints.read(save(tmp_path, 40))
    assert (found.name, found.step, found.manifest.world_size) == ("step-00000040", 40, 2)
    assert set(found.manifest.files) == {"adapter_model.safetensors", "optimizer.pt"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "optimizer.pt").write_bytes(b"opt"), "optimizer.pt has 3 bytes, but 1,500 were written"),
        (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda f: flip(f / "optimizer.pt"), "the content of optimizer.pt is not what was written"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
        (lambda f: cut(f / "manifest.json"), "manifest.json is cut off, or no manifest"),
        (lambda f: edit(f / "manifest.json"), "manifest.json was changed after it was written"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, damage: object, words: str) -> None:
    folder = save(tmp_path, 40)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="step-00000040") as refused:
        checkpoints.read(folder)
    assert words in refused.value.message


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 40', '"step": 41'))


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 40).rename(tmp_path / "step-00000099")
    with pytest.raises(CheckpointError, match="step-00000099 is the checkpoint of step 40"):
        checkpoints.read(folder)


def test_another_recipe_is_told_apart_from_one_that_only_runs_longer(tmp_path: Path) -> None:
    tiny = loading.load("tiny")
    longer = checkpoints.read(save(tmp_path, 1, overrides=("train.steps=99", "measure.sample_hz=1")))
    checkpoints.check_work(longer, tiny, 2)
    other = checkpoints.read(save(tmp_path, 2, overrides=("lora.rank=8", "train.seed=1")))
    with pytest.raises(CheckpointError) as refused:
        checkpoints.check_work(other, tiny, 2)
    assert refused.value.message == (
        "step-00000002 is from another recipe: lora.rank is 8 there and 4 here; train.seed is 1 there and 0 here"
    )
    with pytest.raises(CheckpointError, match="of 2 ranks, but the run has 4"):
        checkpoints.check_work(longer, tiny, 4)


def test_a_recipe_from_before_a_key_has_its_default(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = checkpoints.read(folder).manifest
    del manifest.recipe["train"]["on_nan"]
    del manifest.recipe["train"]["max_grad_norm"]
    checkpoints.write_manifest(folder, manifest)
    checkpoints.check_work(checkpoints.read(folder), loading.load("tiny"), 2)


def test_the_newest_good_one_is_found_and_the_others_told(tmp_path: Path) -> None:
    tiny = loading.load("tiny")
    save(tmp_path, 10)
    save(tmp_path, 20, overrides=("lora.rank=8",))
    cut(save(tmp_path, 30) / "manifest.json")
    (tmp_path / ".step-00000040.attempt_0").mkdir()  # a save that was killed
    found, wrong = checkpoints.newest_good(tmp_path, tiny, 2)
    assert found is not None
    assert found.step == 10
    assert [w.partition(":")[0] for w in wrong] == ["step-00000030", "step-00000020 is from another recipe"]
    assert checkpoints.newest_good(tmp_path, tiny, 2, before=10) == (None, [])
    assert checkpoints.newest_good(tmp_path / "absent", tiny, 2) == (None, [])


def test_after_a_resume_what_earlier_attempts_saved_further_on_does_not_count(tmp_path: Path) -> None:
    tiny = loading.load("tiny")
    for step in (10, 20, 30):
        save(tmp_path, step)
    found, _ = checkpoints.newest_good(tmp_path, tiny, 2, resumed=(10, 2))
    assert found is not None
    assert found.step == 10
    save(tmp_path, 15, attempt=2)
    found, _ = checkpoints.newest_good(tmp_path, tiny, 2, resumed=(10, 2))
    assert found is not None
    assert found.step == 15


def test_only_the_last_ones_stay_and_none_of_a_way_that_was_given_up(tmp_path: Path) -> None:
    for step in (5, 10, 20, 40):
        save(tmp_path, step)
    cut(save(tmp_path, 30) / "manifest.json")
    save(tmp_path, 15, attempt=1)
    checkpoints.prune(tmp_path, 2, attempt=1, after=10)
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000015"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 7):
        (tmp_path / checkpoints.folder_name(step)).mkdir()
    assert [checkpoints.step_of(f) for f in checkpoints.folders(tmp_path)] == [100_000_000, 99_999_999, 7]


def test_a_person_names_a_step(tmp_path: Path) -> None:
    folder = save(tmp_path, 40)
    assert checkpoints.named(tmp_path, "step-40") == checkpoints.named(tmp_path, "40") == folder
    assert checkpoints.named(tmp_path, "step-00000040") == folder
    with pytest.raises(CheckpointError, match="no checkpoint 'step-41'") as refused:
        checkpoints.named(tmp_path, "step-41")
    assert refused.value.hint == "there: step-00000040"


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    data = msgspec.json.decode((save(tmp_path, 40) / "manifest.json").read_bytes())
    assert data["step"] == 40
    assert data["files"]["optimizer.pt"]["bytes"] == 1500
    assert len(data["files"]["optimizer.pt"]["sha256"]) == len(data["seal"]) == 64
