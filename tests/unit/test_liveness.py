"""Who looks after a run is told by its processes here, and by its heartbeat elsewhere."""

from __future__ import annotations

import os
import time

import msgspec
import pytest
from history import end, make_run

from lorawatch.errors import RunBusy, RunElsewhere, RunNotFound, UsageError
from lorawatch.run.directory import RunDir, RunState
from lorawatch.run.liveness import SILENT_S, deciding, liveness, refuse_living
from lorawatch.system.home import host_name
from lorawatch.system.processes import ProcessId

OWN = ProcessId.own()
GONE = msgspec.structs.replace(OWN, pid=999_999, started=1)
OTHER = msgspec.structs.replace(OWN, boot_id="another", host="n2", machine="another")
CONTAINER = msgspec.structs.replace(OWN, pid_namespace=4242)
REBOOTED = msgspec.structs.replace(OWN, boot_id="an earlier one")
OLD = ProcessId(7, 7, "an earlier one")
OLDER_THAN_A_MINUTE = SILENT_S + 30


def a_run(age_s: float = 0, host: str = "h", **state: object) -> RunDir:
    run = make_run()
    info = run.info()
    info.host = host
    run.write_info(info)
    if state:
        run.write_state(RunState(**{"state": "running", **state}))  # type: ignore[arg-type]
    at = time.time() - age_s
    for path in run.root.iterdir():
        os.utime(path, (at, at))
    return run


@pytest.mark.parametrize(
    ("state", "age_s", "kind"),
    [
        ({"state": "completed"}, 0, "ended"),
        ({}, 0, "starting"),
        ({}, OLDER_THAN_A_MINUTE, "over"),
        ({"recorder": OWN}, OLDER_THAN_A_MINUTE, "recorded"),
        ({"recorder": GONE, "launcher": GONE}, 0, "over"),
        ({"recorder": GONE, "launcher": OWN}, OLDER_THAN_A_MINUTE, "unrecorded"),
        ({"recorder": GONE, "launcher": GONE, "ranks": [OWN]}, 0, "unrecorded"),
        ({"recorder": GONE, "launcher": GONE, "family": [(OWN.pid, OWN.started)]}, 0, "unrecorded"),
        ({"recorder": OTHER, "launcher": OTHER}, 0, "elsewhere"),
        ({"recorder": OTHER, "launcher": OTHER, "family": [(OWN.pid, OWN.started)]}, OLDER_THAN_A_MINUTE, "silent"),
        ({"recorder": CONTAINER}, 0, "elsewhere"),
        ({"recorder": CONTAINER}, OLDER_THAN_A_MINUTE, "silent"),
        ({"recorder": REBOOTED}, 0, "elsewhere"),
        ({"recorder": REBOOTED}, OLDER_THAN_A_MINUTE, "over"),
        ({"recorder": OLD}, OLDER_THAN_A_MINUTE, "silent"),
    ],
)
def test_what_is_known_of_a_run(state: dict[str, object], age_s: float, kind: str) -> None:
    assert liveness(a_run(age_s, **state)).kind == kind


def test_a_recorder_of_an_older_version_is_known_by_its_runs_host() -> None:
    here = a_run(OLDER_THAN_A_MINUTE, host_name(), recorder=OLD)
    assert liveness(here).kind == "over"
    there = liveness(a_run(OLDER_THAN_A_MINUTE, "n9", recorder=OLD))
    assert (there.kind, there.host) == ("silent", "n9")
    assert there.words == "no word from n9 for 1:30"


def test_a_journal_that_is_written_is_a_sign_of_life() -> None:
    run = a_run(OLDER_THAN_A_MINUTE, recorder=OTHER)
    run.rank_journal(0).write_text("")
    assert liveness(run).kind == "elsewhere"


def test_a_state_that_is_no_state_is_judged_by_its_age() -> None:
    run = a_run(recorder=OWN)
    (run.root / "state.json").write_text("{")
    assert liveness(run).kind == "starting"
    for path in run.root.iterdir():
        os.utime(path, (1, 1))
    assert liveness(run).kind == "over"


def test_what_another_host_looks_after_is_decided_there() -> None:
    for age_s, words in ((0, "is recorded on n2"), (OLDER_THAN_A_MINUTE, "no word from n2 for 1:30")):
        run = a_run(age_s, recorder=OTHER)
        with pytest.raises(RunElsewhere, match=words), deciding(run):
            pass
    with deciding(run, host_gone=True) as status:
        assert status.kind == "silent"


def test_one_decides_at_a_time_and_not_about_what_is_gone() -> None:
    run = a_run(recorder=GONE)
    with run.locked():
        with pytest.raises(RunBusy), RunDir(run.root).locked(0.1):
            pass
        (run.root / "lock").unlink()
        (run.root / "lock").touch()
    with pytest.raises(RunNotFound), RunDir(run.root.with_name("nosuchid")).locked():
        pass


def test_a_living_run_is_not_changed_and_the_way_out_is_named() -> None:
    cases = {
        "recorded": (a_run(recorder=OWN), "stop"),
        "unrecorded": (a_run(recorder=GONE, launcher=OWN), "adopt"),
        "starting": (a_run(), "attach"),
    }
    for kind, (run, way) in cases.items():
        status = liveness(run)
        assert status.kind == kind
        with pytest.raises(UsageError) as caught:
            refuse_living(run, status, "deleted")
        assert "cannot be deleted" in caught.value.message
        assert f"lorawatch {way} {run.run_id}" in (caught.value.hint or "")
    done = make_run()
    end(done)
    refuse_living(done, liveness(done), "deleted")
