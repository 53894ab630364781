"""The fast engine: the reference engine's Trainer with a step that is compiled and, on a GPU, recorded as CUDA graphs.

Data order, loss, optimizer, schedule, checkpoints and metrics are the Trainer's own. Only the model's forward pass
differs, and every batch has one shape. The step is compiled before the first step, on a blank batch, so that no step's
time includes compiling. Where compiling fails on a rank, all ranks use the level that every rank reached.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from lorawatch.recipe.schema import Recipe
from lorawatch.run.records import EventKind, Severity
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.collator import Collator
from lorawatch.training.collectives import all_gather
from lorawatch.training.data import Item
from lorawatch.training.graph import GraphedLoss, Recorder, aliased_parameters, cuda_recorder
from lorawatch.training.observer import Observer
from lorawatch.training.packing import Packing, cumulative_lengths
from lorawatch.training.reduction import FlatAllReduce, OverlappedAllReduce
from lorawatch.training.regions import Regions
from lorawatch.training.split_backward import split_backward_if_equal, unsplit_backward

_PROGRESS_EVERY_S = 5.0


def trainer_arguments(cuda: bool) -> dict[str, Any]:
    """Arguments of the Trainer beside the reference engine's, so that the host never waits for the GPU.

    The loss is not read after every step, batches are copied while the GPU computes, and DDP does not exchange buffers,
    which never change.

    Args:
        cuda: Whether the rank trains on a GPU.
    """
    return {
        "logging_nan_inf_filter": False,
        "accelerator_config": {"non_blocking": cuda},
        "ddp_broadcast_buffers": False,
    }


class Level(IntEnum):
    """How far the step is compiled."""

    REFERENCE = 0
    COMPILED = 1
    GRAPH = 2


class StaticCollator(Collator):
    """Gives every batch the same shape: rows are padded to the sequence length, and a short last batch is filled with
    empty rows.

    There is no attention mask. Rows are padded on the right, where real positions of a causal model do not look, and
    padded positions have no label.

    Args:
        pad_id: Token id of padding.
        counts: Gets the counts; positions include the padding, which is computed.
        rows: Of every batch.
        length: Positions of every row.
        packing: How the rows are packed; batches then have `cu_seq_lens_q`, for as many documents as a batch can have.
            None: they are not packed.
    """

    def __init__(
        self, pad_id: int, counts: BatchCounts, rows: int, length: int, packing: Packing | None = None
    ) -> None:
        super().__init__(pad_id, counts, packing)
        self.shape = (rows, length)
        self.padding = True
        """False: batches are the reference engine's."""
        self.longest = packing.longest if packing is not None else None
        """Positions of the longest document; None: rows are not packed."""
        self._documents = packing.max_documents(rows) if packing is not None else 0

    def __call__(self, items: Sequence[Item]) -> Item:
        return self._count(self.static_batch(items), items) if self.padding else super().__call__(items)

    def without_counts(self) -> Self:
        """A collator of the reference engine's batches: batches that are not trained on are not compiled and need no
        fixed shape.
        """
        twin = super().without_counts()
        twin.padding = False
        return twin

    def static_batch(self, items: Sequence[Item]) -> Item:
        """A batch of this collator's shape, not counted.

        Returns:
            `input_ids` and `labels` of shape (rows, length), INT64. For packed rows also `position_ids` of that shape,
            INT64, and `cu_seq_lens_q` of shape (documents + 1,), INT32.
        """
        batch = self._fill(items, self.shape)
        if "position_ids" in batch:
            batch["cu_seq_lens_q"] = cumulative_lengths(batch["position_ids"], self._documents)
        return batch

    def blank_batch(self, document: int) -> Item:
        """A batch for compiling, as `static_batch`; its token ids are 0.

        Args:
            document: Positions of each document, where rows are packed.
        """
        length = self.shape[1]
        item = {"input_ids": torch.zeros(length, dtype=torch.long), "labels": torch.zeros(length, dtype=torch.long)}
        if self.longest is not None:
            item["position_ids"] = torch.arange(length) % min(document, self.longest)
        return self.static_batch([item] * self.shape[0])


@dataclass
class _BuildResult:
    """How far a rank compiled its step, sent to all ranks."""

    level: Level = Level.REFERENCE
    parts: int = 0
    """How many CUDA graphs a step is."""
    why: str = ""


class FastEngine(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Compiles the step when training begins. It must be the first of the Trainer's callbacks, so that nothing measures
    it.

    Args:
        recipe: What is trained.
        collator: The Trainer's.
        observer: Gets events and progress.
        record: Records a step; None: as CUDA graphs, where the device and the recipe allow it.
    """

    def __init__(
        self, recipe: Recipe, collator: StaticCollator, observer: Observer, record: Recorder | None = None
    ) -> None:
        self._recipe, self._collator, self._observer, self._record = recipe, collator, observer, record
        self._base: Any = None
        self._forward: Callable[..., Any] | None = None
        self._regions: Regions | None = None
        self._graphed: GraphedLoss | None = None
        self.level = Level.REFERENCE
        """The level that all ranks use."""
        self.compile_s: float | None = None
        """Seconds that compiling took, also where it failed."""
        self.all_reduce: FlatAllReduce | None = None
        """Averages the gradients over the ranks after a step's last backward pass; None: nothing is left to average
        there.
        """

    @property
    def averages_gradients(self) -> bool:
        """Whether the engine averages the gradients over the ranks in place of DDP."""
        return self.all_reduce is not None or (self._graphed is not None and self._graphed.all_reduce is not None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Compile, agree with all ranks on a level, and let training begin."""
        began = time.monotonic()
        self._base = model.get_base_model()
        self._forward = self._base.forward
        device = torch.device(args.device)
        model.train()
        built = self._build(model, device)
        ranks = all_gather(built)
        self.level = Level(min(rank.level for rank in ranks))
        if self.level < Level.GRAPH:
            self._graphed = None
        if self.level < Level.COMPILED:
            self._restore()
            self._collator.padding = False
        if self._graphed is not None and len(ranks) > 1:
            if min(rank.parts for rank in ranks) > 1:
                self._graphed.all_reduce = OverlappedAllReduce(len(ranks))
            else:
                self.all_reduce = FlatAllReduce((p for p in model.parameters() if p.requires_grad), len(ranks))
        if built.why and device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        self.compile_s = time.monotonic() - began
        self._emit_result(ranks)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the model, and free the graphs' memory."""
        self._graphed = self.all_reduce = None
        self._restore()

    def eager(self) -> contextlib.AbstractContextManager[Any]:
        """Run the model without compiled code within.

        For batches that are not trained on: they come without gradients, for which the layers would be compiled again.
        """
        return contextlib.nullcontext() if self.level == Level.REFERENCE else torch.compiler.set_stance("force_eager")

    def _build(self, model: Any, device: torch.device) -> _BuildResult:
        """Compile and record the step as far as possible. What a compiler or a driver raises is kept in the result."""
        built = _BuildResult()
        progress = _Progress(self._observer)
        cuda = device.type == "cuda"
        record = self._record or (cuda_recorder if cuda and self._can_use_graphs() else None)
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            self._regions = Regions(self._base, self._recipe.data.sequence_length, self._collator.longest)
            progress.show(str(self._regions))
            self._regions.compile()
            self._base.forward = self._loss_only
            batch = self._blank_batch(device, self._collator.shape[1] - 1)
            batches = [batch]
            if not self._regions.needs_no_mask and self._collator.longest is not None and record is None:
                # A batch whose rows are one document each gets no mask, and compiles to another program.
                batches.append(self._blank_batch(device, self._collator.shape[1]))
            with (
                torch.random.fork_rng([device] if cuda else []),
                _on_stream(torch.cuda.Stream(device) if cuda else None),  # type: ignore[no-untyped-call]
                aliased_parameters(model) as doubles,
            ):
                passes = unsplit_backward(model, doubles)
                for blank in 2 * batches:  # some errors appear only when compiled code runs a second time
                    passes(blank)
                built.level = Level.COMPILED
                if record is not None:
                    progress.show("recording the step")
                    # With accumulation the gradients are exchanged once, after the last batch, so a split has no use.
                    if self._observer.rank_info.model_world_size > 1 and self._recipe.train.gradient_accumulation == 1:
                        passes = split_backward_if_equal(model, self._regions, doubles, batch)
                    self._graphed = GraphedLoss(passes, batch, trained, record)
                    built.level, built.parts = Level.GRAPH, self._graphed.parts
        except Exception as error:  # noqa: BLE001  compilers and drivers raise errors of any kind
            traceback.print_exception(error)  # for the rank's log
            built.why = _error_summary(error)
        finally:
            progress.close()
            _stop_compile_workers()
        return built

    def _can_use_graphs(self) -> bool:
        """Whether a step can be a CUDA graph.

        It cannot where the backward pass reads random states, as gradient checkpointing does, nor where the loss is
        scaled before it, as FP16 does.
        """
        return not self._recipe.train.gradient_checkpointing and self._recipe.model.dtype != "float16"

    def _blank_batch(self, device: torch.device, document: int) -> dict[str, Tensor]:
        """A batch for compiling, as the Trainer hands it to the model.

        Args:
            device: The model's.
            document: Positions of each document, where rows are packed.

        Returns:
            As `StaticCollator.blank_batch`, on the device, with `num_items_in_batch` of shape (), INT64, where the
            model takes it.
        """
        batch = {name: value.to(device) for name, value in self._collator.blank_batch(document).items()}
        rows, length = self._collator.shape
        # The Trainer uses the same rule to decide whether the model divides its loss by this number.
        kinds = {p.kind for p in inspect.signature(type(self._base).forward).parameters.values()}
        if getattr(self._base, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds):
            batch["num_items_in_batch"] = torch.tensor(rows * (length - 1), device=device)
        return batch

    def _loss_only(self, **inputs: Any) -> Any:
        """The base model's forward. In training it returns only the loss: accelerate would copy the logits to FP32."""
        assert self._forward is not None
        if not (self._base.training and torch.is_grad_enabled()):
            return self._forward(**inputs)
        given = {name: value for name, value in inputs.items() if value is not None}
        if self._graphed is not None and self._graphed.accepts(given):
            return CausalLMOutputWithPast(loss=self._graphed(given))
        return CausalLMOutputWithPast(loss=self._forward(**inputs).loss)

    def _restore(self) -> None:
        if self._base is not None:
            self._base.__dict__.pop("forward", None)
        if self._regions is not None:
            self._regions.restore()

    def _emit_result(self, ranks: list[_BuildResult]) -> None:
        """Emit one event for all ranks; of a separate run, each rank emits its own."""
        rank_info = self._observer.rank_info
        if rank_info.rank != 0 and not rank_info.separate:
            return
        rank, worst = min(enumerate(ranks), key=lambda r: r[1].level)
        who = f"rank {rank_info.rank if rank_info.separate else rank}: {worst.why}"
        severity: Severity = "warning" if worst.why else "info"
        kind: EventKind = "engine_fallback"
        if self.level == Level.REFERENCE:
            words = f"the step does not compile ({who}): the reference engine trains"
        elif worst.why:
            words = f"the step is not a CUDA graph ({who}): its compiled layers run without one"
        else:
            kind, words = "compiled", f"{self._regions} compiled in {self.compile_s:.1f} s{self._graph_words()}"
        self._observer.emit_event(kind, words, severity)

    def _graph_words(self) -> str:
        """How a step is recorded, and how its gradients are averaged."""
        if self._graphed is None:
            return ""
        parts, size = self._graphed.parts, f"{self._graphed.bytes / 1e6:.2g} MB"
        words = ", the step is " + ("one CUDA graph" if parts == 1 else f"{parts} CUDA graphs")
        if self.all_reduce is not None:
            return f"{words} and one all-reduce of {size}"
        return (
            f"{words}, and most of its all-reduce of {size} is done during the last"
            if self.averages_gradients
            else words
        )


class _Progress:
    """Journals how long compiling has taken so far, every few seconds, from the observer's thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._began = self._told = time.monotonic()
        self._what = ""
        observer.watch(self._look)

    def show(self, what: str) -> None:
        self._what = what
        self._observer.phase("compiling", what)

    def close(self) -> None:
        self._observer.unwatch(self._look)

    def _look(self) -> None:
        now = time.monotonic()
        if self._what and now - self._told >= _PROGRESS_EVERY_S:
            self._told = now
            self._observer.phase("compiling", f"{self._what}, {now - self._began:.0f} s")


@contextlib.contextmanager
def _on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work on another stream, after what is queued on the current one and before what follows. None: nothing changes
    (on the CPU).
    """
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(stream.device).wait_stream(stream)


def _stop_compile_workers() -> None:
    """End the processes that compiled kernels. They would stay until the run ends."""
    with contextlib.suppress(Exception):
        from torch._inductor.async_compile import shutdown_compile_workers  # imported late: only this engine needs it

        shutdown_compile_workers()


def _error_summary(error: Exception) -> str:
    """A compiler's message without its advice on debugging."""
    words = " ".join(str(error).split("\n\n")[0].split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
