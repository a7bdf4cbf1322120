"""Augmentations, pure and jitted: (key, example) -> example."""
