"""GPU models as sold: memory, power, BF16 peak, and their other names, from `assets/skus.yaml`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources

_OF_THE_BOX = 0.994  # H100, H200, RTX PRO 6000, 4090 and 5090 report 0.995 to 0.9995 of it
_MAKERS = re.compile(r"^(?:(?:nvidia|geforce|tesla) )+")


@dataclass(frozen=True)
class Sku:
    """A GPU model as sold.

    Attributes:
        sku: Its short name: `RTX PRO 4500`, `H100 SXM`.
        names: The driver's names of the device; beginnings of them where they end in `*`.
        memory_gb: The advertised size.
        power_limit_w: Default board power, watts.
        bf16_dense_tflops: Dense BF16 tensor-core peak with FP32 accumulation, TFLOP/s; None where no document prints it, or
            the card has no BF16.
        source: The document the peak is from, or why there is none.
        memory_mib: The driver's total; None where it is not known.
        bf16: Whether it computes in BF16.
        fp8: Whether it computes in FP8.
        also: Other ways in which people and published tables write it.
    """

    sku: str
    names: tuple[str, ...]
    memory_gb: int
    power_limit_w: float
    bf16_dense_tflops: float | None
    source: str
    also: tuple[str, ...] = ()
    memory_mib: int | None = None
    bf16: bool = True
    fp8: bool = True

    @property
    def memory_total_bytes(self) -> int:
        """The total that the driver reports; where it is not known, a little less than the advertised size, as is usual."""
        return (self.memory_mib or int(self.memory_gb * 1024 * _OF_THE_BOX)) << 20


@functools.cache
def all_skus() -> tuple[Sku, ...]:
    """Every known model, in the file's order: newest family first."""
    import yaml  # only where a GPU model is looked up

    text = (resources.files("lorawatch.assets") / "skus.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    return tuple(
        Sku(
            sku=entry["sku"],
            names=tuple(entry["names"]),
            memory_gb=entry["memory_gb"],
            power_limit_w=float(entry["power_limit_w"]),
            bf16_dense_tflops=_number(entry.get("bf16_dense_tflops")),
            source=entry["source"],
            also=tuple(entry.get("also", ())),
            memory_mib=entry.get("memory_mib"),
            bf16=entry.get("bf16", True),
            fp8=entry.get("fp8", True),
        )
        for entry in yaml.load(text, Loader=loader)  # noqa: S506  a safe loader, and a file of our own
    )


def find_sku(name: str) -> Sku | None:
    """The model of a name; None for a name that is not in the table, or that fits several models (`H100`).

    Args:
        name: As the driver names the device, or as users and published tables write it; read without regard to case, hyphens
            and a leading NVIDIA, GeForce or Tesla.
    """
    exact, beginnings = _index()
    key = spelling(name)
    if key in exact:
        return exact[key]
    for beginning, sku in beginnings:
        if key.startswith(beginning):
            return sku
    return None


def short_name(name: str) -> str:
    """A model's short name, by which measured and published rows meet; the name itself where it is not in the table."""
    known = find_sku(name)
    return name if known is None else known.sku


def bf16_dense_peak(sku: str) -> float | None:
    """A GPU model's dense BF16 peak, FLOP/s; None where it is not in the table.

    Args:
        sku: As the driver names it: `NVIDIA H100 80GB HBM3`.
    """
    known = find_sku(sku)
    return None if known is None or known.bf16_dense_tflops is None else known.bf16_dense_tflops * 1e12


def spelling(name: str) -> str:
    """A name in the form in which names are compared: `NVIDIA A100-SXM4-80GB` and `a100 sxm4 80 GB` are the same."""
    words = " ".join(re.sub(r"[-_‐–]|[™®]", " ", name.casefold()).split())
    return re.sub(r"(\d) gb\b", r"\1gb", _MAKERS.sub("", words))


@functools.cache
def _index() -> tuple[dict[str, Sku], list[tuple[str, Sku]]]:
    """Whole names, and beginnings of names, the longest first."""
    exact: dict[str, Sku] = {}
    beginnings: list[tuple[str, Sku]] = []
    for sku in all_skus():
        for name in (sku.sku, *sku.names, *sku.also):
            if name.endswith("*"):
                beginnings.append((spelling(name[:-1]), sku))
            else:
                exact[spelling(name)] = sku
    return exact, sorted(beginnings, key=lambda pair: len(pair[0]), reverse=True)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
