"""Augmentations, pure and jitted: (key, sample) -> sample."""
