"""A history that was cut, overwritten or lost a block: set aside, made again, and what only it had is read out of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import lorawatch, wait_for
from history import a_whole_run, make_run, many_lines, rows, step, write

from lorawatch.doctor import host
from lorawatch.errors import HistoryBusy, HistoryDamaged, HistoryError
from lorawatch.run.directory import RunDir
from lorawatch.storage import files
from lorawatch.storage.connection import reading, writing
from lorawatch.storage.edit import delete_run, set_tags
from lorawatch.storage.engine import duckdb
from lorawatch.storage.examine import examine
from lorawatch.storage.files import all_set_aside, wal
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.queries import find_run, list_runs, run_figures
from lorawatch.storage.repair import repair
from lorawatch.system import home as paths

BLOCK = 262_144


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """A bit of every block but the first."""
    changed = bytearray(content)
    for at in range(12_288 + BLOCK + 5000, len(content), BLOCK):
        changed[at] ^= 16
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "notes": lambda b: b"my precious notes\n" * 1000,
    "empty": lambda b: b"",
    "zeros": lambda b: b"\0" * 20_000,
    "short": lambda b: b"short",
    "head": lambda b: b[:9000],
    "header flipped": lambda b: b[:5000] + b"\xff\xff" + b[5002:],
    "half": half,
    "end cut": lambda b: b[:-1],
    "blocks flipped": flipped,
}


_built: dict[tuple[int, int], Path] = {}  # homes that are made once and copied


def history_of(count: int = 3, steps: int = 2000) -> list[RunDir]:
    """Runs that are wholly in the history, and of which no command asks for more."""
    home, key = paths.home(), (count, steps)
    if key not in _built:
        for number in range(count):
            finish_run(a_whole_run(f"run-{number}", steps=steps))
        with writing() as connection:
            connection.execute("CHECKPOINT")
        _built[key] = home.with_name(f"built-{count}-{steps}")
        shutil.copytree(home, _built[key])
    else:
        shutil.copytree(_built[key], home)
    return [RunDir(root) for root in sorted(paths.runs_folder().iterdir())]


def damage(how: Callable[[bytes], bytes]) -> bytes:
    path = paths.history_file()
    content = how(path.read_bytes())
    path.write_bytes(content)
    return content


def counts() -> tuple[int, int, int]:
    """Runs, steps, and how many of these are different ones."""
    return rows(  # type: ignore[return-value]
        "SELECT (SELECT count(*) FROM runs), count(*), count(DISTINCT (run_id, attempt, rank, step)) FROM steps"
    )[0]


@pytest.mark.parametrize("how", ["empty", "header flipped", "half", "end cut", "blocks flipped"])
def test_a_writer_that_meets_damage_goes_on_and_a_reader_gets_everything(how: str) -> None:
    """The run that is being recorded is in the new history at once; the others with the next command, each row once."""
    history_of(3)
    content = damage(DAMAGES[how])
    wal(paths.history_file()).write_bytes(b"its log")
    run = make_run()
    for number in range(1, 11):  # damage may lie where the first write does not come
        write(run.rank_journal(0), step(number))
        ingest_run(run)
    done = lorawatch(
        "sql", "SELECT count(*), count(DISTINCT (run_id, attempt, rank, step)) FROM steps", "--format", "csv"
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "12010,12010"), done.stderr
    (aside,) = all_set_aside(paths.history_file()) or [None]
    assert aside is not None
    assert str(aside) in done.stderr
    if how not in ("half", "end cut", "blocks flipped"):  # where it opens, it is written to until damage shows
        assert aside.read_bytes() == content
    assert not files.rebuilding(paths.history_file()).exists()
    assert counts() == (4, 12_010, 12_010)


@pytest.mark.parametrize(
    ("how", "command"),
    [
        ("notes", ["runs", "--json"]),
        ("half", ["runs", "--json"]),
        ("half", ["show", "run-1"]),
        ("half", ["sql", "SELECT sum(epoch(ended_at)), count(*) FROM steps"]),
        ("blocks flipped", ["compare", "--format", "csv"]),
        ("header flipped", ["snapshot", "copy.duckdb", "--force"]),
    ],
)
def test_a_command_that_meets_damage_repairs_and_answers(
    how: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    history_of(2)
    before = lorawatch(*command)
    damage(DAMAGES[how])
    done = lorawatch(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == before.stdout
    if "the old one is kept" in done.stderr:
        assert "is damaged" in done.stderr
        assert "the new one has 2 runs from the journals" in done.stderr
        assert len(all_set_aside(paths.history_file())) == 1
    else:  # its answer was not in what is damaged; the doctor reads all of it
        assert host.storage()[-1].status == "fail" or how == "end cut"
    again = lorawatch(*command)
    assert again.stdout == before.stdout
    assert again.stderr == "" or "is damaged" not in done.stderr


def test_a_folder_in_its_place_is_set_aside() -> None:
    (run,) = history_of(1, steps=40)
    paths.history_file().unlink()
    paths.history_file().mkdir()
    (paths.history_file() / "mine").write_text("precious")
    with pytest.raises(HistoryDamaged, match="a folder stands in its place"):
        list_runs()
    done = lorawatch("show", run.run_id)
    assert done.returncode == 0
    (aside,) = all_set_aside(paths.history_file())
    assert (aside / "mine").read_text() == "precious"
    assert str(aside) in done.stderr
    assert counts() == (1, 80, 80)


def test_what_is_no_file_is_not_waited_for(lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    os.mkfifo(paths.history_file())
    run = make_run()
    write(run.rank_journal(0), step(1))
    assert ingest_run(run).rows == 1
    assert stat.S_ISFIFO(all_set_aside(paths.history_file())[0].stat().st_mode)


def test_a_link_to_where_nothing_is_is_left_alone(lorawatch_home: Path) -> None:
    """A disk that is not mounted: a new history would hide the old one."""
    lorawatch_home.mkdir()
    paths.history_file().symlink_to("/nowhere/history")
    for refused in (lambda: ingest_run(make_run()), list_runs):
        with pytest.raises(HistoryError, match="/nowhere/history, where nothing is"):
            refused()
    assert paths.history_file().is_symlink()


def test_a_broken_log_costs_no_imported_table() -> None:
    history_of(1, steps=40)
    pid = os.fork()
    if not pid:  # dies with its rows in the log
        with writing() as connection:
            connection.execute(
                "INSERT INTO published_results (source, sku) SELECT 'in the log', i FROM range(99) AS t (i)"
            )
            os._exit(0)
    os.waitpid(pid, 0)
    log = wal(paths.history_file())
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    with pytest.raises(HistoryDamaged, match="WAL"):
        list_runs()
    done = lorawatch("runs")
    assert done.returncode == 0
    assert "cannot be read: what was imported last may be missing" in done.stderr
    assert counts() == (1, 80, 80)
    assert wal(all_set_aside(paths.history_file())[0]).read_bytes() == bytes(content)


def a_history_with_more_than_the_journals_have() -> list[RunDir]:
    """A run without directory, one without one of its journals, one with a journal that was cut, one that is whole; an
    imported table; a table and a view of the user's."""
    runs = history_of(4, steps=600)
    with writing() as connection:
        connection.execute("INSERT INTO published_results (source, sku) VALUES ('imported', 'x'), ('imported', 'y')")
        connection.execute("CREATE TABLE mine AS SELECT 42 AS x")
        connection.execute("CREATE VIEW my_view AS SELECT count(*) AS n FROM runs")
        connection.execute("CHECKPOINT")
    shutil.rmtree(runs[0].root)
    runs[1].rank_journal(0).unlink()
    os.truncate(runs[2].rank_journal(1), runs[2].rank_journal(1).stat().st_size // 2)
    return runs


def everything() -> list[object]:
    tables = ("runs", "ranks", "gpus", "steps", "gpu_samples", "host_samples", "run_summary")
    found: list[object] = [
        rows(f"SELECT COLUMNS(* EXCLUDE (run_id))::VARCHAR FROM {table} ORDER BY ALL") for table in tables
    ]
    found.append(rows("SELECT source, sku FROM published_results WHERE builtin IS NULL ORDER BY ALL"))
    found.append(rows("SELECT kind, message FROM events WHERE kind <> 'journal_cut' ORDER BY ALL"))
    return [*found, rows("SELECT * FROM mine, my_view")]


def test_what_only_the_old_one_had_is_read_out_of_it() -> None:
    a_history_with_more_than_the_journals_have()
    before = everything()
    done = lorawatch("doctor", "--rebuild-history")
    assert done.returncode == 0
    assert everything() == before
    for words in (
        "1 run without a run directory",
        "rows of 2 runs whose journals",
        "1 imported table (2 rows)",
        "mine, my_view",
    ):
        assert words in done.stderr
    assert "cannot be read" not in done.stderr
    assert lorawatch("doctor", "--rebuild-history").returncode == 0
    assert everything() == before, "and again from what was made again"


def test_what_cannot_be_read_of_it_is_named() -> None:
    runs = a_history_with_more_than_the_journals_have()
    path = paths.history_file()
    with duckdb.connect(str(path), read_only=True) as connection:
        (block,) = connection.execute(
            "SELECT block_id FROM pragma_storage_info('steps') WHERE column_name = 'ended_at' AND segment_type <> 'VALIDITY' "
            "AND row_group_id = 0 AND block_id >= 0 ORDER BY block_id LIMIT 1"
        ).fetchone() or (None,)
    content = bytearray(path.read_bytes())
    content[12_288 + block * BLOCK + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(HistoryDamaged):
        examine()
    done = lorawatch("sql", "SELECT sum(epoch(ended_at)) FROM steps")
    assert done.returncode == 0, done.stderr
    assert f"rows of steps of run {runs[0].run_id} cannot be read" in done.stderr
    assert "steps of the old one cannot be read whole" in done.stderr
    assert "1 imported table (2 rows)" in done.stderr
    assert "1 run without a run directory" in done.stderr, "its other rows are there"
    assert rows(f"SELECT count(*) FROM gpu_samples WHERE run_id = '{runs[0].run_id}'")[0][0] > 0
    assert rows(f"SELECT count(*) FROM steps WHERE run_id = '{runs[3].run_id}'") == [(1200,)]


def test_of_two_that_meet_damage_one_repairs_and_both_answer() -> None:
    history_of(3)
    damage(half)
    query = "SELECT sum(epoch(ended_at)), count(*) FROM steps"
    asking = [
        subprocess.Popen(
            [sys.executable, "-m", "lorawatch", "sql", query, "--format", "csv"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    answers = [(*p.communicate(timeout=120), p.returncode) for p in asking]
    assert [(out.splitlines()[-1].split(",")[1:], code) for out, _, code in answers] == [(["12000"], 0)] * 4, answers
    assert sum("the new one has 3 runs" in err for _, err, _ in answers) == 1
    assert len(all_set_aside(paths.history_file())) == 1


REPAIR = """
from lorawatch.errors import HistoryError
from lorawatch.storage.queries import list_runs
from lorawatch.storage.repair import repair
print("ready", flush=True)
try:
    list_runs()
except HistoryError as error:
    repair(error)
"""


def test_a_crash_in_the_midst_leaves_what_the_next_goes_on_with() -> None:
    history_of(3)
    source = random.Random(11)
    content = damage(lambda b: b[:5000] + b"\xff\xff" + b[5002:])  # nothing can be read out of it
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", REPAIR], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(source.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = lorawatch("runs", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert [p.read_bytes() for p in all_set_aside(paths.history_file())] == [content]
    assert counts() == (3, 12_000, 12_000)


def test_nobody_is_answered_from_a_part_of_the_history_but_about_a_run_that_is_there() -> None:
    old, new = history_of(1, steps=40)[0], make_run("new")
    damage(half)
    write(new.rank_journal(0), step(1))
    paths.history_file().write_bytes(b"")
    ingest_run(new)
    for refused in (list_runs, lambda: find_run("last"), lambda: run_figures(old.run_id), lambda: rows("SELECT 1")):
        with pytest.raises(HistoryDamaged, match="not whole again yet") as caught:
            refused()
        assert "--rebuild-history" in (caught.value.hint or "")
    assert (run_figures(new.run_id) or {})["name"] == "new", "a run's end can be shown by who recorded it"
    assert host.storage()[-2].status == "fail"
    assert repair(caught.value) is not None
    assert repair(caught.value) is None, "the next finds it whole"
    assert {r["name"] for r in list_runs()} == {"run-0", "new"}


@pytest.mark.parametrize("how", ["head", "half"])
def test_a_change_waits_until_the_history_is_whole(how: str) -> None:
    """A run deleted from the new history only would come back out of the old one."""
    runs = history_of(2)
    damage(DAMAGES[how])
    for change in (lambda: set_tags(runs[0].run_id, ["kept"]), lambda: delete_run(runs[1].run_id)):
        with pytest.raises(HistoryDamaged) as caught:
            change()
        assert runs[1].root.is_dir()
    assert repair(caught.value) is not None
    set_tags(runs[0].run_id, ["kept"])
    delete_run(runs[1].run_id)
    assert [(r["run_id"], r["tags"]) for r in list_runs()] == [(runs[0].run_id, ["kept"])]


def test_a_failure_inside_duckdb_is_damage_only_where_rows_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = history_of(1, steps=40)
    before = paths.history_file().read_bytes()
    with pytest.raises(HistoryDamaged, match="INTERNAL") as caught, reading():
        raise duckdb.InternalException("INTERNAL Error: made up")
    assert not caught.value.certain
    with pytest.raises(HistoryError, match="every row of it can be read") as sound:
        repair(caught.value)
    assert not isinstance(sound.value, HistoryDamaged)
    assert "--rebuild-history" in (sound.value.hint or "")
    assert paths.history_file().read_bytes() == before
    damage(lambda b: b[:-1000])
    error = HistoryDamaged("INTERNAL", certain=False, file=files.identity(paths.history_file()))
    assert repair(error) is not None
    assert counts() == (1, 80, 80)
    del run


def test_a_history_that_another_program_holds_is_not_replaced() -> None:
    history_of(1, steps=40)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import duckdb, sys, time; c = duckdb.connect(sys.argv[1], read_only=True); "
         "print('held', flush=True); time.sleep(60)", str(paths.history_file())],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(HistoryBusy, match="another program holds"):
            repair()
    finally:
        holder.kill()
        holder.wait()
    assert all_set_aside(paths.history_file()) == []


def test_the_doctor_reads_all_of_it_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    history_of(1)
    check = host.storage()[-1]
    assert (check.name, check.status) == ("history", "ok")
    assert "all of its" in check.found
    with monkeypatch.context() as patch:
        patch.setattr(host, "_HISTORY_S", 0.0)
        assert "did not suffice for" in host.storage()[-1].found
    damage(flipped)
    check = host.storage()[-1]
    assert check.status == "fail"
    assert "--rebuild-history" in (check.advice or "")
    assert lorawatch("doctor", "--rebuild-history").returncode == 0
    whole, beside = host.storage()[-2:]
    assert (whole.name, whole.status) == ("history", "ok")
    assert (beside.name, beside.status) == ("old histories", "info")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_all_that_the_history_is_made_of_is_its_users_alone(umask: int, lorawatch_home: Path) -> None:
    def modes() -> dict[str, int]:
        return {
            p.name: stat.S_IMODE(p.stat().st_mode) for p in lorawatch_home.iterdir() if p.name.startswith("history")
        }

    before = os.umask(umask)
    try:
        run = make_run()
        run.rank_journal(0).write_bytes(b"".join(many_lines(200)))
        ingest_run(run)
        with writing() as connection:
            connection.execute("INSERT INTO published_results (source) VALUES ('x')")
            assert wal(paths.history_file()).exists()
            assert set(modes().values()) == {0o600}, modes()
        pid = os.fork()
        if not pid:
            with writing() as connection:
                connection.execute("INSERT INTO published_results (source) VALUES ('y')")
                os._exit(0)
        os.waitpid(pid, 0)
        assert set(modes().values()) == {0o600}, modes()
        wal(paths.history_file()).chmod(0o644)  # as an older lorawatch left it
        with writing():
            assert set(modes().values()) == {0o600}, modes()
        paths.history_file().write_bytes(b"")
        ingest_run(run)
        assert repair() is not None
        assert set(modes().values()) == {0o600}, modes()
        assert os.umask(umask) == umask, "it is the process's own again"
    finally:
        os.umask(before)


def test_the_log_of_a_history_that_a_group_shares_is_the_groups_too() -> None:
    history_of(1, steps=40)
    paths.history_file().chmod(0o660)
    pid = os.fork()
    if not pid:
        with writing() as connection:
            connection.execute("INSERT INTO published_results (source) VALUES ('x')")
        os._exit(0)
    os.waitpid(pid, 0)
    with writing() as connection:
        connection.execute("INSERT INTO published_results (source) VALUES ('y')")
    log = wal(paths.history_file())
    assert not log.exists() or stat.S_IMODE(log.stat().st_mode) == 0o660


def test_the_screens_get_out_of_it(lorawatch_home: Path) -> None:
    """Whoever asks is answered with the damage, and the next reading finds a whole history."""
    import asyncio

    from lorawatch.screens.app import LorawatchApp

    history_of(2)
    damage(half)

    async def look() -> None:
        app = LorawatchApp()
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.press("2")
            for _ in range(400):
                await pilot.pause(0.05)
                if getattr(app.screen, "_rows", None):
                    break
            assert {r["name"] for r in app.screen._rows} == {"run-0", "run-1"}

    asyncio.run(look())
    assert len(all_set_aside(paths.history_file())) == 1
    wait_for(lambda: not files.rebuilding(paths.history_file()).exists())


def test_nothing_is_lost_while_recorders_write_and_the_history_is_made_again() -> None:
    history_of(3)
    live = make_run("live")
    over = threading.Event()
    written = 0

    def record() -> None:
        nonlocal written
        while not over.is_set():
            written += 1
            write(live.rank_journal(0), step(written))
            try:
                ingest_run(live, deadline_s=5)
            except HistoryBusy:
                continue

    recorder = threading.Thread(target=record)
    recorder.start()
    try:
        for _ in range(2):
            wait_for(lambda: paths.history_file().exists())
            done = lorawatch("doctor", "--rebuild-history")
            assert done.returncode == 0, done.stderr
    finally:
        over.set()
        recorder.join()
    ingest_run(live)
    assert counts() == (4, 12_000 + written, 12_000 + written)
    assert json.loads(lorawatch("runs", "--json", "-n", "1").stdout)["name"] == "live"
