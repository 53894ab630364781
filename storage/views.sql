-- Views are the stable interface: dropped and created again after every migration. Names in double braces stand for the
-- expressions of storage/expressions.py.

CREATE VIEW v_steps AS
WITH expected AS (
    SELECT run_id, attempt, max(world_size) AS world_size FROM ranks GROUP BY run_id, attempt
),
reported AS (
    SELECT
        run_id,
        attempt,
        step,
        max(ended_at) AS ended_at,
        max(duration_s) AS duration_s,
        CASE WHEN count(tokens) = count(*) THEN sum(tokens)::BIGINT END AS tokens,
        CASE WHEN count(nonpad_tokens) = count(*) THEN sum(nonpad_tokens)::BIGINT END AS nonpad_tokens,
        CASE WHEN count(label_tokens) = count(*) THEN sum(label_tokens)::BIGINT END AS label_tokens,
        {{mean_loss}} AS loss,
        max(grad_norm) AS grad_norm,
        max(learning_rate) AS learning_rate,
        max(data_wait_s) AS data_wait_s,
        max(memory_allocated_bytes) AS memory_allocated_bytes,
        max(memory_reserved_bytes) AS memory_reserved_bytes,
        max(phase) AS phase,
        count(*) AS ranks,
        min(duration_s) AS fastest_rank_s,
        arg_max(rank, duration_s) AS slowest_rank
    FROM steps
    GROUP BY run_id, attempt, step
    QUALIFY attempt = max(attempt) OVER (PARTITION BY run_id, step)
),
held AS (
    SELECT s.*, coalesce(e.world_size, r.world_size, 1) AS expected_ranks
    FROM reported AS s
    LEFT JOIN expected AS e ON e.run_id = s.run_id AND e.attempt = s.attempt
    LEFT JOIN runs AS r ON r.run_id = s.run_id
)
-- a sum over some of the ranks is no sum: it is missing
SELECT
    run_id,
    attempt,
    step,
    ended_at,
    duration_s,
    CASE WHEN ranks >= expected_ranks THEN tokens END AS tokens,
    CASE WHEN ranks >= expected_ranks THEN nonpad_tokens END AS nonpad_tokens,
    CASE WHEN ranks >= expected_ranks THEN label_tokens END AS label_tokens,
    CASE WHEN ranks >= expected_ranks THEN {{step_rate}} END AS tok_s,
    loss,
    grad_norm,
    learning_rate,
    data_wait_s,
    memory_allocated_bytes,
    memory_reserved_bytes,
    phase,
    ranks,
    fastest_rank_s,
    slowest_rank,
    expected_ranks
FROM held;

CREATE VIEW v_evaluations AS
SELECT
    run_id,
    attempt,
    step,
    ended_at,
    duration_s,
    label_tokens,
    loss,
    loss IS NOT NULL
        AND step = first_value(step) OVER (PARTITION BY run_id ORDER BY loss NULLS LAST, step) AS best
FROM evaluations
WHERE rank = 0
QUALIFY attempt = max(attempt) OVER (PARTITION BY run_id, step);

CREATE VIEW v_runs AS
SELECT
    r.run_id,
    r.name,
    r.state,
    r.failure,
    r.message,
    r.exit_code,
    coalesce(s.model, r.recipe ->> '$.model.name') AS model,
    coalesce(s.sku, g.sku) AS sku,
    coalesce(s.gpu_count, g.gpu_count, 0) AS gpu_count,
    r.world_size,
    r.device,
    coalesce(s.coupling, 'ddp') AS coupling,
    r.host,
    r."user",
    r.created_at,
    r.started_at,
    r.ended_at,
    coalesce(r.elapsed_s, CASE WHEN r.wall_s < 0 THEN 0 ELSE r.wall_s END) AS duration_s, -- clocks are set, also back
    r.attempts,
    r.step AS steps,
    r.steps_total,
    s.reporting_ranks,
    s.measured_steps,
    s.tok_s,
    s.tok_s_ci95,
    s.mean_step_tok_s,
    s.tok_s_per_gpu,
    s.step_p50_s,
    s.step_p95_s,
    s.avg_power_w,
    s.avg_power_all_gpus_w,
    s.energy_j,
    s.energy_source,
    s.energy_disagreement_pct,
    s.tok_per_j,
    s.peak_vram_bytes,
    s.throttled_share,
    s.power_capped_share,
    s.mfu,
    s.tokens,
    s.window_s,
    s.window_of,
    s.final_loss,
    e.evaluated_steps,
    e.eval_loss,
    e.eval_step,
    e.best_eval_loss,
    e.best_eval_step,
    r.sweep_id,
    r.tags,
    r.own_command,
    r.command,
    r.recipe,
    r.lorawatch_version,
    r.torch_version,
    r.driver_version,
    r.git_commit
FROM (
    SELECT
        *,
        epoch(
            coalesce(ended_at, CASE WHEN state IN ('starting', 'running', 'stopping') THEN now() END) - started_at
        ) AS wall_s
    FROM runs
) AS r
LEFT JOIN run_summary AS s ON s.run_id = r.run_id
LEFT JOIN (
    SELECT run_id, string_agg(DISTINCT sku, ' + ' ORDER BY sku) AS sku, count(*)::INTEGER AS gpu_count
    FROM gpus
    WHERE used
    GROUP BY run_id
) AS g ON g.run_id = r.run_id
LEFT JOIN (
    SELECT
        run_id,
        count(DISTINCT step) AS evaluated_steps,
        last(loss ORDER BY step, attempt) AS eval_loss,
        max(step) AS eval_step,
        min(loss) AS best_eval_loss,
        arg_min(step, {'loss': loss, 'step': step}) FILTER (loss IS NOT NULL) AS best_eval_step
    FROM evaluations
    WHERE rank = 0
    GROUP BY run_id
) AS e ON e.run_id = r.run_id;

CREATE VIEW v_scaling AS
WITH student (degrees, t95) AS (
    -- Student's t, two-sided 95%, as in lorawatch/analysis/throughput.py
    VALUES
        (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262),
        (10, 2.228), (11, 2.201), (12, 2.179), (13, 2.160), (14, 2.145), (15, 2.131), (16, 2.120), (17, 2.110),
        (18, 2.101), (19, 2.093), (20, 2.086), (21, 2.080), (22, 2.074), (23, 2.069), (24, 2.064), (25, 2.060),
        (26, 2.056), (27, 2.052), (28, 2.048), (29, 2.045), (30, 2.042)
),
grouped AS (
    SELECT
        s.workload,
        any_value(r.name) AS name,
        any_value(s.model) AS model,
        coalesce(s.sku, 'CPU') AS sku,
        s.world_size AS ranks,
        s.coupling,
        count(*) AS runs,
        avg(s.tok_s) AS tok_s,
        stddev_samp(s.tok_s) AS tok_s_stddev,
        any_value(s.tok_s_ci95) AS own_ci95,
        avg(s.avg_power_w) AS avg_power_w,
        avg(s.avg_power_all_gpus_w) AS avg_power_all_gpus_w,
        avg(s.tok_per_j) AS tok_per_j,
        max(s.peak_vram_bytes) AS peak_vram_bytes,
        avg(s.mfu) AS mfu
    FROM run_summary AS s
    JOIN runs AS r ON r.run_id = s.run_id
    WHERE r.state = 'completed' AND s.tok_s IS NOT NULL
        AND NOT list_contains(coalesce(r.tags, []), 'simulated')
    GROUP BY s.workload, coalesce(s.sku, 'CPU'), s.world_size, s.coupling
),
configurations AS (
    SELECT
        g.*,
        CASE
            WHEN g.runs = 1 THEN g.own_ci95
            -- past the table the first terms of Cornish and Fisher's expansion, likewise
            ELSE coalesce(t.t95, 1.959964 + 2.372272 / (g.runs - 1) + 2.822501 / (g.runs - 1) ** 2)
                * g.tok_s_stddev / sqrt(g.runs)
        END AS tok_s_ci95
    FROM grouped AS g
    LEFT JOIN student AS t ON t.degrees = g.runs - 1
)
SELECT
    c.workload,
    c.name,
    c.model,
    c.sku,
    c.ranks,
    c.coupling,
    c.runs,
    c.tok_s,
    c.tok_s_stddev,
    c.tok_s_ci95,
    c.tok_s / c.ranks AS tok_s_per_rank,
    c.tok_s / one.tok_s AS scaling,
    100 * c.tok_s / (c.ranks * one.tok_s) AS efficiency_pct,
    CASE
        WHEN c.ranks > 1 AND c.coupling = 'ddp' THEN (one.tok_s / c.tok_s - 1 / c.ranks) / (1 - 1 / c.ranks)
    END AS karp_flatt,
    100 * c.tok_s / apart.tok_s AS coupling_efficiency_pct,
    100 * (1 - apart.tok_s / (c.ranks * one.tok_s)) AS shared_machine_loss_pct,
    100 * (apart.tok_s - c.tok_s) / (c.ranks * one.tok_s) AS communication_loss_pct,
    c.avg_power_w,
    c.avg_power_all_gpus_w,
    c.tok_per_j,
    c.peak_vram_bytes,
    c.mfu
FROM configurations AS c
LEFT JOIN configurations AS one -- one rank has no other to be coupled with: it is the base of both
    ON one.workload = c.workload AND one.sku = c.sku AND one.ranks = 1 AND one.coupling = 'ddp'
LEFT JOIN configurations AS apart
    ON
        apart.workload = c.workload
        AND apart.sku = c.sku
        AND apart.ranks = c.ranks
        AND apart.coupling = 'separate'
        AND c.coupling = 'ddp';

CREATE VIEW v_epoch_estimates AS
SELECT
    s.run_id,
    r.name,
    s.model,
    coalesce(s.sku, 'CPU') AS sku,
    s.world_size AS ranks,
    s.tok_s,
    d.dataset_tokens,
    d.dataset_tokens / s.tok_s AS epoch_s,
    d.dataset_tokens / (s.tok_s + s.tok_s_ci95) AS epoch_low_s,
    -- analysis/epoch.py, settling_share
    CASE WHEN s.tok_s > s.tok_s_ci95 THEN d.dataset_tokens / (s.tok_s - s.tok_s_ci95)
        * (1 + CASE WHEN s.gpu_count > 0 AND s.window_s > 0 THEN least(0.015 / (1 + s.window_s / 20) + 0.01 / s.window_s, 0.05) ELSE 0 END)
        END AS epoch_high_s,
    d.dataset_tokens / s.tok_per_j / 3.6e6 AS energy_kwh
FROM run_summary AS s
JOIN runs AS r ON r.run_id = s.run_id
CROSS JOIN (VALUES (5000000), (50000000), (500000000), (5000000000)) AS d (dataset_tokens)
WHERE s.tok_s > 0;

CREATE VIEW v_events AS
SELECT
    e.run_id,
    r.name,
    r.state,
    e."at" AS happened_at,
    CASE WHEN e."at" < r.started_at THEN 0 ELSE epoch(e."at" - r.started_at) END AS run_time_s,
    e.kind,
    e.severity,
    e.attempt,
    e.rank,
    e.message,
    e.detail
FROM events AS e
LEFT JOIN runs AS r ON r.run_id = e.run_id;

CREATE VIEW v_published AS
WITH rates AS (
    SELECT source, work::VARCHAR AS work, sku, gpu_count, max(tok_s) AS tok_s
    FROM published_results
    WHERE tok_s IS NOT NULL
    GROUP BY ALL
)
SELECT
    p.source,
    p.title,
    p.sku,
    p.gpu_count,
    p.tok_s,
    p.tok_s_per_gpu,
    p.scaling,
    p.efficiency_pct,
    p.avg_power_w,
    p.tok_per_j,
    p.tok_s / p.gpu_count AS computed_tok_s_per_gpu,
    p.tok_s / one.tok_s AS computed_scaling,
    100 * p.tok_s / (p.gpu_count * one.tok_s) AS computed_efficiency_pct,
    p.tok_s / p.avg_power_w AS computed_tok_per_j,
    p.dataset,
    p.dataset_tokens,
    p.epoch_time,
    p.epoch_s,
    p.dataset_tokens / coalesce(p.tok_s, same.tok_s) AS computed_epoch_s,
    p.differs,
    p.printed,
    p.work,
    p.builtin IS NOT NULL AS builtin,
    p.url,
    p.note
FROM published_results AS p
LEFT JOIN rates AS one
    ON one.source = p.source AND one.sku = p.sku AND one.gpu_count = 1 AND one.work IS NOT DISTINCT FROM p.work::VARCHAR
LEFT JOIN rates AS same
    ON same.source = p.source AND same.sku = p.sku AND same.gpu_count = p.gpu_count
    AND same.work IS NOT DISTINCT FROM p.work::VARCHAR;
