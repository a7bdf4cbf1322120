"""Measurements of speed and memory, compared with PyTorch where it is available. See README.md."""
