"""The table of GPU models: whole, plausible, and found by the names that drivers, people and published tables use."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from lorawatch.storage.skus import Sku, all_skus, bf16_dense_peak, find_sku, spelling

FIELDS = {
    "sku",
    "names",
    "also",
    "memory_gb",
    "memory_mib",
    "bf16",
    "fp8",
    "bf16_dense_tflops",
    "power_limit_w",
    "source",
}


def test_every_entry_is_complete_and_plausible() -> None:
    raw = yaml.safe_load((resources.files("lorawatch.assets") / "skus.yaml").read_text(encoding="utf-8"))
    assert len(raw) == len(all_skus()) >= 30
    for entry in raw:
        assert set(entry) <= FIELDS, entry["sku"]
    for sku in all_skus():
        assert isinstance(sku.sku, str), sku
        assert sku.sku == sku.sku.strip() != "", sku
        assert sku.names, sku
        assert all(isinstance(n, str) and n.startswith(("NVIDIA ", "Tesla ")) for n in sku.names), sku
        assert isinstance(sku.memory_gb, int), sku
        assert 16 <= sku.memory_gb <= 288, sku
        assert 0.93 * sku.memory_gb <= sku.memory_total_bytes / 2**30 <= sku.memory_gb, sku
        assert 50 <= sku.power_limit_w <= 1200, sku
        assert sku.bf16_dense_tflops is None or 50 <= sku.bf16_dense_tflops <= 2500, sku
        assert isinstance(sku.source, str), sku
        assert "NVIDIA" in sku.source, sku
        assert ("no BF16" in sku.source or "BF16 only" in sku.source or "no dense BF16" in sku.source) == (
            sku.bf16_dense_tflops is None
        ), "an entry without a peak says why"


def test_no_two_entries_share_a_name() -> None:
    owner: dict[str, str] = {}
    for sku in all_skus():
        for name in {spelling(n.rstrip("*")) for n in (sku.sku, *sku.names, *sku.also)}:
            assert owner.setdefault(name, sku.sku) == sku.sku, name


@pytest.mark.parametrize("sku", all_skus(), ids=lambda sku: sku.sku)
def test_every_name_finds_its_own_entry(sku: Sku) -> None:
    for name in (sku.sku, *(n.rstrip("*") for n in sku.names), *sku.also):
        for written in (name, name.upper(), name.lower(), name.removeprefix("NVIDIA "), f"NVIDIA {name}"):
            assert find_sku(written) is sku, written


@pytest.mark.parametrize(
    ("name", "sku"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Server Edition"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 4000 Blackwell SFF Edition", "RTX PRO 4000 SFF"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-32GB-LS", "V100 SXM2 32GB"),
        # as the published tables write them
        ("NVIDIA RTX PRO 4500 Workstation Edition", "RTX PRO 4500"),
        ("NVIDIA RTX PRO 6000 Server Edition", "RTX PRO 6000 Server Edition"),
        ("RTX PRO 6000 SE", "RTX PRO 6000 Server Edition"),
        ("a100-sxm4-80 GB", "A100 SXM 80GB"),
        # several models, or a part of one, or none of ours
        ("NVIDIA H100", None),
        ("A100", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("", None),
    ],
)
def test_the_most_specific_name_counts(name: str, sku: str | None) -> None:
    found = find_sku(name)
    assert (found and found.sku) == sku


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA B200", 2250),  # 36 PFLOPS of eight, with sparsity
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
        # FP32 accumulation: half of the headline on GeForce
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        # only AI TOPS are printed, or there is no BF16
        ("NVIDIA RTX PRO 4500 Blackwell", None),
        ("Tesla V100-SXM2-16GB", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_dense_bf16_with_fp32_accumulation(name: str, tflops: float | None) -> None:
    assert bf16_dense_peak(name) == (None if tflops is None else pytest.approx(tflops * 1e12))
