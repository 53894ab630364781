"""What must hold of a home whatever was done to its runs; each function says in words what does not.

The caller has let everything end first, and has let `lorawatch runs` bring in what was left.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import duckdb
import msgspec
import psutil
from found import processes_of
from herd import Command

from lorawatch.errors import LorawatchError
from lorawatch.recipe.loading import load
from lorawatch.run import checkpoints
from lorawatch.run.directory import ENDED, RunDir
from lorawatch.run.journal import line_decoder
from lorawatch.run.records import Evaluation, Event, ExitRecord, HostSample, RankStarted, Step

Rows = dict[str, Counter[tuple[object, ...]]]
_REFUSALS = (1, 2)
_QUESTIONS = {
    "steps": "SELECT attempt, rank, step FROM steps WHERE run_id = ?",
    "evaluations": "SELECT attempt, rank, step FROM evaluations WHERE run_id = ?",
    "ranks": "SELECT attempt, rank FROM ranks WHERE run_id = ?",
    "host_samples": "SELECT (epoch_us(sampled_at) // 1000)::BIGINT FROM host_samples WHERE run_id = ?",
    "events": "SELECT kind, (epoch_us(\"at\") // 1000)::BIGINT FROM events WHERE run_id = ? AND kind NOT IN "
    "('phase', 'lines_lost', 'journal_cut')",
}  # fmt: skip


# --- processes


def left_processes(home: Path, but: Collection[int] = (), wait_s: float = 10) -> list[str]:
    """The processes that are there after so long a time; they are killed."""
    deadline = time.monotonic() + wait_s
    while (left := processes_of(home, but)) and time.monotonic() < deadline:
        time.sleep(0.1)
    problems = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            problems.append(f"process {process.pid} is left: {' '.join(process.cmdline())[-200:]}")
            process.send_signal(signal.SIGKILL)
    return problems


# --- commands


def bad_words(command: Command) -> list[str]:
    """What is wrong with how a command ended and with what it said. One that was killed may say anything but a traceback."""
    code, out, err = command.code, command.out, command.err
    problems = [f"{command} said {word!r}: {err[-800:]}{out[-400:]}" for word in _defects(out + err)]
    if command.killed:
        return problems
    if code is None:
        return [*problems, f"{command} does not end: {out[-300:]} {err[-300:]}"]
    if recorded(command):
        if code not in (0, 1, 130, 143):
            problems.append(f"{command}: no status of a recorder: {err[-300:]}")
        return problems
    said = [line for line in err.splitlines() if line.startswith("lorawatch: ")]
    if code and (code not in _REFUSALS or len(said) != 1 or len(err.strip().splitlines()) > 2):
        problems.append(f"{command} refuses with other than a status of 1 or 2 and one message: {err[-500:]!r}")
    return problems


def recorded(command: Command) -> bool:
    """Whether the command became a run's recorder."""
    return bool(
        re.search(r"^\w+: (a new recorder took the run over|.* started( again, attempt \d+)?)$", command.out, re.M)
    )


def _defects(text: str) -> list[str]:
    return [word for word in ("Traceback", "defect", "Fatal Python error", "Segmentation") if word in text]


# --- journals and history


def journal_rows(run: RunDir) -> Rows:
    """What the complete lines of a run's journals say."""
    rows: Rows = {table: Counter() for table in _QUESTIONS}
    for path in sorted(run.journal.glob("*.jsonl")):
        data = path.read_bytes()
        for text in data[: data.rfind(b"\n") + 1].splitlines():
            try:
                line = line_decoder.decode(text)
            except msgspec.MsgspecError:  # torn by a kill and closed by the next writer
                continue
            match line:
                case Step():
                    rows["steps"][line.attempt, line.rank, line.step] += 1
                case Evaluation():
                    rows["evaluations"][line.attempt, line.rank, line.step] += 1
                case RankStarted():
                    rows["ranks"][line.attempt, line.rank] += 1
                case HostSample():
                    rows["host_samples"][(round(line.sampled_at * 1e6) // 1000,)] += 1
                case Event():
                    rows["events"][line.kind, round(line.at * 1e6) // 1000] += 1
    return rows


def bad_history(home: Path, *, known: Iterable[str]) -> list[str]:
    """Where the history is not what the run directories say.

    Args:
        known: Ids of all runs that the home ever had.
    """
    there = {path.name for path in (home / "runs").iterdir()} if (home / "runs").is_dir() else set()
    problems = []
    if not (home / "history.duckdb").exists():
        return [f"there is no history, but run {run_id}" for run_id in there]
    with duckdb.connect(str(home / "history.duckdb"), read_only=True) as connection:
        for run_id in {*known, *there}:
            run = RunDir(home / "runs" / run_id)
            if run_id in there:
                problems += [f"run {run_id}: {words}" for words in _bad_run(connection, run)]
                continue
            for table in _tables_of_runs(connection):
                answer = connection.execute(f"SELECT count(*) FROM {table} WHERE run_id = ?", [run_id]).fetchone()
                if answer and answer[0]:
                    problems.append(f"run {run_id} is deleted, and {table} has {answer[0]} rows of it")
            if (home / "open" / run_id).exists():
                problems.append(f"run {run_id} is deleted, and its marker says that the history lacks something")
    return problems + [f"a deletion has left {path.name}" for path in home.glob(".*.deleted-*")]


def _tables_of_runs(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Every table that has rows of runs, as the history itself says."""
    found = connection.execute(
        "SELECT c.table_name FROM duckdb_columns() c JOIN duckdb_tables() t USING (table_name) WHERE c.column_name = 'run_id'"
    ).fetchall()
    return [name for (name,) in found]


def _bad_run(connection: duckdb.DuckDBPyConnection, run: RunDir) -> list[str]:
    problems = []
    state = run.state()
    row = connection.execute("SELECT state, message, exit_code FROM runs WHERE run_id = ?", [run.run_id]).fetchall()
    if row != [(state.state, state.message, state.exit_code)]:
        problems.append(f"the history says {row}, state.json {(state.state, state.message, state.exit_code)}")
    for table, rows in journal_rows(run).items():
        found = Counter(connection.execute(_QUESTIONS[table], [run.run_id]).fetchall())
        if found != rows:
            missing, more = list((rows - found).items()), list((found - rows).items())
            problems.append(
                f"{table}: {len(missing)} of {rows.total()} lines are not in the history: {missing[:3]}; "
                f"{len(more)} rows are too many: {more[:3]}"
            )
        twice = [key for key, count in found.items() if count > 1]
        if twice and table in ("steps", "evaluations", "ranks"):
            problems.append(f"{table}: {len(twice)} are there more than once: {twice[:3]}")
    return problems


def bad_steps(run: RunDir, made: Path, *, all_of_them: bool) -> list[str]:
    """Where a light run's journals do not have what its ranks say that they made.

    Args:
        made: The folder in which they count.
        all_of_them: No rank was killed, so that every step must be there.
    """
    problems = []
    journaled = Counter((attempt, rank) for attempt, rank, _ in journal_rows(run)["steps"])
    for path in made.glob("attempt_*-rank-*"):
        attempt, rank = (int(n) for n in re.findall(r"\d+", path.name))
        counted, there = path.stat().st_size, journaled[attempt, rank]
        if there > counted + 1 or (all_of_them and there != counted):
            problems.append(f"run {run.run_id}: attempt {attempt} rank {rank} made {counted}, journaled {there}")
    return problems


# --- one run


def bad_owners(run: RunDir, *, orphaned: int = 0) -> list[str]:
    """Where two recorders had a run at the same moment, by what they say of their beginnings and ends.

    Args:
        orphaned: How many recorders were killed, and so could not say that they ended.
    """
    problems: list[str] = []
    begun = ended = 0
    if not run.events_journal.exists():  # killed before it said anything
        return []
    for text in run.events_journal.read_bytes().splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            line = line_decoder.decode(text)
            if isinstance(line, Event):
                begun += line.kind in ("started", "adopted")
                ended += line.kind == "ended"
                if begun - ended > orphaned + 1:
                    problems.append(f"run {run.run_id}: {begun} recorders began, {ended} ended, {orphaned} were killed")
    if not begun - orphaned <= ended <= begun:
        problems.append(f"run {run.run_id}: {begun} recorders began, {ended} ended, {orphaned} were killed")
    return problems[:1]


def bad_files(run: RunDir) -> list[str]:
    """The files of an ended run that cannot be read, and what is there that should not be."""
    problems = []

    def attempt(what: str, read: object) -> None:
        try:
            read()  # type: ignore[operator]
        except (OSError, ValueError, LorawatchError, msgspec.MsgspecError) as error:
            problems.append(f"run {run.run_id}: {what} cannot be read: {type(error).__name__}: {error}")

    attempt("run.json", run.info)
    attempt("state.json", run.state)
    if run.state().state not in ENDED:
        problems.append(f"run {run.run_id} is {run.state().state}")
    if run.recipe.exists():
        attempt("recipe.yaml", lambda: load(str(run.recipe), ()))
    for path in run.logs.glob("attempt_*/rank-*.exit.json"):
        attempt(str(path), lambda path=path: msgspec.json.decode(path.read_bytes(), type=ExitRecord))
    for folder in checkpoints.folders(run.checkpoints):
        attempt(folder.name, lambda folder=folder: checkpoints.read(folder))
    for path in run.root.rglob("*.safetensors"):
        if not any(part.startswith(".") for part in path.relative_to(run.root).parts):
            attempt(str(path), lambda path=path: _load(path))
    return problems


def _load(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  no mapping
                file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def temporary_files(run: RunDir) -> list[str]:
    """Hidden files that a kill left in a run's directory, by their names' beginnings."""
    return sorted(os.path.relpath(path, run.root) for path in run.root.rglob(".*"))
