"""How a run ended is judged from what its ranks left, whoever torchrun blames."""

from __future__ import annotations

import pytest

from lorawatch.run.records import ExitRecord
from lorawatch.run.verdict import Evidence, Verdict, judge

# As torchrun of torch 2.13 ends.
FAILED_LOG = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
lorawatch.training.worker FAILED
------------------------------------------------------------
Failures:
{others}
------------------------------------------------------------
Root Cause (first observed failure):
{root}
============================================================"""
RANK_LOG = """[0]:
  time      : 2026-11-30_10:01:12
  host      : localhost
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: {pid}) {name}
  error_file: <N/A>
  traceback : {says}"""
AGENT_LOG = """
    raise SignalException(f"Process {os.getpid()} got signal: {sigval}", sigval=sigval)
torch.distributed.elastic.multiprocessing.api.SignalException: Process 10918 got signal: 15
"""


def rank_log(rank: int, code: int, name: str = "") -> str:
    says = (
        f"Signal {-code} {name} received by PID 12" if code < 0 else "To enable traceback see: https://pytorch.org/docs"
    )
    return RANK_LOG.format(rank=rank, code=code, pid=12, name=name, says=says)


KILLED_LOG = FAILED_LOG.format(others="  <NO_OTHER_FAILURES>", root=rank_log(1, -9, "(SIGKILL)"))
LOST = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:37062"


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


def test_a_program_that_got_over_a_full_gpu_by_itself_ended_for_another_reason() -> None:
    tried = "CUDA out of memory at batch 64, trying 32\n"
    assert judge(Evidence(-11, own_command=True, log_tail=tried)).failure == "signal"
    after = judge(Evidence(1, own_command=True, log_tail=f"{tried}FileNotFoundError: data.csv\n"))
    assert (after.failure, after.message) == ("python_exception", "FileNotFoundError: data.csv")
    assert judge(Evidence(-6, own_command=True, log_tail=tried)).failure == "cuda_oom"
    assert judge(Evidence(2, own_command=True, log_tail=tried)).failure == "cuda_oom"


def test_an_adopted_command_whose_status_nobody_saw_is_lost() -> None:
    assert judge(Evidence(None, own_command=True)).state == "lost"


def test_a_hang_and_a_second_stop() -> None:
    assert judge(Evidence(-9, [], 2, hang="no step for 300 s")).failure == "hang"
    assert judge(Evidence(-9, [], 2, stop_requested="kill")).state == "stopped"


def test_a_lost_gpu() -> None:
    assert judge(Evidence(1, [], 2, gpu_lost=["GPU-1"])).failure == "gpu_lost"


@pytest.mark.parametrize("at", [(1.0, 1.2), (1.2, 1.0)])
def test_the_rank_that_got_a_signal_first_is_named_and_not_the_one_that_lost_it(at: tuple[float, float]) -> None:
    """SIGTERM to rank 1: torchrun then ends rank 0, or its next collective does."""
    lost = record(0, "failed", failure="nccl_timeout", exception=LOST, at=at[1], step=9)
    killed = record(1, "stopped", signal=15, step=9, at=at[0])
    log = FAILED_LOG.format(others=rank_log(0, 1), root=rank_log(1, 143))
    verdict = judge(Evidence(1, [lost, killed], 2, log_tail=log))
    assert (verdict.failure, verdict.message) == ("signal", "rank 1 at step 9 was ended by signal 15 (SIGTERM)")
    both = judge(Evidence(1, [record(0, "stopped", signal=15, at=2.0), killed], 2, log_tail=log))
    assert both.message == "rank 1 at step 9 was ended by signal 15 (SIGTERM)"


def test_a_signal_to_torchruns_agent_names_the_agent_and_not_the_ranks_that_it_ends() -> None:
    ended = [record(rank, "stopped", signal=15, step=6) for rank in (0, 1)]
    assert (
        judge(Evidence(1, ended, 2, log_tail=AGENT_LOG)).message == "torchrun's agent was ended by signal 15 (SIGTERM)"
    )
    lost = [record(0, "failed", failure="nccl_timeout", exception=LOST), ended[1]]
    assert "agent" in (judge(Evidence(1, lost, 2, log_tail=AGENT_LOG)).message or "")


def test_a_rank_that_failed_before_torchrun_ended_the_others_is_the_cause() -> None:
    failed = record(0, "failed", failure="python_exception", exception="ValueError: boom", at=1.0)
    ended = record(1, "stopped", signal=15, at=1.1)
    assert judge(Evidence(1, [ended, failed], 2)).failure == "python_exception"


def test_a_rank_killed_while_the_other_had_no_record_either_is_the_only_one_blamed() -> None:
    log = FAILED_LOG.format(others=rank_log(1, -15, "(SIGTERM)"), root=rank_log(0, -9, "(SIGKILL)"))
    assert judge(Evidence(1, [], 2, log_tail=log)).message == "rank 0 was ended by signal 9 (SIGKILL)"


def test_a_rank_that_exited_by_itself_before_it_could_leave_a_record_got_no_signal() -> None:
    log = "Traceback (most recent call last):\nOSError: [Errno 24] Too many open files\n" + FAILED_LOG.format(
        others="  <NO_OTHER_FAILURES>", root=rank_log(1, 1)
    )
    verdict = judge(Evidence(1, [record(0, "stopped", signal=15)], 2, log_tail=log))
    assert verdict.failure == "nonzero_exit"
    assert verdict.message == (
        "rank 1 exited with status 1 before it could say why: OSError: [Errno 24] Too many open files"
    )


def test_a_torchrun_that_ended_before_its_ranks_got_no_signal() -> None:
    verdict = judge(Evidence(2, [], 2, log_tail="usage: run.py\nMemoryError: \n"))
    assert (verdict.failure, verdict.message) == ("nonzero_exit", "torchrun ended with status 2: MemoryError: ")


def test_all_done_but_records_missing_is_completed_with_a_warning() -> None:
    assert judge(Evidence(0, [], 2)).message == "how ranks 0, 1 ended is not written down"
    verdict = judge(Evidence(0, [record(0, "completed")], 2))
    assert (verdict.state, verdict.message) == ("completed", "how rank 1 ended is not written down")


def test_lines_that_the_disk_did_not_take_are_named_in_every_end() -> None:
    words = "112 lines of its ranks are not recorded: the disk took no more"
    done = [record(0, "completed", unwritten=12), record(1, "completed", unwritten=100)]
    assert judge(Evidence(0, done, 2)) == Verdict("completed", message=words)
    stopped = [record(0, "stopped", step=7), record(1, "stopped", step=7, unwritten=112)]
    assert judge(Evidence(0, stopped, 2, stop_requested="stop")).message == f"stopped together at step 7\n{words}"
    failed = [record(1, "failed", failure="disk_full", exception="OSError: full", unwritten=112)]
    assert (judge(Evidence(1, failed, 2)).message or "").endswith(f"\n{words}")
    assert judge(Evidence(0, own_command=True, lines_lost=112)) == Verdict("completed", message=words)


def test_a_stop_that_saved_nothing_says_so() -> None:
    ended = [record(0, "stopped", signal=15, step=70), record(1, "stopped", signal=15, step=70)]
    why = "the ranks did not stop within 60 s"
    verdict = judge(Evidence(1, ended, 2, stop_requested="stop", not_saved=why))
    assert verdict == Verdict("stopped", message=f"ended while stopping, and nothing was saved: {why}")
    own = judge(Evidence(-15, own_command=True, stop_requested="stop", not_saved="rank 1 of 2 cannot be asked"))
    assert own.message == "stopped on request; nothing was saved: rank 1 of 2 cannot be asked"


def test_a_stop_before_the_first_step_is_told_from_one_whose_ranks_were_killed() -> None:
    ended = [record(0, "stopped", signal=15, step=0)]
    for records in ([], ended):
        assert judge(Evidence(1, records, 2, stop_requested="stop")).message == "stopped before the first step"
        killed = judge(Evidence(1, records, 2, stop_requested="stop", step=500)).message
        assert killed == "ended while stopping, and nothing was saved"


def test_a_users_own_torchrun_is_read_too() -> None:
    assert judge(Evidence(1, own_command=True, log_tail=KILLED_LOG)).message == "rank 1 was ended by signal 9 (SIGKILL)"
    verdict = judge(Evidence(1, own_command=True, log_tail=AGENT_LOG))
    assert (verdict.failure, verdict.message) == ("signal", "the command's torchrun was ended by signal 15 (SIGTERM)")
    failed = FAILED_LOG.format(others="  <NO_OTHER_FAILURES>", root=rank_log(1, 1))
    assert judge(Evidence(1, own_command=True, log_tail=failed)).failure == "python_exception"


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_ranks_with_the_same_signal_the_one_that_torchrun_saw_end_first_is_named(first: int) -> None:
    """SIGTERM to a rank without a handler: torchrun ends the other with the same signal."""
    seen = f"api.py:1002] failed (exitcode: -15) local_rank: {first} (pid: 1{first}) of binary: python\n"
    ranks = [rank_log(rank, -15, "(SIGTERM)").replace("(pid: 12)", f"(pid: 1{rank})") for rank in (first, 1 - first)]
    log = seen + FAILED_LOG.format(root=ranks[0], others=ranks[1])
    for own_command in (True, False):
        verdict = judge(Evidence(1, [], 2, own_command=own_command, log_tail=log))
        assert verdict.message == f"rank {first} was ended by signal 15 (SIGTERM)"


def test_a_signal_without_a_name_is_a_number() -> None:
    assert judge(Evidence(-40, own_command=True)).message == "the command was ended by signal 40"
