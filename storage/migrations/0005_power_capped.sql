-- Throttled is a GPU that heat, its hardware, the power brake or its peers hold back; at its power limit is another thing.
-- Summaries that took both for one are worked out again from their samples, and of ranks that train separately measured
-- steps are counted by their number, as those of ranks that train together are.

ALTER TABLE run_summary ADD COLUMN power_capped_share DOUBLE;

CREATE TEMP TABLE measured_spans AS
WITH latest AS (
    SELECT run_id, attempt, rank, step, epoch(ended_at) - duration_s AS began, epoch(ended_at) AS ended
    FROM steps
    WHERE phase = 'train'
    QUALIFY attempt = max(attempt) OVER (PARTITION BY run_id, step)
),
by_rank AS (
    SELECT run_id, rank, min(began) AS began, max(ended) AS ended FROM latest GROUP BY run_id, rank
),
spans AS (
    SELECT
        b.run_id,
        -- of ranks that train separately the time that is common to all
        CASE WHEN any_value(s.coupling) = 'separate' THEN max(b.began) ELSE min(b.began) END AS began,
        CASE WHEN any_value(s.coupling) = 'separate' THEN min(b.ended) ELSE max(b.ended) END AS ended
    FROM by_rank AS b
    JOIN run_summary AS s ON s.run_id = b.run_id
    WHERE s.window_of = 'steps'
    GROUP BY b.run_id
)
SELECT
    s.run_id,
    s.began,
    s.ended,
    (
        SELECT count(DISTINCT l.step) FROM latest AS l
        WHERE l.run_id = s.run_id AND l.ended > s.began AND l.began < s.ended
    ) AS measured_steps
FROM spans AS s
UNION ALL
SELECT s.run_id, epoch(r.started_at), epoch(r.ended_at), NULL
FROM run_summary AS s
JOIN runs AS r ON r.run_id = s.run_id
WHERE s.window_of = 'run';

UPDATE run_summary SET throttled_share = found.throttled, power_capped_share = found.capped
FROM (
    SELECT
        g.run_id,
        avg(((g.event_reasons & 248) != 0)::INTEGER) AS throttled,
        avg(((g.event_reasons & 4) != 0)::INTEGER) AS capped
    FROM gpu_samples AS g
    JOIN measured_spans AS m ON m.run_id = g.run_id
    JOIN gpus AS u ON u.run_id = g.run_id AND u.gpu_uuid = g.gpu_uuid AND u.used
    WHERE epoch(g.sampled_at) BETWEEN m.began AND m.ended
    GROUP BY g.run_id
) AS found
WHERE found.run_id = run_summary.run_id;

-- without samples nothing tells the two apart
UPDATE run_summary SET throttled_share = NULL WHERE power_capped_share IS NULL AND throttled_share > 0;

UPDATE run_summary SET measured_steps = (
    SELECT m.measured_steps FROM measured_spans AS m WHERE m.run_id = run_summary.run_id
)
WHERE coupling = 'separate' AND window_of = 'steps'; -- NULL without steps

DROP TABLE measured_spans;
