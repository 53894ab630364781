"""Evaluations from the journal on: in the history, on displays and screens, and in no figure of the steps."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from history import T0, a_whole_run, an_evaluated_run, end, evaluation, make_run, one_row, rows, step, write

from lorawatch.cli.display import JsonLines, PlainLines
from lorawatch.cli.runs import show
from lorawatch.run.directory import Gpu, RunState
from lorawatch.run.follower import Follower
from lorawatch.run.journal import JournalTail
from lorawatch.run.live import LiveView
from lorawatch.run.records import GpuSample, PhaseChange, RankStarted
from lorawatch.storage.curves import Evaluated, run_curves
from lorawatch.storage.edit import delete_run
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.past import read_past
from lorawatch.storage.queries import run_evaluations, run_events, run_figures
from lorawatch.text.run_summary import evaluation_lines, evaluation_words, event_words, summary_lines
from lorawatch.watching.watch import Watch


def test_the_history_has_every_evaluation_and_says_which_was_the_lowest() -> None:
    run = an_evaluated_run((2.5, 2.0, None, 2.25))
    finish_run(run)
    assert rows("SELECT attempt, rank, step, duration_s, label_tokens, loss FROM evaluations ORDER BY step") == [
        (0, 0, 10, 5.0, 700, 2.5), (0, 0, 20, 5.0, 700, 2.0), (0, 0, 30, 5.0, 700, None), (0, 0, 40, 5.0, 700, 2.25),
    ]  # fmt: skip
    assert [(e["step"], e["loss"], e["best"]) for e in run_evaluations(run.run_id)] == [
        (10, 2.5, False), (20, 2.0, True), (30, None, False), (40, 2.25, False),
    ]  # fmt: skip
    row = run_figures(run.run_id)
    assert row is not None
    assert [row[k] for k in ("evaluated_steps", "eval_step", "eval_loss", "best_eval_step", "best_eval_loss")] == [
        4, 40, 2.25, 20, 2.0,
    ]  # fmt: skip
    assert ("eval loss", "2.2500 (lowest 2.0000, step 20)   4 evaluated") in summary_lines(row)
    plain = a_whole_run()
    finish_run(plain)
    row = run_figures(plain.run_id)
    assert row is not None
    assert (row["eval_step"], row["evaluated_steps"], run_evaluations(plain.run_id)) == (None, None, [])
    assert "eval loss" not in dict(summary_lines(row))
    delete_run(run.run_id)
    assert rows("SELECT count(*) FROM evaluations") == [(0,)]


def test_a_later_attempts_evaluation_of_a_step_counts_and_of_separate_ranks_rank_0s() -> None:
    run = make_run()
    write(
        run.rank_journal(0),
        evaluation(10, 3.0),
        evaluation(20, 1.0),
        evaluation(20, 2.0, attempt=1),
        evaluation(30, 2.5, attempt=1),
    )
    write(run.rank_journal(1), evaluation(10, 0.5, rank=1))
    end(run)
    finish_run(run)
    found = [(e["step"], e["attempt"], e["loss"], e["best"]) for e in run_evaluations(run.run_id)]
    assert found == [(10, 0, 3.0, False), (20, 1, 2.0, True), (30, 1, 2.5, False)]
    assert rows("SELECT eval_loss, best_eval_loss, best_eval_step FROM v_runs") == [(2.5, 1.0, 20)]
    assert rows("SELECT count(*) FROM evaluations") == [(5,)]


def test_rates_and_energy_are_those_of_the_same_run_without_evaluations() -> None:
    figures = []
    for pause_s in (5.0, 0.0):
        run = an_evaluated_run(pause_s=pause_s)
        finish_run(run)
        figures.append(one_row(f"SELECT * FROM run_summary WHERE run_id = '{run.run_id}'"))
    evaluated, plain = figures
    for name in (
        "tok_s",
        "tok_s_ci95",
        "mean_step_tok_s",
        "step_p50_s",
        "step_p95_s",
        "window_s",
        "tokens",
        "measured_steps",
    ):
        assert evaluated[name] == pytest.approx(plain[name], rel=1e-9), name
    assert evaluated["tok_s"] == pytest.approx(4000)
    for name in ("energy_j", "tok_per_j", "avg_power_w"):
        assert evaluated[name] == pytest.approx(plain[name], rel=0.02), name


@pytest.mark.parametrize("pause_s", [0.002, 0.015, 0.1])
def test_however_short_an_evaluation_is_it_is_not_measured(pause_s: float) -> None:
    run = an_evaluated_run(pause_s=pause_s)
    finish_run(run)
    found = one_row("SELECT window_s, tok_s FROM run_summary")
    assert found["window_s"] == pytest.approx(19.5, abs=1e-4)  # 39 steps
    assert found["tok_s"] == pytest.approx(4000, rel=1e-5)


def test_the_events_do_not_tell_each_evaluation() -> None:
    run = an_evaluated_run()

    def phases() -> list[tuple[str, list[int]]]:
        ingest_run(run)
        return [(e["message"], e["ranks"]) for e in run_events(run.run_id, 50) if e["kind"] == "phase"]

    def phase(rank: int, at: float, name: str, detail: str) -> None:
        write(run.rank_journal(rank), PhaseChange(at=T0 + at, attempt=0, rank=rank, name=name, detail=detail))

    assert phases() == [("training", [0, 1])]
    phase(0, 85, "saving", "checkpoint")
    phase(1, 86, "evaluating", "after step 50")
    assert phases()[1:] == [("saving: checkpoint", [0]), ("evaluating: after step 50", [1])], "what each is busy with"
    for rank in (0, 1):
        phase(rank, 90, "training", "")
    phase(0, 95, "saving", "adapter")
    assert phases() == [("training", [0, 1]), ("saving: adapter", [0])]


@pytest.mark.parametrize(
    ("ranks", "message", "words"),
    [
        ([], "tiny started", "tiny started"),
        ([0, 1, 2, 3], "loading: m", "loading: m"),
        ([0, 1, 2], "loading: m", "ranks 0–2: loading: m"),
        ([0, 3], "loading: m", "ranks 0, 3: loading: m"),
        ([2], "readings stopped", "rank 2: readings stopped"),
        ([2], "rank 2's loss is nan", "rank 2's loss is nan"),
    ],
)
def test_an_event_says_whose_it_is_where_it_is_not_everybodys(ranks: list[int], message: str, words: str) -> None:
    assert event_words({"kind": "k", "message": message, "ranks": ranks}, 4) == words


def test_curves_have_the_evaluations_on_both_axes_whatever_part_they_show() -> None:
    run = an_evaluated_run((2.5, 2.0, None, 2.25))
    finish_run(run)
    for axis, window in (("time", None), ("step", None), ("step", (3.0, 5.0))):
        found = run_curves(run.run_id, axis=axis, window=window)  # type: ignore[arg-type]
        assert found is not None
        assert found.evaluations == {
            0: [Evaluated(10, T0 + 10, 2.5), Evaluated(20, T0 + 20, 2.0), Evaluated(40, T0 + 40, 2.25)]
        }
        if axis == "time":
            assert found.end > T0 + 40, "the last evaluation is behind the last step"


def test_who_knows_no_evaluations_steps_over_their_lines() -> None:
    """As a lorawatch from before them, and this one where a later one has written what it does not know."""
    run = make_run()
    write(run.rank_journal(0), step(1), evaluation(1))
    with open(run.rank_journal(0), "ab") as file:
        file.write(b'{"t":"evaluation_of_tomorrow","attempt":0,"rank":0,"step":1}\n')
    write(run.rank_journal(0), step(2))
    tail = JournalTail(run.rank_journal(0))
    assert [type(line).__name__ for line in tail.records()] == ["Step", "Evaluation", "Step"]
    assert tail.broken == 1
    assert ingest_run(run).broken_lines == 1
    assert rows("SELECT count(*) FROM steps") == [(2,)]


def fed(run_lines: list[object], **more: object) -> LiveView:
    view = LiveView(1, **more)  # type: ignore[arg-type]
    for line in run_lines:
        view.feed(line)  # type: ignore[arg-type]
    return view


def started(attempt: int = 0, steps: int = 100, gpu_uuid: str | None = None) -> RankStarted:
    return RankStarted(at=T0, attempt=attempt, rank=0, local_rank=0, world_size=1, host="h", pid=1, device="cpu",
                       steps_total=steps, gpu_uuid=gpu_uuid)  # fmt: skip


def test_a_live_view_keeps_the_last_and_the_lowest() -> None:
    view = fed([started(), evaluation(10, 2.0), evaluation(20, 3.0), evaluation(20, 1.0, rank=1), evaluation(30, None)])
    assert [(e.step, e.loss) for e in view.evaluations] == [(10, 2.0), (20, 3.0), (30, None)]
    assert view.best is not None
    assert view.best.step == 10
    view.feed(started(attempt=1))
    view.feed(evaluation(20, 1.5, attempt=1))
    assert [(e.step, e.loss) for e in view.evaluations] == [(10, 2.0), (20, 1.5)]
    assert (view.best.step, view.best.attempt) == (20, 1)


def test_the_time_left_has_the_evaluations_to_come() -> None:
    steps: list[object] = [step(n, duration_s=1.0) for n in range(1, 26)]
    made = [evaluation(10, duration_s=4.0), evaluation(20, duration_s=8.0)]
    assert fed([started(steps=95), *steps]).eta_s == pytest.approx(70)
    assert fed([started(steps=95), *steps], eval_every=10).eta_s == pytest.approx(70), (
        "nothing tells how long one takes"
    )
    # after 30, 40 … 90, and at the end
    assert fed([started(steps=95), *steps, *made], eval_every=10).eta_s == pytest.approx(70 + 8 * 6)
    assert fed([started(steps=100), *steps, *made], eval_every=10).eta_s == pytest.approx(75 + 8 * 6)
    assert fed([started(steps=25), *steps, *made], eval_every=10).eta_s == 0
    assert an_evaluated_run().info().eval_every == 10
    assert make_run(recipe={"train": {"eval_every": None}}).info().eval_every is None


CARD = Gpu(host="h", gpu_index=0, gpu_uuid="GPU-0", sku="NVIDIA H100", memory_total_bytes=80 * 2**30, used=True)


def test_a_long_evaluation_is_no_silence_of_steps_and_its_watts_are_in_no_rate() -> None:
    watch = Watch(make_run(ranks=1, gpus=[CARD]).info())
    watch.feed(started(gpu_uuid="GPU-0"))
    for n in range(1, 21):
        watch.feed(GpuSample(sampled_at=T0 + n - 0.5, gpu_uuid="GPU-0", power_w=400.0))
        watch.feed(step(n, ended_at=T0 + n, duration_s=1.0, tokens=8000))
    watch.feed(PhaseChange(at=T0 + 20, attempt=0, rank=0, name="evaluating", detail="after step 20"))
    for n in range(20, 320):
        watch.feed(GpuSample(sampled_at=T0 + n + 0.5, gpu_uuid="GPU-0", power_w=700.0))

    def words(at: float) -> set[str]:
        return {a.kind for a in watch.frame(at, RunState(state="running")).alerts} - {"stale"}

    assert words(T0 + 319) == set()
    assert watch.frame(T0 + 100, RunState(state="running")).panes[0].note == "evaluating: after step 20"
    watch.feed(evaluation(20, 2.5, ended_at=T0 + 320, duration_s=300.0))
    watch.feed(PhaseChange(at=T0 + 320, attempt=0, rank=0, name="training"))
    assert words(T0 + 325) == set(), "the next step is on its way"
    assert words(T0 + 350) == {"slow"}
    watch.feed(GpuSample(sampled_at=T0 + 320.5, gpu_uuid="GPU-0", power_w=400.0))
    watch.feed(step(21, ended_at=T0 + 321, duration_s=1.0, tokens=8000))
    head = watch.frame(T0 + 321, RunState(state="running")).head
    assert head is not None
    assert head.tok_per_j == pytest.approx(20.0)
    assert (head.eval_loss, head.eval_step, head.best_eval_loss, head.best_eval_step) == (2.5, 20, 2.5, 20)


def test_a_screen_that_begins_in_the_middle_knows_the_evaluations_before() -> None:
    run = an_evaluated_run((1.5, 2.0, None, 2.25))
    ingest_run(run)
    past = read_past(run.run_id)
    assert past is not None
    seeded, whole = Watch(run.info()), Watch(run.info())
    seeded.seed(past)
    Follower(run, feed=whole.feed).poll()
    for watch in (seeded, whole):
        assert [(e.step, e.loss) for e in watch.view.evaluations] == [(10, 1.5), (20, 2.0), (30, None), (40, 2.25)]
        assert watch.view.best is not None
        assert watch.view.best.step == 10


def test_lines_for_people_and_for_machines() -> None:
    run = make_run(ranks=1)
    info, state, out, plain = run.info(), RunState(state="running"), io.StringIO(), io.StringIO()
    machines, people = JsonLines(out), PlainLines(plain)
    watch = Watch(info)
    for display in (machines, people):
        display.start(info)
    for line in (started(), step(10), evaluation(10, 2.0), step(20), evaluation(20, 2.5, duration_s=None)):
        watch.feed(line)
        for display in (machines, people):
            display.update(watch, state)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    told = [line for line in lines if line["type"] == "evaluation"]
    assert [(e["step"], e["loss"], e["best"], e["label_tokens"]) for e in told] == [
        (10, 2.0, True, 700),
        (20, 2.5, False, 700),
    ]
    assert told[0]["run_id"] == run.run_id
    assert [line for line in plain.getvalue().splitlines() if "evaluation" in line] == [
        "evaluation after step 10  loss 2.0000  the lowest so far  5.0 s", "evaluation after step 20  loss 2.5000",
    ]  # fmt: skip


def test_words_for_the_last_and_the_lowest() -> None:
    assert evaluation_words(1.25, 60, 1.0, 40) == "1.2500 (lowest 1.0000, step 40)"
    assert evaluation_words(1.0, 40, 1.0, 40) == "1.0000 (the lowest)"
    assert evaluation_words(None, 40, None, None) == "—"
    made = [
        {"step": n, "loss": 2.0 if n == 3 else 2.5, "label_tokens": 1234, "duration_s": 0.25, "best": n == 3}
        for n in range(1, 9)
    ]
    assert evaluation_lines(made, 2) == [
        "    step      loss  label tokens      time",
        "       3    2.0000         1,234    250 ms  lowest",
        "       7    2.5000         1,234    250 ms",
        "       8    2.5000         1,234    250 ms",
        "and 5 before them",
    ]
    assert len(evaluation_lines(made, 20)) == 9


def test_show_lists_them() -> None:
    run = an_evaluated_run()
    finish_run(run)
    text = CliRunner().invoke(show, [run.run_id]).output
    assert "eval loss      2.2500 (lowest 2.0000, step 20)   4 evaluated" in text
    assert "evaluations\n      step      loss  label tokens      time\n" in text
    assert "        20    2.0000           700     5.0 s  lowest\n" in text
    assert "\nevaluations" not in CliRunner().invoke(show, [run.run_id, "--evaluations", "0"]).output
    told = json.loads(CliRunner().invoke(show, [run.run_id, "--json"]).output)
    assert [(e["step"], e["best"]) for e in told["evaluations"]] == [(10, False), (20, True), (30, False), (40, False)]
    assert (told["best_eval_step"], told["best_eval_loss"]) == (20, 2.0)
