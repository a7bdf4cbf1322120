"""Measurements of speed and memory, beside PyTorch where it is installed. See README.md."""
