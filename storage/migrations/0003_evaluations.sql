-- Evaluations on rows that are never trained on.

CREATE TABLE evaluations (
    run_id VARCHAR,
    attempt INTEGER,
    rank INTEGER,
    step BIGINT,
    ended_at TIMESTAMPTZ,
    duration_s DOUBLE,
    label_tokens BIGINT,
    loss DOUBLE
);
