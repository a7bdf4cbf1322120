"""Array operations that the networks, augmentations and losses share."""
