"""The Compare screen's files, and one value for each figure in the screen, every format and the view."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from compare_screen import H100, PUBLISHED, cell, go_to, labels, opened, table, trained
from helpers import lorawatch
from history import rows
from screen_driver import drive, screen_text, until
from textual.pilot import Pilot
from textual.widgets import Input

from lorawatch.comparing import words
from lorawatch.screens.app import LorawatchApp

# --- a file


@pytest.mark.parametrize("ending", ["html", "csv", "json", "md", "txt"])
def test_it_is_written_in_the_form_that_the_ending_tells(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{ending}"

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await go_to(pilot, screen, "3 × RTX PRO 4500")
        await pilot.press("space")
        await until(pilot, lambda: len(labels(screen)) == PUBLISHED - 1)
        await pilot.press("e")
        await until(pilot, lambda: app.screen is not screen and bool(app.screen.query(Input)))
        box = app.screen.query_one(Input)
        assert box.value == "lorawatch-compare.html"
        box.value = str(path)
        await pilot.press("enter")
        await until(pilot, lambda: f"✓ written: {path}"[:60] in screen_text(app))

    drive(act, size=(160, 50))
    text = path.read_text()
    begin = {
        "html": "<!doctype html>",
        "csv": "provenance,",
        "json": "{",
        "md": "4 × RTX PRO 4500",
        "txt": "4 × RTX PRO 4500",
    }
    assert text.startswith(begin[ending])
    assert "2 × RTX PRO 4500" in text or "RTX PRO 4500,2" in text or '"count": 2' in text
    assert "3 × RTX PRO 4500 (" not in text.replace("3 × RTX PRO 4500 (published): More", "")


def test_what_cannot_be_written_is_said_and_no_file_is_lost(tmp_path: Path) -> None:
    there = tmp_path / "there.csv"
    there.write_text("mine")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)

        async def export(name: str) -> None:
            await until(pilot, lambda: app.screen is screen)
            await pilot.press("e")
            await until(pilot, lambda: app.screen is not screen and bool(app.screen.query(Input)))
            app.screen.query_one(Input).value = name
            await pilot.press("enter")

        await export(str(tmp_path / "x.pdf"))
        await until(pilot, lambda: "has no known extension; use one of .html" in screen_text(app))
        await export(str(tmp_path / "no" / "where.csv"))
        await until(pilot, lambda: "cannot be written: No such file or directory" in screen_text(app))
        await export("/proc/x.csv")
        await until(pilot, lambda: "x.csv cannot be written" in screen_text(app))
        await export(str(there))
        await until(pilot, lambda: "Replace it?" in screen_text(app))
        await pilot.press("n")
        assert there.read_text() == "mine"
        await export(str(there))
        await until(pilot, lambda: "Replace it?" in screen_text(app))
        await pilot.press("y")
        await until(pilot, lambda: "✓ written" in screen_text(app))
        assert there.read_text().startswith("provenance,")

    drive(act, size=(160, 50))


# --- the same numbers everywhere


class Cells(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in = True

    def handle_endtag(self, tag: str) -> None:
        self._in = self._in and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in:
            self.rows[-1][-1] += data


def test_the_screen_every_format_and_the_view_say_the_same() -> None:
    for repeat in range(3):
        trained(gpus=1, step_s=0.200 + 0.003 * repeat)
        trained(gpus=2, step_s=0.207 + 0.002 * repeat)
        trained(gpus=2, step_s=0.203 + 0.001 * repeat, coupling="separate")
    wanted = ["1 × H100 SXM", "2 × H100 SXM", "2 × H100 SXM separate"]
    headings = ("tok/s", "per GPU", "speed-up", "efficiency", "coupling", "lost: machine", "lost: comm.", "tok/J", "× baseline",
                "50M tokens", "kWh")  # fmt: skip
    screen_cells: dict[str, dict[str, str]] = {}
    seen: list[str] = []

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: labels(screen) == wanted)
        screen_cells.update({label: {h: cell(screen, label, h) for h in headings} for label in wanted})
        await pilot.press("escape")
        for _ in range(len(table(screen).table.headings)):
            seen.append(screen_text(app))
            await pilot.press("right")

    drive(act, size=(160, 50))
    for label, cells in screen_cells.items():
        for text in cells.values():
            assert any(label in row and f" {text} " in row for page in seen for row in page.splitlines()), (label, text)

    def printed(form: str) -> str:
        done = lorawatch("compare", "--no-published", "--format", form)
        assert done.returncode == 0, done.stderr
        return done.stdout

    csv_rows = {label_of(r): r for r in csv.DictReader(io.StringIO(printed("csv")))}
    json_rows = {label_of(r): r for r in json.loads(printed("json"))["rows"]}
    view = {
        (ranks, coupling): figures
        for ranks, coupling, *figures in rows(
            "SELECT ranks, coupling, tok_s, tok_s_ci95, tok_s_per_rank, scaling, efficiency_pct, coupling_efficiency_pct, "
            "shared_machine_loss_pct, communication_loss_pct, tok_per_j, runs FROM v_scaling"
        )
    }
    assert set(csv_rows) == set(json_rows) == set(screen_cells) == set(wanted)
    for label, cells in screen_cells.items():
        of_csv, of_json = csv_rows[label], json_rows[label]
        tok_s, ci95, per_gpu, scaling, efficiency, coupling, machine, comm, per_j, runs = view[
            int(of_csv["count"]), of_csv["coupling"]
        ]
        assert runs == 3
        assert cells["tok/s"] == f"{tok_s:,.0f} ± {ci95:,.0f}"
        assert cells["per GPU"] == f"{per_gpu:,.0f}"
        assert cells["speed-up"].startswith(f"{scaling:.2f}")
        assert cells["efficiency"].startswith("—" if of_csv["count"] == "1" else f"{efficiency:.1f}")
        assert cells["coupling"].startswith("—" if coupling is None or label != "2 × H100 SXM" else f"{coupling:.1f}")
        if label == "2 × H100 SXM":
            assert cells["lost: machine"].startswith(f"{machine:.1f}")
            assert cells["lost: comm."].startswith(f"{comm:.1f}")
        assert cells["tok/J"].startswith(f"{per_j:.1f}")
        for heading, name, digits in (
            ("tok/s", "tok_s", 0), ("per GPU", "tok_s_per_gpu", 0), ("speed-up", "scaling", 2), ("tok/J", "tok_per_j", 1),
            ("× baseline", "against_baseline", 2), ("kWh", "epoch_kwh", 2),
        ):  # fmt: skip
            assert cells[heading].startswith(f"{float(of_csv[name]):,.{digits}f}"), (heading, of_csv[name])
            assert float(of_csv[name]) == pytest.approx(of_json[name], rel=1e-12)
        assert cells["50M tokens"] == words.long_duration(float(of_csv["epoch_s"]))
        assert float(of_csv["tok_s"]) == pytest.approx(tok_s, rel=1e-9)
        assert float(of_csv["tok_s_ci95"]) == pytest.approx(ci95, rel=1e-3)

    html = Cells()
    html.feed(printed("html"))
    markdown = [
        [c.strip() for c in row.strip("|").split("|")] for row in printed("markdown").splitlines() if row[:1] == "|"
    ]
    for exported in (html.rows, markdown):
        for label, cells in screen_cells.items():
            own = {c for row in exported if row and row[0] == label for c in row}
            assert set(cells.values()) <= own | {"—"}, (label, set(cells.values()) - own)


def label_of(row: dict[str, Any]) -> str:
    assert row["sku"] == H100
    return f"{row['count']} × H100 SXM" + (" separate" if row["coupling"] == "separate" else "")
