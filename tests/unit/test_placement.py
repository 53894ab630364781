"""Which GPUs a run gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorawatch.errors import NoSuitableGpu
from lorawatch.launch import placement
from lorawatch.launch.placement import place
from lorawatch.recipe.devices import parse_gpus
from lorawatch.run.directory import Gpu
from lorawatch.system.processes import usable_cores

GPUS = [Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}{i}{i}{i}", sku="NVIDIA X") for i in range(4)]


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_all_gpus_or_two_cpu_ranks_where_there_is_none() -> None:
    assert place(parse_gpus("all"), GPUS).gpu_uuids == ("GPU-0000", "GPU-1111", "GPU-2222", "GPU-3333")
    cpu = place(parse_gpus("all"), [])
    assert cpu.device == "cpu"
    assert cpu.environment()["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"slice/job/cpu.max": "250000 100000"}, 3),
        ({"slice/cpu.max": "400000 100000", "slice/job/cpu.max": "max 100000"}, 4),
        ({"slice/cpu.max": "10000 100000"}, 1),
        ({"other/cpu.max": "100000 100000", "slice/job/cpu.max": "nonsense"}, 64),
    ],
)
def test_what_slurm_or_a_container_allows_is_what_ranks_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cgroup").write_text("1:name=systemd:/elsewhere\n0::/slice/job\n")
    for name, words in limits.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(words + "\n")
    assert usable_cores(tmp_path / "cgroup", tmp_path / "fs") == cores
    assert usable_cores(tmp_path / "nothing", tmp_path / "nowhere") == 64


def test_ranks_share_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(placement, "usable_cores", lambda: 12)
    assert place(parse_gpus("cpu:5"), []).environment()["OMP_NUM_THREADS"] == "2"
    assert place(parse_gpus("cpu:24"), []).environment()["OMP_NUM_THREADS"] == "1"


def test_ranks_see_the_gpus_in_the_order_asked_for() -> None:
    placed = place(parse_gpus("2,0"), GPUS)
    assert placed.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-2222,GPU-0000"
    assert placed.world_size == 2


def test_a_gpu_that_is_not_there_is_named_beside_those_that_are() -> None:
    with pytest.raises(NoSuitableGpu, match=r"GPU 7 .*0 \(NVIDIA X\)"):
        place(parse_gpus("0,7"), GPUS)
    with pytest.raises(NoSuitableGpu, match="none"):
        place(parse_gpus([1]), [])


def test_a_sweep_point_takes_the_first_and_refuses_more_than_there_are() -> None:
    assert place(parse_gpus("all"), GPUS, count=2).gpu_uuids == ("GPU-0000", "GPU-1111")
    assert place(parse_gpus("cpu:4"), GPUS, count=2).world_size == 2
    with pytest.raises(NoSuitableGpu, match="8 GPUs, but only 4"):
        place(parse_gpus("all"), GPUS, count=8)


def test_all_means_what_this_shell_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2222,1")
    assert place(parse_gpus("all"), GPUS).gpu_uuids == ("GPU-1111", "GPU-2222")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert place(parse_gpus("all"), GPUS).device == "cpu"
