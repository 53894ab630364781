"""A document of sentences, tables and notes in every format; and the estimate as one."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.comparing import sheets
from lorawatch.comparing import work as works
from lorawatch.comparing.estimating import Estimate, GpuFit, about
from lorawatch.comparing.sheets import Document, Sheet
from lorawatch.comparing.words import tokens_words, with_interval
from lorawatch.errors import LorawatchError
from lorawatch.system.permissions import write_export
from lorawatch.text.numbers import MISSING, gib, long_duration
from lorawatch.text.sanitize import json_text

_ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".html": "html", ".htm": "html"}
_ADVISED = 3  # GPU models whose advice is shown


def format_of(form: str | None, output: Path | None) -> str:
    """The format asked for, or the one of a file's extension."""
    if form is not None:
        return form
    return _ENDINGS.get(output.suffix.lower(), "table") if output is not None else "table"


def write(document: Document, form: str) -> str:
    """The document as `table`, `markdown`, `csv`, `json` or `html`."""
    match form:
        case "csv":
            buffer = io.StringIO()
            names = list(dict.fromkeys(name for record in document.records for name in record))
            writer = csv.DictWriter(buffer, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: sheets.csv_cell(v) for k, v in record.items()} for record in document.records)
            return buffer.getvalue().rstrip("\n")
        case "json":
            content = {
                "answer": document.answer,
                "work": document.work,
                "rows": document.records,
                "notes": document.notes,
            }
            return msgspec.json.format(json_text(content), indent=1)
        case "html":
            from lorawatch.comparing.html import document_page

            return document_page(document)
        case "markdown":
            lines = ["  \n".join(sheets.escaped(s) for s in document.answer), "", sheets.escaped(document.work)]
            for sheet in document.sheets:
                lines += ["", f"**{sheets.escaped(sheet.title)}**", ""]
                lines += sheets.piped(sheet.headings, sheet.rows, sheet.right)
            lines += ["", *(f"- {sheets.escaped(n)}" for n in document.notes)] if document.notes else []
            return "\n".join(lines)
        case _:
            lines = [*document.answer, "", document.work]
            for sheet in document.sheets:
                lines += ["", sheet.title, *sheets.ruled(sheet.headings, sheet.rows, sheet.right)]
            lines += ["", *(f"· {n}" for n in document.notes)] if document.notes else []
            return "\n".join(lines)


def deliver(document: Document, form: str | None, output: Path | None) -> None:
    """Write the document to a file, or to stdout.

    Raises:
        LorawatchError: The file cannot be written.
    """
    save(write(document, format_of(form, output)), output)


def save(text: str, output: Path | None, what: str = "") -> None:
    """Write text to a file as a whole, or to stdout.

    Args:
        what: Printed after the file's name on stderr.

    Raises:
        LorawatchError: The file cannot be written.
    """
    if output is None:
        sys.stdout.write(text + "\n")
        return
    try:
        write_export(output, text + "\n")
    except OSError as error:
        raise LorawatchError(
            f"{output} cannot be written: {error.strerror}", hint="choose another place with -o"
        ) from None
    sys.stderr.write(f"{output} ({what})\n" if what else f"{output}\n")


def of_estimate(estimate: Estimate) -> Document:
    """The estimate of a recipe as a document: whether it fits, what takes the memory, how long an epoch takes."""
    tables = [s for s in (_places(estimate), _breakdown(estimate), _epochs(estimate)) if s.rows]
    notes = [f"memory is not estimated: {estimate.unknown}"] if estimate.unknown else []
    advised: dict[tuple[str, ...], list[str]] = {}
    for place in estimate.places:
        if len(place.advice) > 1:
            advised.setdefault(place.advice, []).append(place.sku)
    for advice, skus in list(advised.items())[:_ADVISED]:
        notes += [f"{', '.join(skus)}: or {line}" for line in advice[1:]]
    if estimate.memory is not None and estimate.recipe.train.engine != "reference":
        notes.append("the memory is the reference engine's, and the fast engine needs no more")
    if estimate.nearest:
        notes.append(estimate.nearest)
    return Document(
        title=f"What {estimate.recipe.name} will take",
        work=works.words(estimate.work),
        answer=tuple(_answer(estimate)),
        sheets=tuple(tables),
        notes=tuple(notes),
        records=tuple(_records(estimate)),
    )


def _answer(estimate: Estimate) -> list[str]:
    sentences = []
    on_this_machine = [p for p in estimate.places if p.here]
    if estimate.memory is not None:
        about_or_at_most = about(estimate.recipe.train.engine)
        sentences.append(
            f"{estimate.recipe.name} needs {about_or_at_most} {gib(estimate.memory.device_bytes)} on each GPU."
        )
        sentences += [f"{len(p.here)} × {p.sku} here: {p.words}." for p in on_this_machine]
        if not on_this_machine:
            roomy = [p for p in estimate.places if p.fit.verdict == "fits" and not p.remark]
            if roomy:
                smallest = min(roomy, key=lambda p: p.memory_total_bytes)
                sentences.append(f"The smallest known GPU that it fits on is {smallest.sku}.")
            else:
                sentences.append("It fits on no GPU that is known here.")
    if estimate.epochs:
        best = estimate.epochs[0]
        origin = best.configuration.provenance
        duration = long_duration(best.time.value)
        sentences.append(
            f"{best.configuration.label} ({origin}) takes {duration} for {tokens_words(estimate.tokens)} tokens."
        )
    return sentences


def _places(estimate: Estimate) -> Sheet:
    """Models of one memory size and verdict share a line."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for place in estimate.places:
        name = place.sku + (f" (here: {', '.join(map(str, place.here))})" if place.here else "")
        advice = place.advice[0] if place.advice else ""
        lines.setdefault((gib(place.memory_total_bytes), place.words, advice), []).append(name)
    rows = [(has, words, ", ".join(names), advice) for (has, words, advice), names in lines.items()]
    headings = ("memory", "verdict", "GPU", "what would make it fit")
    return Sheet("memory of each GPU", headings, tuple(rows), (True, False, False, False))


def _breakdown(estimate: Estimate) -> Sheet:
    if estimate.memory is None:
        return Sheet("", (), (), ())
    rows = tuple((name.replace("_", " "), gib(value)) for name, value in estimate.memory.breakdown().items() if value)
    return Sheet("where it goes", ("part", "at the peak"), rows, (False, True))


def _epochs(estimate: Estimate) -> Sheet:
    rows = []
    for epoch in estimate.epochs:
        own, time = epoch.configuration, epoch.time
        spread = MISSING
        if time.low is not None and time.high is not None:
            spread = f"{long_duration(time.low)} to {long_duration(time.high)}"
        rows.append((own.label, own.provenance, with_interval(own.tok_s, 0), long_duration(time.value), spread))
    title = f"an epoch of {tokens_words(estimate.tokens)} tokens, where the same work was measured"
    return Sheet(
        title, ("configuration", "from", "tok/s", "time", "95%"), tuple(rows), (False, False, True, True, True)
    )


def _records(estimate: Estimate) -> list[dict[str, Any]]:
    needed = estimate.memory

    def memory_record(p: GpuFit) -> dict[str, Any]:
        return {
            "kind": "memory", "sku": p.sku, "gpus_here": len(p.here), "memory_total_bytes": p.memory_total_bytes,
            "needed_bytes": needed.device_bytes if needed else None, "verdict": p.fit.verdict,
            "spare_bytes": p.fit.spare_bytes, "advice": "; ".join(p.advice),
        }  # fmt: skip

    parts = [
        {"kind": "part", "part": name, "needed_bytes": value}
        for name, value in (needed.breakdown().items() if needed else ())
    ]
    epochs = [
        {
            "kind": "epoch", "sku": e.configuration.sku, "count": e.configuration.count,
            "provenance": e.configuration.provenance, "tok_s": e.configuration.tok_s.value,
            "tok_s_ci95": e.configuration.tok_s.ci95, "dataset_tokens": estimate.tokens, "epoch_s": e.time.value,
            "epoch_low_s": e.time.low, "epoch_high_s": e.time.high,
        }
        for e in estimate.epochs
    ]  # fmt: skip
    return [*(memory_record(p) for p in estimate.places), *parts, *epochs]
