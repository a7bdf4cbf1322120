"""A prepared run on an accelerator: numerical checks, comparison with PyTorch, profile of a step. See README.md."""
