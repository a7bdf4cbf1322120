"""The reference's network and losses implemented in PyTorch, for independent checks and comparisons of speed."""
