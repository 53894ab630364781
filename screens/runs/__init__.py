"""Runs: the history, and the pages of one run."""
