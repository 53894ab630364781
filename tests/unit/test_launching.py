"""What Launch offers and says: recipes once each, figures of the same workload, the end of a log that matters."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from history import a_whole_run, make_run, step, write

from lorawatch.errors import RecipeError
from lorawatch.launch.placement import Placement
from lorawatch.recipe import edit, loading, schema
from lorawatch.run.directory import Gpu
from lorawatch.screens.launch import model
from lorawatch.screens.launch.gpu_list import GpuUse, gpu_words
from lorawatch.screens.launch.open_file import completions
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.queries import distinct_recipes, measured

GIB = 2**30


def with_recipe(wanted: schema.Recipe, *, ranks: int = 1, gpus: list[Gpu] | None = None, steps: int = 40) -> str:
    """A completed run of this recipe in the history; its id."""
    from history import end

    run = make_run(wanted.name, ranks=ranks, gpus=gpus, recipe=wanted.to_dict())
    (run.root / "recipe.yaml").write_text(wanted.to_yaml())
    for rank in range(ranks):
        write(run.rank_journal(rank), *(step(n, rank) for n in range(1, steps + 1)))
    end(run)
    finish_run(run)
    return run.run_id


def test_a_recipe_of_the_history_outlives_its_run_directory(lorawatch_home: Path) -> None:
    tiny = loading.load("tiny")
    other = loading.load("tiny", ["name=other", "lora.rank=2"])
    ids = [with_recipe(tiny), with_recipe(other), with_recipe(loading.load("tiny", ["launch.gpus=cpu:1"]))]
    finish_run(make_run("torchrun", own_command=True))
    shutil.rmtree(lorawatch_home / "runs")
    rows = distinct_recipes()
    assert [(r["recipe"]["name"], r["run_id"], r["runs"]) for r in rows] == [("tiny", ids[2], 2), ("other", ids[1], 1)]
    choices = model.history_choices()
    assert [c.source for c in choices] == [f"{ids[2]} · 2 runs", ids[1]]
    assert loading.from_dict(edit.mapping(choices[1].text)).lora.rank == 2


def test_the_same_recipe_on_other_gpus_is_no_other_choice() -> None:
    with_recipe(loading.load("tiny"))
    with_recipe(loading.load("tiny", ["launch.gpus=cpu:1"]))
    builtin = {c.identity for c in model.builtin_choices()}
    assert model.builtin_choices()[0].name == "demo"
    (recent,) = model.recent_choices()
    assert recent.identity in builtin


def test_measured_is_the_same_workload_on_the_same_sku_whatever_its_name() -> None:
    tiny = loading.load("tiny")
    with_recipe(tiny)
    with_recipe(loading.load("tiny", ["name=again", "train.steps=5"]))
    with_recipe(loading.load("tiny", ["train.batch_size_per_gpu=8"]))
    (row,) = measured(tiny.to_dict(), None)
    assert (row["ranks"], row["runs"]) == (1, 2)
    assert row["tok_s"] == pytest.approx(2000, rel=0.01)
    assert measured(tiny.to_dict(), "NVIDIA H100 80GB HBM3") == []


def test_the_history_line_says_what_follows_and_does_not_guess() -> None:
    tiny = loading.load("tiny", ["train.steps=100"])
    rows = [{"ranks": 1, "runs": 1, "tok_s": 2500.0, "tok_s_ci95": 12.0, "peak_vram_bytes": 3 * GIB}]
    sku = "NVIDIA RTX PRO 4500"
    line = model.history_line(rows, sku, tiny, 1)
    assert line == (
        "history: 2,500 ± 12 tok/s on 1×RTX PRO 4500, peak VRAM 3.0 GiB; 100 steps take 0:03; "
        "an epoch of 50M tokens 5:33:20"
    )
    line = model.history_line(rows, sku, tiny, 4)
    assert line == "history: not measured on 4×RTX PRO 4500; 2,500 tok/s on 1×RTX PRO 4500"
    assert model.history_line([], None, tiny, 2) == "history: not measured on 2×CPU yet"


def test_the_plan_counts_the_tokens_of_a_step() -> None:
    wanted = loading.load("tiny", ["train.gradient_accumulation=4"])
    assert model.plan_line(wanted, Placement("cpu", 2)) == (
        "2 CPU ranks × batch 2 × 32 tokens × 4 accumulated = up to 512 tokens a step, 10 steps"
    )


def test_whether_it_fits_is_said_of_the_smallest_gpu_with_what_would_help() -> None:
    def card(index: int, gib: int) -> Gpu:
        return Gpu(host="h", gpu_index=index, gpu_uuid=f"GPU-{index}", sku="X", memory_total_bytes=gib * GIB)

    wanted, two = loading.load("exxact-8b"), Placement("cuda", 2, ("GPU-0", "GPU-1"))
    (line,) = model.fit_lines(wanted, two, [card(0, 80), card(1, 80)])
    assert line.startswith("VRAM: needs about 2")
    assert "of 80.0 GiB a GPU: fits" in line
    first, *advice = model.fit_lines(wanted, two, [card(0, 80), card(1, 20)])
    assert "of 20.0 GiB a GPU: does not fit" in first
    assert "gradient_checkpointing" in advice[0]
    assert model.fit_lines(wanted, Placement("cpu", 2), []) == []


@pytest.mark.parametrize("kind", ["absent", "folder", "binary", "huge"])
def test_a_file_that_is_no_recipe_says_what_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    words = {"absent": "no such file", "folder": "a folder", "binary": "not a text file", "huge": "too many"}[kind]
    if kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_bytes(b"\xff\xfe\x00" if kind == "binary" else b"a" * 300_000)
    with pytest.raises(RecipeError, match=words) as caught:
        model.read_recipe_file(str(path))
    assert str(path) in str(caught.value)


def test_paths_are_completed_to_folders_and_yaml_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    for name in ("a.yaml", "ab.yml", "b.txt", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    assert completions(f"{tmp_path}/") == [f"{tmp_path}/a.yaml", f"{tmp_path}/ab.yml", f"{tmp_path}/recipes/"]
    assert completions(f"{tmp_path}/ab") == [f"{tmp_path}/ab.yml"]
    assert completions(f"{tmp_path}/.h") == [f"{tmp_path}/.hidden.yaml"]
    assert completions(f"{tmp_path}/nothing/x") == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions("re") == ["recipes/"]
    assert completions("~/re") == ["~/recipes/"]


def test_of_a_log_the_last_traceback_is_shown_or_else_its_end() -> None:
    chatter = [f"line {n}" for n in range(100)]
    assert model.relevant(chatter) == chatter[-24:]
    trace = ["Traceback (most recent call last):", '  File "x"', "RuntimeError: first"]
    last = ["Traceback (most recent call last):", '  File "y"', "RuntimeError: second", "bye"]
    assert model.relevant([*trace, *chatter, *last]) == last
    long = ["Traceback (most recent call last):", *chatter]
    assert model.relevant(long) == [long[0], "  …", *chatter[-24:]]


def test_a_failed_start_shows_each_log_clean_under_its_path() -> None:
    run = make_run("x", ranks=1)
    (run.logs / "recorder.log").write_text("starting\n")
    run.rank_log(0, 0).write_bytes(b"\x1b[31mValueError: [/b] no\x1b[0m\n\n")
    assert model.log_lines(run) == [
        f"{run.logs / 'recorder.log'}:", "  starting", f"{run.rank_log(0, 0)}:", "  ValueError: [/b] no",
    ]  # fmt: skip


GPU = Gpu(host="h", gpu_index=1, gpu_uuid="GPU-1", sku="NVIDIA RTX PRO 4500", memory_total_bytes=32 * GIB)


@pytest.mark.parametrize(
    ("use", "figures", "word"),
    [
        (GpuUse(int(0.4 * GIB), 0.0), "31.6 of  32.0 GiB free    0%", ""),
        (
            GpuUse(int(12.3 * GIB), 97.0, "run 3kq9"),
            "19.7 of  32.0 GiB free   97%",
            "! busy: 12.3 GiB used by run 3kq9",
        ),
        (GpuUse(int(12.3 * GIB), None), "19.7 of  32.0 GiB free    —%", "! busy: 12.3 GiB used"),
        (GpuUse(None, None), "— of  32.0 GiB free    —%", ""),
        (GpuUse(lost=True), "", "✗ lost: the driver no longer reaches it"),
        (GpuUse(0, 0.0, stale_s=7.2), "32.0 of  32.0 GiB free    0%", "? stale 7 s"),
        (None, "— of  32.0 GiB free", ""),
    ],
)
def test_a_gpu_says_what_is_free_and_who_has_the_rest(use: GpuUse | None, figures: str, word: str) -> None:
    name, found, said = gpu_words(GPU, use, 12)
    assert (name, found.strip(), said) == (" 1 RTX PRO 4500", figures, word)


def test_recent_recipes_of_broken_runs_are_left_out(lorawatch_home: Path) -> None:
    run = a_whole_run("fine")  # it has no recipe.yaml
    (lorawatch_home / "runs" / "zzzzzzzz").mkdir()
    (lorawatch_home / "runs" / "zzzzzzz1").mkdir()
    (lorawatch_home / "runs" / "zzzzzzz1" / "run.json").write_text("{")
    assert model.recent_choices() == []
    (run.root / "recipe.yaml").write_text("name: fine\n")
    assert [(c.name, c.source) for c in model.recent_choices()] == [("run", run.run_id)]


def test_a_start_that_is_left_does_not_hold_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys
    import threading

    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(120)")
    monkeypatch.setattr(model, "_CLI", (sys.executable, str(slow)))
    closing = threading.Event()
    closing.set()
    began = time.monotonic()
    with pytest.raises(model.StartFailed, match="left"):
        model.start("name: x\n", [], closing)
    assert time.monotonic() - began < 60
