"""State, optimizer, step and checkpoints of a run."""
