"""The shape of a Llama-like model and of its LoRA adapters: all sizes, computed without weights or libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
MLP_INPUTS = ("gate_proj", "up_proj")
LINEARS = (*ATTENTION_INPUTS, "o_proj", *MLP_INPUTS, "down_proj")
"""A layer's linear layers in the order in which they are computed."""

# Model types of transformers whose layers are computed alike: RMSNorm, rotary embedding, grouped attention, gated SiLU.
_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama family.

    Attributes:
        vocabulary: Token ids.
        hidden: Width of the residual stream.
        intermediate: Width inside the MLP.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_size: Width of a head.
        tied: The output head is the embedding table.
        qkv_bias: q, k and v have biases.
        output_bias: o has a bias.
        mlp_bias: gate, up and down have biases.
        qk_norm: Queries and keys are normalised head by head.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape in a transformers config (config.json, or an entry of assets/models.yaml).

        Raises:
            ValueError: A model of another family, or a field that is missing or not a whole number; the message names it.
        """
        kind = config.get("model_type")
        if kind not in _TYPES:
            raise ValueError(f"model_type {kind!r} is none of {', '.join(_TYPES)}")

        def number(name: str, default: int | None = None) -> int:
            value = config.get(name)
            value = default if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, not a whole number")
            return value

        hidden, heads = number("hidden_size"), number("num_attention_heads")
        bias = bool(config.get("attention_bias", False))
        return cls(
            vocabulary=number("vocab_size"),
            hidden=hidden,
            intermediate=number("intermediate_size"),
            layers=number("num_hidden_layers"),
            heads=heads,
            kv_heads=number("num_key_value_heads", heads),
            # Qwen3's default is 128.
            head_size=number("head_dim", 128 if kind == "qwen3" else hidden // heads),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias and kind != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
        )

    @property
    def query_width(self) -> int:
        """Width of the queries, and of attention's output."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_size

    def linear(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of one of a layer's linear layers.

        Raises:
            KeyError: No layer has it.
        """
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }[name]

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer."""
        total = sum(inputs * outputs for inputs, outputs in map(self.linear, LINEARS)) + 2 * self.hidden
        if self.qkv_bias:
            total += self.query_width + 2 * self.kv_width
        total += self.hidden * self.output_bias
        if self.mlp_bias:
            total += 2 * self.intermediate + self.hidden
        if self.qk_norm:
            total += 2 * self.head_size
        return total

    @property
    def parameters(self) -> int:
        """Weights of the model; a tied table counts once."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + self.layers * self.layer_parameters + self.hidden


@dataclass(frozen=True)
class LoraShape:
    """The adapters.

    Attributes:
        rank: Their rank.
        targets: The linear layers that have an adapter, in every decoder layer: names from `LINEARS`.
        dropout: Share of the adapter's input that is dropped.
        use_dora: Whether each output has a learned magnitude.

    Raises:
        ValueError: A target that is not a linear layer of a Llama-like model.
    """

    rank: int
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    use_dora: bool = False

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in LINEARS:
                raise ValueError(f"{target!r} is none of {', '.join(LINEARS)}")

    def parameters(self, shape: ModelShape) -> int:
        """Weights of all adapters."""
        on = [shape.linear(name) for name in set(self.targets)]
        magnitudes = sum(outputs for _, outputs in on) if self.use_dora else 0
        return shape.layers * (sum(self.rank * (inputs + outputs) for inputs, outputs in on) + magnitudes)
