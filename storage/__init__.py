"""The history: the only place that imports duckdb."""
