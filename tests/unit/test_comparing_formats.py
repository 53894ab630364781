"""A comparison as table, Markdown, CSV, JSON and page: the same figures in all, and nothing from outside does harm."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from comparing_runs import EXXACT, PRO_5000, a_run, compared, configurations

from lorawatch.comparing import charts
from lorawatch.comparing.comparison import compare
from lorawatch.comparing.configuration import published
from lorawatch.comparing.formats import FORMATS, record, write
from lorawatch.comparing.gather import gather
from lorawatch.comparing.html import page
from lorawatch.comparing.rows import Comparison, Prices
from lorawatch.comparing.sheets import csv_cell, escaped
from lorawatch.comparing.templates import render
from lorawatch.comparing.words import kilowatt_hours, money, tokens_words
from lorawatch.published.rows import PublishedRow

HOSTILE = "\x1b[31mrun|`<script>alert(1)</script>` *b* [x](y) &amp;\n=cmd()\u202e"
HARMLESS = "run|`<script>alert(1)</script>` *b* [x](y) &amp; =cmd()"


def small(**more: Any) -> Comparison:
    """Two counts with separate runs, and no reading but tok/s."""
    bare: dict[str, Any] = {
        "avg_power_w": None, "tok_per_j": None, "tok_per_j_all": None, "mfu": None, "peak_vram_bytes": None,
        "mean_step_tok_s": None,
    }  # fmt: skip
    return compared(
        a_run(tok_s=1000, run_id="a", **bare), a_run(2, 1900, run_id="b", **bare),
        a_run(2, 1950, coupling="separate", run_id="c", **bare), **more,
    )  # fmt: skip


def benchmark(**more: Any) -> Comparison:
    found = gather()
    return compare(found.configurations, differences=found.differences, **more)


def hostile() -> Comparison:
    """Hostile text wherever it can come from, in measured, published, left-out and excluded rows."""
    recipe = {"model": {"name": HOSTILE}, "lora": {"targets": [HOSTILE]}, "data": {"source": HOSTILE}}
    own = configurations(
        a_run(name=HOSTILE, sku=HOSTILE, workload="x", run_id=HOSTILE, tags=(HOSTILE,), torch_version=HOSTILE),
        a_run(2, 1900, name=HOSTILE, sku=HOSTILE, workload="x", host=HOSTILE, driver_version=HOSTILE),
        a_run(2, 1900, name=HOSTILE, sku=HOSTILE, workload="x", torch_version="2"),
        recipes={"x": recipe},
    )
    table = published(
        [
            PublishedRow(
                HOSTILE, HOSTILE, 1, tok_s=9.0, note=HOSTILE, title=HOSTILE, url=HOSTILE, work=recipe,
                printed={"scaling": HOSTILE, "tok_s": HOSTILE, "efficiency_pct": "=1+1", "tok_s_per_gpu": "²"},
            )
        ]
    )  # fmt: skip
    from lorawatch.comparing.configuration import measured

    _, excluded = measured([a_run(name=HOSTILE, run_id=HOSTILE, state="failed", failure=HOSTILE)], {})
    return compare(
        [*own, *table], force=True, excluded=excluded, extrapolate=[4], tokens_from=HOSTILE,
        prices=Prices(0.3, {HOSTILE: 5.0}), differences={table[0].key: {"scaling": "1"}},
    )  # fmt: skip


# ---- the terminal's table


def test_a_small_table_to_the_letter() -> None:
    assert write(small(), "table") == (
        "2 × RTX PRO 4500 is the fastest: 7.31 h (7.27 to 7.35 h) for 50M tokens, 1.90 times as fast as one, "
        "95.0 ± 1.1% scaling efficiency.\n"
        "\n"
        "work: NousResearch/Meta-Llama-3.1-8B-Instruct bfloat16 · LoRA rank 16 on q_proj, v_proj · batch 2 × 512 tokens · "
        "engine reference; baseline: 1 × RTX PRO 4500\n"
        "\n"
        "configuration              from           tok/s  per GPU      speed-up   efficiency     coupling  lost: machine  "
        "lost: comm.    × baseline  50M tokens\n"
        "─────────────────────────  ────────  ──────────  ───────  ────────────  ───────────  ───────────  ─────────────  "
        "───────────  ────────────  ──────────\n"
        "1 × RTX PRO 4500           measured  1,000 ± 10    1,000         1.00×            —            —              —  "
        "          —         1.00×      13.9 h\n"
        "2 × RTX PRO 4500           measured  1,900 ± 10      950  1.90 ± 0.02×  95.0 ± 1.1%  97.4 ± 0.7%     2.5 ± 1.1%  "
        " 2.5 ± 0.7%  1.90 ± 0.02×      7.31 h\n"
        "2 × RTX PRO 4500 separate  measured  1,950 ± 10      975  1.95 ± 0.02×  97.5 ± 1.1%            —              —  "
        "          —  1.95 ± 0.02×      7.12 h\n"
        "\n"
        "time of one epoch by number of tokens\n"
        "configuration           5M     50M    500M      5B\n"
        "────────────────  ────────  ──────  ──────  ──────\n"
        "1 × RTX PRO 4500  83.3 min  13.9 h  5.79 d  57.9 d\n"
        "2 × RTX PRO 4500  43.9 min  7.31 h  3.05 d  30.5 d"
    )


def test_the_published_benchmarks_cells() -> None:
    lines = write(benchmark(), "table").splitlines()
    cells = {line.split("  ")[0]: re.split(r"\s{2,}", line)[1:] for line in lines if ", Exxact" in line}
    assert cells == {
        "1 × RTX PRO 4500": [
            "published, Exxact", "2,777", "2,777", "1.00×", "—", "1.00×", "289.8", "9.6", "5.00 h", "1.45"
        ],
        "2 × RTX PRO 4500": [
            "published, Exxact", "5,429", "2,715", "1.95× (printed 1.96)", "97.7% (printed 97.8)", "1.95×", "455.3", "11.9",
            "2.56 h", "1.16",
        ],
        "3 × RTX PRO 4500": [
            "published, Exxact", "8,083", "2,694", "2.91×", "97.0%", "2.91×", "623.9", "13.0", "1.72 h", "1.07"
        ],
        "4 × RTX PRO 4500": [
            "published, Exxact", "10,717", "2,679", "3.86×", "96.5%", "3.86×", "771.7", "13.9", "77.8 min", "1.00"
        ],
        "1 × RTX PRO 5000": [
            "published, Exxact", "3,721", "3,721", "1.00×", "—", "1.34×", "358.3", "10.4", "3.73 h", "1.34"
        ],
        "2 × RTX PRO 5000": [
            "published, Exxact", "7,216", "3,608", "1.94× (printed 1.93)", "97.0% (printed 97.8)", "2.60×", "568.2", "12.7",
            "1.92 h", "1.09",
        ],
        "1 × RTX PRO 6000 Server Edition": [
            "published, Exxact", "4,962", "4,962", "1.00×", "—", "1.79×", "404.6", "12.3", "2.80 h", "1.13"
        ],
        "2 × RTX PRO 6000 Server Edition": [
            "published, Exxact", "9,541", "4,771", "1.92×", "96.1%", "3.44×", "662.6", "14.4", "87.3 min", "0.96"
        ],
    }  # fmt: skip


def test_on_a_narrow_terminal_columns_go_into_further_tables_whose_rows_still_tell_their_origin() -> None:
    text = write(benchmark(), "table", width=80)
    tables = text.split("configuration  ")[1:-1]
    assert len(tables) > 1
    for table in tables:
        assert "4 × RTX PRO 4500 (published)" in table
        assert max(len(line) for line in table.splitlines()[1:10]) <= 80


def test_four_origins_never_look_alike() -> None:
    runs = [a_run(), a_run(2, 1900), a_run(tags=("simulated",), tok_s=1100)]
    found = compare([*configurations(*runs), *gather().configurations], extrapolate=[4])
    text = write(found, "table").split("time of one epoch")[0]
    origins = {re.split(r"\s{2,}", line)[1] for line in text.splitlines() if re.match(r"\d × ", line) and "  " in line}
    assert origins == {"measured", "simulated", "published, Exxact", "extrapolated", "extrapolated from published"}
    kinds = set(re.findall(r'<tr class="(\w+)', page(found)))
    assert kinds == {"measured", "simulated", "published", "extrapolated"}


def test_rows_that_would_look_alike_name_their_recipe_or_run() -> None:
    recipes = {"v": {**EXXACT, "lora": {**EXXACT["lora"], "alpha": 64}}, "u": EXXACT}
    runs = configurations(
        a_run(name="short", run_id="r1"), a_run(name="long", workload="v", run_id="r2"),
        a_run(name="long", workload="u", run_id="r3"), a_run(2, 1900), recipes=recipes,
    )  # fmt: skip
    cells = {tuple(re.split(r"\s{2,}", line)[:3]) for line in write(compare(runs), "table").splitlines()}
    assert ("configuration", "from", "recipe") in cells
    for name in ("short", "long (r2)", "long (r3)"):
        assert ("1 × RTX PRO 4500", "measured", name) in cells


# ---- Markdown


def test_markdown_is_two_pipe_tables() -> None:
    lines = write(small(), "markdown").splitlines()
    assert lines[2] == (
        r"work: NousResearch/Meta-Llama-3.1-8B-Instruct bfloat16 · LoRA rank 16 on q\_proj, v\_proj · batch 2 × 512 tokens "
        "· engine reference; baseline: 1 × RTX PRO 4500"
    )
    assert lines[4:8] == [
        "| configuration | from | tok/s | per GPU | speed-up | efficiency | coupling | lost: machine | lost: comm. "
        "| × baseline | 50M tokens |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| 1 × RTX PRO 4500 | measured | 1,000 ± 10 | 1,000 | 1.00× | — | — | — | — | 1.00× | 13.9 h |",
        "| 2 × RTX PRO 4500 | measured | 1,900 ± 10 | 950 | 1.90 ± 0.02× | 95.0 ± 1.1% | 97.4 ± 0.7% | 2.5 ± 1.1% "
        "| 2.5 ± 0.7% | 1.90 ± 0.02× | 7.31 h |",
    ]
    assert lines[-2:] == [
        "| 1 × RTX PRO 4500 | 83.3 min | 13.9 h | 5.79 d | 57.9 d |",
        "| 2 × RTX PRO 4500 | 43.9 min | 7.31 h | 3.05 d | 30.5 d |",
    ]


def test_markdown_from_outside_is_text() -> None:
    assert escaped(HARMLESS) == (r"run\|\`&lt;script&gt;alert(1)&lt;/script&gt;\` \*b\* \[x\](y) &amp;amp; =cmd()")
    assert escaped("# a\n- b\\|c ~~d~~") == r"\# a - b\\\|c \~\~d\~\~"
    text = write(hostile(), "markdown")
    assert "<script" not in text
    columns = {line.count("|") - line.count(r"\|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 2  # one number for each of the two tables


# ---- CSV and JSON


def test_csv_reads_back_unrounded_with_empty_cells_for_what_is_missing() -> None:
    rows = list(csv.DictReader(io.StringIO(write(benchmark(), "csv"))))
    assert [(r["sku"], r["count"], r["provenance"], r["source"]) for r in rows[:2]] == [
        ("RTX PRO 4500", "1", "published", "Exxact"),
        ("RTX PRO 4500", "2", "published", "Exxact"),
    ]
    four = rows[3]
    assert float(four["scaling"]) == 10717 / 2777
    assert (four["printed_scaling"], four["printed_epoch_50M"], four["reference"]) == (
        "3.86",
        "~1.3 hr",
        "LoRA Fine Tuning Benchmark on NVIDIA RTX PRO GPUs - RTX PRO 6000, 5000, 4500 Blackwell, "
        "https://www.exxactcorp.com/blog/benchmark/lora-fine-tuning-benchmark-on-nvidia-gpus",
    )
    assert float(four["epoch_s"]) == float(four["epoch_50M_s"]) == 50e6 / 10717
    assert (four["tok_s_ci95"], four["peak_vram_bytes"], four["epoch_energy_cost"]) == ("", "", "")
    assert [r["is_baseline"] for r in rows] == ["True", *["False"] * 7]
    assert "prints speed-up 1.93; its own figures give 1.94" in rows[5]["notes"]


def test_a_number_of_tokens_near_a_rung_takes_no_rungs_place() -> None:
    comparison = small(tokens=50_000_001)
    (row, *_) = csv.DictReader(io.StringIO(write(comparison, "csv")))
    assert (float(row["epoch_50M_s"]), float(row["epoch_s"])) == (50_000.0, 50_000.001)
    assert "5M  50,000,000  50,000,001    500M" in write(comparison, "table")


def test_json_has_the_rows_of_the_csv_and_what_was_left_out() -> None:
    comparison = benchmark()
    document = json.loads(write(comparison, "json"))
    rows = list(csv.DictReader(io.StringIO(write(comparison, "csv"))))
    assert [list(r) for r in document["rows"]] == [list(r) for r in rows]
    for ours, theirs in zip(document["rows"], rows, strict=True):
        assert {
            k: "" if v is None else csv_cell(v if isinstance(v, str) else str(v)) for k, v in ours.items()
        } == theirs
    assert document["answer"] == list(comparison.answer)
    assert (document["baseline"], document["tokens"]) == ("1 × RTX PRO 4500", 50_000_000)
    apart = configurations(a_run(), a_run(name="b", workload="v"), recipes={"v": {**EXXACT, "train": {}, "model": {}}})
    document = json.loads(write(compare(apart, baseline=apart[0].key), "json"))
    assert document["other_work"] == [
        {
            "name": "b", "configuration": "1 × RTX PRO 4500", "provenance": "measured",
            "differs": ["model ?, not NousResearch/Meta-Llama-3.1-8B-Instruct"],
        }
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "|cmd", "%x", "＝1+1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert csv_cell(text).startswith("'")


def test_figures_and_plain_text_stay_as_they_are() -> None:
    assert (csv_cell(-1.5), csv_cell(None), csv_cell("a-b"), csv_cell(0)) == (-1.5, "", "a-b", 0)


# ---- the page


class _Page(HTMLParser):
    """Collects what a browser would run, fetch or show, and sees that every tag is closed in its turn."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


@pytest.mark.parametrize("comparison", [small, benchmark, hostile])
def test_the_page_is_whole_and_fetches_and_runs_nothing(comparison: Any) -> None:
    text = page(comparison())
    found = _Page(text)
    assert found.tags <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "br", "div", "table", "thead", "tbody", "tr",
        "th", "td", "svg", "text", "line", "circle", "rect", "span", "i", "ul", "li", "footer",
    }  # fmt: skip
    assert not {a for a in found.attributes if a in ("href", "src", "srcset", "xlink:href") or a.startswith("on")}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert set(re.findall(r'"(https?://[^"]*)"', text)) == {"http://www.w3.org/2000/svg"}


def test_the_page_shows_the_words_of_the_table() -> None:
    comparison = benchmark(prices=Prices(0.3, {"RTX PRO 4500": 2600.0}), extrapolate=[8])
    found = _Page(page(comparison))
    shown = {cell for line in found.cells for cell in line}
    for line in write(comparison, "table").splitlines():
        if re.match(r"\d × .*(Exxact|extrapolated from)", line):
            assert set(re.split(r"\s{2,}", line)) <= shown, line
    for sentence in comparison.answer:
        assert sentence in found.text
    assert "https://www.exxactcorp.com/blog/benchmark" in found.text
    assert (
        "Prices: 0.3 per kWh; 2600 for a RTX PRO 4500; hardware serves 4 years and works 70% of that time."
        in found.text
    )
    for chart in ("tok/s, all GPUs together", "scaling efficiency", "tokens per joule", "time of 50M tokens"):
        assert chart in found.text


def test_the_page_names_the_runs_and_tells_the_baseline_apart() -> None:
    text = page(small())
    assert (
        "Runs of the rows: 1 × RTX PRO 4500: a; 2 × RTX PRO 4500: b; 2 × RTX PRO 4500 separate: c" in _Page(text).text
    )
    assert text.count('<tr class="measured baseline">') == 3
    assert "Runs of the rows" not in page(benchmark())


def test_a_page_of_one_configuration_has_no_chart_of_its_efficiency() -> None:
    text = _Page(page(compared(a_run()))).text
    assert "scaling efficiency" not in text
    assert "time of 50M tokens" in text


def test_a_chart_draws_each_figure_with_its_interval_and_no_interval_leaves_it() -> None:
    series = [charts.Series("A", (charts.Dot(1, 100.0, 10.0, "measured"), charts.Dot(2, 190.0, 500.0, "extrapolated")))]
    text = render("line_chart.svg.j2", chart=charts.line_chart("tok/s", series, ideal=True))
    assert text.count("<circle") == 2
    assert text.count('class="ideal"') == 1
    assert "<title>A: 1 GPU, 100 (measured)</title>" in text
    assert "<title>A: 2 GPUs, 190 (extrapolated)</title>" in text
    heights = [float(y) for y in re.findall(r' y[12]="([-\d.]+)"', text)]
    assert min(heights) >= 0
    assert max(heights) <= 320
    assert charts.line_chart("empty", [charts.Series("A", ())]) is None
    assert charts.bar_chart("empty", []) is None


def test_a_long_label_is_cut_and_told_in_full() -> None:
    bars = charts.bar_chart("t", [("x" * 99, 1.0, "1 h", "measured"), ("short", 0.0, "0 h", "published")])
    text = render("bar_chart.svg.j2", chart=bars)
    assert f">{'x' * 49}…<title>{'x' * 99}</title></text>" in text


# ---- hostile text


@pytest.mark.parametrize("form", FORMATS)
def test_hostile_text_goes_through_every_format_harmlessly(form: str) -> None:
    text = write(hostile(), form)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    if form == "html":
        assert "<script" not in text
        assert HARMLESS in _Page(text).text
    if form == "json":
        assert HARMLESS in json.dumps(json.loads(text), ensure_ascii=False)
    if form == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert {len(r) for r in rows} == {len(rows[0])}
        assert not [c for r in rows for c in r if c[:1] in ("=", "+", "@", "-", "\t", "\r")]
    if form == "table":
        lines = text.splitlines()
        assert not [line for line in lines if line.startswith("=")]
        assert sum(line.startswith("1 × ") and "  " in line for line in lines) == 2 * 2  # two rows, in two tables


# ---- words


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(999, "999"), (750_000, "750k"), (999_999, "1M"), (50_000_000, "50M"), (1_250_000_000, "1.25B"),
     (123_456_789, "123.5M"), (2e12, "2T"), (10**18, "1,000,000T")],
)  # fmt: skip
def test_tokens_in_words(tokens: float, said: str) -> None:
    assert tokens_words(tokens) == said


def test_small_sums_are_not_nothing() -> None:
    assert [money(v) for v in (1234.5, 0.1, 0.0042, 0.0, None)] == ["1,234.50", "0.10", "0.0042", "0.00", "—"]
    assert kilowatt_hours(0.00123) == "0.0012"


def test_tokens_that_were_counted_name_their_file_in_every_format() -> None:
    comparison = small(tokens=15_843, tokens_from="chat.jsonl: 15,843 tokens in 96 rows")
    for form in FORMATS:
        if form != "csv":
            assert "chat.jsonl: 15,843 tokens in 96 rows" in write(comparison, form), form


def test_a_record_tells_settings_and_a_second_sku_keeps_its_own_name() -> None:
    comparison = compared(a_run(), a_run(sku=PRO_5000))
    found = record(comparison, comparison.rows[1])
    assert (found["sku"], found["setting_driver"], found["setting_power_limit"]) == (PRO_5000, "580.65", "200 W a GPU")
