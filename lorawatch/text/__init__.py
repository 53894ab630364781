"""Figures and other text as people read it."""
