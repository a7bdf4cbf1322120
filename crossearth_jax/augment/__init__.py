"""Augmentations on the accelerator, as pure functions that can be jitted."""
