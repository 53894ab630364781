"""The figures of a finished run, from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from lorawatch.analysis.energy import Energy, energy_over
from lorawatch.analysis.mfu import mfu, plausible
from lorawatch.analysis.throughput import percentile
from lorawatch.analysis.windows import Span, length
from lorawatch.run.clock_reasons import SLOWDOWN_WORDS, ClockReason
from lorawatch.storage.engine import Connection, roll_back
from lorawatch.storage.measured import separately, together
from lorawatch.storage.skus import bf16_dense_peak
from lorawatch.storage.workloads import workload

# What holds clocks down under load: the power cap and what slows a GPU against its will.
_THROTTLED = int(sum(SLOWDOWN_WORDS, ClockReason.POWER_CAP))
_FETCH = 10_000


def summarize(connection: Connection, run_id: str) -> None:
    """Compute a run's row of `run_summary`, replacing an earlier one; one transaction.

    Raises:
        Error: The history cannot be read or written.
    """
    values = _figures(connection, run_id)
    names = ", ".join(values)
    marks = ", ".join("?" for _ in values)
    connection.execute("BEGIN")
    try:
        connection.execute("DELETE FROM run_summary WHERE run_id = ?", [run_id])
        connection.execute(
            f"INSERT INTO run_summary (run_id, {names}) VALUES (?, {marks})",  # noqa: S608  names of this module
            [run_id, *values.values()],
        )
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def _figures(connection: Connection, run_id: str) -> dict[str, Any]:
    run = connection.execute(
        "SELECT recipe, name, world_size, epoch(started_at), epoch(ended_at), own_command FROM runs WHERE run_id = ?",
        [run_id],
    ).fetchone()
    if run is None:
        raise LookupError(run_id)
    recipe_text, name, world_size, started, ended, own_command = run
    recipe: dict[str, Any] = msgspec.json.decode(recipe_text) if recipe_text else {}
    ranks = connection.execute(
        "SELECT greatest(count(DISTINCT rank), coalesce(arg_max(world_size, attempt), 0)), max(flops_per_token), "
        "max(dtype), max(device) FROM ranks WHERE run_id = ?",
        [run_id],
    ).fetchone() or (0, None, None, None)
    world = max(int(ranks[0] or 0), int(world_size or 0), 1)
    gpus = connection.execute("SELECT gpu_uuid, sku, used FROM gpus WHERE run_id = ?", [run_id]).fetchall()
    used = [uuid for uuid, _, u in gpus if u]
    skus = sorted({sku for _, sku, u in gpus if u and sku})

    # One rank alone is the base of both couplings.
    separate = (recipe.get("launch") or {}).get("strategy") == "separate" and world > 1
    steps = separately(connection, run_id, world) if separate else together(connection, run_id)
    window = steps.window
    shares = len(used) or world
    per_gpu = steps.tok_s / shares if steps.tok_s is not None else None

    # A command that reports no steps still has power over its whole time.
    over = window or ([(started, ended)] if started is not None and ended is not None and ended > started else [])
    over_s = length(over)
    energies = {uuid: _gpu_energy(connection, run_id, uuid, over) for uuid, _, _ in gpus} if over else {}
    mine = [energies[uuid] for uuid in used if uuid in energies]
    energy_j, source = _total(mine)
    integral_j = _sum([e.integral_j for e in mine])
    all_j, _ = _total(list(energies.values()))
    if not gpus and over:
        energy_j = energy_over(_host_readings(connection, run_id, over), over).counter_j
        source = "rapl" if energy_j is not None else None
    disagreement = (
        100 * (integral_j - energy_j) / energy_j
        if source == "counter" and energy_j and integral_j is not None
        else None
    )
    on_known_gpu = len(skus) == 1 and str(ranks[2] or "").removeprefix("torch.") in ("bfloat16", "float16")
    utilisation = mfu(ranks[1], per_gpu, bf16_dense_peak(skus[0])) if on_known_gpu else None
    vram, throttled = _gpu_facts(connection, run_id, used, over)
    return {
        "workload": workload(recipe, name if own_command else None),
        "model": (recipe.get("model") or {}).get("name"),
        "sku": " + ".join(skus) or None,
        "gpu_count": len(used),
        "world_size": world,
        "coupling": "separate" if separate else "ddp",
        "tok_s": steps.tok_s,
        "tok_s_ci95": steps.tok_s_ci95,
        "mean_step_tok_s": steps.mean_step_tok_s,
        "tok_s_per_gpu": per_gpu,
        "step_p50_s": percentile(steps.durations_s, 0.5),
        "step_p95_s": percentile(steps.durations_s, 0.95),
        "avg_power_w": energy_j / over_s if energy_j is not None else None,
        "avg_power_all_gpus_w": all_j / over_s if all_j is not None else None,
        "energy_j": energy_j,
        "energy_all_gpus_j": all_j,
        "energy_source": source,
        "energy_power_integral_j": integral_j,
        "energy_disagreement_pct": disagreement,
        "tok_per_j": steps.tokens / energy_j if steps.tokens is not None and energy_j else None,
        "peak_vram_bytes": vram,
        "throttled_share": throttled,
        "mfu": utilisation,
        "mfu_plausible": plausible(utilisation),
        "tokens": round(steps.tokens) if steps.tokens is not None else None,
        "nonpad_tokens": steps.nonpad_tokens,
        "label_tokens": steps.label_tokens,
        "measured_steps": len(steps.durations_s),
        "window_s": over_s if over else None,
        "window_of": ("steps" if window else "run") if over else None,
        "reporting_ranks": _reporting_ranks(connection, run_id),
        "final_loss": _final_loss(connection, run_id),
    }


def _gpu_energy(connection: Connection, run_id: str, gpu_uuid: str, window: list[Span]) -> Energy:
    rows = connection.execute(
        "SELECT epoch(sampled_at) AS at_s, power_w, energy_j FROM gpu_samples WHERE run_id = ? AND gpu_uuid = ? "
        "AND sampled_at BETWEEN to_timestamp(?) AND to_timestamp(?) ORDER BY sampled_at",
        [run_id, gpu_uuid, window[0][0] - 10, window[-1][1] + 10],
    )
    return energy_over(_fetched(rows), window)


def _host_readings(
    connection: Connection, run_id: str, window: list[Span]
) -> Iterator[tuple[float, float | None, float | None]]:
    return _fetched(
        connection.execute(
            "SELECT epoch(sampled_at) AS at_s, NULL, package_energy_j FROM host_samples WHERE run_id = ? "
            "AND sampled_at BETWEEN to_timestamp(?) AND to_timestamp(?) ORDER BY sampled_at",
            [run_id, window[0][0] - 10, window[-1][1] + 10],
        )
    )


def _fetched(rows: Connection) -> Iterator[Any]:
    while batch := rows.fetchmany(_FETCH):
        yield from batch


def _total(energies: list[Energy]) -> tuple[float | None, str | None]:
    """Joules of several cards and where they come from: counters if all have one, else integrals if all have power."""
    if not energies:
        return None, None
    for source, values in (
        ("counter", [e.counter_j for e in energies]),
        ("power_integral", [e.integral_j if e.counter_j is None else e.counter_j for e in energies]),
    ):
        total = _sum(values)
        if total is not None:
            return total, source
    return None, None


def _sum(values: list[float | None]) -> float | None:
    return sum(v for v in values if v is not None) if values and None not in values else None


def _gpu_facts(
    connection: Connection, run_id: str, used: list[str], window: list[Span]
) -> tuple[int | None, float | None]:
    """Peak memory of any used GPU over the run, and the throttled share of their samples between the window's ends."""
    if not used:
        return None, None
    begin, end = (window[0][0], window[-1][1]) if window else (0.0, 0.0)
    row = connection.execute(
        "SELECT max(memory_used_bytes), avg(((event_reasons & ?) != 0)::INTEGER) "
        "FILTER (sampled_at BETWEEN to_timestamp(?) AND to_timestamp(?)) "
        "FROM gpu_samples WHERE run_id = ? AND gpu_uuid IN (SELECT unnest(?::VARCHAR[]))",
        [_THROTTLED, begin, end, run_id, used],
    ).fetchone()
    return (row[0], row[1]) if row else (None, None)


def _reporting_ranks(connection: Connection, run_id: str) -> int | None:
    """How many ranks reported steps, in the attempt in which most did; None where none did."""
    row = connection.execute(
        "SELECT max(reporting) FROM (SELECT count(DISTINCT rank) AS reporting FROM steps WHERE run_id = ? GROUP BY attempt)",
        [run_id],
    ).fetchone()
    return row[0] if row else None


def _final_loss(connection: Connection, run_id: str) -> float | None:
    """The loss of the run's last step; None where that step's rows are not there."""
    row = connection.execute(
        "SELECT s.loss FROM v_steps AS s JOIN runs AS r USING (run_id) "
        "WHERE run_id = ? AND s.loss IS NOT NULL AND s.step >= coalesce(r.step, 0) "
        "ORDER BY s.ranks >= s.expected_ranks DESC, s.step DESC LIMIT 1",
        [run_id],
    ).fetchone()
    return row[0] if row else None
