"""Attention inside each document of packed rows, with one shape for every batch, and a check that a model supports it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorawatch.errors import RecipeError

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, float | None], Tensor]
"""Takes queries, keys and values of shape (positions of all rows, heads, head size), cumulative lengths and the scale
of the scores; returns a tensor of the queries' shape.
"""
# Rounding changes logits by well under a hundredth of what another document in the same row does, in BF16 too.
_MAX_ORDER_DIFFERENCE = 0.2


def document_attention(longest: int, device: torch.device) -> Callable[..., tuple[Tensor, None]]:
    """Causal attention inside documents, as one of transformers' attention functions.

    The argument `cu_seq_lens_q` holds where documents begin in a batch's rows, taken end to end; transformers uses that
    name. A variable-length kernel skips the scores between documents. Without such a kernel a mask removes them.

    Args:
        longest: Positions of the longest document of any batch.
        device: The model's.

    Returns:
        A function of query, key and value, each of shape (rows, heads, positions, head size), floating point. It
        returns the output, of shape (rows, positions, heads, head size) and the value's dtype, and None in place of the
        scores.
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
        """Arguments, shapes and results as `document_attention` says; `cu_seq_lens_q` is INT32 of shape (documents + 1,)."""
        mask = None  # each row is one document
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
    """torch's variable-length attention; None on a device or in a torch that does not have it.

    Args:
        longest: Positions of the longest document of any batch.
        device: The model's.
    """
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch has it from version 2.10
        return None
    options: dict[str, Any] = {"window_size": (-1, 0)}
    # Newer versions need this option where several heads share keys and values; older ones do not have it.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True

    def kernel(query: Tensor, key: Tensor, value: Tensor, cumulative: Tensor, scale: float | None) -> Tensor:
        """As `Kernel`; `cumulative` is INT32 of shape (documents + 1,)."""
        output = varlen_attn(query, key, value, cumulative, cumulative, longest, longest, scale=scale, **options)
        assert isinstance(output, Tensor)
        return output

    return kernel


def _kernel_supports(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel supports these dtypes and head sizes (torch's flash_api.cpp).

    Args:
        query: Shape (rows, heads, positions, head size).
        value: Shape (rows, heads, positions, head size).
    """
    size = query.shape[-1]
    return value.dtype in (torch.float16, torch.bfloat16) and size == value.shape[-1] <= 256 and size % 8 == 0


def same_document_mask(cumulative: Tensor, rows: int, length: int) -> Tensor:
    """A causal mask in which a position sees only its own document.

    Args:
        cumulative: Where the documents begin in the rows, taken end to end, and last where the last document ends.
            INT32 of shape (documents + 1,).
        rows: Of the batch.
        length: Positions of each row.

    Returns:
        BOOL of shape (rows, 1, length, length), on the same device: whether a position (third axis) sees another
        (fourth).
    """
    place = torch.arange(rows * length, dtype=cumulative.dtype, device=cumulative.device)
    document = torch.bucketize(place, cumulative[1:], right=True).view(rows, 1, length)
    causal = torch.ones(length, length, dtype=torch.bool, device=cumulative.device).tril()
    return (document.unsqueeze(-1) == document.unsqueeze(-2)) & causal


def check_documents_separate(model: Any) -> None:
    """Check that a model computes the same for a document whatever other document is in its row.

    Some models ignore positions that start again at 0, and some carry a state from one document to the next. The check
    runs two documents in both orders. What rounding changes in the logits is compared with what the other document
    changes where nothing separates the two.

    Args:
        model: A PeftModel.

    Raises:
        RecipeError: The model does not keep documents separate, or takes no positions.
    """
    base = model.get_base_model()
    # With a cache transformers does not look for documents. The Trainer switches it off too.
    base.config.use_cache = base.config.get_text_config().use_cache = False
    one, other = torch.arange(7) * 5 + 11, torch.arange(9) * 7 + 2
    places = torch.arange(7), torch.arange(9)
    device = next(model.parameters()).device
    ids = torch.stack([torch.cat([one, other]), torch.cat([other, one])]) % base.config.get_text_config().vocab_size
    position_ids = torch.stack([torch.cat(places), torch.cat(places[::-1])])
    reason, was_training = "they see each other", model.training
    model.eval()
    try:
        with torch.no_grad():
            together = model(input_ids=ids.to(device)).logits.float()
            packed = model(input_ids=ids.to(device), position_ids=position_ids.to(device)).logits.float()
        if _order_difference(packed) <= _MAX_ORDER_DIFFERENCE * _order_difference(together):
            return
    except (TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    finally:
        model.train(was_training)
    raise RecipeError(
        f"data.packing is true, but {type(base).__name__} does not keep the documents of a row separate ({reason})",
        hint="set data.packing to false",
    )


def _order_difference(answers: Tensor) -> float:
    """How much the logits of two documents differ by which of them comes first: the largest absolute difference.

    Args:
        answers: Logits of both orders, shape (2, 16, vocabulary), FP32; the documents have 7 and 9 positions.
    """
    return max(
        float((a - b).abs().max()) for a, b in ((answers[0, 7:], answers[1, :9]), (answers[1, 9:], answers[0, :7]))
    )
