"""Figures of separate ranks and what coupling costs, in the history."""

from __future__ import annotations

from typing import Any

import pytest
from history import T0, end, make_run, one_row, rows, step, write

from lorawatch.analysis.throughput import student_t95
from lorawatch.recipe.identity import digest
from lorawatch.run.directory import Gpu, RunDir
from lorawatch.run.records import GpuSample, HostSample, RankStarted, Step
from lorawatch.storage.ingest import finish_run

SEPARATE: dict[str, object] = {"model": {"name": "m"}, "launch": {"strategy": "separate"}}
DDP: dict[str, object] = {"model": {"name": "m"}, "launch": {"strategy": "ddp"}}


def summary(run: RunDir) -> dict[str, Any]:
    finish_run(run)
    return one_row(f"SELECT * FROM run_summary WHERE run_id = '{run.run_id}'")


def own_step(rank: int, number: int, begin: float, seconds: float, **more: Any) -> Step:
    return step(number, rank, ended_at=T0 + begin + number * seconds, duration_s=seconds, **more)


def two_ranks(**more: Any) -> RunDir:
    """Rank 0: step n ends 1·n s after T0. Rank 1: 0.5 s later, and 2 s a step. Step 1 is warm-up; 2,000 and 1,500
    tokens a step."""
    run = make_run(ranks=2, recipe=SEPARATE, **more)
    write(run.rank_journal(0), *(own_step(0, n, 0, 1.0, tokens=2000) for n in range(1, 21)))
    write(run.rank_journal(1), *(own_step(1, n, 0.5, 2.0, tokens=1500) for n in range(1, 21)))
    return run


def test_separate_ranks_are_measured_over_the_window_common_to_all() -> None:
    run = two_ranks()
    end(run)
    found = summary(run)
    # rank 0 is in its measured steps from 1 to 20 s, rank 1 from 2.5 to 40.5 s: 2.5 to 20 s is common
    assert found["window_s"] == pytest.approx(17.5)
    assert found["tokens"] == round(17.5 * 2000 + 17.5 / 2 * 1500)
    assert found["tok_s"] == pytest.approx(2000 + 750)
    assert found["mean_step_tok_s"] == pytest.approx(2000 + 750)
    assert found["tok_s_ci95"] == pytest.approx(0, abs=1e-3)
    assert found["tok_s_per_gpu"] == pytest.approx(2750 / 2)
    assert found["measured_steps"] == 19  # 3 to 20 of rank 0 and 2 to 10 of rank 1, those an edge cuts included
    assert (found["step_p50_s"], found["step_p95_s"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert found["nonpad_tokens"] == round(17.5 * 900 + 17.5 / 2 * 900)
    assert (found["coupling"], found["world_size"], found["window_of"]) == ("separate", 2, "steps")


def test_what_others_do_while_one_evaluates_is_not_measured() -> None:
    run = make_run(ranks=2, recipe=SEPARATE)
    # rank 0 evaluates from 10 to 14 s
    write(run.rank_journal(0), *(own_step(0, n, 0 if n <= 10 else 4, 1.0, tokens=2000) for n in range(1, 21)))
    write(run.rank_journal(1), *(own_step(1, n, 0, 2.0, tokens=1500) for n in range(1, 13)))
    samples = [HostSample(sampled_at=T0 + t / 4, host="h", package_energy_j=15.0 * t) for t in range(120)]
    write(run.host_journal("h"), *samples)
    end(run)
    found = summary(run)
    assert found["window_s"] == pytest.approx(18.0)  # 2 to 10 and 14 to 24 s
    assert found["tok_s"] == pytest.approx(2000 + 750)
    assert found["tokens"] == 18 * 2750
    assert found["energy_j"] == pytest.approx(60 * 18, rel=1e-3)


def test_their_energy_is_that_of_the_common_window() -> None:
    run = two_ranks()
    samples = [HostSample(sampled_at=T0 + t, host="h", package_energy_j=60.0 * t) for t in range(45)]
    write(run.host_journal("h"), *samples)
    end(run)
    found = summary(run)
    assert found["energy_j"] == pytest.approx(60 * 17.5, rel=1e-3)
    assert found["tok_per_j"] == pytest.approx(2750 / 60, rel=1e-3)
    cards = [Gpu(host="h", gpu_index=i, gpu_uuid=f"G{i}", sku="x", used=True) for i in (0, 1)]
    run = two_ranks(gpus=cards)
    readings = [
        GpuSample(sampled_at=T0 + 0.25 * i, gpu_uuid=c.gpu_uuid, power_w=100.0 if 0.25 * i < 20 else 300.0)
        for i in range(200)
        for c in cards
    ]
    write(run.host_journal("h"), *readings)
    end(run)
    assert summary(run)["avg_power_w"] == pytest.approx(200, rel=0.02)  # 300 W came after the window


def test_ranks_that_never_computed_at_once_have_no_rate() -> None:
    run = make_run(ranks=2, recipe=SEPARATE)
    write(run.rank_journal(0), *(own_step(0, n, 0, 1.0) for n in range(1, 6)))
    write(run.rank_journal(1), *(own_step(1, n, 10, 1.0) for n in range(1, 6)))
    end(run)
    assert summary(run)["tok_s"] is None
    run = make_run(ranks=2, recipe=SEPARATE)
    write(run.rank_journal(0), *(own_step(0, n, 0, 1.0) for n in range(1, 6)))
    end(run, "failed")
    assert summary(run)["tok_s"] is None


def test_a_count_that_a_rank_does_not_tell_is_missing() -> None:
    run = make_run(ranks=2, recipe=SEPARATE)
    write(run.rank_journal(0), *(own_step(0, n, 0, 1.0) for n in range(1, 9)))
    write(run.rank_journal(1), *(own_step(1, n, 0, 1.0, tokens=None if n == 4 else 10) for n in range(1, 9)))
    end(run)
    found = summary(run)
    assert (found["tok_s"], found["tokens"], found["tok_s_ci95"]) == (None, None, None)
    assert found["nonpad_tokens"] == 7 * 900 * 2
    assert found["step_p50_s"] == pytest.approx(1.0)


def test_of_a_restarted_separate_run_the_last_attempt_counts() -> None:
    run = make_run(ranks=2, recipe=SEPARATE)
    for rank in (0, 1):
        write(
            run.rank_journal(rank),
            *(own_step(rank, n, 0, 1.0) for n in range(1, 15)),
            *(own_step(rank, n, 30, 0.5, attempt=1) for n in range(1, 11)),
        )
    end(run)
    found = summary(run)
    assert (found["window_s"], found["tok_s"]) == (pytest.approx(4.5), pytest.approx(4000))


def test_one_rank_alone_is_the_base_of_both_couplings() -> None:
    run = make_run(ranks=1, recipe=SEPARATE)
    write(run.rank_journal(0), *(step(n) for n in range(1, 11)))
    end(run)
    assert summary(run)["coupling"] == "ddp"


def finished(ranks: int, recipe: dict[str, object], seconds: float) -> None:
    run = make_run(ranks=ranks, recipe=recipe)
    for rank in range(ranks):
        start = RankStarted(
            at=T0, attempt=0, rank=rank, local_rank=rank, world_size=ranks, host="h", pid=1, device="cpu"
        )
        write(run.rank_journal(rank), start, *(own_step(rank, n, 0, seconds) for n in range(1, 12)))
    end(run)
    finish_run(run)


def test_scaling_splits_the_loss_and_takes_its_interval_across_repeats() -> None:
    for jitter in (0.9, 1.0, 1.1):
        finished(1, DDP, 0.5 * jitter)
        finished(2, DDP, 0.625 * jitter)
        finished(2, SEPARATE, 0.55 * jitter)
    finished(4, DDP, 0.5)
    found = {
        (r[0], r[1]): r[2:]
        for r in rows(
            "SELECT ranks, coupling, runs, tok_s, tok_s_stddev, tok_s_ci95, efficiency_pct, coupling_efficiency_pct, "
            "shared_machine_loss_pct, communication_loss_pct, karp_flatt FROM v_scaling"
        )
    }
    assert set(found) == {(1, "ddp"), (2, "ddp"), (2, "separate"), (4, "ddp")}
    for key in ((1, "ddp"), (2, "ddp"), (2, "separate")):
        runs, _, deviation, half = found[key][:4]
        assert runs == 3
        assert half == pytest.approx(student_t95(2) * deviation / 3**0.5)
    assert found[2, "ddp"][4:] == (
        pytest.approx(100 * 0.5 / 0.625),
        pytest.approx(100 * 0.55 / 0.625),
        pytest.approx(100 * (1 - 0.5 / 0.55)),
        pytest.approx(100 * (0.5 / 0.55 - 0.5 / 0.625)),
        pytest.approx(0.25),
    )
    # of separate ranks nothing is coupled; of four ranks nobody ran separate ones
    assert found[2, "separate"][4:] == (pytest.approx(100 * 0.5 / 0.55), None, None, None, None)
    assert found[4, "ddp"][5:8] == (None, None, None)
    assert (found[4, "ddp"][0], found[4, "ddp"][3]) == (1, pytest.approx(0, abs=1e-3))  # a single run's own


def test_the_views_students_t_is_the_one_of_the_package() -> None:
    for count in (2, 31, 32, 40):
        name = f"w{count}"
        for number in range(count):
            run = make_run(ranks=1, recipe={"model": {"name": name}})
            end(run)
            finish_run(run)
            tok_s = 100.0 + number % 2
            write_tok_s(run.run_id, tok_s)
        deviation, half = rows(f"SELECT tok_s_stddev, tok_s_ci95 FROM v_scaling WHERE model = '{name}'")[0]
        assert half == pytest.approx(student_t95(count - 1) * deviation / count**0.5, rel=1e-5)


def write_tok_s(run_id: str, tok_s: float) -> None:
    from lorawatch.storage.connection import writing

    with writing() as connection:
        connection.execute("UPDATE run_summary SET tok_s = ? WHERE run_id = ?", [tok_s, run_id])


def test_the_workload_is_what_a_step_computes() -> None:
    def recipe(strategy: str | None = None, **train: object) -> dict[str, Any]:
        return {"model": {"name": "m"}, "train": train, **({"launch": {"strategy": strategy}} if strategy else {})}

    plain = digest(recipe(batch_size_per_gpu=2))
    assert plain == digest(recipe("ddp", batch_size_per_gpu=2))
    assert plain == digest(recipe("separate", batch_size_per_gpu=2))
    # recipes from before the key are those with the key turned off
    assert plain == digest(recipe(batch_size_per_gpu=2, gradient_checkpointing=False))
    assert plain != digest(recipe(batch_size_per_gpu=2, gradient_checkpointing=True))
