"""The figures of a finished run, from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from lorawatch.analysis.energy import Energy, energy_over, tok_per_j
from lorawatch.analysis.mfu import plausible, run_mfu
from lorawatch.analysis.missing import whole_sum
from lorawatch.analysis.throughput import per_gpu, percentile, rate
from lorawatch.analysis.windows import Span, length
from lorawatch.run.clock_reasons import THROTTLED, ClockReason
from lorawatch.storage.engine import Connection, roll_back
from lorawatch.storage.expressions import share
from lorawatch.storage.measured import Measured, separately, together
from lorawatch.storage.skus import bf16_dense_peak
from lorawatch.storage.workloads import workload

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


@dataclass(frozen=True)
class _Run:
    """What is known of a run beside its measurements.

    Attributes:
        ranks: How many trained.
        separate: Whether they trained separately; one rank alone is the base of both couplings.
        whole: When it began and ended, unix seconds; None where that is not known.
        gpus: UUIDs of all GPUs of its hosts; `used` of those that it used, `skus` their models.
        flops_per_token, dtype: As the ranks reported them.
    """

    recipe: dict[str, Any]
    name: str
    own_command: bool
    ranks: int
    separate: bool
    whole: Span | None
    gpus: list[str]
    used: list[str]
    skus: list[str]
    flops_per_token: float | None
    dtype: str | None

    @property
    def shares(self) -> int:
        """How many GPUs, or ranks without one, share its tokens."""
        return len(self.used) or self.ranks


def _run(connection: Connection, run_id: str) -> _Run:
    row = connection.execute(
        "SELECT recipe, name, world_size, epoch(started_at), epoch(ended_at), own_command FROM runs WHERE run_id = ?",
        [run_id],
    ).fetchone()
    if row is None:
        raise LookupError(run_id)
    recipe_text, name, world_size, started, ended, own_command = row
    recipe: dict[str, Any] = msgspec.json.decode(recipe_text) if recipe_text else {}
    reported, flops, dtype = connection.execute(
        "SELECT greatest(count(DISTINCT rank), coalesce(arg_max(world_size, attempt), 0)), max(flops_per_token), "
        "max(dtype) FROM ranks WHERE run_id = ?",
        [run_id],
    ).fetchone() or (0, None, None)
    ranks = max(int(reported or 0), int(world_size or 0), 1)
    gpus = connection.execute("SELECT gpu_uuid, sku, used FROM gpus WHERE run_id = ?", [run_id]).fetchall()
    return _Run(
        recipe=recipe,
        name=name,
        own_command=bool(own_command),
        ranks=ranks,
        separate=(recipe.get("launch") or {}).get("strategy") == "separate" and ranks > 1,
        whole=(started, ended) if started is not None and ended is not None and ended > started else None,
        gpus=[uuid for uuid, _, _ in gpus],
        used=[uuid for uuid, _, used in gpus if used],
        skus=sorted({sku for _, sku, used in gpus if used and sku}),
        flops_per_token=flops,
        dtype=dtype,
    )


def _figures(connection: Connection, run_id: str) -> dict[str, Any]:
    """The columns of a run's row in `run_summary`."""
    run = _run(connection, run_id)
    steps = separately(connection, run_id, run.ranks) if run.separate else together(connection, run_id)
    # A command that reports no steps still has power over its whole time.
    window = steps.window or ([run.whole] if run.whole else [])
    energy = _energy_figures(connection, run_id, run, window)
    return {
        "workload": workload(run.recipe, run.name if run.own_command else None),
        "model": (run.recipe.get("model") or {}).get("name"),
        "sku": " + ".join(run.skus) or None,
        "gpu_count": len(run.used),
        "world_size": run.ranks,
        "coupling": "separate" if run.separate else "ddp",
        **_rate_figures(steps, run),
        **energy,
        "tok_per_j": tok_per_j(steps.tokens, energy["energy_j"]),
        **_gpu_facts(connection, run_id, run.used, window),
        "window_s": length(window) if window else None,
        "window_of": ("steps" if steps.window else "run") if window else None,
        "reporting_ranks": _reporting_ranks(connection, run_id),
        "final_loss": _final_loss(connection, run_id),
    }


def _rate_figures(steps: Measured, run: _Run) -> dict[str, Any]:
    """What the measured steps say: tokens, rates, times, MFU."""
    peak = bf16_dense_peak(run.skus[0]) if len(run.skus) == 1 else None
    utilisation = run_mfu(run.flops_per_token, steps.tok_s, run.shares, run.dtype, peak)
    return {
        "tok_s": steps.tok_s,
        "tok_s_ci95": steps.tok_s_ci95,
        "mean_step_tok_s": steps.mean_step_tok_s,
        "tok_s_per_gpu": per_gpu(steps.tok_s, run.shares),
        "step_p50_s": percentile(steps.durations_s, 0.5),
        "step_p95_s": percentile(steps.durations_s, 0.95),
        "mfu": utilisation,
        "mfu_plausible": plausible(utilisation),
        "tokens": round(steps.tokens) if steps.tokens is not None else None,
        "nonpad_tokens": steps.nonpad_tokens,
        "label_tokens": steps.label_tokens,
        "measured_steps": steps.count,
    }


def _energy_figures(connection: Connection, run_id: str, run: _Run, window: list[Span]) -> dict[str, Any]:
    """Energy and mean power of the used GPUs over the window, and of all of the hosts'; on the CPU of its packages."""
    energies = {uuid: _gpu_energy(connection, run_id, uuid, window) for uuid in run.gpus} if window else {}
    used = [energies[uuid] for uuid in run.used if uuid in energies]
    energy_j, source = _total(used)
    all_j, _ = _total(list(energies.values()))
    if not run.gpus and window:
        energy_j = energy_over(_host_readings(connection, run_id, window), window).counter_j
        source = "rapl" if energy_j is not None else None
    whole = Energy(energy_j if source == "counter" else None, whole_sum(e.integral_j for e in used))
    return {
        "avg_power_w": rate(energy_j, length(window)),
        "avg_power_all_gpus_w": rate(all_j, length(window)),
        "energy_j": energy_j,
        "energy_all_gpus_j": all_j,
        "energy_source": source,
        "energy_power_integral_j": whole.integral_j,
        "energy_disagreement_pct": whole.disagreement_pct,
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
        total = whole_sum(values)
        if total is not None:
            return total, source
    return None, None


def _gpu_facts(connection: Connection, run_id: str, used: list[str], window: list[Span]) -> dict[str, Any]:
    """Peak memory of any used GPU over the run, and between the window's ends the shares of their samples with clocks
    held back, and at the power limit."""
    begin, end = (window[0][0], window[-1][1]) if window else (0.0, 0.0)
    inside = "FILTER (sampled_at BETWEEN to_timestamp(?) AND to_timestamp(?))"
    row = connection.execute(
        f"SELECT max(memory_used_bytes), {share(THROTTLED)} {inside}, {share(ClockReason.POWER_CAP)} {inside} "  # noqa: S608
        "FROM gpu_samples WHERE run_id = ? AND gpu_uuid IN (SELECT unnest(?::VARCHAR[]))",
        [begin, end, begin, end, run_id, used],
    ).fetchone()
    names = ("peak_vram_bytes", "throttled_share", "power_capped_share")
    return dict(zip(names, row or (None,) * len(names), strict=True))


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
