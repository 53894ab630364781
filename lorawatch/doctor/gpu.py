"""Doctor's look at the driver, the GPUs, and whether torch can use them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorawatch.doctor.check import Check, CheckStatus, gib
from lorawatch.system import visible_devices

if TYPE_CHECKING:
    from lorawatch.telemetry.device import Device
    from lorawatch.telemetry.nvml import Nvml

_DRIVER_WAIT_S = 30.0
_TORCH_WAIT_S = 120.0
_BUSY_BYTES = 1 << 30

# Runs in a process of its own, so that the CLI holds no torch. It makes no CUDA context: a GPU may be in use, or full.
_ASK_TORCH = """
import json
import torch
import torch.distributed as dist
said = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None),
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available()}
try:
    said["available"] = torch.cuda.is_available()
    if said["available"]:
        said["count"] = torch.cuda.device_count()
        said["bf16"] = torch.cuda.is_bf16_supported()
        said["nccl_version"] = ".".join(map(str, torch.cuda.nccl.version()))
        said["archs"] = torch.cuda.get_arch_list()
except Exception as error:
    said["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(said))
"""


def gpus_and_torch() -> list[Check]:
    """The driver, each GPU, torch, and what torch's ranks would talk through."""
    nvml, driver = _driver()
    checks = [driver]
    if nvml:
        advice = "see dmesg for Xid; a reset or a reboot may bring it back"
        checks += [Check("GPU", "warn", problem, advice) for problem in nvml.problems]
        checks += [_gpu(device) for device in nvml.devices]
    return checks + _torch(nvml)


def _driver() -> tuple[Nvml | None, Check]:
    try:
        from lorawatch.telemetry.nvml import NvmlUnavailable, open_nvml
    except ImportError as error:
        return None, Check(
            "NVIDIA driver", "warn", f"not asked: {error}", f"{sys.executable} -m pip install nvidia-ml-py"
        )
    try:
        nvml = open_nvml(_DRIVER_WAIT_S)
    except NvmlUnavailable as error:
        # without any NVIDIA device a missing driver is no fault
        if not _nvidia_device_there():
            return None, Check("NVIDIA driver", "info", f"{error.reason}; runs use the CPU")
        return None, Check("NVIDIA driver", "warn", error.reason, error.hint)
    found = f"{nvml.driver_version or 'unknown version'}, NVML {nvml.nvml_version or '?'}"
    if nvml.cuda_version:
        found += f", up to CUDA {nvml.cuda_version}"
    if not nvml.devices and not nvml.problems:
        return nvml, Check("NVIDIA driver", "warn", f"{found}; it lists no GPU", "in a container, pass the GPUs in")
    return nvml, Check("NVIDIA driver", "ok", found)


def _nvidia_device_there() -> bool:
    try:
        for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
            kind = vendor.with_name("class").read_text()
            if vendor.read_text().strip() == "0x10de" and kind.startswith("0x03"):  # a display or 3D controller
                return True
    except OSError:
        pass
    return False


def _gpu(device: Device) -> Check:
    from lorawatch.telemetry.device import GpuLost

    name = f"GPU {device.index}"
    try:
        facts, total = device.facts(), device.memory_total()
        processes = device.processes() or ()
    except GpuLost as lost:
        return Check(name, "warn", f"{device.sku}: {lost.reason}", "see dmesg for Xid; a reset may bring it back")
    free = facts.free_memory_bytes
    parts = [device.sku]
    if total is not None and free is not None:
        parts.append(f"{gib(free)} of {gib(total)} free")
    advice: list[str] = []
    status: CheckStatus = "ok"
    if total is not None and free is not None and total - free > _BUSY_BYTES and processes:
        advice.append(f"in use by pid {', '.join(str(p.pid) for p in processes[:5])}")
    if facts.power_limit_w is not None:
        parts.append(f"{facts.power_limit_w:.0f} W limit")
        default = facts.default_power_limit_w
        if default is not None and facts.power_limit_w < default - 1:
            status = "warn"
            advice.append(f"slower than the card sold: its default limit is {default:.0f} W (nvidia-smi -pl)")
    parts.append("energy counter" if facts.energy_counter else "no energy counter: energy is the integral of power")
    if facts.persistence_mode is False:
        parts.append("persistence off")
        advice.append("nvidia-smi -pm 1 keeps the driver loaded: runs start faster, the energy counter is kept")
    if facts.compute_mode not in (None, "default"):
        status = "warn"
        parts.append(f"compute mode {facts.compute_mode}")
        advice.append("nvidia-smi -c 0 lets several processes in")
    if facts.mig_mode:
        status = "warn"
        parts.append("MIG on")
        advice.append("lorawatch samples whole GPUs; utilization is missing while MIG is on")
    return Check(name, status, ", ".join(parts), "; ".join(advice) or None)


def _torch(nvml: Nvml | None) -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", "fail", "not installed", f"{sys.executable} -m pip install torch")]
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TORCH_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [Check("torch", "fail", f"did not load within {_TORCH_WAIT_S:.0f} s", "does nvidia-smi answer?")]
    try:
        said: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        return [Check("torch", "fail", f"does not load: {last}", "reinstall it in this environment")]
    return [_torch_itself(said, nvml), _collectives(said, nvml)]


def _torch_itself(said: dict[str, Any], nvml: Nvml | None) -> Check:
    build = f"CUDA {said['cuda']}" if said["cuda"] else f"ROCm {said['hip']}" if said["hip"] else "CPU only"
    found = f"{said['version']}, built for {build}" if said["cuda"] or said["hip"] else f"{said['version']}, {build}"
    gpus = len(nvml.devices) if nvml else 0
    if said.get("error"):
        return Check("torch", "fail", f"{found}; the GPU fails: {said['error']}", "another torch build may suit it")
    if said.get("available"):
        found += f", uses {said['count']} of {gpus} GPUs, bf16 {'yes' if said['bf16'] else 'no'}"
        strange = _without_kernels(said["archs"], nvml)
        if strange:
            return Check(
                "torch",
                "fail",
                f"{found}; it has no kernels for {', '.join(strange)}",
                "install a torch build that is made for these GPUs",
            )
        return Check("torch", "ok", found)
    if not gpus:
        return Check("torch", "ok", found)
    if not said["cuda"]:
        return Check("torch", "fail", f"{found}: it cannot use the GPUs here", "install a CUDA build of torch")
    if nvml and nvml.cuda_version and _newer(said["cuda"], nvml.cuda_version):
        return Check(
            "torch",
            "fail",
            f"{found}, newer than the driver can run (CUDA {nvml.cuda_version})",
            "update the driver, or install a torch built for an older CUDA",
        )
    return Check(
        "torch",
        "fail",
        f"{found}, but finds no GPU",
        f"is {visible_devices.names(visible_devices.NVIDIA)} empty? is nvidia_uvm loaded?",
    )


def _collectives(said: dict[str, Any], nvml: Nvml | None) -> Check:
    have = [
        name
        for name, there in (
            (f"NCCL {said['nccl_version']}" if said.get("nccl_version") else "NCCL", said["nccl"]),
            ("gloo", said["gloo"]),
        )
        if there
    ]
    found = " and ".join(have) or "none"
    if nvml and len(nvml.devices) > 1 and not said["nccl"]:
        return Check("collectives", "fail", found, "several GPUs need NCCL: install a CUDA build of torch for Linux")
    if not have:
        return Check("collectives", "fail", "torch has neither NCCL nor gloo", "install a torch with distributed")
    return Check("collectives", "ok", found)


def _without_kernels(archs: list[str], nvml: Nvml | None) -> list[str]:
    """Models that a torch build brings neither machine code nor PTX for."""
    parsed = [(m[1], int(m[2]), int(m[3])) for a in archs if (m := re.match(r"(sm|compute)_(\d+)(\d)", a))]
    strange = []
    for device in nvml.devices if nvml and parsed else ():
        able = device.compute_capability()
        if able is not None and not any(
            # machine code runs on later minor versions of its major one, PTX on everything later
            (major, minor) <= able and (kind == "compute" or major == able[0])
            for kind, major, minor in parsed
        ):
            strange.append(f"{device.sku} (compute capability {able[0]}.{able[1]})")
    return list(dict.fromkeys(strange))


def _newer(one: str, other: str) -> bool:
    """Whether a CUDA version's major number is above another's; minor versions are compatible within it."""
    numbers = [re.match(r"\d+", text) for text in (one, other)]
    return bool(numbers[0] and numbers[1] and int(numbers[0][0]) > int(numbers[1][0]))
