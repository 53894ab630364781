"""The recipe: the YAML file that describes a run, as typed structs with errors that say what to write instead.

Each key says at its field what it means for two runs, by one of `Work`, `Fixed` and `Free`; `recipe/identity.py` reads that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from lorawatch.recipe.yaml_text import write_yaml

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Strategy = Literal["ddp", "separate"]

_T = TypeVar("_T")
Work = Annotated[_T, msgspec.Meta(extra={"work": True, "resume": False})]
"""A key that decides what a step computes, and so how fast it can be: equal in runs whose tok/s are compared."""
Fixed = Annotated[_T, msgspec.Meta(extra={"work": False, "resume": False})]
"""A key with which a step computes as much, whatever its value; a resume keeps it, or it would be another run that goes on."""
Free = Annotated[_T, msgspec.Meta(extra={"work": False, "resume": True})]
"""A key that a resume may change: how long a run goes on, how often it is saved, evaluated on what, where, how watched."""


class _Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A mapping of the recipe."""


class Model(_Section):
    """Which model is tuned."""

    name: Work[str]
    """A hub id, a local folder, or a `.gguf` file."""
    weights: Fixed[Literal["pretrained", "random"]] = "pretrained"
    """`random` builds the architecture from its shape alone: no download, the same kernels."""
    dtype: Work[Literal["bfloat16", "float16", "float32"]] = "bfloat16"
    """Number format of the frozen base weights."""
    quantization: Work[Literal["none", "fp8", "nf4"]] = "none"
    """How the frozen linear layers of the decoder are kept: `fp8` for speed (Ada, Hopper, Blackwell), `nf4` for memory
    (QLoRA, a quarter of bfloat16; needs lorawatch[qlora]), `none` as `dtype` says."""


class Lora(_Section):
    """The adapter; its weights are FP32."""

    rank: Work[Positive] = 16
    alpha: Fixed[Annotated[float, msgspec.Meta(gt=0)]] = 32
    dropout: Work[Fraction] = 0.0
    targets: Work[Annotated[list[str], msgspec.Meta(min_length=1)] | Literal["all-linear"]] = msgspec.field(
        default_factory=lambda: ["q_proj", "v_proj"]
    )
    """Names of the linear layers that get an adapter; `all-linear`: all of them but the output head."""
    use_rslora: Work[bool] = False
    """Scale by alpha / √rank instead of alpha / rank, so that a large rank learns as fast as a small one."""
    use_dora: Work[bool] = False
    """A learned magnitude for each output beside the adapter's direction: closer to full tuning, slower steps, more memory."""


class Data(_Section):
    """What the model is tuned on."""

    source: Work[str] = "synthetic"
    """`synthetic` (random tokens, full length), `demo` (the bundled chat data set), a .jsonl/.json/.parquet/.csv/.txt
    file, or a hub id."""
    split: Work[str] = "train"
    """Of a hub data set."""
    sequence_length: Work[Annotated[int, msgspec.Meta(ge=2)]] = 512
    """Longer examples are cut; shorter ones are padded to the longest of their batch, and to this with `train.engine: fast`."""
    packing: Work[bool] = False
    """Several examples fill a row of exactly `sequence_length`, with attention kept inside each: next to no padding. Random
    tokens are full rows already, and rows to evaluate on stay as they are."""
    eval_share: Fixed[Fraction] = 0.0
    """Share of the rows of `source` that is held out: drawn by `train.seed`, never trained on, evaluated on."""
    eval_source: Free[str | None] = None
    """Rows to evaluate on, in the forms of `source`, in place of a share of its rows."""
    eval_split: Free[str | None] = None
    """Of a hub data set to evaluate on: `eval_source`, or `source` where that is null; null: as `split`."""

    @property
    def evaluates(self) -> bool:
        """Whether there are rows to evaluate on."""
        return bool(self.eval_share or self.eval_source or self.eval_split)


class Train(_Section):
    """How it is tuned."""

    steps: Free[Positive | None] = 60
    """Optimizer steps; None: as many as `epochs` takes."""
    epochs: Free[Annotated[float, msgspec.Meta(gt=0)]] = 1.0
    """Used when `steps` is null."""
    batch_size_per_gpu: Work[Positive] = 2
    gradient_accumulation: Work[Positive] = 1
    learning_rate: Fixed[Annotated[float, msgspec.Meta(gt=0)]] = 2.0e-4
    schedule: Fixed[Literal["linear", "cosine", "constant"]] = "linear"
    warmup_steps: Fixed[NotNegative] = 0
    max_grad_norm: Fixed[Annotated[float, msgspec.Meta(ge=0)]] = 1.0
    """0 turns clipping off."""
    gradient_checkpointing: Work[bool] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_every: Free[Positive | None] = None
    """Steps between two checkpoints, from which a run can be resumed; null: only at a stop or on request. Ranks that
    train separately have none."""
    keep_checkpoints: Free[Positive] = 2
    """How many stay: the newest."""
    on_nan: Free[Literal["stop", "continue"]] = "stop"
    """A loss that is no finite number: `stop` ends the run and keeps the last good checkpoint; `continue` only warns."""
    eval_every: Free[Positive | None] = None
    """Steps between two evaluations, and one at the end, where `data` has rows for it; null: only at the end. The adapter
    with the lowest loss is kept beside the last. Ranks that train separately evaluate each its own, and rank 0's counts."""
    engine: Work[Literal["reference", "fast"]] = "reference"
    """`reference`: transformers' Trainer as everybody runs it. `fast`: the same training with its step compiled, and one
    CUDA graph on a GPU; every row is padded to `data.sequence_length`, and tokens count that padding."""
    seed: Fixed[NotNegative] = 0


class Launch(_Section):
    """Where it runs."""

    gpus: Free[str | int | list[int]] = "all"
    """`all`, indices (`0,2` or [0, 2]), or `cpu:N` for N ranks on the CPU."""
    strategy: Fixed[Strategy] = "ddp"
    """`ddp`: the ranks train one model together; `separate`: each trains its own at the same time, without a word between
    them, which shows what the coupling costs. Rank 0's adapter is kept."""
    p2p: Fixed[Literal["auto", "direct", "host"]] = "auto"
    """The way of the gradients. `direct`: from GPU to GPU, over NVLink or PCIe, as NCCL chooses; `host`: through the host's
    memory (NCCL_P2P_DISABLE), which lets NVLink sleep and leaves its power to the GPUs; `auto`: `host` for two GPUs with
    NVLink and PCIe 5 under the fast engine whose steps are long beside that way, else `direct`. NCCL_P2P_DISABLE in the
    environment goes first."""
    max_restarts: Free[NotNegative] = 0
    hang_timeout_s: Free[Annotated[float, msgspec.Meta(ge=0)]] = 300
    """A run whose ranks take no step for this long (and for 10 of its usual steps) is ended; 0 never ends it. A warning
    and the ranks' stacks come much earlier."""


class Measure(_Section):
    """What counts as measured."""

    exclude_steps: Free[NotNegative] = 1
    """Warm-up steps at the start of each attempt, outside every figure."""
    sample_hz: Free[Annotated[float, msgspec.Meta(ge=0.5, le=10)]] = 5.0
    """Rate of the fast telemetry lane."""


class Recipe(_Section):
    """A whole recipe."""

    model: Model
    name: Fixed[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]] = "run"
    lora: Lora = msgspec.field(default_factory=Lora)
    data: Data = msgspec.field(default_factory=Data)
    train: Train = msgspec.field(default_factory=Train)
    launch: Launch = msgspec.field(default_factory=Launch)
    measure: Measure = msgspec.field(default_factory=Measure)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as run.json and the history keep it."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result

    def to_yaml(self) -> str:
        """The recipe as a file that `load` reads back."""
        data = self.to_dict()
        ordered = {"name": data.pop("name"), **data}
        return write_yaml(ordered)
