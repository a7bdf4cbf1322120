"""Use of a trained model: loading, sliding-window prediction, evaluation, the benchmark's results table."""
