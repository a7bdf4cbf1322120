"""Training: state, optimizer, step, loop and checkpoints of a run."""
