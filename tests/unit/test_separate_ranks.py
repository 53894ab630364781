"""Ranks that train separately: alone for the libraries, together at the start, nobody waits for anybody after it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lorawatch.recorder.hang import longest_silent
from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.follower import Follower
from lorawatch.run.live import LiveView
from lorawatch.run.records import PhaseChange, RankStarted, Record, Step
from lorawatch.training.rank_info import RankInfo, hide_other_ranks
from lorawatch.training.start_barrier import StartBarrier
from lorawatch.training.stopping import StopAgreement

TORCHRUN = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "ROLE_RANK": "1",
    "GROUP_WORLD_SIZE": "1", "ROLE_WORLD_SIZE": "2", "ROLE_NAME": "default", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "3", "TORCHELASTIC_ERROR_FILE": "/tmp/e",
}  # fmt: skip


def rank_info(rank: int, world_size: int = 2, attempt: int = 0) -> RankInfo:
    return RankInfo(rank, rank, world_size, attempt, separate=True)


def test_a_separate_rank_keeps_its_numbers_and_is_alone_for_the_libraries() -> None:
    environment = {**TORCHRUN, "CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b", "HOME": "/h"}
    rank_info = RankInfo.from_environment(environment).as_separate()
    assert (rank_info.rank, rank_info.world_size, rank_info.attempt) == (1, 2, 3)
    assert (rank_info.trains_alone, rank_info.model_world_size, rank_info.device_index) == (True, 1, 0)
    hide_other_ranks(rank_info, environment)
    # torchrun's error file stays: it is how the agent learns of an exception
    assert environment == {
        "CUDA_VISIBLE_DEVICES": "GPU-b", "HOME": "/h", "TORCHELASTIC_RESTART_COUNT": "3",
        "TORCHELASTIC_ERROR_FILE": "/tmp/e",
    }  # fmt: skip


def test_a_run_of_one_rank_is_alone_as_well_and_coupled_ranks_are_not() -> None:
    assert RankInfo().trains_alone
    coupled = RankInfo(1, 1, 2)
    assert (coupled.trains_alone, coupled.model_world_size, coupled.device_index) == (False, 2, 1)


@pytest.mark.parametrize(("visible", "left"), [(None, "1"), ("3,5", "5"), ("3", ""), ("", "")])
def test_a_separate_rank_sees_its_own_gpu_only(visible: str | None, left: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    hide_other_ranks(rank_info(1), environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == left


def waiting(control: Path, who: RankInfo) -> tuple[threading.Thread, list[bool]]:
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(StartBarrier(control, who).wait()), daemon=True)
    thread.start()
    return thread, result


def test_the_gate_opens_for_all_when_the_last_one_is_there(tmp_path: Path) -> None:
    first, passed = waiting(tmp_path, rank_info(0))
    first.join(0.1)
    assert first.is_alive(), "it began without the other"
    assert StartBarrier(tmp_path, rank_info(1)).wait() is True
    first.join(5)
    assert passed == [True]


def test_a_stop_opens_the_gate(tmp_path: Path) -> None:
    first, passed = waiting(tmp_path, rank_info(0))
    (tmp_path / "stop").touch()
    first.join(5)
    assert passed == [False]


def test_who_was_ready_in_an_earlier_attempt_is_not_ready_in_this_one(tmp_path: Path) -> None:
    (tmp_path / "ready-attempt_0-rank-1").touch()
    first, _ = waiting(tmp_path, rank_info(0, attempt=1))
    first.join(0.1)
    assert first.is_alive()
    (tmp_path / "ready-attempt_1-rank-1").touch()
    first.join(5)
    assert not first.is_alive()


def test_a_gate_on_a_disk_that_is_full_for_a_while_opens_later(tmp_path: Path) -> None:
    control = tmp_path / "control"  # not there yet: every write fails
    first, passed = waiting(control, rank_info(0, world_size=1))
    first.join(0.1)
    assert first.is_alive()
    control.mkdir()
    first.join(5)
    assert passed == [True]


def test_a_separate_rank_stops_without_asking_the_others(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    for rank, done in ((0, 7), (1, 3)):
        agreement = StopAgreement(tmp_path, rank_info(rank))
        assert not agreement.step_completed(done)
        agreement.tick()
        assert agreement.stop_at == done + 1
        assert agreement.step_completed(done + 1)


# --- what a display makes of them


def started(rank: int) -> RankStarted:
    return RankStarted(
        at=0.0, attempt=0, rank=rank, local_rank=rank, world_size=2, host="h", pid=1, device="cpu", steps_total=10
    )


def step(rank: int, number: int, seconds: float) -> Step:
    return Step(attempt=0, rank=rank, step=number, ended_at=number * seconds, duration_s=seconds, tokens=100)


def phase(rank: int, name: str) -> PhaseChange:
    return PhaseChange(at=0.0, attempt=0, rank=rank, name=name)


def test_live_rates_of_separate_ranks_add_up() -> None:
    def fed(separate: bool) -> LiveView:
        view = LiveView(2, separate=separate)
        lines: list[Record] = [started(0), started(1), phase(0, "training"), phase(1, "training")]
        lines += [step(0, n, 1.0) for n in range(1, 9)] + [step(1, n, 2.0) for n in range(1, 5)]
        for line in lines:
            view.feed(line)  # type: ignore[arg-type]
        return view

    view = fed(separate=True)
    assert view.tok_s == pytest.approx(100 + 50)
    assert fed(separate=False).tok_s == pytest.approx(100)  # of a step that both take together: the slower's time
    assert view.step == 4  # what all have done
    assert view.eta_s == pytest.approx(6 * 2.0)
    view.feed(phase(0, "saving"))  # who has finished computes no more
    assert view.tok_s == pytest.approx(50)
    view.feed(phase(1, "finished"))
    assert view.tok_s == pytest.approx(150)


def test_a_view_of_separate_ranks_has_no_rate_before_all_have_one() -> None:
    view = LiveView(2, separate=True)
    for line in (started(0), started(1), phase(0, "training"), phase(1, "training"), step(0, 1, 1.0)):
        view.feed(line)  # type: ignore[arg-type]
    assert view.tok_s is None


def test_a_follower_knows_a_separate_run_by_its_recipe() -> None:
    def run(recipe: dict[str, object] | None) -> RunDir:
        return RunDir.create(
            RunInfo(run_id="", name="x", created_at=1.0, host="h", user="u", world_size=2, recipe=recipe)
        )

    separate = run({"launch": {"strategy": "separate"}})
    assert separate.info().separate
    assert Follower(separate).view.separate
    assert not Follower(run({"launch": {"strategy": "ddp"}})).view.separate
    assert not Follower(run(None)).view.separate


def test_the_silence_of_a_separate_rank_is_not_drowned_by_the_others() -> None:
    assert longest_silent({0: 50.0, 1: 20.0, 2: 49.0}) == (1, 20.0)
    assert longest_silent({0: 50.0, 1: None}) == (0, 50.0)
    assert longest_silent({0: None}) is None
    assert longest_silent({}) is None
