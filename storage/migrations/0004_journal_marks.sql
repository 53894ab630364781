-- Marks by which a journal that was cut or replaced is known from one that was appended to; how many ranks a summary is
-- made from; and how long a run was recorded, by a monotonic clock.

ALTER TABLE journal_offsets ADD COLUMN mark BIGINT;
ALTER TABLE journal_offsets ADD COLUMN known_until BIGINT;
ALTER TABLE journal_offsets ADD COLUMN cuts BIGINT;
ALTER TABLE runs ADD COLUMN elapsed_s DOUBLE;
ALTER TABLE run_summary ADD COLUMN reporting_ranks INTEGER;
