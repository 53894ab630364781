"""Doctor's look at the drivers, the GPUs, and whether torch can use them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from lorawatch.doctor.check import Check, CheckStatus, gib
from lorawatch.system import visible_devices

if TYPE_CHECKING:
    from lorawatch.telemetry.driver import GpuDevice, GpuDriver
    from lorawatch.telemetry.opening import Attempt
    from lorawatch.telemetry.vendors import Vendor

_DRIVER_WAIT_S = 30.0
_TORCH_WAIT_S = 120.0
_BUSY_BYTES = 1 << 30

# Runs in a process of its own, so that the CLI holds no torch. It makes no CUDA context: a GPU may be in use, or full.
_ASK_TORCH = """
import json
import torch
import torch.distributed as dist
report = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None),
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available()}
try:
    report["available"] = torch.cuda.is_available()
    if report["available"]:
        report["count"] = torch.cuda.device_count()
        report["bf16"] = torch.cuda.is_bf16_supported()
        report["nccl_version"] = ".".join(map(str, torch.cuda.nccl.version()))
        report["archs"] = torch.cuda.get_arch_list()
except Exception as error:
    report["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(report))
"""


def gpus_and_torch() -> list[Check]:
    """The drivers, each GPU, torch, and what torch's ranks would talk through."""
    driver, checks = _drivers()
    if driver:
        advice = driver.vendor.when_lost
        checks += [Check("GPU", "warn", problem, advice) for problem in driver.problems]
        checks += [_gpu(device, driver.vendor) for device in driver.devices]
    return checks + _torch(driver)


def _drivers() -> tuple[GpuDriver | None, list[Check]]:
    """The driver that a run would use, and a word on each vendor's."""
    from lorawatch.telemetry import opening
    from lorawatch.telemetry.driver import DriverUnavailable
    from lorawatch.telemetry.vendors import AMD

    tried = opening.attempts(_DRIVER_WAIT_S)
    try:
        driver = opening.choose(tried)
    except DriverUnavailable:
        driver = None
    checks = [check for attempt in tried if (check := _driver(attempt, driver)) is not None]
    if AMD not in [attempt.vendor for attempt in tried] and AMD.present():
        words = "AMD GPUs are not sampled: lorawatch takes those of one vendor, NVIDIA's first"
        checks.append(Check(AMD.driver_name, "info", words))
    return driver, checks


def _driver(attempt: Attempt, used: GpuDriver | None) -> Check | None:
    """What one vendor's driver answers; None where its absence is nothing to speak of."""
    from lorawatch.telemetry.vendors import NVIDIA

    vendor, driver, failure = attempt.vendor, attempt.driver, attempt.failure
    name = vendor.driver_name
    if driver is None:
        reason = failure.reason if failure else "not asked"
        hint = failure.hint if failure else None
        present, installed = vendor.present(), failure is None or failure.installed
        if vendor is not NVIDIA and not installed:  # its package is an extra
            return Check(name, "info", reason, hint) if present else None
        if present or not installed:
            return Check(name, "warn", reason, hint)
        # without any GPU of the vendor a missing driver is no fault
        return Check(name, "info", f"{reason}; runs use the CPU" if used is None else reason)
    if not driver.devices and not driver.problems:
        return Check(name, "warn", f"{driver.words()}; it lists no GPU", "in a container, pass the GPUs in")
    if vendor.untried:
        advice = f"compare power and energy with {vendor.tool} before you publish figures"
        return Check(name, "warn", f"{driver.words()}; {vendor.untried}", advice)
    return Check(name, "ok", driver.words())


def _gpu(device: GpuDevice, vendor: Vendor) -> Check:
    from lorawatch.telemetry.driver import GpuLost

    name = f"GPU {device.index}"
    try:
        facts, total = device.facts(), device.memory_total()
        processes = device.processes() or ()
    except GpuLost as lost:
        return Check(name, "warn", f"{device.sku}: {lost.reason}", vendor.when_lost)
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
            advice.append(f"slower than the card sold: its default limit is {default:.0f} W ({vendor.set_power_limit})")
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


def _torch(driver: GpuDriver | None) -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", "fail", "not installed", f"{sys.executable} -m pip install torch")]
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TORCH_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        tool = driver.vendor.tool if driver else "nvidia-smi"
        return [Check("torch", "fail", f"did not load within {_TORCH_WAIT_S:.0f} s", f"does {tool} answer?")]
    try:
        report: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        return [Check("torch", "fail", f"does not load: {last}", "reinstall it in this environment")]
    return [_torch_itself(report, driver), _collectives(report, driver)]


def _torch_itself(report: dict[str, Any], driver: GpuDriver | None) -> Check:
    build = f"CUDA {report['cuda']}" if report["cuda"] else f"ROCm {report['hip']}" if report["hip"] else "CPU only"
    gpu_build = report["cuda"] or report["hip"]
    words = f"{report['version']}, built for {build}" if gpu_build else f"{report['version']}, {build}"
    gpus = len(driver.devices) if driver else 0
    if report.get("error"):
        return Check("torch", "fail", f"{words}; the GPU fails: {report['error']}", "another torch build may suit it")
    if report.get("available"):
        words += f", uses {report['count']} of {gpus} GPUs, bf16 {'yes' if report['bf16'] else 'no'}"
        strange = _without_kernels(report["archs"], driver)
        if strange:
            return Check(
                "torch",
                "fail",
                f"{words}; it has no kernels for {', '.join(strange)}",
                "install a torch build that is made for these GPUs",
            )
        return Check("torch", "ok", words)
    if driver is None or not gpus:
        return Check("torch", "ok", words)
    vendor = driver.vendor
    if not (report["cuda"] if vendor.torch_build == "CUDA" else report["hip"]):
        advice = f"install a {vendor.torch_build} build of torch"
        return Check("torch", "fail", f"{words}: it cannot use the GPUs here", advice)
    if driver.cuda_version and _newer(report["cuda"], driver.cuda_version):
        return Check(
            "torch",
            "fail",
            f"{words}, newer than the driver can run (CUDA {driver.cuda_version})",
            "update the driver, or install a torch built for an older CUDA",
        )
    advice = f"is {visible_devices.names(vendor.key)} empty? {vendor.access}"
    return Check("torch", "fail", f"{words}, but finds no GPU", advice)


def _collectives(report: dict[str, Any], driver: GpuDriver | None) -> Check:
    have = [
        name
        for name, there in (
            (f"NCCL {report['nccl_version']}" if report.get("nccl_version") else "NCCL", report["nccl"]),
            ("gloo", report["gloo"]),
        )
        if there
    ]
    words = " and ".join(have) or "none"
    if driver and len(driver.devices) > 1 and not report["nccl"]:
        advice = f"several GPUs need NCCL: install a {driver.vendor.torch_build} build of torch for Linux"
        return Check("collectives", "fail", words, advice)
    if not have:
        return Check("collectives", "fail", "torch has neither NCCL nor gloo", "install a torch with distributed")
    return Check("collectives", "ok", words)


def _without_kernels(archs: list[str], driver: GpuDriver | None) -> list[str]:
    """Models that a torch build brings no code for."""
    strange = []
    for device in driver.devices if driver else ():
        architecture = device.architecture()
        if architecture is not None and not _has_kernels(archs, architecture):
            capability = re.fullmatch(r"sm_(\d+)(\d)", architecture)
            words = f"compute capability {capability[1]}.{capability[2]}" if capability else architecture
            strange.append(f"{device.sku} ({words})")
    return list(dict.fromkeys(strange))


def _has_kernels(archs: list[str], architecture: str) -> bool:
    """Whether torch's list (`sm_90`, `compute_90`, `gfx942`) has code that runs on an architecture.

    CUDA's machine code runs on later minor versions of its major one, PTX (`compute_90`) on everything later; AMD's on
    its own architecture, whose name features may follow (`gfx90a:xnack-`). True where the list has none of the kind.
    """
    if architecture.startswith("gfx"):
        of_kind = [a.partition(":")[0] for a in archs if a.startswith("gfx")]
        return architecture in of_kind or not of_kind
    able = re.fullmatch(r"sm_(\d+)(\d)", architecture)
    parsed = [(m[1], (int(m[2]), int(m[3]))) for a in archs if (m := re.match(r"(sm|compute)_(\d+)(\d)", a))]
    if able is None or not parsed:
        return True
    version = (int(able[1]), int(able[2]))
    return any(code <= version and (kind == "compute" or code[0] == version[0]) for kind, code in parsed)


def _newer(one: str, other: str) -> bool:
    """Whether a CUDA version's major number is above another's; minor versions are compatible within it."""
    numbers = [re.match(r"\d+", text) for text in (one, other)]
    return bool(numbers[0] and numbers[1] and int(numbers[0][0]) > int(numbers[1][0]))
