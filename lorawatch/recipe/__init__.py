"""Recipes: what a run trains, how, and on which devices."""
