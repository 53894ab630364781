"""One recorded run in every view: a figure with one name has one value, up to the digits that are shown."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from helpers import wait_for
from history import DATA, one_row, rows
from rich.console import Console

from lorawatch.cli.compare import compare
from lorawatch.cli.display import render
from lorawatch.cli.runs import runs, show
from lorawatch.cli.sql import sql
from lorawatch.run.directory import RunDir
from lorawatch.run.follower import Follower
from lorawatch.screens.live.run_head import figures as live_words
from lorawatch.screens.runs.rows import COLUMNS, cells, load_runs
from lorawatch.storage.curves import run_curves, run_ranks
from lorawatch.storage.ingest import finish_run
from lorawatch.system import home
from lorawatch.watching.final import read_final
from lorawatch.watching.frame import Frame
from lorawatch.watching.replay import Replay
from lorawatch.watching.watch import Watch
from lorawatch.watching.watcher import Watcher

ONE, TWO = "0gq2zx6h", "0gq3qhp5"
FOLDERS = {ONE: "h100_run", TWO: "h100_x2_run"}
KILO, GIB = 1e3, 2.0**30
FIGURES = (
    "tok_s", "tok_s_ci95", "mean_step_tok_s", "tok_s_per_gpu", "step_p50_s", "step_p95_s", "avg_power_w",
    "avg_power_all_gpus_w", "energy_j", "energy_all_gpus_j", "tok_per_j", "peak_vram_bytes", "throttled_share",
    "power_capped_share", "mfu", "tokens", "measured_steps", "window_s", "window_of", "final_loss",
)  # fmt: skip


def recorded(run_id: str, lorawatch_home: Path) -> RunDir:
    """The run of `tests/data` in this home, not in the history yet."""
    folder = lorawatch_home / "runs" / run_id
    shutil.copytree(DATA / FOLDERS[run_id] / run_id, folder)
    return RunDir(folder)


def printed(command: click.Command, *args: str) -> str:
    done = CliRunner().invoke(command, list(args), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def watch_of(run: RunDir) -> Watch:
    """A watch that has all journal lines, and the figures that the history has."""
    watch = Watch(run.info())
    Follower(run, feed=watch.feed).poll()
    watch.final = read_final(run.run_id)
    return watch


def drawn(frame: Frame) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(render(frame, 160))
    return out.getvalue()


@dataclass(frozen=True)
class Shown:
    """A figure as a view shows it: its text, and how much one of it is."""

    view: str
    name: str
    text: str
    unit: float = 1.0


def number_before(view: str, text: str, name: str, unit: str, size: float = 1.0) -> Shown:
    """The number that stands before a unit."""
    match = re.search(rf"([\d,]+(?:\.\d+)?)\s*{re.escape(unit)}", text)
    assert match is not None, f"{view} shows no {unit}:\n{text}"
    return Shown(view, name, match[1], size)


def number_behind(view: str, text: str, name: str, label: str, size: float = 1.0) -> Shown:
    """The number that stands behind a label."""
    match = re.search(rf"{re.escape(label)}\s+([\d,]+(?:\.\d+)?)", text)
    assert match is not None, f"{view} shows no {label}:\n{text}"
    return Shown(view, name, match[1], size)


def holds(shown: Shown, figures: Mapping[str, Any]) -> None:
    """See that a text is the figure, rounded to the digits that the text has."""
    text = shown.text.replace(",", "")
    half = 0.5 * 10.0 ** -len(text.partition(".")[2])
    value = figures[shown.name] / shown.unit
    assert abs(float(text) - value) <= half * 1.001, (
        f"{shown.view}: {shown.name} is {shown.text}, and {value} elsewhere"
    )


class Cells(HTMLParser):
    """The rows of a page's tables: heading → cell."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []
        self._headings: list[str] = []
        self._cells: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "thead":
            self._headings = []
        if tag == "tr":
            self._cells = []
        if tag in ("td", "th"):
            self._tag = tag
            (self._headings if tag == "th" else self._cells).append("")

    def handle_data(self, data: str) -> None:
        if self._tag:
            (self._headings if self._tag == "th" else self._cells)[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._tag = ""
        if tag == "tr" and self._cells:
            self.rows.append(dict(zip(self._headings, self._cells, strict=True)))


COMPARED = {"tok/s": ("tok_s", 1.0), "per GPU": ("tok_s_per_gpu", 1.0), "W": ("avg_power_w", 1.0),
            "tok/J": ("tok_per_j", 1.0), "MFU": ("mfu", 0.01), "VRAM": ("peak_vram_bytes", GIB)}  # fmt: skip


def compared(view: str, row: Mapping[str, str]) -> Iterator[Shown]:
    for heading, (name, unit) in COMPARED.items():
        if heading in row:
            yield Shown(view, name, row[heading].partition(" ")[0].rstrip("%"), unit)


def all_shown(run: RunDir) -> Iterator[Shown]:
    """Every figure of the run that a person reads, of every view."""
    watch = watch_of(run)
    frame = watch.frame(run.state().ended_at or 0.0, run.state())
    assert frame.head is not None
    live = "   ".join(live_words(frame.head, 200))
    table = drawn(frame)
    for view, text in (("Live", live), ("the headless table", table)):
        yield number_before(view, text, "tok_s", "tok/s")
        yield number_before(view, text, "tok_per_j", "tok/J")
        yield number_before(view, text, "avg_power_w", "W")
        yield number_behind(view, text, "final_loss", "loss")
    yield number_behind("Live", live, "energy_j", "energy", KILO)
    yield number_behind("Live", live, "mfu", "MFU", 0.01)
    text = printed(show, run.run_id)
    yield number_behind("show", text, "tok_s", "throughput")
    yield number_before("show", text, "measured_steps", "measured")
    yield number_before("show", text, "step_p50_s", "ms   p95", 1e-3)
    yield number_behind("show", text, "step_p95_s", "p95", 1e-3)
    yield number_behind("show", text, "tokens", "tokens")
    yield number_behind("show", text, "avg_power_w", "power")
    yield number_behind("show", text, "energy_j", "energy")
    yield number_before("show", text, "tok_per_j", "tok/J")
    yield number_behind("show", text, "peak_vram_bytes", "peak VRAM", GIB)
    yield number_behind("show", text, "mfu", "MFU", 0.01)
    yield number_behind("show", text, "final_loss", "final loss")
    heading, row = printed(runs).splitlines()
    where = row[heading.index("where") : heading.index("where") + 22]
    words = row.replace(where, "", 1).split()
    for name, word, unit in (
        ("tok_s", words[4], 1.0), ("tok_per_j", words[5], 1.0), ("final_loss", words[6], 1.0),
        ("peak_vram_bytes", words[7], GIB),
    ):  # fmt: skip
        yield Shown("runs", name, word, unit)
    (loaded,) = load_runs()
    for column, cell in zip(COLUMNS, cells(loaded, narrow=False), strict=True):
        if column.key in ("tok_s", "tok_per_j", "final_loss", "peak_vram_bytes"):
            yield Shown("Runs", column.key, cell.partition(" ")[0], GIB if "bytes" in column.key else 1.0)
    page = Cells()
    page.feed(printed(compare, "--no-published", "--format", "html"))
    for part in page.rows[:2]:
        yield from compared("the HTML page", part)
    lines = printed(compare, "--no-published", "--format", "markdown").splitlines()
    names, values = (
        [c.strip() for c in line.strip("|").split("|")] for line in [x for x in lines if x[:1] == "|"][::2][:2]
    )
    yield from compared("the Markdown table", dict(zip(names, values, strict=True)))


def plain_rows(run: RunDir) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The views for programs: each with the row that it has of the run."""
    columns = f"COLUMNS('^({'|'.join(FIGURES)})$')"
    for view in ("v_runs", "run_summary", "v_scaling"):
        yield view, one_row(f"SELECT {columns} FROM {view}")
    yield "v_epoch_estimates", one_row("SELECT tok_s FROM v_epoch_estimates WHERE dataset_tokens = 5000000")
    (listed,) = printed(runs, "--json").splitlines()
    yield "runs --json", json.loads(listed)
    (answered,) = json.loads(printed(sql, f"SELECT {columns} FROM v_runs", "--format", "json"))
    yield "sql", answered
    (row,) = csv.DictReader(io.StringIO(printed(compare, "--no-published", "--format", "csv")))
    yield "the CSV table", {name: float(row[name]) for name in set(FIGURES) & set(row)}
    (whole,) = json.loads(printed(compare, "--no-published", "--format", "json"))["rows"]
    yield "the JSON table", whole
    replay = Replay(run, final=read_final(run.run_id))
    replay.seek(replay.end)
    head = replay.frame().head
    assert head is not None
    yield "a replay at its end", {"tok_s": head.tok_s, "tok_per_j": head.tok_per_j, "avg_power_w": head.power_w,
                                  "avg_power_all_gpus_w": head.power_all_w, "energy_j": head.energy_j,
                                  "energy_all_gpus_j": head.energy_all_j, "mfu": head.mfu, "final_loss": head.loss}  # fmt: skip


@pytest.mark.parametrize("run_id", [ONE, TWO])
def test_every_view_shows_the_same_figures(run_id: str, lorawatch_home: Path) -> None:
    run = recorded(run_id, lorawatch_home)
    finish_run(run)
    figures = json.loads(printed(show, run_id, "--json"))
    assert {name for name in FIGURES if figures.get(name) is None} == set()
    for shown in all_shown(run):
        holds(shown, figures)
    for view, row in plain_rows(run):
        for name in set(FIGURES) & set(row):
            expected = figures[name]
            same = (
                row[name] == expected if isinstance(expected, str) else row[name] == pytest.approx(expected, rel=1e-9)
            )
            assert same, f"{view}: {name} is {row[name]}, and {expected} elsewhere"


@pytest.mark.parametrize("run_id", [ONE, TWO])
def test_the_parts_of_a_run_agree_with_its_whole(run_id: str, lorawatch_home: Path) -> None:
    run = recorded(run_id, lorawatch_home)
    finish_run(run)
    figures = json.loads(printed(show, run_id, "--json"))
    steps = one_row("SELECT sum(tokens) AS tokens, count(*) AS steps FROM v_steps WHERE phase = 'train'")
    assert (steps["tokens"], steps["steps"]) == (figures["tokens"], figures["measured_steps"])
    watch = watch_of(run)
    totals = {total.step: total for total in watch.view.steps}
    for number, tok_s, loss in rows("SELECT step, tok_s, loss FROM v_steps"):
        assert (totals[number].tok_s, totals[number].loss) == pytest.approx((tok_s, loss), rel=1e-9)
    curves = run_curves(run_id, axis="step")
    assert curves is not None
    for name in ("tok_s", "loss"):
        curve = curves.series[None][name]
        for index, value in enumerate(curve.mean):
            if value == value:
                assert value == pytest.approx(getattr(totals[int(curve.start) + index], name), rel=1e-9)
    ranks = run_ranks(run_id)
    assert len(ranks) == figures["gpu_count"]
    if len(ranks) == 1:
        assert ranks[0].tok_s == pytest.approx(figures["tok_s"], rel=1e-3)
        assert (ranks[0].step_p50_s, ranks[0].step_p95_s) == pytest.approx(
            (figures["step_p50_s"], figures["step_p95_s"])
        )
    assert max(rank.memory_bytes or 0 for rank in ranks) == figures["peak_vram_bytes"]
    frame = watch.frame(run.state().ended_at or 0.0, run.state())
    highest = max(max(high for high in pane.curves["memory_bytes"].high if high == high) for pane in frame.panes)
    assert highest == figures["peak_vram_bytes"]


def test_the_live_screen_takes_the_final_figures_when_the_history_has_them(lorawatch_home: Path) -> None:
    run = recorded(ONE, lorawatch_home)
    marker = home.open_runs_folder() / ONE
    frames: list[Frame] = []
    watcher = Watcher(frames.append, lambda gpus, words: None, "h")
    watcher.start()
    try:
        watcher.watch(ONE)
        wait_for(lambda: frames and frames[-1].head is not None and frames[-1].head.step == 60)
        before = frames[-1].head
        assert before is not None
        assert (before.figures_of, before.state) == ("recent", "completed")
        text = "   ".join(live_words(before, 200))
        assert "tok/s in the last steps" in text
        assert "recorded energy" in text
        marker.parent.mkdir(exist_ok=True, parents=True)
        marker.touch()  # as for a run whose journals are not wholly in the history
        watcher.watch(ONE)
        finish_run(run)
        wait_for(lambda: frames[-1].head and frames[-1].head.figures_of == "steps")
    finally:
        watcher.stop()
    after = frames[-1].head
    figures = json.loads(printed(show, ONE, "--json"))
    assert after is not None
    assert (after.tok_s, after.energy_j) == (figures["tok_s"], figures["energy_j"])
    assert before.energy_j != after.energy_j


def test_a_run_without_a_measured_step_has_power_and_energy_of_other_names(lorawatch_home: Path) -> None:
    run = recorded(ONE, lorawatch_home)
    journal = run.rank_journal(0)
    lines = journal.read_bytes().splitlines(True)
    journal.write_bytes(b"".join(line for line in lines if b'"t":"step"' not in line or b'"step":1,' in line))
    finish_run(run)
    figures = json.loads(printed(show, ONE, "--json"))
    assert (figures["window_of"], figures["tok_s"], figures["measured_steps"]) == ("run", None, 0)
    text = printed(show, ONE)
    assert not re.search(r"^(power|energy) ", text, re.MULTILINE)
    holds(number_behind("show", text, "avg_power_w", "run power"), figures)
    holds(number_behind("show", text, "energy_j", "run energy"), figures)
    frame = watch_of(run).frame(run.state().ended_at or 0.0, run.state())
    assert frame.head is not None
    for view, words in (("Live", "   ".join(live_words(frame.head, 200))), ("the headless table", drawn(frame))):
        holds(number_before(view, words, "avg_power_w", "W over the whole run"), figures)
    holds(number_behind("Live", "   ".join(live_words(frame.head, 200)), "energy_j", "run energy", KILO), figures)


def test_ranks_that_train_separately_measure_no_more_steps_than_they_take(lorawatch_home: Path) -> None:
    run = recorded(TWO, lorawatch_home)
    info = msgspec.json.decode((run.root / "run.json").read_bytes())
    info["recipe"]["launch"]["strategy"] = "separate"
    (run.root / "run.json").write_bytes(msgspec.json.encode(info))
    finish_run(run)
    figures = json.loads(printed(show, TWO, "--json"))
    assert figures["coupling"] == "separate"
    assert figures["measured_steps"] == 59
    holds(number_before("show", printed(show, TWO), "measured_steps", "measured"), figures)


@pytest.mark.parametrize("name", ["h100_x2_sweep", "h100_x2_sweep_fast"])
def test_an_older_history_counts_steps_and_throttling_as_this_one_does(name: str, lorawatch_home: Path) -> None:
    lorawatch_home.mkdir(exist_ok=True)
    packed = (DATA / name / "history.duckdb.gz").read_bytes()
    (lorawatch_home / "history.duckdb").write_bytes(gzip.decompress(packed))
    known = 0
    for run_id, steps, measured, throttled, capped in rows(
        "SELECT run_id, steps, measured_steps, throttled_share, power_capped_share FROM v_runs WHERE tok_s IS NOT NULL"
    ):
        known += capped is not None
        assert throttled in (0, None), run_id
        assert measured is None or 0 < measured < steps, run_id
    assert (known > 0) == (name == "h100_x2_sweep_fast"), "the other sweep's history has summaries only"
