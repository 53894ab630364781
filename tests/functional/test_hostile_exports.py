"""A hostile table goes through `import` into every format of `compare`: no formula, no tag, no link comes out of it."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import lorawatch

CELLS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "＝1+1",
    "\u200b=1+1",
    "%0a=1",
    "|x",
]
TAGS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "'\"><svg/onload=alert(1)>",
    "[x](javascript:alert(1))",
    "a|b\\|c",
]


@pytest.fixture
def imported(lorawatch_home: Path, tmp_path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["sku", "gpu_count", "tok_s", "source", "note", "url"])
    for number, text in enumerate([*CELLS, *TAGS]):
        writer.writerow(
            [text + str(number), 1, 1000 + number, text, text, "https://x/" + text.strip().replace(" ", "")]
        )
    file = tmp_path / "table.csv"
    file.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    done = lorawatch("import", str(file))
    assert done.returncode == 0, done.stderr


def compared(form: str) -> str:
    done = lorawatch("compare", "--force", "--format", form)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_cell_of_the_csv_is_a_formula_and_figures_stay_figures(imported: None) -> None:
    rows = list(csv.DictReader(io.StringIO(compared("csv"))))
    assert len(rows) > len(CELLS)
    for row in rows:
        assert float(row["tok_s"]) > 0
        for name, cell in row.items():
            if not re.fullmatch(r"-?[0-9.e+-]+", cell):
                assert cell.lstrip("\u200b \t\r\n")[:1] not in tuple("=+-@|%＝"), (name, cell)
    assert any(row["sku"].startswith("'=cmd") for row in rows)
    assert any(row["sku"].startswith("'\u200b=1+1") for row in rows)


def test_no_tag_and_no_link_comes_into_the_page(imported: None) -> None:
    seen: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.add(tag)
            assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attrs), attrs

    page = compared("html")
    Tags().feed(page)
    assert seen.isdisjoint({"script", "img", "a", "iframe"})
    assert "&lt;script&gt;" in page


def test_markdown_and_json_keep_the_text_as_text(imported: None) -> None:
    text = compared("markdown")
    assert "<script" not in text
    assert "](javascript" not in text.replace("\\](", "")
    rows = json.loads(compared("json"))["rows"]
    assert any(row["sku"].startswith("=cmd") for row in rows)  # for programs: as it is


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", " javascript:alert(1)", "file:///etc/passwd", "//x"]
)
def test_an_address_that_is_none_is_not_imported(tmp_path: Path, url: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(f'sku,gpu_count,tok_s,url\nx,1,5,"{url}"\n')
    done = lorawatch("import", str(file), "--dry-run")
    assert done.returncode == 2
    assert "http" in done.stderr


def test_sql_gives_programs_the_values_as_they_are(imported: None) -> None:
    done = lorawatch("sql", "SELECT DISTINCT note FROM published_results WHERE note LIKE '=cmd%'", "--format", "csv")
    assert list(csv.reader(io.StringIO(done.stdout))) == [["note"], [CELLS[0]]]
