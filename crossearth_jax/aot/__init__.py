"""Ahead-of-time compilation for accelerators that are not available, and analysis of the compiled programs."""
