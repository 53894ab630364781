"""A run's figures as lines for people: the same words on the command line and on the screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorawatch.text.numbers import MISSING, duration, gib, number, rank_words
from lorawatch.text.sanitize import clean


def summary_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each figure that the run has; what it lacks is left out, except power on a GPU run.

    Args:
        row: As `storage.queries.run_figures` gives it; `note` beside it: `liveness.note`.
    """
    gpus = row.get("gpu_count") or 0
    on_gpu = row.get("device") == "cuda"
    where = (
        f"{gpus} × {row['sku']}"
        if row.get("sku")
        else f"{row.get('world_size') or 1} × {row.get('device') or 'process'}"
    )
    ended = f"{row['state']}" + (f" ({row['failure']})" if row.get("failure") else "")
    where += ", each for itself" if row.get("coupling") == "separate" else ""
    lines = [("run", f"{row['run_id']}  {clean(row['name'])}  {where} on {clean(row['host'])}"), ("state", ended)]
    lines += [("", clean(row[key])) for key in ("message", "note") if row.get(key)]
    lines.append(("duration", duration(row.get("duration_s"))))
    missing = _missing_ranks(row)
    if missing and row.get("tok_s") is None:
        lines.append(("throughput", f"{MISSING}  {missing}"))
    if row.get("tok_s") is not None:
        ci = row.get("tok_s_ci95")
        interval = f" ± {number(ci, 0 if ci >= 10 else 1)} (95%)" if ci is not None else ""
        several = (row.get("world_size") or 1) > 1
        per_gpu = f"   {number(row.get('tok_s_per_gpu'))} per {'GPU' if on_gpu else 'rank'}" if several else ""
        lines.append(("throughput", f"{number(row['tok_s'])} tok/s{interval}{per_gpu}"))
        p50, p95 = row.get("step_p50_s"), row.get("step_p95_s")
        lines.append(
            (
                "step",
                f"p50 {number(p50 and p50 * 1e3, 1)} ms   p95 {number(p95 and p95 * 1e3, 1)} ms   "
                f"{number(row.get('measured_steps'))} measured",
            )
        )
    if row.get("tokens") is not None:
        lines.append(("tokens", f"{row['tokens']:,} in the measured steps"))
    if on_gpu or row.get("energy_j") is not None:
        power = f"{number(row.get('avg_power_w'), 1)} W used"
        everything = row.get("avg_power_all_gpus_w")
        if everything is not None and gpus and everything != row.get("avg_power_w"):
            power += f"   {number(everything, 1)} W all GPUs of the host"
        energy = f"{number(row.get('energy_j'))} J"
        if row.get("window_of") == "run":
            lines += [("run power", power), ("run energy", f"{energy} over the whole run: no step was measured")]
        else:
            lines += [("power", power), ("energy", f"{energy}   {number(row.get('tok_per_j'), 2)} tok/J")]
    if row.get("peak_vram_bytes") is not None:
        lines.append(("peak VRAM", f"{gib(row['peak_vram_bytes'])} per GPU"))
    if row.get("mfu") is not None:
        lines.append(("MFU", f"{100 * row['mfu']:.1f}%" + ("  implausible" if row["mfu"] > 0.75 else "")))
    if row.get("final_loss") is not None:
        of_some = f"  of {row['reporting_ranks']} of {row['world_size']} ranks" if missing else ""
        lines.append(("final loss", number(row["final_loss"], 4) + of_some))
    if row.get("eval_step") is not None:
        words = evaluation_words(row["eval_loss"], row["eval_step"], row["best_eval_loss"], row["best_eval_step"])
        lines.append(("eval loss", f"{words}   {row['evaluated_steps']} evaluated"))
    if row.get("broken_lines"):
        files = ", ".join(clean(f) for f in row["broken_files"])
        count = row["broken_lines"]
        lines.append(("journals", f"{count:,} broken line{'' if count == 1 else 's'} left out: {files}"))
    return lines


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
