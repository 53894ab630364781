"""The fast engine in the real program: the reference engine's training, compiled, or the reference engine itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import lorawatch, the_run
from safetensors.torch import load_file

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Event, PhaseChange, Step

ROWS = 21  # of two ranks with two a batch and two batches accumulated: a short last batch, a short last step


class Trained:
    """A finished run of the tiny model on ragged rows, by two ranks."""

    def __init__(self, folder: Path, *overrides: str, number: int = ROWS, **environment: str) -> None:
        data = folder / "chat.jsonl"
        rows = [{"prompt": "x" * (i % 7), "completion": "yes" if i % 2 else "no"} for i in range(number)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = [
            f"data.source={data}",
            "train.steps=null",
            "train.epochs=2",
            "train.gradient_accumulation=2",
            *overrides,
        ]
        home = folder / "home"
        result = lorawatch(
            "--record", "tiny", *(part for override in settings for part in ("--set", override)), timeout=300,
            env={"LORAWATCH_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        self.output = result.stdout + result.stderr
        self.run: RunDir = the_run(home)
        lines: list[list[Any]] = [list(JournalTail(self.run.rank_journal(rank)).records()) for rank in (0, 1)]
        self.steps = [[line for line in rank if isinstance(line, Step)] for rank in lines]
        self.phases = [[line for line in rank if isinstance(line, PhaseChange)] for rank in lines]
        self.events = [[line for line in rank if isinstance(line, Event)] for rank in lines]
        self.adapter = load_file(self.run.adapter / "adapter_model.safetensors")

    def curves_like(self, other: Trained) -> None:
        """See that all ranks had the other run's losses and gradient norms, and the same norms as each other."""
        for actual, expected in zip(self.steps, other.steps, strict=True):
            assert [s.loss for s in actual] == pytest.approx([s.loss for s in expected], rel=1e-4)
            assert [s.grad_norm for s in actual] == pytest.approx([s.grad_norm for s in expected], rel=1e-3)
        assert [s.grad_norm for s in self.steps[0]] == [s.grad_norm for s in self.steps[1]]

    def adapter_like(self, other: Trained) -> None:
        """See that the adapter is the other run's."""
        assert self.adapter.keys() == other.adapter.keys()
        for name, weight in self.adapter.items():
            assert float((weight - other.adapter[name]).abs().max()) < 1e-5, name


Train = Callable[..., Trained]
FAST = ("train.engine=fast", "measure.exclude_steps=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compiled kernels that the tests of this module share, as the runs of one home do."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("inductor"))}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("reference"))


def test_two_ranks_train_as_the_reference_engine_does(
    tmp_path: Path, reference: Trained, cache: dict[str, str]
) -> None:
    fast = Trained(tmp_path, *FAST, **cache)
    for actual, expected in zip(fast.steps, reference.steps, strict=True):
        assert [step.step for step in actual] == [step.step for step in expected] == list(range(1, 7))
        for a, b in zip(actual, expected, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=1e-4)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
            assert (a.nonpad_tokens, a.label_tokens, a.learning_rate) == (
                b.nonpad_tokens, b.label_tokens, b.learning_rate,
            )  # fmt: skip
            assert (a.tokens or 0) % (2 * 32) == 0  # whole batches of full length, however short the rows
            assert (a.tokens or 0) > (b.tokens or 0)
    fast.adapter_like(reference)
    assert [step.grad_norm for step in fast.steps[0]] == [step.grad_norm for step in fast.steps[1]]
    # No step has a part in compiling, though all are measured.
    for steps, phases in zip(fast.steps, fast.phases, strict=True):
        names = [phase.name for phase in phases if phase.name != "compiling"]
        assert names == ["loading", "tokenizing", "loading", "training", "saving", "finished"]
        compiling = next(phase.at for phase in phases if phase.name == "compiling")
        begun = next(phase.at for phase in phases if phase.name == "training")
        assert {step.phase for step in steps} == {"train"}
        assert sum(step.duration_s for step in steps) <= steps[-1].ended_at - begun + 0.05
        assert begun - compiling > 1
    assert "compiling: 2 × LlamaDecoderLayer" in fast.output
    assert [event.kind for event in fast.events[0]] == ["compiled"]
    assert fast.events[1] == []


def test_two_ranks_train_packed_rows_as_the_reference_engine_does(tmp_path: Path, cache: dict[str, str]) -> None:
    """Of the same length as elsewhere in this file, so that they share most compiled kernels."""
    runs = []
    for number, more in enumerate(((), FAST)):
        (tmp_path / str(number)).mkdir()
        runs.append(Trained(tmp_path / str(number), "data.packing=true", *more, number=3 * ROWS, **cache))
    reference, fast = runs
    messages = [next(e.message for e in run.events[0] if e.kind == "packing") for run in runs]
    assert messages[0].startswith(f"packed {3 * ROWS} rows into ")
    assert "% padding instead of " in messages[0]
    assert messages[0].endswith(" with each batch padded to its longest row")
    assert messages[1].endswith(" with each row padded to 32")
    assert f"info: {messages[1]}" in fast.output
    shown = lorawatch("show", "last", "--events", "99", env={"LORAWATCH_HOME": str(fast.run.root.parents[1])})
    assert messages[1] in shown.stdout
    assert not any(e.kind == "packing" for run in runs for e in run.events[1])
    assert [e.kind for e in fast.events[0]] == ["packing", "compiled"]
    assert len(fast.steps[0]) >= 4
    for actual, expected in zip(fast.steps, reference.steps, strict=True):
        for a, b in zip(actual, expected, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=1e-4)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
            assert (a.nonpad_tokens, a.label_tokens) == (b.nonpad_tokens, b.label_tokens)
            assert (a.tokens or 0) % (2 * 32) == 0
    fast.adapter_like(reference)


# What a rank runs before anything else: it records its step as on a GPU, and nothing but Dynamo compiles.
RECORDING = f"""
import os, sys
if "RANK" in os.environ:
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from fakes.graph import RecordedEngine
    from lorawatch.training import fast_engine, reduction, regions
    regions.BACKEND = "eager"
    fast_engine.FastEngine = RecordedEngine
    reduce = reduction.FlatAllReduce.__call__
    def counted(self):
        print("one all-reduce", flush=True)
        reduce(self)
    reduction.FlatAllReduce.__call__ = counted
    begin = reduction.OverlappedAllReduce.begin
    def begun(self, piece):
        print(f"an all-reduce of {{4 * len(piece)}} bytes", flush=True)
        begin(self, piece)
    reduction.OverlappedAllReduce.begin = begun
"""


def test_a_recorded_step_averages_its_gradients_once(tmp_path: Path, reference: Trained) -> None:
    (tmp_path / "sitecustomize.py").write_text(RECORDING)
    fast = Trained(tmp_path, *FAST, PYTHONPATH=str(tmp_path))
    assert "the step is one CUDA graph and one all-reduce of 0.0072 MB" in fast.output
    for rank in (0, 1):  # of two batches a step
        assert fast.run.rank_log(0, rank).read_text().count("one all-reduce") == len(fast.steps[rank]) == 6
    fast.curves_like(reference)
    fast.adapter_like(reference)


def test_a_recorded_step_of_one_batch_exchanges_most_gradients_before_it_has_all(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(RECORDING)
    runs = []
    for number, more in enumerate((("train.engine=reference",), FAST)):
        (tmp_path / str(number)).mkdir()
        environment = {"PYTHONPATH": str(tmp_path)} if more is FAST else {}
        runs.append(Trained(tmp_path / str(number), *more, "train.gradient_accumulation=1", **environment))
    reference, fast = runs
    assert "the step is 2 CUDA graphs, and most of its all-reduce of 0.0072 MB is done during the last" in fast.output
    for rank in (0, 1):  # of the upper layer, and of the lower one, whose size is the same
        log = fast.run.rank_log(0, rank).read_text()
        assert log.count("an all-reduce of 3584 bytes") == 2 * len(fast.steps[rank]) == 24
        assert "one all-reduce" not in log
    fast.curves_like(reference)
    fast.adapter_like(reference)


def test_without_a_compiler_the_reference_engine_trains(tmp_path: Path, reference: Trained) -> None:
    fast = Trained(tmp_path, *FAST, CXX="/bin/false", CC="/bin/false")
    assert "warning: the step does not compile (rank 0: " in fast.output
    assert "No working C++ compiler found" in fast.output
    assert "the reference engine trains" in fast.output
    for actual, expected in zip(fast.steps, reference.steps, strict=True):
        assert [(s.loss, s.tokens) for s in actual] == [(s.loss, s.tokens) for s in expected]
    assert (fast.run.root.parents[1] / "cache" / "inductor").stat().st_mode & 0o777 == 0o700


def test_what_one_rank_cannot_compile_no_rank_runs_compiled(
    tmp_path: Path, reference: Trained, cache: dict[str, str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '1':\n"
        f"    os.environ.update(CXX='/bin/false', TORCHINDUCTOR_CACHE_DIR={str(tmp_path / 'empty')!r})\n"
    )
    fast = Trained(tmp_path, *FAST, PYTHONPATH=str(tmp_path), **cache)
    assert "warning: the step does not compile (rank 1: " in fast.output
    assert [event.kind for event in fast.events[0]] == ["engine_fallback"]
    for actual, expected in zip(fast.steps, reference.steps, strict=True):
        assert [(s.loss, s.tokens) for s in actual] == [(s.loss, s.tokens) for s in expected]
