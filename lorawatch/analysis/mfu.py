"""Model FLOP/s utilisation."""

from __future__ import annotations

from lorawatch.analysis.throughput import per_gpu

# No training of a whole model has come near this; a higher figure means a wrong FLOP count or a wrong peak.
IMPLAUSIBLE = 0.75


def mfu(flops_per_token: float | None, tok_s_per_gpu: float | None, peak_flops: float | None) -> float | None:
    """Model FLOP/s used over the GPU's dense peak at that precision (PaLM, Chowdhery et al. 2022, appendix B).

    Args:
        flops_per_token: FLOP of one training token.
        tok_s_per_gpu: Tokens a second of one GPU.
        peak_flops: The GPU's dense peak, FLOP/s.

    Returns:
        0 to 1; None where one of the three is not known.
    """
    if not flops_per_token or tok_s_per_gpu is None or not peak_flops:
        return None
    return flops_per_token * tok_s_per_gpu / peak_flops


def run_mfu(
    flops_per_token: float | None, tok_s: float | None, count: int, dtype: str | None, peak_flops: float | None
) -> float | None:
    """The MFU of a run whose weights have a 16-bit format; None in any other, whose peak is another.

    Args:
        flops_per_token: FLOP of one training token.
        tok_s: Tokens a second of all GPUs together.
        count: GPUs that share them.
        dtype: The weights' format as torch names it.
        peak_flops: A GPU's dense peak at 16 bits, FLOP/s; None where there are several kinds of GPUs.
    """
    if str(dtype or "").removeprefix("torch.") not in ("bfloat16", "float16"):
        return None
    return mfu(flops_per_token, per_gpu(tok_s, count), peak_flops)


def plausible(value: float | None) -> bool | None:
    """Whether an MFU can be right; None for none."""
    return None if value is None else value <= IMPLAUSIBLE
