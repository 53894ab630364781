"""Comparing configurations: which runs and published rows stand beside each other, what they say, and how it is told."""
