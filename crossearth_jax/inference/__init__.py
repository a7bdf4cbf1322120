"""A trained model at work: loading, sliding windows, evaluation, the benchmark's table."""
