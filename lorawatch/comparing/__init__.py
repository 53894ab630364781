"""Comparing configurations: which runs and published rows are compared, the figures, and the text that reports them."""
