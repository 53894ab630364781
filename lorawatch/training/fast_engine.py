"""The fast engine: the reference engine's Trainer over a model whose step is compiled and, on a GPU, recorded as CUDA graphs.

Data order, loss, optimizer, schedule, checkpoints and metrics are the Trainer's own. What differs is inside the model's
forward pass, and that every batch has one shape. Compilation happens before the first step, on a blank batch, so that
no step has a part in it. Where it fails, on any rank, all ranks go on with what none has failed at.
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
from lorawatch.run.records import Severity
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.collectives import all_gather
from lorawatch.training.data import Collator, Item
from lorawatch.training.graph import GraphedLoss, Recorder, aliased_parameters, cuda_recorder
from lorawatch.training.observer import Observer
from lorawatch.training.packing import Packing, cumulative_lengths
from lorawatch.training.reduction import FlatAllReduce, OverlappedAllReduce
from lorawatch.training.regions import Regions
from lorawatch.training.split_backward import split_backward_if_equal, unsplit_backward

_PROGRESS_EVERY_S = 5.0


def trainer_arguments(cuda: bool) -> dict[str, Any]:
    """What the Trainer's arguments need beside the reference engine's, so that the host never waits for the GPU: no look
    at every loss, batches copied while the GPU computes, and no exchange of buffers, which never change."""
    return {
        "logging_nan_inf_filter": False,
        "accelerator_config": {"non_blocking": cuda},
        "ddp_broadcast_buffers": False,
    }


class Level(IntEnum):
    """How far the step was brought."""

    REFERENCE = 0
    COMPILED = 1
    GRAPH = 2


class StaticCollator(Collator):
    """Gives every batch the same shape: rows are padded to the sequence length, and a short last batch with empty rows.

    There is never an attention mask: rows are padded on the right, where a causal model's real positions do not look,
    and padded positions have no label.

    Args:
        pad_id: The id that fills up.
        counts: Where the counts go; positions include the padding, since they are computed.
        rows: Of every batch.
        length: Positions of every row.
        packing: How the rows were packed that are; a batch then says where documents begin, for as many as there can be.
    """

    def __init__(
        self, pad_id: int, counts: BatchCounts, rows: int, length: int, packing: Packing | None = None
    ) -> None:
        super().__init__(pad_id, counts, packing)
        self.shape = (rows, length)
        self.padding = True
        """False: batches as the reference engine has them."""
        self.longest = packing.longest if packing is not None else None
        """Positions of the longest document; None: rows are not packed."""
        self._documents = packing.max_documents(rows) if packing is not None else 0

    def __call__(self, items: Sequence[Item]) -> Item:
        return self._count(self.static_batch(items), items) if self.padding else super().__call__(items)

    def without_counts(self) -> Self:
        """As the reference engine's: what is not trained on is not compiled, so that its batches need no one shape."""
        twin = super().without_counts()
        twin.padding = False
        return twin

    def static_batch(self, items: Sequence[Item]) -> Item:
        """The batch of these rows, not counted."""
        batch = self._fill(items, self.shape)
        if "position_ids" in batch:
            batch["cu_seq_lens_q"] = cumulative_lengths(batch["position_ids"], self._documents)
        return batch

    def blank_batch(self, document: int) -> Item:
        """A batch of no particular tokens, in documents of so many positions where rows are packed."""
        length = self.shape[1]
        item = {"input_ids": torch.zeros(length, dtype=torch.long), "labels": torch.zeros(length, dtype=torch.long)}
        if self.longest is not None:
            item["position_ids"] = torch.arange(length) % min(document, self.longest)
        return self.static_batch([item] * self.shape[0])


@dataclass
class _BuildResult:
    """What a rank has made of the step, told to the others."""

    level: Level = Level.REFERENCE
    parts: int = 0
    """How many graphs a step is."""
    why: str = ""


class FastEngine(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Compiles the step when training begins; the first of the Trainer's callbacks, so that nothing measures it.

    Args:
        recipe: What is trained.
        collator: The Trainer's.
        observer: Tells what happens.
        record: How to record a step; None: as CUDA graphs where those can be had.
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
        """How far all ranks were brought."""
        self.compile_s: float | None = None
        """Seconds that compiling took, or failing to."""
        self.all_reduce: FlatAllReduce | None = None
        """What averages the gradients over the ranks behind a step's last backward pass; None: nothing is left to do there."""

    @property
    def averages_gradients(self) -> bool:
        """Whether the engine averages the gradients over the ranks, in DDP's place."""
        return self.all_reduce is not None or (self._graphed is not None and self._graphed.all_reduce is not None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Compile, hear how far all ranks got, and let training begin there."""
        began = time.monotonic()
        self._base = model.get_base_model()
        self._forward = self._base.forward
        device = torch.device(args.device)
        model.train()
        mine = self._build(model, device)
        ranks = all_gather(mine)
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
        if mine.why and device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        self.compile_s = time.monotonic() - began
        self._emit_result(ranks)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was, and give the graph's memory back."""
        self._graphed = self.all_reduce = None
        self._restore()

    def eager(self) -> contextlib.AbstractContextManager[Any]:
        """Within, the model runs as if nothing of it was compiled: for batches that are not trained on, which come without
        gradients and would be compiled anew."""
        return contextlib.nullcontext() if self.level == Level.REFERENCE else torch.compiler.set_stance("force_eager")

    def _build(self, model: Any, device: torch.device) -> _BuildResult:
        """Bring the step as far as it goes; never raises for what a compiler or a driver does."""
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
                # A batch whose rows are one document each gets no mask, which is another program.
                batches.append(self._blank_batch(device, self._collator.shape[1]))
            with (
                torch.random.fork_rng([device] if cuda else []),
                _on_stream(torch.cuda.Stream(device) if cuda else None),  # type: ignore[no-untyped-call]
                aliased_parameters(model) as doubles,
            ):
                passes = unsplit_backward(model, doubles)
                for blank_batch in 2 * batches:  # the second call finds what only shows when compiled code runs again
                    passes(blank_batch)
                built.level = Level.COMPILED
                if record is not None:
                    progress.show("recording the step")
                    # Where batches are accumulated, what goes between the ranks is there with the last of them.
                    if self._observer.rank_info.model_world_size > 1 and self._recipe.train.gradient_accumulation == 1:
                        passes = split_backward_if_equal(model, self._regions, doubles, batch)
                    self._graphed = GraphedLoss(passes, batch, trained, record)
                    built.level, built.parts = Level.GRAPH, self._graphed.parts
        except Exception as error:  # noqa: BLE001  compilers and drivers raise of all kinds
            traceback.print_exception(error)  # for the rank's log
            built.why = _error_summary(error)
        finally:
            progress.close()
            _stop_compile_workers()
        return built

    def _can_use_graphs(self) -> bool:
        """Not where the backward pass asks for random states, as gradient checkpointing does, nor where the loss must be
        scaled before it, as FP16 does; the host then keeps up by itself."""
        return not self._recipe.train.gradient_checkpointing and self._recipe.model.dtype != "float16"

    def _blank_batch(self, device: torch.device, document: int) -> dict[str, Tensor]:
        """A batch as the Trainer hands it to the model, of no particular tokens, in documents of so many positions."""
        batch = {name: value.to(device) for name, value in self._collator.blank_batch(document).items()}
        rows, length = self._collator.shape
        # As the Trainer decides whether the model divides its loss by this.
        kinds = {p.kind for p in inspect.signature(type(self._base).forward).parameters.values()}
        if getattr(self._base, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds):
            batch["num_items_in_batch"] = torch.tensor(rows * (length - 1), device=device)
        return batch

    def _loss_only(self, **inputs: Any) -> Any:
        """The base model's forward. In training it returns the loss alone: accelerate would copy the logits to FP32."""
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
        """One event for all ranks; ranks that train separately speak for themselves."""
        rank_info = self._observer.rank_info
        if rank_info.rank != 0 and not rank_info.separate:
            return
        rank, worst = min(enumerate(ranks), key=lambda r: r[1].level)
        who = f"rank {rank_info.rank if rank_info.separate else rank}: {worst.why}"
        severity: Severity = "warning" if worst.why else "info"
        if self.level == Level.REFERENCE:
            kind, words = "engine_fallback", f"the step does not compile ({who}): the reference engine trains"
        elif worst.why:
            kind, words = "engine_fallback", f"the step is no CUDA graph ({who}): its compiled layers run without"
        else:
            kind, words = "compiled", f"{self._regions} compiled in {self.compile_s:.1f} s{self._graph_words()}"
        self._observer.emit_event(kind, words, severity)

    def _graph_words(self) -> str:
        """How a step is recorded, and its gradients are averaged."""
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
    """Tells how long compiling has taken so far, every few seconds, from the observer's thread."""

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
    """Work on another stream, after what is queued here and before what follows; None: on the CPU."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(stream.device).wait_stream(stream)


def _stop_compile_workers() -> None:
    """End the processes in which kernels were compiled; they would wait beside the run to its end."""
    with contextlib.suppress(Exception):
        from torch._inductor.async_compile import shutdown_compile_workers  # the reference engine never needs it

        shutdown_compile_workers()


def _error_summary(error: Exception) -> str:
    """What a compiler says, without its advice on debugging it."""
    words = " ".join(str(error).split("\n\n")[0].split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
