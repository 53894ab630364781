"""A finished run's figures, against figures computed by hand and the real H100 trace."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from helpers import lorawatch
from history import T0, a_whole_run, end, h100_trace, make_run, one_row, rows, step, write

from lorawatch.analysis.epoch import epoch_time_s
from lorawatch.comparing.configuration import measured
from lorawatch.run.directory import Gpu, RunDir, RunState
from lorawatch.run.records import Event, GpuSample, HostSample, RankStarted, Record, Step
from lorawatch.storage.configurations import run_summaries
from lorawatch.storage.connection import writing
from lorawatch.storage.curves import run_curves
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.queries import step_counts
from lorawatch.storage.skus import bf16_dense_peak


def summary(run: RunDir) -> dict[str, object]:
    finish_run(run)
    return one_row(f"SELECT * FROM run_summary WHERE run_id = '{run.run_id}'")


def approx(value: float) -> object:
    return pytest.approx(value, rel=1e-3)


def test_the_figures_of_a_run_on_two_of_three_gpus() -> None:
    found = summary(a_whole_run())
    # 39 measured steps of 0.5 s, 2,000 tokens each; 2 GPUs of 300 W, a third of 50 W
    assert found["measured_steps"] == 39
    assert found["tokens"] == 78_000
    assert found["label_tokens"] == 39_000
    assert found["window_s"] == approx(19.5)
    assert found["tok_s"] == approx(4000)
    assert found["mean_step_tok_s"] == approx(4000)
    assert found["tok_s_per_gpu"] == approx(2000)
    assert found["tok_s_ci95"] == pytest.approx(0, abs=1e-6)
    assert found["step_p50_s"] == approx(0.5)
    assert found["energy_j"] == approx(600 * 19.5)
    assert found["energy_all_gpus_j"] == approx(650 * 19.5)
    assert found["avg_power_w"] == approx(600)
    assert found["avg_power_all_gpus_w"] == approx(650)
    assert found["energy_source"] == "counter"
    assert found["energy_disagreement_pct"] == pytest.approx(0, abs=0.01)
    assert found["tok_per_j"] == approx(4000 / 600)
    assert found["peak_vram_bytes"] == 20 * 2**30
    assert found["throttled_share"] == 0, "the power limit holds no clocks back against the GPU's will"
    assert found["power_capped_share"] == pytest.approx(0.5, abs=0.02)
    assert found["mfu"] == approx(30e9 * 2000 / 989.4e12)
    assert found["mfu_plausible"] is True
    assert (found["sku"], found["gpu_count"], found["world_size"]) == ("NVIDIA H100 80GB HBM3", 2, 2)
    assert (found["coupling"], found["window_of"], found["final_loss"]) == ("ddp", "steps", 2.0)


def test_warm_up_and_pauses_are_outside_the_window() -> None:
    run = make_run(ranks=1)
    late = [step(n, ended_at=T0 + 100 + 0.5 * n) for n in range(11, 21)]  # behind an evaluation of 100 s
    write(run.rank_journal(0), *(step(n) for n in range(1, 11)), *late)
    end(run)
    found = summary(run)
    assert found["window_s"] == approx(9.5)
    assert found["tok_s"] == approx(2000)


def test_steps_done_again_after_a_restart_count_once() -> None:
    run = make_run(ranks=2)
    for rank in (0, 1):
        write(
            run.rank_journal(rank),
            *(step(n, rank) for n in range(1, 11)),
            *(
                step(n, rank, attempt=1, ended_at=T0 + 50 + 0.5 * n, loss=1.0, phase="warmup" if n == 6 else "train")
                for n in range(6, 13)
            ),
        )
    end(run)
    found = summary(run)
    assert rows("SELECT step, attempt, tokens, ranks FROM v_steps ORDER BY step") == [
        (n, 0 if n < 6 else 1, 2000, 2) for n in range(1, 13)
    ]
    assert found["measured_steps"] == 4 + 6
    assert found["tokens"] == 20_000
    assert found["window_s"] == approx(5.0)
    assert found["final_loss"] == 1.0


def test_a_steps_loss_is_weighted_by_label_tokens_and_its_time_is_the_slowest_ranks() -> None:
    run = make_run(ranks=3)
    write(run.rank_journal(0), step(2, 0, loss=1.0, label_tokens=100, duration_s=0.4))
    write(run.rank_journal(1), step(2, 1, loss=3.0, label_tokens=300, duration_s=0.5))
    write(run.rank_journal(2), step(2, 2, loss=None, label_tokens=400, duration_s=0.3))
    end(run)
    finish_run(run)
    row = one_row("SELECT * EXCLUDE ended_at FROM v_steps")
    assert row["loss"] == pytest.approx(2.5)
    assert (row["duration_s"], row["fastest_rank_s"], row["slowest_rank"], row["tok_s"]) == (0.5, 0.3, 1, 6000)


def started(rank: int, world_size: int, attempt: int = 0) -> RankStarted:
    return RankStarted(
        at=T0, attempt=attempt, rank=rank, local_rank=rank, world_size=world_size, host="h", pid=1, device="cuda"
    )


def test_where_a_rank_never_reports_totals_are_missing_and_the_reason_is_told() -> None:
    """The callback on rank 0 only: its tokens under "2 × H100" would be half of the truth."""
    cards = [Gpu(host="h", gpu_index=i, gpu_uuid=f"G{i}", sku="NVIDIA L4", used=True) for i in (0, 1)]
    run = make_run(ranks=2, gpus=cards, own_command=True)
    write(run.rank_journal(0), started(0, 2), *(step(n) for n in range(1, 21)))
    write(
        run.host_journal("h"),
        *(GpuSample(sampled_at=T0 + i, gpu_uuid=g, power_w=70.0) for g in ("G0", "G1") for i in range(20)),
    )
    end(run)
    found = summary(run)
    missing = ("tok_s", "tok_s_ci95", "mean_step_tok_s", "tok_s_per_gpu", "tok_per_j", "tokens", "nonpad_tokens",
               "label_tokens", "mfu")  # fmt: skip
    assert {name: found[name] for name in missing} == dict.fromkeys(missing)
    assert (found["reporting_ranks"], found["world_size"], found["measured_steps"]) == (1, 2, 19)
    assert found["step_p50_s"] == approx(0.5), "what one rank can say of all stays"
    assert found["energy_j"] == approx(140 * 9.5)
    steps = "tokens, nonpad_tokens, label_tokens, tok_s, loss, ranks, expected_ranks"
    assert rows(f"SELECT DISTINCT {steps} FROM v_steps") == [(None, None, None, None, 2.0, 1, 2)]
    shown = lorawatch("show", run.run_id).stdout
    assert "throughput     —  1 of 2 ranks reports steps; add StepCallback on every rank" in shown
    assert "final loss     2.0000  of 1 of 2 ranks" in shown
    plain = msgspec.json.decode(lorawatch("show", run.run_id, "--json").stdout)
    assert (plain["reporting_ranks"], plain["world_size"], plain["tok_s"]) == (1, 2, None)
    assert "1 of its 2 ranks reported steps" in lorawatch("compare").stdout
    curves = run_curves(run.run_id)
    assert curves is not None
    assert "tok_s" not in curves.series[None]
    assert "loss" in curves.series[None]


def test_two_homes_of_one_run_tell_no_totals_either() -> None:
    """Each of two nodes has the ranks that ran there: the run's size is what they say of it."""
    run = make_run(ranks=2)
    for rank in (0, 1):
        write(run.rank_journal(rank), started(rank, 4), *(step(n, rank) for n in range(1, 11)))
    end(run)
    found = summary(run)
    assert (found["tok_s"], found["reporting_ranks"], found["world_size"]) == (None, 2, 4)


def test_a_rank_that_got_one_step_further_costs_that_step_only() -> None:
    run = make_run(ranks=2)
    for rank in (0, 1):
        write(run.rank_journal(rank), started(rank, 2), *(step(n, rank, loss=float(n)) for n in range(1, 21 + rank)))
    end(run, "failed")
    found = summary(run)
    assert (found["measured_steps"], found["tokens"], found["reporting_ranks"]) == (19, 38_000, 2)
    assert found["tok_s"] == approx(4000)
    assert found["final_loss"] == 20.0
    assert rows("SELECT step, tokens FROM v_steps WHERE tokens IS NULL") == [(21, None)]
    assert "of 2 ranks" not in lorawatch("show", run.run_id).stdout


def test_steps_of_which_a_ranks_lines_were_lost_are_left_out() -> None:
    run = make_run(ranks=2)
    write(run.rank_journal(0), started(0, 2), *(step(n, 0) for n in range(1, 41)))
    write(run.rank_journal(1), started(1, 2), *(step(n, 1) for n in range(1, 41) if not 10 <= n < 20))
    end(run)
    found = summary(run)
    assert (found["measured_steps"], found["tokens"]) == (29, 58_000)
    assert found["tok_s"] == approx(4000)


def test_a_token_count_that_a_rank_does_not_tell_is_no_total() -> None:
    run = make_run(ranks=2)
    write(run.rank_journal(0), *(step(n, 0) for n in range(1, 11)))
    write(run.rank_journal(1), *(step(n, 1, tokens=None, label_tokens=None) for n in range(1, 11)))
    end(run)
    found = summary(run)
    assert (found["tok_s"], found["tokens"], found["nonpad_tokens"], found["label_tokens"]) == (
        None,
        None,
        16_200,
        None,
    )


def test_each_attempt_has_the_ranks_that_it_had() -> None:
    run = make_run(ranks=1)
    for rank in (0, 1):
        write(run.rank_journal(rank), started(rank, 2), *(step(n, rank) for n in range(1, 11)))
    late = [step(n, 0, attempt=1, ended_at=T0 + 50 + 0.5 * n) for n in range(11, 21)]
    write(run.rank_journal(0), started(0, 1, attempt=1), *late)
    end(run)
    assert rows_of(run, "SELECT DISTINCT attempt, tokens, expected_ranks FROM v_steps ORDER BY 1") == [
        (0, 2000, 2),
        (1, 1000, 1),
    ]


def rows_of(run: RunDir, query: str) -> list[tuple[object, ...]]:
    finish_run(run)
    return rows(query)


def test_a_clock_that_is_set_back_makes_no_time_negative() -> None:
    run = make_run(ranks=1)
    write(run.events_journal, Event(at=T0 - 3600, kind="k"), Event(at=T0 + 5, kind="later"))
    run.write_state(RunState(state="completed", started_at=T0, ended_at=T0 - 3628))
    finish_run(run)
    assert rows("SELECT duration_s FROM v_runs") == [(0.0,)]
    assert rows("SELECT run_time_s FROM v_events ORDER BY happened_at") == [(0.0,), (5.0,)]
    with writing() as connection:
        connection.execute("UPDATE runs SET elapsed_s = 28.0")
    assert rows("SELECT duration_s FROM v_runs") == [(28.0,)], "by a monotonic clock"
    assert "duration       0:28" in lorawatch("show", run.run_id).stdout
    waiting = make_run()
    ingest_run(waiting)
    assert rows(f"SELECT duration_s FROM v_runs WHERE run_id = '{waiting.run_id}'") == [(None,)]


def test_the_recorders_own_clock_comes_in_with_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed(RunState, kw_only=True):
        elapsed_s: float | None = None

    run = make_run()
    for elapsed, expected in ((12.5, 12.5), (-1.0, None), (float("nan"), None), (None, None)):
        state = Timed(state="completed", started_at=T0, ended_at=T0, elapsed_s=elapsed)
        monkeypatch.setattr("lorawatch.storage.ingest._state", lambda run, state=state: state)
        ingest_run(run)
        assert rows("SELECT elapsed_s FROM runs") == [(expected,)]


def test_step_lines_are_counted_by_attempt_and_rank() -> None:
    run, other = make_run(ranks=2), make_run()
    write(run.rank_journal(0), *(step(n) for n in range(1, 8)), *(step(n, attempt=1) for n in range(5, 8)))
    write(run.rank_journal(1), *(step(n, 1) for n in range(1, 6)))
    write(other.rank_journal(0), step(1))
    for each in (run, other):
        ingest_run(each)
    assert step_counts(run.run_id) == {(0, 0): 7, (0, 1): 5, (1, 0): 3}
    assert step_counts("none") == {}


def energyless(samples: Callable[[int], GpuSample]) -> dict[str, object]:
    run = make_run(ranks=1, gpus=[Gpu(host="h", gpu_index=0, gpu_uuid="G", sku="NVIDIA GeForce GTX 1080", used=True)])
    write(run.rank_journal(0), *(step(n) for n in range(1, 21)))
    write(run.host_journal("h"), *(samples(i) for i in range(60)))
    end(run)
    return summary(run)


def test_a_card_without_a_counter_gets_the_integral_and_says_so() -> None:
    found = energyless(lambda i: GpuSample(sampled_at=T0 + 0.2 * i, gpu_uuid="G", power_w=150.0))
    assert found["energy_source"] == "power_integral"
    assert found["avg_power_w"] == approx(150)
    assert found["energy_disagreement_pct"] is None
    assert found["mfu"] is None


def test_a_card_that_tells_no_power_has_no_energy() -> None:
    found = energyless(lambda i: GpuSample(sampled_at=T0 + 0.2 * i, gpu_uuid="G", utilization_pct=50.0))
    assert [found[k] for k in ("energy_j", "energy_source", "avg_power_w", "tok_per_j", "peak_vram_bytes")] == [
        None
    ] * 5
    assert found["tok_s"] == approx(2000)


def test_a_cpu_run_takes_its_energy_from_rapl_where_it_can_be_read() -> None:
    run = make_run(ranks=2)
    for rank in (0, 1):
        write(run.rank_journal(rank), *(step(n, rank) for n in range(1, 21)))
    write(
        run.host_journal("h"), *(HostSample(sampled_at=T0 + i, host="h", package_energy_j=65.0 * i) for i in range(12))
    )
    end(run)
    found = summary(run)
    assert (found["energy_source"], found["sku"], found["gpu_count"]) == ("rapl", None, 0)
    assert found["avg_power_w"] == approx(65)
    assert found["tok_s_per_gpu"] == approx(2000)


def test_a_command_without_steps_has_power_over_its_whole_time() -> None:
    run = make_run(ranks=1, own_command=True, gpus=[Gpu(host="h", gpu_index=0, gpu_uuid="G", sku="x", used=True)])
    write(run.host_journal("h"), *(GpuSample(sampled_at=T0 + i, gpu_uuid="G", power_w=80.0) for i in range(61)))
    end(run)
    found = summary(run)
    assert (found["window_of"], found["measured_steps"], found["tok_s"]) == ("run", 0, None)
    assert found["avg_power_w"] == approx(80)


def test_a_run_that_never_started_has_a_row_without_figures() -> None:
    run = make_run()
    run.write_state(run.state())
    end(run, "stopped")
    found = summary(run)
    assert found["tok_s"] is None
    assert found["energy_j"] is None


def test_the_real_h100_trace_gives_the_probes_figures() -> None:
    trace = h100_trace("eager_plain_loop_sampled10hz")
    uuid = "GPU-30def27d-ab75-0851-92cd-87ab544e9b32"
    card = Gpu(host="h", gpu_index=0, gpu_uuid=uuid, sku="NVIDIA H100 80GB HBM3", used=True)
    run = make_run(ranks=1, gpus=[card])
    lines: list[Record] = [
        RankStarted(
            at=trace["t0"], attempt=0, rank=0, local_rank=0, world_size=1, host="h", pid=1, device="cuda",
            flops_per_token=30.46e9, dtype="torch.bfloat16",
        )
    ]  # fmt: skip
    at = trace["t0"]
    for number, ms in enumerate(trace["steps_ms"], start=1):
        at += ms / 1e3
        lines.append(Step(attempt=0, rank=0, step=number, ended_at=at, duration_s=ms / 1e3, tokens=1024))
    write(run.rank_journal(0), *lines)
    write(
        run.host_journal("h"),
        *(
            GpuSample(
                sampled_at=r[0], gpu_uuid=uuid, power_w=r[2], power_average_w=r[3], memory_used_bytes=r[5],
                energy_j=r[4] / 1e3 if i % 10 == 0 or i == len(trace["rows"]) - 1 else None, event_reasons=r[9],
            )
            for i, r in enumerate(trace["rows"])
        ),
    )  # fmt: skip
    end(run)
    found = summary(run)
    # h100_llama8b_lora_probe.json: 7,983 tok/s, 128.27 ms, 499.6 W, 15.98 tok/J
    assert found["tok_s"] == pytest.approx(7983, rel=0.02)
    assert found["avg_power_w"] == pytest.approx(499.6, rel=0.02)
    assert found["tok_per_j"] == pytest.approx(15.98, rel=0.02)
    # 77 samples of a power that swings between 255 and 690 W within a step: their mean is this far off the counter
    assert found["energy_disagreement_pct"] == pytest.approx(2.7, abs=0.3)
    assert found["mfu"] == pytest.approx(0.246, abs=0.005)
    # the journal's counter readings at the window's ends, by hand
    window_j = (trace["rows"][-1][4] - trace["rows"][0][4]) / 1e3
    seconds = trace["rows"][-1][0] - trace["rows"][0][0]
    assert found["energy_j"] == pytest.approx(window_j * found["window_s"] / seconds, rel=0.01)  # type: ignore[operator]


def test_peaks_are_known_for_the_cards_in_the_table_only() -> None:
    assert bf16_dense_peak("NVIDIA H100 80GB HBM3") == 989.4e12
    assert bf16_dense_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert bf16_dense_peak("NVIDIA L4") == 121e12
    assert bf16_dense_peak("NVIDIA L40S") == 362.05e12
    assert bf16_dense_peak("NVIDIA H100") is None
    assert bf16_dense_peak("NVIDIA RTX PRO 4500") is None


def test_scaling_compares_runs_of_the_same_work() -> None:
    for gpus in (1, 2, 2):
        finish_run(a_whole_run(gpus=gpus))
    found = rows(
        "SELECT ranks, runs, round(scaling, 3), round(efficiency_pct, 1), round(karp_flatt, 3) FROM v_scaling ORDER BY 1"
    )
    assert found == [(1, 1, 1.0, 100.0, None), (2, 2, 2.0, 100.0, 0.0)]
    ladder = rows("SELECT dataset_tokens, round(epoch_s) FROM v_epoch_estimates WHERE ranks = 1 ORDER BY 1")
    assert ladder == [(5_000_000, 2500), (50_000_000, 25_000), (500_000_000, 250_000), (5_000_000_000, 2_500_000)]


def test_the_views_epoch_and_compares_are_the_same() -> None:
    for gpus in (1, 2):
        finish_run(a_whole_run(gpus=gpus))
    found = rows(
        "SELECT run_id, epoch_s, epoch_low_s, epoch_high_s FROM v_epoch_estimates WHERE dataset_tokens = 5000000"
    )
    configurations = {c.source: c for c in measured(*run_summaries())[0]}
    assert len(found) == len(configurations) == 2
    for run_id, *view in found:
        configuration = configurations[run_id]
        assert configuration.window_s == approx(19.5)
        time = epoch_time_s(5_000_000, configuration.tok_s, configuration.window_s)
        assert view == [pytest.approx(time.value), pytest.approx(time.low), pytest.approx(time.high)]
