"""From prepared datasets to host batches."""
