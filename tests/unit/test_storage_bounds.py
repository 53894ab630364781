"""What no machine measures is no row: one definition for every reader of a journal."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from helpers import lorawatch
from history import T0, end, make_run, rows, step, write

from lorawatch.run.directory import Gpu, RunState
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import (
    AnyLine,
    Evaluation,
    Event,
    GpuSample,
    HostSample,
    LinesLost,
    PhaseChange,
    RankStarted,
    Record,
    Step,
)
from lorawatch.storage.ingest import finish_run, ingest_run

LINES: dict[str, Record] = {
    "step": step(9, loss=1.5, grad_norm=0.5, learning_rate=1e-4, data_wait_s=0.1, memory_allocated_bytes=7),
    "evaluation": Evaluation(attempt=0, rank=0, step=9, ended_at=T0, duration_s=1.0, label_tokens=5, loss=2.0),
    "gpu": GpuSample(sampled_at=T0, gpu_uuid="G", power_w=1.0, energy_j=1.0, memory_used_bytes=1, utilization_pct=1.0,
                     temperature_c=1.0, sm_clock_mhz=1, event_reasons=1),
    "host": HostSample(sampled_at=T0, host="h", cpu_pct=1.0, memory_used_bytes=1, disk_free_bytes=1, package_energy_j=1.0),
    "rank_started": RankStarted(at=T0, attempt=0, rank=0, local_rank=0, world_size=2, host="h", pid=5, device="cpu",
                                steps_total=5, parameters=5, flops_per_token=1.0),
    "event": Event(at=T0, kind="k", rank=0),
    "phase": PhaseChange(at=T0, attempt=0, rank=0, name="n"),
    "lines_lost": LinesLost(at=T0, lines=5, rank=0),
}  # fmt: skip
TABLES = {
    "gpu": "gpu_samples",
    "host": "host_samples",
    "rank_started": "ranks",
    "step": "steps",
    "evaluation": "evaluations",
}
INTEGERS = {
    "attempt",
    "rank",
    "local_rank",
    "world_size",
    "step",
    "tokens",
    "pid",
    "lines",
    "steps_total",
    "sm_clock_mhz",
}
NO_NUMBERS = [
    "true",
    "false",
    '"x"',
    '""',
    '" 5"',
    "NaN",
    "Infinity",
    '"nan"',
    '"inf"',
    "1e400",
    "-1e400",
    "[1]",
    '{"a":1}',
]


def altered(kind: str, name: str, value: str) -> bytes:
    """The line with another value of one field, as its writer would write it."""
    fields = msgspec.json.decode(msgspec.json.encode(LINES[kind]))
    return msgspec.json.encode({**fields, name: msgspec.Raw(value.encode())}) + b"\n"


def taken(*lines: bytes, quickly: bool) -> tuple[int, int]:
    """How many rows the history made of lines, and how many broken ones it counted."""
    run = make_run()
    beside = b"" if quickly else '{"t":"ä"}\n'.encode()  # text beyond ASCII: all lines are decoded
    run.rank_journal(0).write_bytes(beside + b"".join(lines))
    report = ingest_run(run)
    return report.rows, report.broken_lines - bool(beside)


def out_of_bounds() -> list[tuple[str, str, str]]:
    cases = []
    for kind, record in LINES.items():
        for name, value in msgspec.json.decode(msgspec.json.encode(record)).items():
            if isinstance(value, (int, float)):
                far = ["1e40", "1e300"] + ([] if name in ("loss", "learning_rate", "temperature_c") else ["-1", "-0.5"])
                cases += [(kind, name, v) for v in far + (["1.5"] if name in INTEGERS else [])]
    return cases


def test_a_value_out_of_bounds_makes_a_broken_line_for_every_reader() -> None:
    cases = [
        *out_of_bounds(),
        ("step", "rank", "65536"),
        ("step", "ended_at", "4102444801"),
        ("step", "phase", '"x"'),
        ("rank_started", "rank", "65536"),
        ("rank_started", "world_size", "0"),
        ("rank_started", "world_size", "65537"),
        ("rank_started", "world_size", "1000000000"),
    ]
    assert len(cases) > 120
    lines = [altered(*case) for case in cases]
    for quickly in (True, False):
        assert taken(*lines, quickly=quickly) == (0, len(cases))
    run = make_run()
    for case, line in zip(cases, lines, strict=True):
        run.rank_journal(0).write_bytes(line)
        tail = JournalTail(run.rank_journal(0))
        assert (list(tail.records()), tail.broken) == ([], 1), case


def test_what_is_no_number_makes_a_broken_line_too() -> None:
    for kind, name in (("step", "rank"), ("step", "loss"), ("gpu", "power_w")):
        for value in NO_NUMBERS:
            for quickly in (True, False):
                assert taken(altered(kind, name, value), quickly=quickly) == (0, 1), (kind, name, value, quickly)


def test_what_lies_on_the_bounds_is_a_row() -> None:
    kept = [("step", "rank", "65535"), ("rank_started", "world_size", "65536"), ("rank_started", "world_size", "1"),
            ("step", "ended_at", "0"), ("step", "duration_s", "0"), ("step", "tokens", "0"), ("step", "loss", "-1e30"),
            ("step", "loss", "null"), ("step", "tokens", "null"), ("step", "step", "0"), ("step", "tokens", "1000000000000"),
            ("host", "disk_free_bytes", str(2**63 - 1024)), ("gpu", "temperature_c", "-40")]  # fmt: skip
    for kind, name, value in kept:
        for quickly in (True, False):
            assert taken(altered(kind, name, value), quickly=quickly) == (1, 0), (kind, name, value, quickly)
        number = None if value == "null" else float(value)
        column = "epoch(ended_at)" if name == "ended_at" else name
        found = rows(f"SELECT DISTINCT {column} FROM {TABLES[kind]} WHERE run_id = (SELECT max(run_id) FROM runs)")
        assert found == [(number,)], (kind, name, value)


def test_sums_of_rows_at_their_bounds_are_figures() -> None:
    run = make_run(ranks=8)
    for rank in range(8):
        write(
            run.rank_journal(rank),
            *(step(n, rank, tokens=10**12, loss=1e38, label_tokens=10**12) for n in range(1, 50)),
        )
    end(run)
    finish_run(run)
    assert rows("SELECT max(tokens), max(loss) FROM v_steps") == [(8 * 10**12, pytest.approx(1e38))]
    assert rows("SELECT tokens FROM run_summary") == [(48 * 8 * 10**12,)]


def test_the_writers_own_lines_are_within_bounds() -> None:
    decode = msgspec.json.Decoder(AnyLine).decode
    for record in LINES.values():
        assert decode(msgspec.json.encode(record)) == record


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_and_the_decoded_way_agree_on_any_number(seed: int) -> None:
    source = random.Random(seed)
    values = [
        "1e2",
        "1.0",
        "-0",
        "-0.0",
        '"5"',
        '"5.0"',
        "null",
        "65536",
        "4e9",
        "1000001",
        *NO_NUMBERS,
        "1e39",
        "-1e39",
    ]
    for _ in range(25):
        kind = source.choice(["step", "gpu", "host"])
        fields = [
            n for n, v in msgspec.json.decode(msgspec.json.encode(LINES[kind])).items() if isinstance(v, (int, float))
        ]
        line = altered(kind, source.choice(fields), source.choice(values))
        assert taken(line, quickly=True) == taken(line, quickly=False), line


def test_small_files_that_say_absurd_things_keep_no_run_out() -> None:
    cards = [Gpu(host="h", gpu_index=10**20, gpu_uuid="G", sku="x"), Gpu(host="h", gpu_index=0, gpu_uuid="H", sku="y")]
    run = make_run(gpus=cards)
    info = run.info()
    info.created_at = 1e300
    run.write_info(info)
    run.write_state(
        RunState(state="running", started_at=-5.0, exit_code=2**40, step=-1, steps_total=10**30, attempt=10**9)
    )
    write(run.rank_journal(0), step(1))
    assert ingest_run(run).rows == 1
    names = "created_at, started_at, exit_code, step, steps_total, attempts"
    assert rows(f"SELECT state, {names} FROM runs") == [("running", *[None] * 6)]
    assert rows("SELECT gpu_uuid FROM gpus") == [("H",)]
    info.world_size = 10**15  # no reader may make as many ranks: as if the file could not be read
    run.write_info(info)
    write(run.rank_journal(0), step(2))
    assert ingest_run(run).rows == 1
    assert rows("SELECT name, world_size FROM runs") == [("?", 0)]


def test_broken_lines_are_shown_with_their_run() -> None:
    run = make_run(ranks=1)
    write(run.rank_journal(0), step(1))
    with open(run.rank_journal(0), "ab") as file:
        file.write(altered("step", "rank", "-5") + altered("step", "tokens", "-9"))
    end(run)
    finish_run(run)
    shown = lorawatch("show", run.run_id)
    assert "journals       2 broken lines left out: rank-0.jsonl" in shown.stdout
    shown_json: dict[str, Any] = msgspec.json.decode(lorawatch("show", run.run_id, "--json").stdout)
    assert (shown_json["broken_lines"], shown_json["broken_files"]) == (2, ["rank-0.jsonl"])
    assert isinstance(LINES["step"], Step)
