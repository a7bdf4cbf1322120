"""Additions to results: baselines, style distances, class features. Each may fail without losing scores."""
