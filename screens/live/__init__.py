"""Live: the current run."""
