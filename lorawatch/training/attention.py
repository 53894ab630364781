"""Attention inside each document of packed rows, in one shape for every batch; and whether a model keeps them apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorawatch.errors import RecipeError

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, float | None], Tensor]
"""Queries, keys and values of (positions of all rows, heads, size of a head), cumulative lengths, scale; like the queries."""
# Rounding moves answers by well under a hundredth of what another document does, also in BF16.
_MAX_ORDER_DIFFERENCE = 0.2


def document_attention(longest: int, device: torch.device) -> Callable[..., tuple[Tensor, None]]:
    """Causal attention inside documents, as one of transformers' attention functions.

    It is told by `cu_seq_lens_q`, as transformers names it, where documents begin in a batch's rows, taken end to end.
    A variable-length kernel skips what lies between documents; where there is none, a mask shuts it out.

    Args:
        longest: Positions of the longest document of any batch.
        device: Where the model is.
    """
    kernel = variable_length_kernel(longest, device)

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        mask = None  # rows that are one document each
        if cu_seq_lens_q is not None:
            if kernel is not None and not dropout and _kernel_supports(query, value):
                q, k, v = (t.transpose(1, 2).flatten(0, 1).to(value.dtype) for t in (query, key, value))
                return kernel(q, k, v, cu_seq_lens_q, scaling).view(query.transpose(1, 2).shape), None
            mask = same_document_mask(cu_seq_lens_q, query.shape[0], query.shape[2])
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output

    return attend


def variable_length_kernel(longest: int, device: torch.device) -> Kernel | None:
    """torch's variable-length attention on a GPU that has it; None elsewhere."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # of torch 2.10
        return None
    options: dict[str, Any] = {"window_size": (-1, 0)}
    # Newer versions want to be told that several heads share keys and values, older ones take it as it is.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True

    def kernel(query: Tensor, key: Tensor, value: Tensor, cumulative: Tensor, scale: float | None) -> Tensor:
        found = varlen_attn(query, key, value, cumulative, cumulative, longest, longest, scale=scale, **options)
        assert isinstance(found, Tensor)
        return found

    return kernel


def _kernel_supports(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes tensors of this kind (torch's flash_api.cpp)."""
    size = query.shape[-1]
    return value.dtype in (torch.float16, torch.bfloat16) and size == value.shape[-1] <= 256 and size % 8 == 0


def same_document_mask(cumulative: Tensor, rows: int, length: int) -> Tensor:
    """Whether a position may look at another: an earlier one, or itself, of its own document.

    Args:
        cumulative: Where the documents begin in the rows, taken end to end; the last where the last one ends.

    Returns:
        Boolean of shape (rows, 1, length, length): the row, its position, the one looked at.
    """
    place = torch.arange(rows * length, dtype=cumulative.dtype, device=cumulative.device)
    document = torch.bucketize(place, cumulative[1:], right=True).view(rows, 1, length)
    causal = torch.ones(length, length, dtype=torch.bool, device=cumulative.device).tril()
    return (document.unsqueeze(-1) == document.unsqueeze(-2)) & causal


def check_documents_separate(model: Any) -> None:
    """See that a model keeps the documents of a packed row apart: each gets the same answer before and behind another.

    Models differ in what they make of positions that begin anew, and some carry a state on from one document to the next.
    What rounding makes of the answers is held against what the other document makes of them where nothing parts the two.

    Raises:
        RecipeError: It does not keep them apart, or takes no positions.
    """
    base = model.get_base_model()
    # With a cache transformers does not look for documents. The Trainer turns it off too.
    base.config.use_cache = base.config.get_text_config().use_cache = False
    one, other = torch.arange(7) * 5 + 11, torch.arange(9) * 7 + 2
    places = torch.arange(7), torch.arange(9)
    device = next(model.parameters()).device
    ids = torch.stack([torch.cat([one, other]), torch.cat([other, one])]) % base.config.get_text_config().vocab_size
    position_ids = torch.stack([torch.cat(places), torch.cat(places[::-1])])
    why, trained = "they see each other", model.training
    model.eval()
    try:
        with torch.no_grad():
            together = model(input_ids=ids.to(device)).logits.float()
            packed = model(input_ids=ids.to(device), position_ids=position_ids.to(device)).logits.float()
        if _order_difference(packed) <= _MAX_ORDER_DIFFERENCE * _order_difference(together):
            return
    except (TypeError, ValueError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    finally:
        model.train(trained)
    raise RecipeError(
        f"data.packing is true, but {type(base).__name__} does not keep the documents of a row apart ({why})",
        hint="set data.packing to false",
    )


def _order_difference(answers: Tensor) -> float:
    """How much the answers to both documents differ by which comes first."""
    return max(
        float((a - b).abs().max()) for a, b in ((answers[0, 7:], answers[1, :9]), (answers[1, 9:], answers[0, :7]))
    )
