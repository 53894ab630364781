"""How a run ended is judged from what its ranks left, whoever torchrun blames."""

from __future__ import annotations

from lorawatch.records import ExitRecord
from lorawatch.verdict import Evidence, judge

KILLED_LOG = """
E torch/distributed/elastic/multiprocessing/api.py] failed (exitcode: -9) local_rank: 1 (pid: 123) of binary: python
Root Cause (first observed failure):
  exitcode  : -9 (pid: 123)
  error_file: <N/A>
"""


def record(rank: int, status: str, **more: object) -> ExitRecord:
    return ExitRecord(rank=rank, attempt=0, at=float(more.pop("at", 1.0)), status=status, **more)  # type: ignore[arg-type]


def test_all_ranks_completed() -> None:
    verdict = judge(Evidence(0, [record(0, "completed"), record(1, "completed")], 2))
    assert (verdict.state, verdict.exit_code) == ("completed", 0)


def test_a_stop_that_all_ranks_followed() -> None:
    verdict = judge(Evidence(0, [record(0, "stopped", step=7), record(1, "stopped", step=7)], 2, stop_requested="stop"))
    assert verdict.state == "stopped"
    assert "step 7" in (verdict.message or "")
    loading = judge(Evidence(-15, [record(0, "stopped"), record(1, "stopped")], 2, stop_requested="stop"))
    assert (loading.state, loading.message) == ("stopped", "stopped before the first step")


def test_separate_ranks_each_stop_at_a_step_of_their_own() -> None:
    verdict = judge(Evidence(0, [record(0, "stopped", step=9), record(1, "stopped", step=7)], 2, stop_requested="stop"))
    assert verdict.message == "stopped at steps 7 to 9"


def test_siblings_ended_by_torchrun_do_not_hide_the_cause() -> None:
    records = [
        record(0, "stopped", step=3),
        record(1, "failed", failure="cuda_oom", exception="OutOfMemoryError: tried", step=3, hint="lower the batch"),
    ]
    verdict = judge(Evidence(1, records, 2))
    assert (verdict.state, verdict.failure) == ("failed", "cuda_oom")
    assert "rank 1 at step 3" in (verdict.message or "")
    assert "lower the batch" in (verdict.message or "")


def test_a_rank_that_only_lost_its_peer_is_not_blamed() -> None:
    lost = record(
        0, "failed", failure="python_exception", at=1.0, exception="RuntimeError: [gloo] Connection closed by peer"
    )
    cause = record(1, "failed", failure="python_exception", at=2.0, exception="ValueError: boom", step=4)
    verdict = judge(Evidence(1, [lost, cause], 2))
    assert "boom" in (verdict.message or "")


def test_a_silent_rank_was_killed() -> None:
    lost = record(0, "failed", failure="python_exception", exception="RuntimeError: [gloo] Connection closed by peer")
    verdict = judge(Evidence(1, [lost], 2, log_tail=KILLED_LOG))
    assert verdict.failure == "signal"
    assert "rank 1" in (verdict.message or "")
    assert "SIGKILL" in (verdict.message or "")


def test_a_kill_for_want_of_memory_is_named() -> None:
    verdict = judge(Evidence(1, [], 2, log_tail=KILLED_LOG, oom_kills=1))
    assert verdict.failure == "host_oom"


def test_torchruns_agent_killed() -> None:
    verdict = judge(Evidence(-9, [], 2))
    assert verdict.failure == "signal"
    assert "agent" in (verdict.message or "")


def test_bad_input_keeps_its_own_exit_status_and_blames_no_rank() -> None:
    bad = record(0, "failed", failure="python_exception", exception="data.jsonl, line 3: not JSON", exit_code=2)
    verdict = judge(Evidence(1, [bad, record(1, "stopped")], 2))
    assert verdict.exit_code == 2
    assert (verdict.message or "").startswith("data.jsonl, line 3")


def test_own_commands_end_by_status_signal_or_traceback() -> None:
    assert judge(Evidence(0, own_command=True)).state == "completed"
    assert judge(Evidence(1, own_command=True)).failure == "nonzero_exit"
    assert judge(Evidence(-11, own_command=True)).failure == "signal"
    trace = "Traceback (most recent call last):\n  File …\nValueError: no such thing\n"
    verdict = judge(Evidence(1, own_command=True, log_tail=trace))
    assert (verdict.failure, verdict.message) == ("python_exception", "ValueError: no such thing")
    oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    verdict = judge(Evidence(1, own_command=True, log_tail=oom))
    assert verdict.failure == "cuda_oom"
    assert verdict.message == f"{oom}a smaller batch or shorter sequences need less"


def test_an_adopted_command_whose_status_nobody_saw_is_lost() -> None:
    assert judge(Evidence(None, own_command=True)).state == "lost"


def test_a_hang_and_a_second_stop() -> None:
    assert judge(Evidence(-9, [], 2, hang="no step for 300 s")).failure == "hang"
    assert judge(Evidence(-9, [], 2, stop_requested="kill")).state == "stopped"


def test_a_lost_gpu() -> None:
    assert judge(Evidence(1, [], 2, gpu_lost=["GPU-1"])).failure == "gpu_lost"
