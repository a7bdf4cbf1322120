"""Read prepared datasets into batches in host memory."""
