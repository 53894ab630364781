"""Which GPUs a process sees, by each vendor's own variables; AMD's as its documentation has them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lorawatch.cli import supervise
from lorawatch.launch.placement import place
from lorawatch.recipe import loading
from lorawatch.recipe.devices import parse_gpus
from lorawatch.run.directory import Gpu, RunDir, RunInfo
from lorawatch.system import visible_devices

UUIDS = [f"GPU-{i}c5bd0b9f0e4a1f{i}" for i in range(4)]
AMD = [
    Gpu(host="h", gpu_index=i, gpu_uuid=uuid, sku="AMD Instinct MI300X", vendor="amd") for i, uuid in enumerate(UUIDS)
]
NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_ranks_on_amd_cards_see_them_by_uuid_in_the_order_asked_for() -> None:
    placed = place(parse_gpus("2,0"), AMD)
    assert placed.device == "cuda"  # torch's name for AMD's too
    environment = placed.environment()
    assert environment["ROCR_VISIBLE_DEVICES"] == f"{UUIDS[2]},{UUIDS[0]}"
    assert environment["HIP_VISIBLE_DEVICES"] == "0,1"
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_an_amd_card_without_a_uuid_is_chosen_by_its_index() -> None:
    apu = Gpu(host="h", gpu_index=1, gpu_uuid=visible_devices.numbered(1), sku="AMD Radeon Graphics", vendor="amd")
    assert place(parse_gpus("1,0"), [AMD[0], apu]).environment()["ROCR_VISIBLE_DEVICES"] == f"1,{UUIDS[0]}"


def test_cpu_ranks_see_no_gpu_of_any_vendor() -> None:
    environment = place(parse_gpus("cpu:2"), AMD).environment()
    assert {name: environment[name] for name in NAMES} == dict.fromkeys(NAMES, "")


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "3,1"}, [1, 3]),
        ({"ROCR_VISIBLE_DEVICES": f"GPU-{UUIDS[2][4:].upper()}"}, [2]),
        ({"HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, [0, 2]),  # HIP reads it where its own is not set
        ({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "1"}, [1]),  # of those that ROCm's leaves
        ({"ROCR_VISIBLE_DEVICES": "3,9,1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_all_amd_cards_means_those_that_the_shell_may_use(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], left: list[int]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    placed = place(parse_gpus("all"), AMD)
    assert list(placed.gpu_uuids) == [UUIDS[i] for i in left]
    assert placed.device == ("cuda" if left else "cpu")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # what `environment()` gave an AMD run: ROCm's list stays, HIP picks from it
        (
            {"ROCR_VISIBLE_DEVICES": "GPU-a,GPU-b", "HIP_VISIBLE_DEVICES": "0,1"},
            {"ROCR_VISIBLE_DEVICES": "GPU-a,GPU-b", "HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"},
        ),
        (
            {"ROCR_VISIBLE_DEVICES": "2,3"},
            {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"},
        ),
        # a leftover of the other vendor does not keep CUDA's from being narrowed
        (
            {"HIP_VISIBLE_DEVICES": "-1", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"},
            {"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "GPU-b"},
        ),
    ],
)
def test_a_rank_that_trains_by_itself_sees_one_gpu(before: dict[str, str], after: dict[str, str]) -> None:
    environment = dict(before)
    visible_devices.keep_one(environment, 1)
    assert environment == after


def test_a_run_that_goes_on_shows_its_ranks_the_same_amd_cards(lorawatch_home: Path) -> None:
    used = [msgspec.structs.replace(gpu, used=gpu.gpu_index in (0, 2)) for gpu in AMD]
    recipe = msgspec.to_builtins(loading.load("tiny", ["launch.gpus=[2, 0]"]))
    run = RunDir.create(
        RunInfo(run_id="", name="tiny", created_at=1.8e9, host="h", user="u", world_size=2, device="cuda", recipe=recipe,
                gpus=used)
    )  # fmt: skip
    _, placement = supervise._as_prepared(run)
    assert placement is not None
    assert placement.environment()["ROCR_VISIBLE_DEVICES"] == f"{UUIDS[2]},{UUIDS[0]}"


def test_a_message_names_what_is_chosen() -> None:
    assert visible_devices.words({}) == "CUDA_VISIBLE_DEVICES is not set"
    assert visible_devices.words({"ROCR_VISIBLE_DEVICES": "0"}) == "ROCR_VISIBLE_DEVICES is '0'"


def test_no_other_module_names_the_variables() -> None:
    root = Path(__file__).parents[2]
    files = [p for folder in ("lorawatch", "screens", "storage") for p in (root / folder).rglob("*.py")]
    naming = [str(p.relative_to(root)) for p in files if any(name in p.read_text() for name in NAMES)]
    assert naming == ["lorawatch/system/visible_devices.py"]
