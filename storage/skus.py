"""Peaks of GPU models, from `assets/skus.yaml`."""

from __future__ import annotations

from importlib import resources


def bf16_dense_peak(sku: str) -> float | None:
    """A GPU model's dense BF16 peak, FLOP/s; None where it is not in the table.

    Args:
        sku: As NVML names it: `NVIDIA H100 80GB HBM3`.
    """
    import yaml  # only where a run ends

    table = yaml.safe_load((resources.files("lorawatch.assets") / "skus.yaml").read_text(encoding="utf-8"))
    for entry in table:
        for name in entry["names"]:
            if sku == name or (name.endswith("*") and sku.startswith(name[:-1])):
                return float(entry["bf16_dense_tflops"]) * 1e12
    return None
