"""Losses of the two tasks."""
