"""The memory's temperature on its whole way: from the driver through the journal to everything that shows it."""

from __future__ import annotations

import io
import json
from operator import itemgetter
from pathlib import Path

import msgspec
from click.testing import CliRunner
from fakes.nvml import call_counts, gpu_uuid, stub_env
from fakes.sampling import sample
from history import end, make_run, rows, write
from rich.console import Console

from lorawatch.cli.display import JsonLines, render
from lorawatch.cli.runs import show
from lorawatch.run.directory import Gpu, RunDir, RunState
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import AnyLine, GpuSample, RankStarted, Step
from lorawatch.screens.live.pane_lines import as_lines, box
from lorawatch.screens.runs.curve_axis import View
from lorawatch.screens.runs.curve_drawing import draw
from lorawatch.screens.runs.pages import rank_cells, rank_columns, rank_metrics
from lorawatch.storage.curves import run_curves, run_ranks
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.past import read_past
from lorawatch.watching.frame import Frame
from lorawatch.watching.watch import Watch

CARD = Gpu(host="h", gpu_index=0, gpu_uuid=gpu_uuid(0), sku="NVIDIA H100", memory_total_bytes=80 * 2**30, used=True)


def recorded(folder: Path, celsius: int | None) -> RunDir:
    """A run of one rank whose GPU the real sampler has read, 2.5 s of the fake driver."""
    got = sample(stub_env(folder, memory_celsius=celsius), 2.5, hz=5)
    samples = [
        msgspec.convert(line, GpuSample) for line in sorted([*got.fast, *got.slow], key=itemgetter("sampled_at"))
    ]
    begin = samples[0].sampled_at - 0.5
    run = make_run("hot", ranks=1, gpus=[CARD])
    write(run.host_journal("h"), *samples)
    write(
        run.rank_journal(0),
        RankStarted(at=begin, attempt=0, rank=0, local_rank=0, world_size=1, host="h", pid=1, device="cuda",
                    gpu_uuid=CARD.gpu_uuid),
        *(Step(attempt=0, rank=0, step=n, ended_at=begin + n, duration_s=1.0, tokens=1000) for n in range(1, 5)),
    )  # fmt: skip
    end(run)
    finish_run(run)
    return run


def journal(run: RunDir) -> list[AnyLine]:
    return [line for path in (run.rank_journal(0), run.host_journal("h")) for line in JournalTail(path).records()]


def seen(run: RunDir) -> tuple[Watch, Frame]:
    """What Live makes of the journals, at the last of the slow lane's readings."""
    watch = Watch(run.info())
    for line in journal(run):
        watch.feed(line)
    return watch, watch.frame(watch.view.gpus[CARD.gpu_uuid].sampled_at, RunState(state="running"))


def text_of(lines: list[list[tuple[str, str]]]) -> str:
    return "\n".join("".join(text for text, _ in line) for line in lines)


def test_it_goes_from_the_driver_to_all_that_shows_it(tmp_path: Path) -> None:
    run = recorded(tmp_path, 88)
    assert {x.memory_temperature_c for x in journal(run) if isinstance(x, GpuSample) and x.temperature_c} == {88.0}
    assert rows("SELECT DISTINCT memory_temperature_c FROM gpu_samples WHERE temperature_c IS NOT NULL") == [(88.0,)]

    _, frame = seen(run)
    (pane,) = frame.panes
    assert pane.values["memory_temperature_c"] == 88.0
    assert "memory_temperature_c" in pane.curves
    assert "· mem 88 °C ·" in text_of(box(pane, 70, 8, frame))
    assert " mem 88 °C " in text_of(as_lines(pane, 120, 2))
    assert " mem 88 °C " in text_of(as_lines(pane, 120, 1))
    for narrow in (box(pane, 34, 8, frame), as_lines(pane, 70, 2), as_lines(pane, 70, 1)):
        assert "mem" not in text_of(narrow)
        assert f"{pane.values['sm_clock_mhz']:,.0f} MHz" in text_of(narrow), "the clock is not cut for it"
    out = io.StringIO()
    Console(file=out, width=120).print(render(frame, 120))
    assert "88 °C" in out.getvalue()

    past = read_past(run.run_id)
    assert past is not None
    assert {(low, high) for name, _, low, high in past.gpu_bins[CARD.gpu_uuid] if name == "memory_temperature_c"} == {
        (88.0, 88.0)
    }
    curves = run_curves(run.run_id)
    assert curves is not None
    curve = curves.series[None]["memory_temperature_c"]
    assert {high for high in curve.high if high == high} == {88.0}
    assert "mem °C" in text_of(draw(curves, View(curves.begin, curves.end, curves.begin), 100, 40).lines)
    ranks = run_ranks(run.run_id)
    headings = [heading for heading, _ in rank_columns(rank_metrics(ranks))]
    assert rank_cells(ranks[0], None, rank_metrics(ranks))[headings.index("max mem °C")] == "88"


def test_it_is_in_json(tmp_path: Path) -> None:
    run = recorded(tmp_path, 88)
    watch, _ = seen(run)
    out = io.StringIO()
    JsonLines(out).update(watch, RunState())
    steps = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [step["gpus"][0]["memory_temperature_c"] for step in steps] == [88.0] * 4
    shown = json.loads(CliRunner().invoke(show, [run.run_id, "--json"]).stdout)
    assert shown["ranks"][0]["memory_temperature_c"] == 88.0


def test_where_a_card_has_no_sensor_it_takes_no_place(tmp_path: Path) -> None:
    run = recorded(tmp_path, None)
    assert call_counts(tmp_path)["nvmlDeviceGetFieldValues:memory"][0] == 1, "a refused reading is left alone"
    assert rows("SELECT count(memory_temperature_c) FROM gpu_samples") == [(0,)]
    _, frame = seen(run)
    (pane,) = frame.panes
    assert "memory_temperature_c" not in pane.values
    assert pane.values["temperature_c"] is not None
    out = io.StringIO()
    Console(file=out, width=120).print(render(frame, 120))
    assert "mem" not in out.getvalue()
    curves = run_curves(run.run_id)
    assert curves is not None
    assert "memory_temperature_c" not in curves.series[None]
    ranks = run_ranks(run.run_id)
    assert ranks[0].readings["memory_temperature_c"] is None
    assert "max mem °C" not in dict(rank_columns(rank_metrics(ranks)))
