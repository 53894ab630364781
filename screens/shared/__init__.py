"""Widgets and helpers that several screens use."""
