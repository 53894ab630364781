"""The variables by which CUDA and ROCm choose the GPUs that a process sees: the only place that names them.

CUDA reads CUDA_VISIBLE_DEVICES. On AMD cards ROCm first keeps the devices of ROCR_VISIBLE_DEVICES (indices or UUIDs);
HIP then numbers those from 0 and keeps the ones of HIP_VISIBLE_DEVICES, or of CUDA_VISIBLE_DEVICES where that is not set
(https://rocm.docs.amd.com, "GPU isolation techniques"). AMD advises ROCR_VISIBLE_DEVICES on Linux.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

NVIDIA = "nvidia"
AMD = "amd"

_CUDA = "CUDA_VISIBLE_DEVICES"
_HIP = "HIP_VISIBLE_DEVICES"
_ROCR = "ROCR_VISIBLE_DEVICES"
_ALL = (_CUDA, _HIP, _ROCR)
_WITHOUT_UUID = "AMD-"


def numbered(index: int) -> str:
    """What an AMD GPU without a UUID is known by: its index is all that ROCm takes for it."""
    return f"{_WITHOUT_UUID}{index}"


def showing(vendor: str, uuids: Sequence[str]) -> dict[str, str]:
    """Variables that make a process see exactly these GPUs, in this order.

    They go over the environment that the process gets: what a user chose there is in the list already.

    Args:
        vendor: `nvidia` or `amd`, as `Gpu.vendor`.
        uuids: As `Gpu.gpu_uuid`. By UUID, since CUDA's own numbering follows speed and the drivers' the PCI bus.
    """
    if vendor == AMD:
        # HIP's own list would pick from ROCm's, and CUDA's stands for HIP's: both are numbers from here on
        numbers = ",".join(str(i) for i in range(len(uuids)))
        return {_ROCR: ",".join(u.removeprefix(_WITHOUT_UUID) for u in uuids), _HIP: numbers}
    return {_CUDA: ",".join(uuids)}


def hiding() -> dict[str, str]:
    """Variables that hide every GPU of every vendor from a process."""
    return dict.fromkeys(_ALL, "")


def chosen(environment: Mapping[str, str]) -> bool:
    """Whether the user, or a scheduler, has chosen devices."""
    return any(name in environment for name in _ALL)


def words(environment: Mapping[str, str]) -> str:
    """What is chosen, for a message: `CUDA_VISIBLE_DEVICES is '0,1'`."""
    there = [f"{name} is {environment[name]!r}" for name in _ALL if name in environment]
    return ", ".join(there) or f"{_CUDA} is not set"


def names(vendor: str) -> str:
    """The variables that a vendor's runtime reads, for a message."""
    return f"{_ROCR} or {_HIP}" if vendor == AMD else _CUDA


def allowed(vendor: str, gpus: Sequence[tuple[int, str]], environment: Mapping[str, str]) -> list[int]:
    """Indices of the GPUs that an environment leaves, in its order; all where it chooses none.

    Args:
        gpus: Index and UUID of each GPU of the host, by index.
    """
    if vendor != AMD:
        return [index for index, _ in _kept(environment.get(_CUDA), [(str(i), (i, uuid)) for i, uuid in gpus])]
    first, second = environment.get(_ROCR), environment.get(_HIP, environment.get(_CUDA))
    # ROCm takes a UUID's digits in either case
    left = _kept(first and first.lower(), [(str(i), (i, uuid.lower())) for i, uuid in gpus])
    second = second and second.lower()
    return [index for index, _ in _kept(second, [(str(place), gpu) for place, gpu in enumerate(left)])]


def keep_one(environment: MutableMapping[str, str], place: int) -> None:
    """Leave a process one GPU of those that it would see.

    Args:
        place: Which of them, from 0; none where there are fewer.
    """
    variables = [_CUDA]
    if _HIP in environment or _ROCR in environment:
        variables.append(_HIP)  # it goes before CUDA's, and torch counts by it where ROCm's is set
    for name in variables:
        if name not in environment:
            environment[name] = str(place)
            continue
        listed = [word.strip() for word in environment[name].split(",")]
        environment[name] = listed[place] if place < len(listed) else ""


def _kept(text: str | None, gpus: Sequence[tuple[str, tuple[int, str]]]) -> list[tuple[int, str]]:
    """The GPUs that a list of numbers and (beginnings of) UUIDs leaves.

    Args:
        gpus: The number that names each, and the GPU itself.
    """
    if text is None:
        return [gpu for _, gpu in gpus]
    kept: list[tuple[int, str]] = []
    for word in (w.strip() for w in text.split(",")):
        match = [gpu for number, gpu in gpus if word == number or (len(word) > 4 and gpu[1].startswith(word))]
        if not match:
            break  # both runtimes stop at the first name that they do not know
        kept += match
    return kept
