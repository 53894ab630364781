-- Published tables keep their cells as printed, and say what was measured.

ALTER TABLE published_results ADD COLUMN title VARCHAR;
ALTER TABLE published_results ADD COLUMN epoch_s DOUBLE;
ALTER TABLE published_results ADD COLUMN printed JSON;
ALTER TABLE published_results ADD COLUMN differs VARCHAR[];
ALTER TABLE published_results ADD COLUMN work JSON;
ALTER TABLE published_results ADD COLUMN builtin VARCHAR;
