"""The comparison's queries: the summaries of all runs, never their steps or samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lorawatch.storage import files
from lorawatch.storage.connection import reading_with
from lorawatch.storage.engine import Connection
from lorawatch.storage.expressions import rate


class RunSummary(
    msgspec.Struct, frozen=True, gc=False
):  # a tenth of a dataclass's time for the 10,000 of a long history
    """A run's summary and the facts that decide whether it can be compared; a missing figure is None.

    Attributes:
        workload: Digest of what a step computes; `recipe` is shared by all runs of one workload.
        gpu_count: GPUs used; 0 on the CPU.
        ranks: Training processes.
        coupling: `ddp` or `separate`.
        throttled_share, power_capped_share: Shares of the samples with clocks held back, and at the power limit, 0 to 1.
        tok_per_j_all: Tokens over the energy of every GPU in the host.
        power_limit_w: Summed over the used GPUs.
        fell_back: Whether compiling failed and the reference engine ran in the fast one's place.
        reporting_ranks: Ranks that reported steps; None where none did, or an older lorawatch summarized.
    """

    run_id: str
    name: str
    state: str
    failure: str | None
    own_command: bool
    host: str
    tags: Sequence[str]
    created_at_s: float
    steps: int | None
    steps_total: int | None
    torch_version: str | None
    driver_version: str | None
    workload: str | None
    model: str | None
    sku: str | None
    gpu_count: int
    ranks: int
    coupling: str
    tok_s: float | None
    tok_s_ci95: float | None
    mean_step_tok_s: float | None
    step_p50_s: float | None
    window_s: float | None
    avg_power_w: float | None
    avg_power_all_gpus_w: float | None
    tok_per_j: float | None
    tok_per_j_all: float | None
    energy_source: str | None
    peak_vram_bytes: int | None
    throttled_share: float | None
    mfu: float | None
    mfu_plausible: bool | None
    measured_steps: int | None
    final_loss: float | None
    sweep_id: str | None
    power_limit_w: float | None
    fell_back: bool = False
    reporting_ranks: int | None = None
    power_capped_share: float | None = None


_COLUMNS = f"""
    r.run_id, r.name, r.state, r.failure, coalesce(r.own_command, false) AS own_command, r.host,
    coalesce(r.tags, []) AS tags, coalesce(epoch(r.created_at), 0) AS created_at_s, r.step AS steps, r.steps_total,
    r.torch_version, r.driver_version, s.workload, s.model, s.sku, coalesce(s.gpu_count, 0) AS gpu_count,
    coalesce(s.world_size, r.world_size, 1) AS ranks, coalesce(s.coupling, 'ddp') AS coupling, s.tok_s, s.tok_s_ci95,
    s.mean_step_tok_s, s.step_p50_s, s.window_s, s.avg_power_w, s.avg_power_all_gpus_w, s.tok_per_j,
    {rate("s.tokens", "s.energy_all_gpus_j")} AS tok_per_j_all, s.energy_source, s.peak_vram_bytes, s.throttled_share,
    s.mfu, s.mfu_plausible, s.measured_steps, s.final_loss, r.sweep_id, g.power_limit_w, f.run_id IS NOT NULL AS fell_back,
    s.reporting_ranks, s.power_capped_share
"""


def run_summaries(
    *, connection: Connection | None = None, deadline_s: float = 2.0
) -> tuple[list[RunSummary], dict[str, Mapping[str, Any]]]:
    """All runs that have ended, oldest first, and the recipe of each workload (of its latest run).

    Args:
        connection: An open connection to the history, if there is one.

    Raises:
        HistoryBusy: A writer held the history that long.
        HistoryError: It cannot be read.
    """
    if files.absent():
        return [], {}
    with reading_with(connection, deadline_s=deadline_s) as connection:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM runs AS r LEFT JOIN run_summary AS s ON s.run_id = r.run_id "  # noqa: S608
            # a sum over GPUs of which one reports no limit would be too low
            "LEFT JOIN (SELECT run_id, CASE WHEN count(power_limit_w) = count(*) THEN sum(power_limit_w) END "
            "AS power_limit_w FROM gpus WHERE used GROUP BY run_id) AS g ON g.run_id = r.run_id "
            "LEFT JOIN (SELECT DISTINCT run_id FROM events WHERE kind = 'engine_fallback') AS f ON f.run_id = r.run_id "
            "WHERE r.ended_at IS NOT NULL ORDER BY r.run_id"
        ).fetchall()
        recipes = connection.execute(
            "SELECT s.workload, arg_max(r.recipe, r.run_id) FROM run_summary AS s JOIN runs AS r ON r.run_id = s.run_id "
            "WHERE r.recipe IS NOT NULL GROUP BY s.workload"
        ).fetchall()
    return (
        [RunSummary(*row) for row in rows],
        {workload: msgspec.json.decode(recipe) for workload, recipe in recipes},
    )
