"""Floating-point operations of LoRA fine-tuning."""

from __future__ import annotations


def lora_flops_per_token(
    matmul_parameters: int, lora_parameters: int, sequence_length: float, hidden_size: int, layers: int
) -> float:
    """FLOPs of one training token, forward and backward, with frozen base weights: 4·N_matmul + 6·N_lora + 6·s·d·L.

    A matrix product costs 2 FLOPs a weight forward and 2 for the gradient of its input; the 2 for the gradient of the
    weight are spent on adapters only. Attention scores and their product with the values cost 4·s·d a layer forward and
    twice that backward, halved by the causal mask. (Kaplan et al. 2020, appendix B, and the PaLM paper's appendix B,
    with the frozen weights' share left out.)

    Args:
        matmul_parameters: Weights of all linear layers, the output head included, embedding tables left out.
        lora_parameters: Weights of the adapters' matrices. DoRA's magnitudes, which are in no matrix product, and the
            norms that it computes in every forward pass do not count.
        sequence_length: Positions of a sequence, s.
        hidden_size: Width of attention, heads × head size, d.
        layers: Attention layers, L.

    Returns:
        FLOP a token: 30.46e9 for Llama-3.1-8B with rank 16 on q_proj and v_proj at 512 positions.
    """
    return 4.0 * matmul_parameters + 6.0 * lora_parameters + 6.0 * sequence_length * hidden_size * layers
