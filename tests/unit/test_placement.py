"""Which GPUs a run gets."""

from __future__ import annotations

import pytest

from lorawatch.devices import parse_gpus
from lorawatch.errors import NoSuitableGpu
from lorawatch.launch.placement import place
from lorawatch.rundir import Gpu

GPUS = [Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}{i}{i}{i}", sku="NVIDIA X") for i in range(4)]


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_all_gpus_or_two_cpu_ranks_where_there_is_none() -> None:
    assert place(parse_gpus("all"), GPUS).gpu_uuids == ("GPU-0000", "GPU-1111", "GPU-2222", "GPU-3333")
    cpu = place(parse_gpus("all"), [])
    assert cpu.device == "cpu"
    assert cpu.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_ranks_see_the_gpus_in_the_order_asked_for() -> None:
    placement = place(parse_gpus("2,0"), GPUS)
    assert placement.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-2222,GPU-0000"
    assert placement.world_size == 2


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
