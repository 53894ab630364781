"""From journal lines to rows: every kind, exactly once, broken ones stepped over."""

from __future__ import annotations

import os
import random

import pytest
from history import T0, a_whole_run, end, make_run, many_lines, one_row, rows, step, write

from lorawatch.run.directory import Gpu, RunDir
from lorawatch.run.records import Event, GpuSample, LinesLost
from lorawatch.storage import ingest
from lorawatch.storage.connection import writing
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.queries import run_events
from lorawatch.storage.repair import repair
from lorawatch.system import home

GOOD = '{"t":"step","attempt":0,"rank":0,"step":%d,"ended_at":1.79e9,"duration_s":0.5,"tokens":7}'


def test_every_kind_of_line_becomes_its_row() -> None:
    run = a_whole_run()
    report = ingest_run(run)
    assert report.complete
    assert report.broken_lines == 0
    lines = sum(p.read_text().count("\n") for p in run.journal.iterdir())
    assert report.rows == lines
    assert rows("SELECT count(*), count(DISTINCT (rank, step)) FROM steps") == [(80, 80)]
    assert rows("SELECT count(*) FROM gpu_samples WHERE power_w IS NOT NULL") == [(360,)]
    assert rows("SELECT count(*), count(energy_j) FROM gpu_samples") == [(360, 72)]
    assert rows("SELECT host, cpu_pct, package_energy_j FROM host_samples LIMIT 1") == [("h", 10.0, None)]
    assert rows("SELECT rank, gpu_uuid, flops_per_token, epoch(started_at) FROM ranks ORDER BY rank") == [
        (0, "GPU-0", 30e9, T0),
        (1, "GPU-1", 30e9, T0),
    ]
    assert rows("SELECT kind, message, attempt, rank FROM events ORDER BY kind, rank") == [
        ("ended", "completed", None, None),
        ("phase", "saving", 0, 0),
        ("phase", "saving", 0, 1),
        ("started", "started", None, None),
    ]
    row = one_row(
        "SELECT * EXCLUDE (created_at, started_at, ended_at), epoch(started_at) AS s, recipe ->> '$.model.name' AS m FROM runs"
    )
    assert (row["name"], row["state"], row["tags"], row["attempts"], row["s"], row["m"]) == (
        "whole",
        "completed",
        ["a"],
        1,
        T0,
        "m",
    )
    assert rows("SELECT gpu_index, used FROM gpus ORDER BY 1") == [(0, True), (1, True), (2, False)]


def test_a_step_keeps_its_values_and_time_to_the_microsecond() -> None:
    run = make_run()
    write(run.rank_journal(0), step(3, ended_at=1795464484.592489, loss=1.25, memory_allocated_bytes=21_390_000_000))
    ingest_run(run)
    row = one_row("SELECT * REPLACE (epoch_us(ended_at) AS ended_at) FROM steps")
    assert row["ended_at"] == 1795464484592489
    assert (row["step"], row["loss"], row["memory_allocated_bytes"]) == (3, 1.25, 21_390_000_000)
    assert (row["grad_norm"], row["gpu_uuid"], row["phase"]) == (None, None, "train"), "what a line lacks is missing"


def test_only_what_is_new_comes_in_again() -> None:
    run = make_run()
    path = run.rank_journal(0)
    write(path, step(1), step(2))
    assert ingest_run(run).rows == 2
    assert ingest_run(run).rows == 0
    with open(path, "ab") as file:
        file.write((GOOD % 3).encode())  # torn: no newline yet
    assert ingest_run(run).rows == 0
    with open(path, "ab") as file:
        file.write(b"\n" + (GOOD % 4).encode() + b"\n")
    assert ingest_run(run).rows == 2
    assert rows("SELECT list(step ORDER BY step) FROM steps") == [([1, 2, 3, 4],)]
    ((offset, lines, broken),) = rows("SELECT byte_offset, lines, broken_lines FROM journal_offsets")
    assert (offset, lines, broken) == (path.stat().st_size, 4, 0)


@pytest.mark.parametrize(
    "broken",
    [
        '{"t":"step","attempt":0,"rank":0,"st',
        "garbage",
        "\x00\x00\x00\x00",
        "[]",
        "12",
        '{"t":"unheard of"}',
        '{"t":"step","attempt":0,"rank":0}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":null}',
        '{"t":"step","attempt":0,"rank":0,"step":"nine","ended_at":1.79e9,"duration_s":0.5}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":0.5,"tokens":"many"}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":0.5,"loss":NaN}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":Infinity}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1e300,"duration_s":0.5}',
        '{"t":"step","attempt":99999999999,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":0.5}',
        '{"t":"step","attempt":0,"rank":0,"step":99999999999999999999,"ended_at":1.79e9,"duration_s":0.5}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":0.5,"phase":"made up"}',
        '{"t":"step","attempt":0,"rank":0,"step":9,"ended_at":1.79e9,"duration_s":0.5}{"t":"step"}',
        '{"t":"event","at":1.79e9,"kind":"x","severity":"loud"}',
        '{"t":"event","at":1.79e9,"kind":"x","detail":' + "[" * 5000 + "]" * 5000 + "}",
        '{"t":"step","x":"' + "y" * (2 << 20) + '"}',
    ],
)
def test_a_broken_line_is_counted_and_costs_no_other(broken: str) -> None:
    run = make_run()
    run.rank_journal(0).write_text("\n".join([GOOD % 1, broken, "", GOOD % 2, ""]))
    report = ingest_run(run)
    assert (report.rows, report.broken_lines, report.complete) == (2, 1, True)
    assert rows("SELECT list(step ORDER BY step) FROM steps") == [([1, 2],)]
    assert rows("SELECT broken_lines FROM journal_offsets") == [(1,)]
    assert ingest_run(run).rows == 0


def test_bytes_that_are_no_text_are_a_broken_line() -> None:
    run = make_run()
    run.rank_journal(0).write_bytes(
        b'{"t":"phase","at":1,"attempt":0,"rank":0,"name":"\xff\xfe"}\n' + (GOOD % 1).encode() + b"\n"
    )
    assert ingest_run(run).broken_lines == 1
    assert rows("SELECT count(*) FROM steps") == [(1,)]


def test_a_loss_that_is_no_number_is_missing() -> None:
    run = make_run()
    write(run.rank_journal(0), step(1, loss=float("nan"), grad_norm=float("inf")))
    assert b"null" in run.rank_journal(0).read_bytes()
    ingest_run(run)
    assert rows("SELECT loss, grad_norm, tokens FROM steps") == [(None, None, 1000)]


def test_texts_lose_their_control_sequences() -> None:
    evil = "a\x1b[31mred\x1b[0m \x1b]0;title\x07b\x9b2Jc\x00d\u202ee\nf"
    run = make_run(
        "na\x1b[2Jme", tags=["t\x1b[1mag"], gpus=[Gpu(host="h", gpu_index=0, gpu_uuid="G", sku="x\x1b[0my", used=True)]
    )
    end(run, "failed", message=evil)
    write(run.events_journal, Event(at=1.0, kind="k", message=evil, detail={"a\x1b[1m": [evil]}))
    write(
        run.host_journal("h"), GpuSample(sampled_at=1.0, gpu_uuid="G\x1b[31m1"), GpuSample(sampled_at=2.0, gpu_uuid="Ü")
    )
    write(run.rank_journal(0), step(1, gpu_uuid="G\x7f2"))
    assert ingest_run(run).broken_lines == 0
    good = "ared bcde\nf"
    assert rows("SELECT message, detail ->> '$.a[0]' FROM events") == [(good, good)]
    assert rows("SELECT name, message, tags FROM runs") == [("name", good, ["tag"])]
    assert rows("SELECT sku FROM gpus") == [("xy",)]
    assert rows("SELECT gpu_uuid FROM gpu_samples ORDER BY sampled_at") == [("G1",), ("Ü",)]
    assert rows("SELECT gpu_uuid FROM steps") == [("G2",)]


def test_lost_lines_are_an_event() -> None:
    run = make_run()
    write(run.rank_journal(1), LinesLost(at=5.0, lines=17, rank=1))
    ingest_run(run)
    assert rows("SELECT kind, severity, rank, detail ->> '$.lines' FROM events") == [("lines_lost", "warning", 1, "17")]


def test_a_backlog_is_taken_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH_BYTES", 200_000)
    monkeypatch.setattr("lorawatch.storage.bulk._PIECE", 50_000)
    run = make_run()
    lines = many_lines(5000)
    lines.insert(2500, b"garbage\n")
    run.rank_journal(0).write_bytes(b"".join(lines))
    run.rank_journal(1).write_bytes(b"".join(lines))
    report = ingest_run(run)
    assert (report.rows, report.broken_lines, report.complete) == (10_000, 2, True)
    first = ingest_run(make_run(), deadline_s=0.0)
    assert first.complete
    other = make_run()
    other.rank_journal(0).write_bytes(b"".join(lines))
    first = ingest_run(other, deadline_s=0.0)
    assert not first.complete
    assert 0 < first.rows < 5000, "one batch a turn when there is no time"
    finish_run(other)
    assert rows("SELECT count(*), count(DISTINCT (run_id, rank, step)) FROM steps") == [(15_000, 10_000)]


def test_the_quick_and_the_careful_way_say_the_same() -> None:
    source = random.Random(3)
    for line in many_lines(25):
        changed = bytearray(line)
        changed[source.randrange(12, len(line) - 1)] = source.choice(b'0123456789abcxyz.-{}" ')
        alone, with_garbage = make_run(), make_run()
        alone.rank_journal(0).write_bytes(bytes(changed))
        with_garbage.rank_journal(0).write_bytes(b"garbage\n" + bytes(changed))  # makes it all go the careful way
        one, two = ingest_run(alone), ingest_run(with_garbage)
        assert (two.rows, two.broken_lines) == (one.rows, one.broken_lines + 1), bytes(changed)
        assert one.rows + one.broken_lines == 1
        both = [
            rows(
                f"SELECT * EXCLUDE run_id REPLACE (epoch(ended_at) AS ended_at) FROM steps WHERE run_id = '{r.run_id}'"
            )
            for r in (alone, with_garbage)
        ]
        assert both[0] == both[1]


def steps_of(run: RunDir) -> list[int]:
    return [n for (n,) in rows(f"SELECT step FROM steps WHERE run_id = '{run.run_id}' ORDER BY ALL")]


def test_a_live_journal_that_is_cut_and_written_on_is_noticed_and_loses_and_doubles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is in the file and not in the history is taken, each line once; what is gone from the file stays."""
    monkeypatch.setattr(ingest, "BATCH_BYTES", 5_000)  # comparing takes several batches
    monkeypatch.setattr("lorawatch.storage.bulk._PIECE", 2_000)
    run, other = make_run(), run_beside()
    path = run.rank_journal(0)
    lines = many_lines(300)
    path.write_bytes(b"".join(lines[:200]))
    ingest_run(run)
    os.truncate(path, sum(map(len, lines[:100])) + 40)  # in the midst of a line
    with open(path, "ab") as file:
        file.write(b"\n" + b"".join(lines[200:]))  # beyond where it was read to
    assert path.stat().st_size > sum(map(len, lines[:200]))
    report = ingest_run(run)
    assert steps_of(run) == list(range(1, 301))
    assert (report.rows, report.broken_lines) == (100, 1)
    kinds = "SELECT kind, severity, message FROM events WHERE run_id = '{}' AND kind = 'journal_cut'"
    ((_, severity, message),) = rows(kinds.format(run.run_id))
    assert severity == "warning"
    assert message.startswith(
        "rank-0.jsonl was cut or replaced: 32,964 bytes of it had been taken into the history, now"
    )
    assert "journal_cut" in [e["kind"] for e in run_events(run.run_id)], "it is shown with the run"
    with open(path, "ab") as file:
        file.write(b"".join(many_lines(310)[300:]))
    assert ingest_run(run).rows == 10
    assert steps_of(run) == list(range(1, 311))
    assert len(rows(kinds.format(run.run_id))) == 1
    assert rows(kinds.format(other.run_id)) == []


def run_beside() -> RunDir:
    run = make_run("beside")
    run.rank_journal(0).write_bytes(b"".join(many_lines(50)))
    ingest_run(run)
    return run


@pytest.mark.parametrize("how", ["emptied", "shorter", "replaced", "same size"])
def test_a_journal_of_which_what_was_read_is_gone_is_read_again(how: str) -> None:
    run = make_run()
    path, lines = run.rank_journal(0), many_lines(60)
    path.write_bytes(b"".join(lines[:40]))
    ingest_run(run)
    if how == "emptied":
        path.write_bytes(b"")
        ingest_run(run)
        path.write_bytes(b"".join(lines[40:]))
    elif how == "shorter":
        path.write_bytes(b"".join(lines[40:50]))
        ingest_run(run)
        with open(path, "ab") as file:
            file.write(b"".join(lines[50:]))
    elif how == "replaced":
        path.unlink()
        path.write_bytes(b"".join(lines[30:]) + b"".join(lines[:30]))
    else:
        path.write_bytes(b"".join(lines[20:]))
    ingest_run(run)
    assert steps_of(run) == list(range(1, 61))
    assert rows("SELECT count(*) FROM events WHERE kind = 'journal_cut'") == [(1,)]
    assert rows("SELECT cuts FROM journal_offsets") == [(1,)]


def test_a_crash_while_a_cut_journal_is_read_again_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    path, lines = run.rank_journal(0), many_lines(400)
    path.write_bytes(b"".join(lines[:300]))
    ingest_run(run)
    path.write_bytes(b"".join(lines[100:]))
    monkeypatch.setattr(ingest, "BATCH_BYTES", 3_000)
    monkeypatch.setattr("lorawatch.storage.bulk._PIECE", 1_000)
    turns = 0
    while not ingest_run(run, deadline_s=0.0).complete:  # one batch each: whoever goes on knows from the history only
        turns += 1
    assert turns > 10
    assert steps_of(run) == list(range(1, 401))


def test_a_history_that_an_older_lorawatch_wrote_knows_no_marks_and_reads_on() -> None:
    run = make_run()
    run.rank_journal(0).write_bytes(b"".join(many_lines(20)))
    ingest_run(run)
    with writing() as connection:
        connection.execute("UPDATE journal_offsets SET mark = NULL, known_until = NULL, cuts = NULL")
    run.rank_journal(0).write_bytes(b"".join(many_lines(30)))
    assert ingest_run(run).rows == 10
    assert rows("SELECT count(*) FROM events") == [(0,)]
    assert rows("SELECT mark IS NOT NULL FROM journal_offsets") == [(True,)]


def test_the_state_follows_the_run() -> None:
    run = make_run()
    ingest_run(run)
    assert rows("SELECT state, ended_at IS NULL, attempts FROM runs") == [("queued", True, 0)]
    end(run, "failed", failure="cuda_oom", message="out of memory", exit_code=1)
    ingest_run(run)
    assert rows("SELECT state, failure, exit_code, attempts FROM runs") == [("failed", "cuda_oom", 1, 1)]


def test_a_run_whose_facts_are_unreadable_still_gets_its_steps() -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    (run.root / "run.json").write_text("{broken")
    (run.root / "state.json").write_text("")
    ingest_run(run)
    assert rows("SELECT run_id, name FROM runs") == [(run.run_id, "?")]
    assert rows("SELECT count(*) FROM steps") == [(1,)]


def test_a_finished_run_leaves_the_list_of_open_runs() -> None:
    run = a_whole_run()
    marker = home.open_runs_folder() / run.run_id
    ingest_run(run)
    assert marker.exists()
    finish_run(run)
    assert not marker.exists()
    finish_run(run)
    assert rows("SELECT count(*) FROM run_summary") == [(1,)]

    live = make_run()
    finish_run(live)
    assert (home.open_runs_folder() / live.run_id).exists(), "it has not ended"
    assert rows("SELECT count(*) FROM run_summary") == [(1,)]


def test_a_history_can_be_made_again_from_the_run_directories() -> None:
    for name in ("a", "b", "c"):
        finish_run(a_whole_run(name))

    def content() -> list[object]:
        tables = ("runs", "steps", "gpu_samples", "events", "run_summary", "journal_offsets")
        return [rows(f"SELECT COLUMNS(*)::VARCHAR FROM {table} ORDER BY ALL") for table in tables]

    before, file = content(), home.history_file().stat().st_ino
    done = repair()
    assert done is not None
    assert (done.runs, done.rescued.lost, done.failed) == (3, [], [])
    assert content() == before
    assert home.history_file().stat().st_ino != file
    assert done.asides[0][0].stat().st_ino == file, "the old one is kept"


def test_a_new_history_asks_for_all_runs_again() -> None:
    run = a_whole_run()
    finish_run(run)
    home.history_file().unlink()
    ingest_run(make_run())
    assert (home.open_runs_folder() / run.run_id).exists()
    finish_run(run)
    assert rows("SELECT count(*) FROM steps") == [(80,)]
