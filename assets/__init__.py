"""Data files that come with lorawatch."""
