"""Checks that a device supports a recipe's `model.quantization`, before any weight is loaded."""

from __future__ import annotations

import importlib.metadata
import re

import torch

from lorawatch.errors import MissingDependency, NoSuitableGpu
from lorawatch.recipe.schema import Recipe
from lorawatch.training import fp8

FP8_FROM = (8, 9)
"""The first CUDA compute capability whose tensor cores multiply FP8: Ada's."""
NF4_PACKAGE = "pip install 'lorawatch[qlora]'"
NF4_FROM = (0, 49)
"""The first version of bitsandbytes that is known to work. Some earlier versions end the process on a CPU."""


def check(recipe: Recipe, device: torch.device) -> None:
    """Check that a device supports a recipe's `model.quantization`.

    Args:
        recipe: The run's.
        device: This rank's.

    Raises:
        NoSuitableGpu: It does not; the message says why, and which GPUs do.
        MissingDependency: A package is missing, or does not work on this device.
    """
    if recipe.model.quantization == "fp8":
        _check_fp8(device)
    elif recipe.model.quantization == "nf4":
        _check_nf4(device)


def _check_fp8(device: torch.device) -> None:
    otherwise = "set model.quantization to none, or to nf4 to save memory"
    if device.type != "cuda":
        raise NoSuitableGpu(
            "model.quantization is fp8, which only GPUs compute with; this run is on the CPU", hint=otherwise
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_FROM:
        raise NoSuitableGpu(
            f"model.quantization is fp8, and {torch.cuda.get_device_name(device)} has no FP8 arithmetic (compute capability "
            f"{capability[0]}.{capability[1]}; it begins with {FP8_FROM[0]}.{FP8_FROM[1]}: Ada, Hopper, Blackwell)",
            hint=otherwise,
        )
    try:
        fp8.check(device)
    except RuntimeError as error:
        raise NoSuitableGpu(
            f"model.quantization is fp8, but torch {torch.__version__} cannot multiply its rows on "
            f"{torch.cuda.get_device_name(device)}: {str(error).splitlines()[0][:200]}",
            hint=f"a newer torch may; otherwise {otherwise}",
        ) from error


def _check_nf4(device: torch.device) -> None:
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependency(
            "model.quantization is nf4, which the package bitsandbytes computes, and that is not installed",
            hint=NF4_PACKAGE,
        ) from None
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < NF4_FROM:
        least = ".".join(map(str, NF4_FROM))
        raise MissingDependency(
            f"model.quantization is nf4, and bitsandbytes {version} is older than {least}",
            hint=f"{NF4_PACKAGE} --upgrade",
        )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    try:
        from bitsandbytes.nn import Params4bit

        # This loads the library for torch's CUDA version and runs a kernel.
        Params4bit(torch.ones(64, 64), requires_grad=False, quant_type="nf4").to(device).cpu()
    except Exception as error:  # it can fail in many ways, at its import or at the first kernel
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise MissingDependency(
            f"model.quantization is nf4, but bitsandbytes {version} does not work on {where} with torch "
            f"{torch.__version__}: {words[:200]}",
            hint=f"another version may: {NF4_PACKAGE} --upgrade; python -m bitsandbytes shows what is wrong",
        ) from error
