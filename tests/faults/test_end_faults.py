"""Ends that are never left to a guess: deleted folders, several adopters, missing records, ranks that do not report."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest
from helpers import TINY, event_kinds, finish, lorawatch, sql, start, the_run, wait_for
from history import end, make_run, step, write

from lorawatch.run.directory import RunDir
from lorawatch.run.records import ExitRecord
from lorawatch.system import home as paths

LIGHT = [sys.executable, str(Path(__file__).with_name("light.py"))]


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setenv("LIGHT_MADE", str(folder))
    return folder


def an_orphaned_run(home: Path, steps: str = "100000") -> RunDir:
    """A run whose recorder was killed while its ranks go on."""
    process = start("--record", "--", *LIGHT, "launch", "2", steps, "0.02")
    run = the_run(home)
    wait_for(lambda: len(run.state().ranks) == 2)
    process.kill()
    process.wait()
    return run


def test_of_several_that_adopt_a_run_at_once_one_does(lorawatch_home: Path) -> None:
    run = an_orphaned_run(lorawatch_home)
    adopters = [start("adopt", run.run_id) for _ in range(4)]
    wait_for(lambda: sum(a.poll() is None for a in adopters) == 1)
    (owner,) = [a for a in adopters if a.poll() is None]
    recorder = run.state().recorder
    assert recorder is not None and recorder.pid == owner.pid
    for other in adopters:
        if other is not owner:
            assert other.returncode == 2
            said = finish(other)
            assert said.startswith("lorawatch: run") and "has a living recorder" in said, "nothing as if it had begun"
    owner.send_signal(signal.SIGTERM)
    out = finish(owner)
    assert owner.returncode == 143, out
    assert sql(lorawatch_home, "SELECT count(*) FROM events WHERE kind = 'adopted'") == [(1,)]
    assert sql(lorawatch_home, "SELECT count(*), count(DISTINCT (rank, step)) FROM steps")[0][0] > 0


def test_a_run_whose_directory_is_deleted_while_it_lives_says_so(lorawatch_home: Path, made: Path) -> None:
    script = f"while [ ! -e {made}/deleted ]; do sleep 0.1; done; sleep 1.5"
    process = start("--record", "--", "sh", "-c", script)
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state == "running")
    wait_for(lambda: paths.history_file().exists() and sql(lorawatch_home, "SELECT count(*) FROM runs") == [(1,)])
    shutil.rmtree(run.root)
    (made / "deleted").touch()
    out = finish(process)
    assert process.returncode == 1
    assert f"its directory was deleted: nothing more is recorded: {run.root}" in out
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("lost",)]
    assert not run.root.exists(), "nothing is made again in its place"


def test_a_directory_that_was_deleted_behind_a_dead_recorder_leaves_no_run_that_seems_to_live(
    lorawatch_home: Path,
) -> None:
    run = an_orphaned_run(lorawatch_home)
    lorawatch("runs")
    state = run.state()
    shutil.rmtree(run.root)
    for identity in [state.launcher, *state.ranks]:
        assert identity is not None
        identity.send(signal.SIGKILL)
    marker = paths.open_runs_folder() / run.run_id
    os.utime(marker, (time.time() - 300,) * 2)
    lorawatch("runs")
    assert sql(lorawatch_home, "SELECT state, message FROM runs") == [
        ("lost", "its directory was deleted before it had ended")
    ]
    assert not marker.exists()


@pytest.mark.slow
def test_logs_deleted_under_a_run_cost_it_a_warning(lorawatch_home: Path) -> None:
    process = start(*TINY, "--set", "train.steps=300")
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().step > 5, 90)
    shutil.rmtree(run.logs)
    out = finish(process)
    assert process.returncode == 0, out
    assert run.state().state == "completed"
    assert (run.adapter / "adapter_model.safetensors").exists()
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(600,)]


def test_what_ranks_made_is_held_against_what_is_recorded(lorawatch_home: Path) -> None:
    run = make_run(ranks=1)
    write(run.rank_journal(0), *(step(n) for n in range(1, 11)))
    record = ExitRecord(rank=0, attempt=0, at=1.0, status="completed", step=12, steps_made=12)
    run.exit_record(0, 0).write_bytes(msgspec.json.encode(record))
    os.utime(run.root / "run.json", (time.time() - 300,) * 2)
    os.utime(run.rank_journal(0), (time.time() - 300,) * 2)
    shown = lorawatch("show", run.run_id).stdout
    assert "rank 0 made 12 steps, of which 10 are recorded" in shown
    assert "completed" in shown


@pytest.mark.parametrize(
    ("command", "word"), [("stop", ""), ("stop", "\t"), ("show", ""), ("attach", " "), ("adopt", ""), ("replay", " ")]
)
def test_an_empty_word_is_no_run(lorawatch_home: Path, command: str, word: str) -> None:
    end(make_run())
    result = lorawatch(command, word)
    assert result.returncode == 2
    assert "an empty word names no run" in result.stderr


def test_a_callback_on_one_rank_only_is_said_and_a_stop_does_not_hang(lorawatch_home: Path, made: Path) -> None:
    process = start("--record", "--", *LIGHT, "launch", "2", "100000", "0.02", env={"LIGHT_REPORTS": "0"})
    run = the_run(lorawatch_home)
    wait_for(lambda: "ranks_missing" in event_kinds(run), 30)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out = finish(process)
    assert time.monotonic() - began < 60
    assert process.returncode == 130
    assert "rank 1 of 2 does not report steps, so that totals over all ranks are not known" in out
    assert "nothing was saved: rank 1 of 2 cannot be asked to stop with the others" in (run.state().message or "")
    assert not list(made.glob("saved-*"))


def test_a_clock_that_is_set_back_gives_no_negative_duration(lorawatch_home: Path, tmp_path: Path) -> None:
    """Seconds are counted by the monotonic clock; the time of day goes back an hour in the recorder's middle."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if '--record' in sys.argv:\n"
        "    real, began = time.time, time.monotonic()\n"
        "    time.time = lambda: real() - (3600 if time.monotonic() - began > 2.5 else 0)\n"
    )
    result = lorawatch("--record", "--", "sleep", "4", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    run = the_run(lorawatch_home)
    assert 4 <= (run.state().elapsed_s or 0) < 60
    assert re.search(r"duration       0:\d\d$", result.stdout, re.M), result.stdout


def test_a_world_as_large_as_a_forged_word_says_hangs_nothing(lorawatch_home: Path) -> None:
    script = (
        "import os; from pathlib import Path\n"
        'line = \'{"t":"rank_started","at":1.0,"attempt":0,"rank":0,"local_rank":0,"world_size":1000000000,\'\n'
        'line += \'"host":"h","pid":1,"device":"cpu"}\\n\'\n'
        "Path(os.environ['LORAWATCH_RUN_DIR'], 'journal', 'rank-0.jsonl').write_text(line)\n"
        "import time; time.sleep(1)\n"
    )
    began = time.monotonic()
    result = lorawatch("--record", "--", sys.executable, "-c", script)
    assert time.monotonic() - began < 60
    assert result.returncode == 0, result.stdout + result.stderr
    run = the_run(lorawatch_home)
    text = (run.root / "run.json").read_text().replace('"world_size": 0', '"world_size": 1000000000')
    (run.root / "run.json").write_text(text)
    assert lorawatch("runs").returncode == 0
