"""The run directory: the files in which a run is started, followed and judged."""
