-- Fact tables carry no keys, constraints or indexes: each row comes from one journal byte range that is taken exactly once,
-- and an index would be read and rewritten at every short open of the file.

CREATE TABLE runs (
    run_id VARCHAR,
    name VARCHAR,
    state VARCHAR,
    failure VARCHAR,
    message VARCHAR,
    exit_code INTEGER,
    recipe JSON,
    command VARCHAR,
    own_command BOOLEAN,
    host VARCHAR,
    "user" VARCHAR,
    cwd VARCHAR,
    device VARCHAR,
    world_size INTEGER,
    sample_hz DOUBLE,
    created_at TIMESTAMPTZ,
    started_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ,
    attempts INTEGER,
    step BIGINT,
    steps_total BIGINT,
    sweep_id VARCHAR,
    tags VARCHAR[],
    lorawatch_version VARCHAR,
    torch_version VARCHAR,
    driver_version VARCHAR,
    git_commit VARCHAR
);

CREATE TABLE ranks (
    run_id VARCHAR,
    attempt INTEGER,
    rank INTEGER,
    local_rank INTEGER,
    world_size INTEGER,
    started_at TIMESTAMPTZ,
    host VARCHAR,
    pid BIGINT,
    device VARCHAR,
    gpu_uuid VARCHAR,
    gpu_name VARCHAR,
    torch_version VARCHAR,
    steps_total BIGINT,
    parameters BIGINT,
    lora_parameters BIGINT,
    flops_per_token DOUBLE,
    dtype VARCHAR
);

CREATE TABLE gpus (
    run_id VARCHAR,
    host VARCHAR,
    gpu_index INTEGER,
    gpu_uuid VARCHAR,
    sku VARCHAR,
    memory_total_bytes BIGINT,
    power_limit_w DOUBLE,
    used BOOLEAN
);

CREATE TABLE steps (
    run_id VARCHAR,
    attempt INTEGER,
    rank INTEGER,
    step BIGINT,
    gpu_uuid VARCHAR,
    ended_at TIMESTAMPTZ,
    duration_s DOUBLE,
    tokens BIGINT,
    nonpad_tokens BIGINT,
    label_tokens BIGINT,
    loss DOUBLE,
    grad_norm DOUBLE,
    learning_rate DOUBLE,
    data_wait_s DOUBLE,
    memory_allocated_bytes BIGINT,
    memory_reserved_bytes BIGINT,
    phase VARCHAR
);

CREATE TABLE gpu_samples (
    run_id VARCHAR,
    gpu_uuid VARCHAR,
    sampled_at TIMESTAMPTZ,
    power_w DOUBLE,
    power_average_w DOUBLE,
    energy_j DOUBLE,
    memory_used_bytes BIGINT,
    utilization_pct DOUBLE,
    temperature_c DOUBLE,
    sm_clock_mhz INTEGER,
    memory_clock_mhz INTEGER,
    event_reasons BIGINT,
    power_limit_w DOUBLE
);

CREATE TABLE host_samples (
    run_id VARCHAR,
    host VARCHAR,
    sampled_at TIMESTAMPTZ,
    cpu_pct DOUBLE,
    memory_used_bytes BIGINT,
    memory_total_bytes BIGINT,
    workers_cpu_pct DOUBLE,
    workers_rss_bytes BIGINT,
    disk_free_bytes BIGINT,
    package_energy_j DOUBLE
);

CREATE TABLE events (
    run_id VARCHAR,
    "at" TIMESTAMPTZ,
    kind VARCHAR,
    severity VARCHAR,
    attempt INTEGER,
    rank INTEGER,
    message VARCHAR,
    detail JSON
);

CREATE TABLE run_summary (
    run_id VARCHAR,
    workload VARCHAR,
    model VARCHAR,
    sku VARCHAR,
    gpu_count INTEGER,
    world_size INTEGER,
    coupling VARCHAR,
    tok_s DOUBLE,
    tok_s_ci95 DOUBLE,
    mean_step_tok_s DOUBLE,
    tok_s_per_gpu DOUBLE,
    step_p50_s DOUBLE,
    step_p95_s DOUBLE,
    avg_power_w DOUBLE,
    avg_power_all_gpus_w DOUBLE,
    energy_j DOUBLE,
    energy_all_gpus_j DOUBLE,
    energy_source VARCHAR,
    energy_power_integral_j DOUBLE,
    energy_disagreement_pct DOUBLE,
    tok_per_j DOUBLE,
    peak_vram_bytes BIGINT,
    throttled_share DOUBLE,
    mfu DOUBLE,
    mfu_plausible BOOLEAN,
    tokens BIGINT,
    nonpad_tokens BIGINT,
    label_tokens BIGINT,
    measured_steps BIGINT,
    window_s DOUBLE,
    window_of VARCHAR,
    final_loss DOUBLE
);

CREATE TABLE published_results (
    source VARCHAR,
    sku VARCHAR,
    gpu_count INTEGER,
    tok_s DOUBLE,
    tok_s_per_gpu DOUBLE,
    scaling DOUBLE,
    efficiency_pct DOUBLE,
    avg_power_w DOUBLE,
    tok_per_j DOUBLE,
    dataset VARCHAR,
    dataset_tokens BIGINT,
    epoch_time VARCHAR,
    url VARCHAR,
    note VARCHAR
);

CREATE TABLE journal_offsets (
    run_id VARCHAR,
    file VARCHAR,
    byte_offset BIGINT,
    lines BIGINT,
    broken_lines BIGINT
);
