"""A run's curves, thinned in the database: each bin keeps its lowest and highest value, so that no spike is hidden."""

from __future__ import annotations

import math

from lorawatch import paths
from lorawatch.storage.connection import reading

BINS = 400
Thinned = tuple[float, float, list[float], list[float]]
"""Start (unix s), bin width (s), lowest and highest value a bin; NaN where nothing was recorded."""

_STEPS = """
WITH whole AS (
    SELECT epoch(max(ended_at)) AS t, sum(tokens) / nullif(max(duration_s), 0) AS tok_s, max(phase) AS phase,
        coalesce(sum(loss * label_tokens) / nullif(sum(label_tokens) FILTER (loss IS NOT NULL), 0), avg(loss)) AS loss
    FROM steps WHERE run_id = $1 GROUP BY attempt, step
), span AS (SELECT min(t) AS b, greatest((max(t) - min(t)) / $2, 1e-3) AS w FROM whole)
SELECT any_value(b), any_value(w), least(floor((t - b) / w), $2 - 1)::INTEGER AS bin,
    min(tok_s) FILTER (phase = 'train'), max(tok_s) FILTER (phase = 'train'), min(loss), max(loss)
FROM whole, span GROUP BY bin ORDER BY bin"""

_SAMPLES = """
WITH mine AS (
    SELECT epoch(s.sampled_at) AS t, s.power_w, s.memory_used_bytes, s.temperature_c FROM gpu_samples AS s
    WHERE s.run_id = $1 AND s.gpu_uuid IN (SELECT gpu_uuid FROM gpus WHERE run_id = $1 AND used)
), span AS (SELECT min(t) AS b, greatest((max(t) - min(t)) / $2, 1e-3) AS w FROM mine)
SELECT any_value(b), any_value(w), least(floor((t - b) / w), $2 - 1)::INTEGER AS bin,
    min(power_w), max(power_w), min(memory_used_bytes), max(memory_used_bytes), min(temperature_c), max(temperature_c)
FROM mine, span GROUP BY bin ORDER BY bin"""


def run_curves(run_id: str, *, deadline_s: float = 0.5) -> dict[str, Thinned]:
    """Curves over time: `loss` and `tok_s` of all ranks together; `power_w`, `memory_bytes` and `temperature_c` of the
    GPUs it used, from the lowest to the highest of them.

    Raises:
        HistoryBusy: A writer held the history that long.
        HistoryError: It cannot be read.
    """
    if not paths.history_file().exists():
        return {}
    with reading(deadline_s=deadline_s) as connection:
        steps = connection.execute(_STEPS, [run_id, BINS]).fetchall()
        samples = connection.execute(_SAMPLES, [run_id, BINS]).fetchall()
    found = {}
    for rows, names in ((steps, ("tok_s", "loss")), (samples, ("power_w", "memory_bytes", "temperature_c"))):
        for index, name in enumerate(names):
            low, high = [math.nan] * BINS, [math.nan] * BINS
            for row in rows:
                if row[3 + 2 * index] is not None:
                    low[row[2]], high[row[2]] = float(row[3 + 2 * index]), float(row[4 + 2 * index])
            if any(v == v for v in low):
                found[name] = (float(rows[0][0]), float(rows[0][1]), low, high)
    return found


def run_ranks(
    run_id: str, *, deadline_s: float = 0.5
) -> list[tuple[int, int, float | None, float | None, float | None]]:
    """A row a rank: rank, steps, tok/s over its measured steps, median step seconds, mean data wait seconds.

    Raises:
        HistoryBusy, HistoryError: As `run_curves`.
    """
    if not paths.history_file().exists():
        return []
    with reading(deadline_s=deadline_s) as connection:
        return connection.execute(
            "SELECT rank, max(step), sum(tokens) FILTER (phase = 'train') / nullif(sum(duration_s) "
            "FILTER (phase = 'train'), 0), median(duration_s) FILTER (phase = 'train'), avg(data_wait_s) "
            "FROM steps WHERE run_id = ? GROUP BY rank ORDER BY rank",
            [run_id],
        ).fetchall()
