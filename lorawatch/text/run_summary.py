"""A run's figures as lines for people: the same words on the command line and on the screens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorawatch.text.numbers import MISSING, duration, gib, number, rank_words
from lorawatch.text.sanitize import clean


def summary_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each figure that the run has; what it lacks is left out, except power on a GPU run.

    Args:
        row: As `storage.queries.run_figures` gives it; `note` beside it: `liveness.note`.
    """
    lines = [("run", _run_words(row)), ("state", row["state"] + (f" ({row['failure']})" if row.get("failure") else ""))]
    lines += [("", clean(row[key])) for key in ("message", "note") if row.get(key)]
    lines.append(("duration", duration(row.get("duration_s"))))
    return [*lines, *_speed_lines(row), *_power_lines(row), *_model_lines(row), *_journal_lines(row)]


def _run_words(row: Mapping[str, Any]) -> str:
    """Which run it is, and on which GPUs or ranks of which host."""
    if row.get("sku"):
        devices = f"{row.get('gpu_count') or 0} × {row['sku']}"
    else:
        devices = f"{row.get('world_size') or 1} × {row.get('device') or 'process'}"
    separate = ", separate" if row.get("coupling") == "separate" else ""
    return f"{row['run_id']}  {clean(row['name'])}  {devices}{separate} on {clean(row['host'])}"


def _speed_lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Throughput, step times and tokens; why there are none where ranks are missing."""
    if row.get("tok_s") is not None:
        ci = row.get("tok_s_ci95")
        interval = f" ± {number(ci, 0 if ci >= 10 else 1)} (95%)" if ci is not None else ""
        each = "GPU" if row.get("device") == "cuda" else "rank"
        several = (row.get("world_size") or 1) > 1
        per_gpu = f"   {number(row.get('tok_s_per_gpu'))} per {each}" if several else ""
        yield "throughput", f"{number(row['tok_s'])} tok/s{interval}{per_gpu}"
        p50, p95 = _milliseconds(row.get("step_p50_s")), _milliseconds(row.get("step_p95_s"))
        yield "step", f"p50 {p50} ms   p95 {p95} ms   {number(row.get('measured_steps'))} measured"
    elif missing := _missing_ranks(row):
        yield "throughput", f"{MISSING}  {missing}"
    if row.get("tokens") is not None:
        yield "tokens", f"{row['tokens']:,} in the measured steps"


def _power_lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Power and energy, on a GPU run also where they are missing."""
    if row.get("device") != "cuda" and row.get("energy_j") is None:
        return
    power = f"{number(row.get('avg_power_w'), 1)} W used"
    all_gpus_w = row.get("avg_power_all_gpus_w")
    if all_gpus_w is not None and row.get("gpu_count") and all_gpus_w != row.get("avg_power_w"):
        power += f"   {number(all_gpus_w, 1)} W all GPUs of the host"
    energy = f"{number(row.get('energy_j'))} J"
    if row.get("window_of") == "run":
        yield "run power", power
        yield "run energy", f"{energy} over the whole run: no step was measured"
    else:
        yield "power", power
        yield "energy", f"{energy}   {number(row.get('tok_per_j'), 2)} tok/J"


def _model_lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Memory, MFU and losses."""
    if row.get("peak_vram_bytes") is not None:
        yield "peak VRAM", f"{gib(row['peak_vram_bytes'])} per GPU"
    if row.get("mfu") is not None:
        yield "MFU", f"{100 * row['mfu']:.1f}%" + ("  implausible" if row.get("mfu_plausible") is False else "")
    if row.get("final_loss") is not None:
        of_some = f"  of {row['reporting_ranks']} of {row['world_size']} ranks" if _missing_ranks(row) else ""
        yield "final loss", number(row["final_loss"], 4) + of_some
    if row.get("eval_step") is not None:
        words = evaluation_words(row["eval_loss"], row["eval_step"], row["best_eval_loss"], row["best_eval_step"])
        yield "eval loss", f"{words}   {row['evaluated_steps']} evaluated"


def _journal_lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of journals that could not be read."""
    if row.get("broken_lines"):
        files = ", ".join(clean(f) for f in row["broken_files"])
        count = row["broken_lines"]
        yield "journals", f"{count:,} broken line{'' if count == 1 else 's'} left out: {files}"


def _milliseconds(seconds: float | None) -> str:
    return number(seconds and seconds * 1e3, 1)


def _missing_ranks(row: Mapping[str, Any]) -> str | None:
    """Why a run's totals are missing though steps were reported; None where all ranks report."""
    reporting, ranks = row.get("reporting_ranks") or 0, row.get("world_size") or 1
    if not 0 < reporting < ranks:
        return None
    words = f"{reporting} of {ranks} ranks report{'s' if reporting == 1 else ''} steps"
    return f"{words}; add StepCallback on every rank" if row.get("own_command") else words


def event_words(event: Mapping[str, Any], world_size: int | None) -> str:
    """An event's message, behind whose it is where it is not all ranks' and does not say so itself.

    Args:
        event: As `storage.queries.run_events` gives them.
        world_size: Of the run; None where it is not known.
    """
    message = clean(event["message"] or event["kind"])
    whose = rank_words(event["ranks"])
    if not whose or len(event["ranks"]) == world_size or whose in message:
        return message
    return f"{whose}: {message}"


def evaluation_words(loss: float | None, step: int, best_loss: float | None, best_step: int | None) -> str:
    """The loss of the last evaluation, and the lowest where that is another's: `1.4010 (lowest 1.3801, step 40)`."""
    if best_step is None:
        return number(loss, 4)
    lowest = "the lowest" if step == best_step else f"lowest {number(best_loss, 4)}, step {best_step}"
    return f"{number(loss, 4)} ({lowest})"


def evaluation_lines(rows: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
    """The evaluations as a table: the latest so many, and the one with the lowest loss in any case.

    Args:
        rows: As `storage.queries.run_evaluations` gives them.
    """
    shown = [row for row in rows[:-limit] if row["best"]] + list(rows[-limit:])
    lines = [f"{'step':>8} {'loss':>9} {'label tokens':>13} {'time':>9}"]
    for row in shown:
        took = row["duration_s"]
        took = MISSING if took is None else f"{took:,.1f} s" if took >= 1 else f"{1000 * took:.0f} ms"
        lines.append(
            f"{row['step']:>8} {number(row['loss'], 4):>9} {number(row['label_tokens']):>13} {took:>9}"
            + ("  lowest" if row["best"] else "")
        )
    if len(shown) < len(rows):
        lines.append(f"and {len(rows) - len(shown):,} before them")
    return lines
