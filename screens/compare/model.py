"""The data of the Compare screen: the fields' texts, the choices, and the comparison as one picture, made off its thread."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lorawatch.analysis import cost
from lorawatch.analysis.epoch import parse_tokens
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.screens.shared.figure_table import EMPTY, Line, Table
from lorawatch.system.permissions import make_private
from lorawatch.system.user_files import expanded
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from lorawatch.comparing.charts import Series
    from lorawatch.comparing.gather import Gathered
    from lorawatch.comparing.kinds import Kind
    from lorawatch.comparing.rows import Comparison, Row

MOST_GPUS = 4096
DEFAULT_TOKENS = 50_000_000
REMEMBERED = ("tokens", "price_per_kwh", "hardware")
_MOST_BYTES = 1 << 16
_LIKE_A_NUMBER = re.compile(r"[-+]?[\d._,]*(e[-+]?\d*)?\s*[kmbt]?", re.IGNORECASE)
_LIKE_A_FILE = re.compile(r"^~|/|\.[a-z]{2,8}$", re.IGNORECASE)
# From the left: what the screen shows first where not all columns fit.
_ORDER = (
    "configuration", "provenance", "name", "tok_s", "efficiency_pct", "epoch_s", "tok_per_j", "scaling", "total_cost",
    "epoch_kwh", "energy_cost", "hardware_cost", "against_baseline", "coupling_efficiency_pct", "shared_machine_pct",
    "communication_pct", "tok_s_per_gpu", "avg_power_w",
)  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """The price of hardware, how long it is used, and the share of that time in which it is busy."""

    gpu_prices: tuple[tuple[str, float], ...] = ()
    host_price: float = 0.0
    life_years: float = 4.0
    utilisation: float = 0.7


@dataclass(frozen=True)
class Choices:
    """What the user chose.

    Attributes:
        left_out: Keys of configurations that are not compared.
        baseline: Key of the baseline; None for the latest work's first.
    """

    left_out: frozenset[str] = frozenset()
    baseline: str | None = None
    force: bool = False
    published: bool = True
    tokens: int = DEFAULT_TOKENS
    tokens_from: str = ""
    price_per_kwh: float | None = None
    hardware: Hardware = Hardware()
    extrapolate: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A comparison as the screen shows it.

    Attributes:
        comparison: None where there is nothing to compare.
        about: Line's key → the source of its figures, and warnings.
        charts: Name of the figure → its series.
        hints: Requests that could not be met, and why.
    """

    comparison: Comparison | None = None
    answer: tuple[str, ...] = ("reading the history …",)
    work: str = ""
    table: Table = EMPTY
    ladder: Table = EMPTY
    ladder_title: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    charts: Mapping[str, tuple[Series, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()


# --- the fields' texts


def read_tokens(text: str) -> int | Path:
    """A number of tokens, or the data file whose tokens are to be counted; `DEFAULT_TOKENS` where the field is empty.

    Raises:
        ValueError: It is neither.
    """
    name = text.strip()
    if not name:
        return DEFAULT_TOKENS
    try:
        return parse_tokens(name)
    except ValueError as error:
        if _LIKE_A_NUMBER.fullmatch(name):
            raise
        if not _LIKE_A_FILE.search(name):
            raise ValueError(f"{error}; or name a data file") from None
    return expanded(name)


def read_price(text: str) -> float | None:
    """A price; None where the field is empty.

    Raises:
        ValueError: No number, or below 0.
    """
    if not text.strip():
        return None
    price = _number(text)
    cost.Prices(price_per_kwh=price)
    return price


def read_hardware(text: str) -> Hardware:
    """`RTX PRO 4500=2600, H100=28000, host=4000, years=5, use=60%`: prices by SKU, and how the hardware's share is computed.

    Raises:
        ValueError: Not of that form, or a price below 0.
    """
    hardware = Hardware()
    prices = {}
    for part in filter(None, (p.strip() for p in re.split("[,;]", text))):
        name, sep, value = part.rpartition("=")
        name = name.strip()
        if not sep or not name:
            raise ValueError(f"{part[:40]!r} is not NAME=PRICE: write RTX PRO 4500=2600, host=4000")
        number = _number(value)
        match name.lower():
            case "host":
                hardware = replace(hardware, host_price=number)
            case "years":
                hardware = replace(hardware, life_years=number)
            case "use":
                hardware = replace(hardware, utilisation=number)
            case _:
                prices[name] = number
    for price in (hardware.host_price, *prices.values()):
        cost.Prices(None, price, hardware.life_years, hardware.utilisation)
    return replace(hardware, gpu_prices=tuple(prices.items()))


def read_counts(text: str) -> tuple[int, ...]:
    """GPU counts to extrapolate to.

    Raises:
        ValueError: The text is not a list of whole numbers from 1 on.
    """
    words = text.replace(",", " ").split()
    if not all(w.isascii() and w.isdigit() and len(w) < 6 and 1 <= int(w) <= MOST_GPUS for w in words):
        raise ValueError(f"{text.strip()[:40]!r} is no list of GPU counts up to {MOST_GPUS:,}: write 8 or 4, 8")
    return tuple(sorted({int(w) for w in words}))


def _number(text: str) -> float:
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no number: write it as 0.30 or 2600") from None


READERS: Mapping[str, Callable[[str], Any]] = {
    "tokens": read_tokens, "price_per_kwh": read_price, "hardware": read_hardware, "extrapolate": read_counts,
}  # fmt: skip
"""The parser of each field, by the name of its choice."""


# --- from the history to the picture


@dataclass(frozen=True)
class Loaded:
    """The history as it is now, compared as chosen.

    Attributes:
        words: The fields' texts of the last session.
        choices: The choices that were used.
    """

    gathered: Gathered
    words: Mapping[str, str]
    choices: Choices
    picture: Picture


def load(choices: Choices, done: threading.Event, *, first: bool) -> Loaded:
    """Read runs and published tables and compare them. A tenth of a second for 10,000 runs.

    Args:
        done: Set at the end, also after an error.
        first: Use the fields' texts of the last session.
    """
    try:
        from lorawatch.comparing.gather import gather

        words = remembered() if first else {}
        choices = replace(choices, **{name: READERS[name](text) for name, text in words.items()})
        gathered = gather(deadline_s=0.5)
        return Loaded(gathered, words, choices, put_together(gathered, choices))
    finally:
        done.set()


def put_together(gathered: Gathered, choices: Choices) -> Picture:
    """The comparison of what was gathered, as chosen."""
    from lorawatch.comparing.comparison import compare
    from lorawatch.comparing.kinds import kinds
    from lorawatch.comparing.rows import Prices

    known = [c for c in gathered.configurations if choices.published or c.provenance != "published"]
    if not known:
        why = "no run has ended with measured steps yet" if not gathered.excluded else "no run can be compared"
        back = "" if choices.published else "; p brings the published tables back"
        left_out = tuple(f"left out: run {e.run_id} {e.name}: {e.why}" for e in gathered.excluded[:20])
        return Picture(answer=(f"Nothing to compare: {why}. 3 launches a run{back}.",), notes=left_out)
    baseline = choices.baseline if any(c.key == choices.baseline for c in known) else None
    hardware = choices.hardware
    prices = Prices(
        choices.price_per_kwh, dict(hardware.gpu_prices), hardware.host_price, hardware.life_years, hardware.utilisation
    )
    try:
        comparison = compare(
            known, baseline=baseline, tokens=choices.tokens, prices=prices, force=choices.force,
            extrapolate=choices.extrapolate, left_out=choices.left_out, excluded=gathered.excluded,
            differences=gathered.differences, tokens_from=choices.tokens_from,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    return replace(_picture(comparison), kinds=tuple(kinds(known)))


def _picture(comparison: Comparison) -> Picture:
    from lorawatch.comparing import series, words
    from lorawatch.comparing import work as works
    from lorawatch.comparing.comparison import order

    columns = sorted(words.columns(comparison), key=lambda c: _ORDER.index(c.name) if c.name in _ORDER else len(_ORDER))
    rows = sorted(
        [(r, True) for r in comparison.rows] + [(r, False) for r in comparison.left_out],
        key=lambda pair: order(pair[0].configuration),
    )
    headings, ladder = words.ladder(comparison)
    rungs = [r for r in comparison.rows if r.configuration.coupling == "ddp"]
    answer = comparison.answer
    if not comparison.rows:
        answer = ("Nothing is chosen: space takes a line in, a takes all.",)
    elif not answer:
        answer = (
            "There is no epoch time for this choice: it has only separate ranks, other work, or figures that were not measured.",
        )
    lines = [replace(_line(row, [c.text(row) for c in columns], comparison), chosen=chosen) for row, chosen in rows]
    return Picture(
        comparison=comparison,
        answer=answer,
        work=works.words(comparison.work),
        table=Table(tuple(c.heading for c in columns), tuple(c.right for c in columns), tuple(lines)),
        ladder=Table(
            tuple(headings),
            (False, *(True for _ in comparison.ladder)),
            tuple(_line(r, cells, comparison) for r, cells in zip(rungs, ladder, strict=True)),
        ),
        ladder_title=words.ladder_title(comparison),
        about={row.configuration.key: about(row) for row, _ in rows},
        charts={name: tuple(series.lines(comparison, name)) for name in series.FIGURES},
        notes=tuple(words.notes(comparison, force="f")),
        hints=comparison.refused,
    )


def _line(row: Row, cells: Sequence[str], comparison: Comparison) -> Line:
    own = row.configuration
    return Line(
        key=own.key,
        label=cells[0],
        short=own.label,
        cells=tuple(cells[1:]),
        kind=own.provenance,
        base=own.key == comparison.baseline.key,
        other=bool(row.other_work),
    )


def about(row: Row) -> str:
    """The source of a row's figures, and warnings about them."""
    own = row.configuration
    facts = [f"other work: {'; '.join(row.other_work)}"] if row.other_work else []
    facts += [own.name] if own.name != own.source else []
    facts += [f"{own.runs} runs {own.source}" if own.runs > 1 else own.source]
    facts += [*row.marks, *(f"{name} {value}" for name, value in own.settings.items())]
    return f"{own.label}: " + " · ".join(facts)


def error_line(error: LorawatchError) -> str:
    """An error and its hint in one line."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


# --- remembering the fields


class _Remembered(msgspec.Struct, omit_defaults=True):
    tokens: str = ""
    price_per_kwh: str = ""
    hardware: str = ""


def _memory() -> Path:
    from lorawatch.system import home

    return home.home() / "compare.json"


def remembered() -> dict[str, str]:
    """The saved texts of the fields; a text that cannot be read or is not valid is left out."""
    try:
        with open(_memory(), "rb") as file:
            saved = msgspec.json.decode(file.read(_MOST_BYTES), type=_Remembered)
    except (OSError, msgspec.MsgspecError, ValueError):
        return {}
    words = {}
    for name, text in msgspec.structs.asdict(saved).items():
        with contextlib.suppress(ValueError):
            if text and not isinstance(READERS[name](text), Path):
                words[name] = clean(text)
    return words


def remember(words: Mapping[str, str]) -> None:
    """Save the fields' texts, so that prices need not be typed each day. A failure to write is ignored."""
    path = _memory()
    with contextlib.suppress(OSError):
        make_private(path.parent)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(msgspec.json.encode(_Remembered(**{n: words.get(n, "") for n in REMEMBERED})))
        part.replace(path)
