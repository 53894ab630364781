"""How a run ended is judged from what its ranks left, whoever torchrun blames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lorawatch.launch.command import OwnCommand
from lorawatch.launch.torchrun import Torchrun
from lorawatch.run.directory import RunDir
from lorawatch.run.records import ExitRecord
from lorawatch.run.verdict import Evidence, Verdict, deciding_rule, judge, rules

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


def evidence(
    exit_code: int | None,
    records: Sequence[ExitRecord] = (),
    world_size: int = 0,
    *,
    own_command: bool = False,
    log_tail: str = "",
    **more: Any,
) -> Evidence:
    """What a recorder has: the ranks' records, and the end as the run's launcher reads it from its status and log."""
    run = RunDir(Path("run"))
    launcher = OwnCommand(run) if own_command else Torchrun(run, None, None, world_size=world_size)
    return Evidence(launcher.end(exit_code, log_tail), records, world_size, **more)


def test_all_ranks_completed() -> None:
    verdict = judge(evidence(0, [record(0, "completed"), record(1, "completed")], 2))
    assert (verdict.state, verdict.exit_code) == ("completed", 0)


def test_a_stop_that_all_ranks_followed() -> None:
    verdict = judge(evidence(0, [record(0, "stopped", step=7), record(1, "stopped", step=7)], 2, stop_requested="stop"))
    assert verdict.state == "stopped"
    assert "step 7" in (verdict.message or "")
    loading = judge(evidence(-15, [record(0, "stopped"), record(1, "stopped")], 2, stop_requested="stop"))
    assert (loading.state, loading.message) == ("stopped", "stopped before the first step")


def test_separate_ranks_each_stop_at_a_step_of_their_own() -> None:
    verdict = judge(evidence(0, [record(0, "stopped", step=9), record(1, "stopped", step=7)], 2, stop_requested="stop"))
    assert verdict.message == "stopped at steps 7 to 9"


def test_siblings_ended_by_torchrun_do_not_hide_the_cause() -> None:
    records = [
        record(0, "stopped", step=3),
        record(1, "failed", failure="cuda_oom", exception="OutOfMemoryError: tried", step=3, hint="lower the batch"),
    ]
    verdict = judge(evidence(1, records, 2))
    assert (verdict.state, verdict.failure) == ("failed", "cuda_oom")
    assert "rank 1 at step 3" in (verdict.message or "")
    assert "lower the batch" in (verdict.message or "")


def test_a_rank_that_only_lost_its_peer_is_not_blamed() -> None:
    lost = record(
        0, "failed", failure="python_exception", at=1.0, exception="RuntimeError: [gloo] Connection closed by peer"
    )
    cause = record(1, "failed", failure="python_exception", at=2.0, exception="ValueError: boom", step=4)
    verdict = judge(evidence(1, [lost, cause], 2))
    assert "boom" in (verdict.message or "")


def test_a_silent_rank_was_killed() -> None:
    lost = record(0, "failed", failure="python_exception", exception="RuntimeError: [gloo] Connection closed by peer")
    verdict = judge(evidence(1, [lost], 2, log_tail=KILLED_LOG))
    assert verdict.failure == "signal"
    assert "rank 1" in (verdict.message or "")
    assert "SIGKILL" in (verdict.message or "")


def test_a_kill_for_want_of_memory_is_named() -> None:
    verdict = judge(evidence(1, [], 2, log_tail=KILLED_LOG, oom_kills=1))
    assert verdict.failure == "host_oom"


def test_torchruns_agent_killed() -> None:
    verdict = judge(evidence(-9, [], 2))
    assert verdict.failure == "signal"
    assert "agent" in (verdict.message or "")


def test_bad_input_keeps_its_own_exit_status_and_blames_no_rank() -> None:
    bad = record(0, "failed", failure="python_exception", exception="data.jsonl, line 3: not JSON", exit_code=2)
    verdict = judge(evidence(1, [bad, record(1, "stopped")], 2))
    assert verdict.exit_code == 2
    assert (verdict.message or "").startswith("data.jsonl, line 3")


def test_own_commands_end_by_status_signal_or_traceback() -> None:
    assert judge(evidence(0, own_command=True)).state == "completed"
    assert judge(evidence(1, own_command=True)).failure == "nonzero_exit"
    assert judge(evidence(-11, own_command=True)).failure == "signal"
    trace = "Traceback (most recent call last):\n  File …\nValueError: no such thing\n"
    verdict = judge(evidence(1, own_command=True, log_tail=trace))
    assert (verdict.failure, verdict.message) == ("python_exception", "ValueError: no such thing")
    oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    verdict = judge(evidence(1, own_command=True, log_tail=oom))
    assert verdict.failure == "cuda_oom"
    assert verdict.message == f"{oom}a smaller batch or shorter sequences need less"


def test_a_program_that_got_over_a_full_gpu_by_itself_ended_for_another_reason() -> None:
    tried = "CUDA out of memory at batch 64, trying 32\n"
    assert judge(evidence(-11, own_command=True, log_tail=tried)).failure == "signal"
    after = judge(evidence(1, own_command=True, log_tail=f"{tried}FileNotFoundError: data.csv\n"))
    assert (after.failure, after.message) == ("python_exception", "FileNotFoundError: data.csv")
    assert judge(evidence(-6, own_command=True, log_tail=tried)).failure == "cuda_oom"
    assert judge(evidence(2, own_command=True, log_tail=tried)).failure == "cuda_oom"


def test_an_adopted_command_whose_status_nobody_saw_is_lost() -> None:
    assert judge(evidence(None, own_command=True)).state == "lost"


def test_a_hang_and_a_second_stop() -> None:
    assert judge(evidence(-9, [], 2, hang="no step for 300 s")).failure == "hang"
    assert judge(evidence(-9, [], 2, stop_requested="kill")).state == "stopped"


def test_a_lost_gpu() -> None:
    assert judge(evidence(1, [], 2, gpu_lost=["GPU-1"])).failure == "gpu_lost"


@pytest.mark.parametrize("at", [(1.0, 1.2), (1.2, 1.0)])
def test_the_rank_that_got_a_signal_first_is_named_and_not_the_one_that_lost_it(at: tuple[float, float]) -> None:
    """SIGTERM to rank 1: torchrun then ends rank 0, or its next collective does."""
    lost = record(0, "failed", failure="nccl_timeout", exception=LOST, at=at[1], step=9)
    killed = record(1, "stopped", signal=15, step=9, at=at[0])
    log = FAILED_LOG.format(others=rank_log(0, 1), root=rank_log(1, 143))
    verdict = judge(evidence(1, [lost, killed], 2, log_tail=log))
    assert (verdict.failure, verdict.message) == ("signal", "rank 1 at step 9 was ended by signal 15 (SIGTERM)")
    both = judge(evidence(1, [record(0, "stopped", signal=15, at=2.0), killed], 2, log_tail=log))
    assert both.message == "rank 1 at step 9 was ended by signal 15 (SIGTERM)"


def test_a_signal_to_torchruns_agent_names_the_agent_and_not_the_ranks_that_it_ends() -> None:
    ended = [record(rank, "stopped", signal=15, step=6) for rank in (0, 1)]
    assert (
        judge(evidence(1, ended, 2, log_tail=AGENT_LOG)).message == "torchrun's agent was ended by signal 15 (SIGTERM)"
    )
    lost = [record(0, "failed", failure="nccl_timeout", exception=LOST), ended[1]]
    assert "agent" in (judge(evidence(1, lost, 2, log_tail=AGENT_LOG)).message or "")


def test_a_rank_that_failed_before_torchrun_ended_the_others_is_the_cause() -> None:
    failed = record(0, "failed", failure="python_exception", exception="ValueError: boom", at=1.0)
    ended = record(1, "stopped", signal=15, at=1.1)
    assert judge(evidence(1, [ended, failed], 2)).failure == "python_exception"


def test_a_rank_killed_while_the_other_had_no_record_either_is_the_only_one_blamed() -> None:
    log = FAILED_LOG.format(others=rank_log(1, -15, "(SIGTERM)"), root=rank_log(0, -9, "(SIGKILL)"))
    assert judge(evidence(1, [], 2, log_tail=log)).message == "rank 0 was ended by signal 9 (SIGKILL)"


def test_a_rank_that_exited_by_itself_before_it_could_leave_a_record_got_no_signal() -> None:
    log = "Traceback (most recent call last):\nOSError: [Errno 24] Too many open files\n" + FAILED_LOG.format(
        others="  <NO_OTHER_FAILURES>", root=rank_log(1, 1)
    )
    verdict = judge(evidence(1, [record(0, "stopped", signal=15)], 2, log_tail=log))
    assert verdict.failure == "nonzero_exit"
    assert verdict.message == (
        "rank 1 exited with status 1 before it could say why: OSError: [Errno 24] Too many open files"
    )


def test_a_torchrun_that_ended_before_its_ranks_got_no_signal() -> None:
    verdict = judge(evidence(2, [], 2, log_tail="usage: run.py\nMemoryError: \n"))
    assert (verdict.failure, verdict.message) == ("nonzero_exit", "torchrun ended with status 2: MemoryError: ")


def test_all_done_but_records_missing_is_completed_with_a_warning() -> None:
    assert judge(evidence(0, [], 2)).message == "how ranks 0, 1 ended is not written down"
    verdict = judge(evidence(0, [record(0, "completed")], 2))
    assert (verdict.state, verdict.message) == ("completed", "how rank 1 ended is not written down")


def test_lines_that_the_disk_did_not_take_are_named_in_every_end() -> None:
    words = "112 lines of its ranks are not recorded: the disk took no more"
    done = [record(0, "completed", unwritten=12), record(1, "completed", unwritten=100)]
    assert judge(evidence(0, done, 2)) == Verdict("completed", message=words)
    stopped = [record(0, "stopped", step=7), record(1, "stopped", step=7, unwritten=112)]
    assert judge(evidence(0, stopped, 2, stop_requested="stop")).message == f"stopped together at step 7\n{words}"
    failed = [record(1, "failed", failure="disk_full", exception="OSError: full", unwritten=112)]
    assert (judge(evidence(1, failed, 2)).message or "").endswith(f"\n{words}")
    assert judge(evidence(0, own_command=True, lines_lost=112)) == Verdict("completed", message=words)


def test_a_stop_that_saved_nothing_says_so() -> None:
    ended = [record(0, "stopped", signal=15, step=70), record(1, "stopped", signal=15, step=70)]
    why = "the ranks did not stop within 60 s"
    verdict = judge(evidence(1, ended, 2, stop_requested="stop", not_saved=why))
    assert verdict == Verdict("stopped", message=f"ended while stopping, and nothing was saved: {why}")
    own = judge(evidence(-15, own_command=True, stop_requested="stop", not_saved="rank 1 of 2 cannot be asked"))
    assert own.message == "stopped on request; nothing was saved: rank 1 of 2 cannot be asked"


def test_a_stop_before_the_first_step_is_told_from_one_whose_ranks_were_killed() -> None:
    ended = [record(0, "stopped", signal=15, step=0)]
    for records in ([], ended):
        assert judge(evidence(1, records, 2, stop_requested="stop")).message == "stopped before the first step"
        killed = judge(evidence(1, records, 2, stop_requested="stop", step=500)).message
        assert killed == "ended while stopping, and nothing was saved"


def test_a_users_own_torchrun_is_read_too() -> None:
    assert judge(evidence(1, own_command=True, log_tail=KILLED_LOG)).message == "rank 1 was ended by signal 9 (SIGKILL)"
    verdict = judge(evidence(1, own_command=True, log_tail=AGENT_LOG))
    assert (verdict.failure, verdict.message) == ("signal", "the command's torchrun was ended by signal 15 (SIGTERM)")
    failed = FAILED_LOG.format(others="  <NO_OTHER_FAILURES>", root=rank_log(1, 1))
    assert judge(evidence(1, own_command=True, log_tail=failed)).failure == "python_exception"


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_ranks_with_the_same_signal_the_one_that_torchrun_saw_end_first_is_named(first: int) -> None:
    """SIGTERM to a rank without a handler: torchrun ends the other with the same signal."""
    seen = f"api.py:1002] failed (exitcode: -15) local_rank: {first} (pid: 1{first}) of binary: python\n"
    ranks = [rank_log(rank, -15, "(SIGTERM)").replace("(pid: 12)", f"(pid: 1{rank})") for rank in (first, 1 - first)]
    log = seen + FAILED_LOG.format(root=ranks[0], others=ranks[1])
    for own_command in (True, False):
        verdict = judge(evidence(1, [], 2, own_command=own_command, log_tail=log))
        assert verdict.message == f"rank {first} was ended by signal 15 (SIGTERM)"


def test_a_signal_without_a_name_is_a_number() -> None:
    assert judge(evidence(-40, own_command=True)).message == "the command was ended by signal 40"


DONE = [record(0, "completed"), record(1, "completed")]
STOPPED = [record(0, "stopped", step=7), record(1, "stopped", step=7)]
BOOM = record(0, "failed", failure="python_exception", exception="ValueError: boom")
PEER = record(0, "failed", failure="python_exception", exception=LOST)
TERMINATED = record(1, "stopped", signal=15)
RANK_1_FAILED = FAILED_LOG.format(others="  <NO_OTHER_FAILURES>", root=rank_log(1, 1))
OOM = "torch.OutOfMemoryError: CUDA out of memory\n"

# The rule that decides, and one behind it that would decide otherwise, for the same evidence.
RECIPE_ORDER = [
    (
        "the recorder ended it as hung",
        "it was ended at once on request",
        {"exit_code": -9, "hang": "h", "stop_requested": "kill"},
    ),
    (
        "it was ended at once on request",
        "every rank completed",
        {"exit_code": 0, "records": DONE, "stop_requested": "kill"},
    ),
    ("every rank completed", "a GPU was lost", {"exit_code": 0, "records": DONE, "gpu_lost": ["G"]}),
    ("every rank completed", "a stop ended it", {"exit_code": 0, "records": DONE, "stop_requested": "stop"}),
    (
        "every rank followed a stop",
        "a GPU was lost",
        {"exit_code": 0, "records": STOPPED, "stop_requested": "stop", "gpu_lost": ["G"]},
    ),
    ("a rank failed by itself", "a GPU was lost", {"exit_code": 1, "records": [BOOM], "gpu_lost": ["G"]}),
    ("a rank failed by itself", "a stop ended it", {"exit_code": 1, "records": [BOOM], "stop_requested": "stop"}),
    ("a rank failed by itself", "a signal ended the launcher", {"exit_code": -9, "records": [BOOM]}),
    ("a GPU was lost", "a stop ended it", {"exit_code": 1, "gpu_lost": ["G"], "stop_requested": "stop"}),
    ("a stop ended it", "a signal ended the launcher", {"exit_code": -15, "stop_requested": "stop"}),
    ("a signal ended the launcher", "the launcher says it got a signal", {"exit_code": -9, "log_tail": AGENT_LOG}),
    (
        "the launcher says it got a signal",
        "the launcher says how a silent rank ended",
        {"exit_code": 1, "log_tail": AGENT_LOG + KILLED_LOG},
    ),
    (
        "the launcher says how a silent rank ended",
        "the kernel ended silent ranks",
        {"exit_code": 1, "log_tail": RANK_1_FAILED, "oom_kills": 1},
    ),
    (
        "the launcher says how a silent rank ended",
        "a rank got a signal",
        {"exit_code": 1, "records": [record(0, "stopped", signal=15)], "log_tail": KILLED_LOG},
    ),
    ("the kernel ended silent ranks", "the launcher never came to its ranks", {"exit_code": 1, "oom_kills": 1}),
    ("the launcher never came to its ranks", "ranks ended without a word", {"exit_code": 1}),
    ("ranks ended without a word", "a rank got a signal", {"exit_code": 1, "records": [TERMINATED]}),
    ("a rank got a signal", "ranks lost one another", {"exit_code": 1, "records": [PEER, TERMINATED]}),
    ("ranks lost one another", "the launcher ended well", {"exit_code": 0, "records": [PEER]}),
    ("the launcher ended well", "the launcher failed", {"exit_code": 0}),
]
COMMAND_ORDER = [
    (
        "the recorder ended it as hung",
        "it was ended at once on request",
        {"exit_code": -9, "hang": "h", "stop_requested": "kill"},
    ),
    ("it was ended at once on request", "a stop ended it", {"exit_code": -9, "stop_requested": "kill"}),
    ("a stop ended it", "it ended well", {"exit_code": 0, "stop_requested": "stop"}),
    ("it ended well", "its status is not known", {"exit_code": None, "records": DONE}),
    ("its status is not known", "its torchrun got a signal", {"exit_code": None, "log_tail": AGENT_LOG}),
    ("a GPU's memory was full", "a signal ended it", {"exit_code": -6, "log_tail": OOM}),
    ("a GPU's memory was full", "its torchrun names a signal", {"exit_code": 1, "log_tail": f"{KILLED_LOG}\n{OOM}"}),
    ("a signal ended it", "its torchrun got a signal", {"exit_code": -15, "log_tail": AGENT_LOG}),
    ("its torchrun got a signal", "its torchrun names a signal", {"exit_code": 1, "log_tail": AGENT_LOG + KILLED_LOG}),
    ("its torchrun names a signal", "it failed", {"exit_code": 1, "log_tail": KILLED_LOG}),
]


@pytest.mark.parametrize(
    ("own_command", "first", "behind", "case"),
    [(False, *line) for line in RECIPE_ORDER] + [(True, *line) for line in COMMAND_ORDER],
)
def test_what_goes_before_what(own_command: bool, first: str, behind: str, case: dict[str, Any]) -> None:
    found = evidence(world_size=2, own_command=own_command, **case)
    names = [rule.name for rule in rules(own_command) if rule.applies(found)]
    assert behind in names, "the case shows nothing where only one of them applies"
    assert deciding_rule(found).name == first
    by_name = {rule.name: rule for rule in rules(own_command)}
    assert judge(found) == by_name[first].outcome(found) != by_name[behind].outcome(found)


@pytest.mark.parametrize(("own_command", "order"), [(False, RECIPE_ORDER), (True, COMMAND_ORDER)])
def test_the_place_of_every_rule_is_held_by_a_case(own_command: bool, order: list[tuple[str, str, object]]) -> None:
    assert {rule.name for rule in rules(own_command)[:-1]} == {first for first, _, _ in order}
