"""The live table's text is clean however it came there; what rich draws is not touched."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from history import T0, step
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorawatch.cli.display import JsonLines, LiveTable, PlainLines, clean_console, render
from lorawatch.cli.supervise import _Shown
from lorawatch.run.directory import Gpu, RunInfo, RunState
from lorawatch.run.live import LiveView
from lorawatch.run.records import AnyLine, Event, GpuSample, RankStarted
from lorawatch.watching.watch import Watch

EVIL = "a\x1b]52;c;Zm9v\x07b\x1b[31mc\x9b2J\u202ed\re\x7f[red]f"
GPU = Gpu(host="h", gpu_index=0, gpu_uuid="G", sku=EVIL, used=True)
INFO = RunInfo(run_id="r", name=EVIL, created_at=0, host=EVIL, user="u", world_size=1, device="cuda", gpus=[GPU])
EVENT = Event(at=0, kind=EVIL, severity="error", message=EVIL)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


def harmless(text: str) -> bool:
    return not set(text) & set("\x07\x9b\u202e\x7f") and "\x1b]" not in text


def test_what_rich_draws_stays_and_what_it_is_given_is_cleaned(screen: Screen) -> None:
    table = Table("x", title=EVIL)
    table.add_row(EVIL)
    with contextlib.redirect_stdout(screen):
        clean_console().print(table, Text(EVIL, "bold red"), EVIL)
    said = screen.getvalue()
    assert "\x1b[" in said
    assert "[red]f" in said  # no markup
    assert harmless(said)


def test_the_table_and_its_events_are_clean(screen: Screen) -> None:
    with contextlib.redirect_stdout(screen):
        display = LiveTable()
        display.start(INFO)
        watch = Watch(INFO)
        watch.feed(EVENT)
        display.update(watch, RunState(state="running"))
        display.event(EVENT)
        display.stop()
    assert "abc" in screen.getvalue()
    assert harmless(screen.getvalue())


def test_plain_and_json_lines_are_clean_and_json_loses_nothing() -> None:
    plain, lines = io.StringIO(), io.StringIO()
    for display in (PlainLines(plain), JsonLines(lines)):
        display.start(INFO)
        display.event(EVENT)
    assert harmless(plain.getvalue())
    assert harmless(lines.getvalue())
    assert [json.loads(line).get("message") for line in lines.getvalue().splitlines()] == [None, EVIL]


CARD = Gpu(host="h", gpu_index=0, gpu_uuid="GPU-0", sku="NVIDIA H100", memory_total_bytes=80 * 2**30, used=True)


def busy_then_idle() -> tuple[RunInfo, list[AnyLine]]:
    """A run on one GPU: 20 steps of 8,000 tokens/s at 400 W, and the 70 W of the moment behind them."""
    info = RunInfo(run_id="r", name="n", created_at=T0, host="h", user="u", world_size=1, device="cuda", gpus=[CARD])
    lines: list[AnyLine] = [
        RankStarted(at=T0, attempt=0, rank=0, local_rank=0, world_size=1, host="h", pid=1, device="cuda",
                    gpu_uuid="GPU-0", steps_total=100)
    ]  # fmt: skip
    for n in range(1, 21):
        lines.append(GpuSample(sampled_at=T0 + n, gpu_uuid="GPU-0", power_w=400.0))
        lines.append(step(n, ended_at=T0 + n, duration_s=1.0, tokens=8000, phase="train"))
    return info, [*lines, GpuSample(sampled_at=T0 + 20.5, gpu_uuid="GPU-0", power_w=70.0)]


def text_of(watch: Watch, at: float) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(render(watch.frame(at, RunState(state="running")), 120))
    return out.getvalue()


def test_the_table_shows_the_figures_of_the_live_screen() -> None:
    info, lines = busy_then_idle()
    watch = Watch(info)
    for line in lines:
        watch.feed(line)
    text = text_of(watch, T0 + 21)
    assert "8,000 tok/s   20.0 tok/J   loss 2.0000   70 W" in text
    assert "step 20/100" in text
    (row,) = [line for line in text.splitlines() if "0 H100" in line]
    assert row.split()[2:5] == ["8,000", "70/—", "W"]
    assert "stale" not in text
    assert "0 H100 stale 4 s" in text_of(watch, T0 + 24.5)


class _Recorder:
    """As much of a recorder as a display sees."""

    def __init__(self, info: RunInfo) -> None:
        self.info, self.view = info, LiveView(1)


def test_a_recorders_table_is_fed_by_the_recorders_lines() -> None:
    info, lines = busy_then_idle()
    recorder = _Recorder(info)
    shown = _Shown(recorder)  # type: ignore[arg-type]
    for line in lines:
        recorder.view.feed(line)
    assert "20.0 tok/J" in text_of(shown.now(recorder), T0 + 21)  # type: ignore[arg-type]


def test_what_goes_wrong_in_the_display_shows_where_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    info, lines = busy_then_idle()
    recorder = _Recorder(info)
    shown = _Shown(recorder)  # type: ignore[arg-type]
    monkeypatch.setattr(Watch, "take", lambda watch, line: 1 / 0)
    for line in lines:
        recorder.view.feed(line)
    assert recorder.view.step == 20, "the recording goes on"
    with pytest.raises(ZeroDivisionError):
        shown.now(recorder)  # type: ignore[arg-type]
