"""One prepared run on an accelerator: correct, compared with PyTorch, and where the time goes. See README.md."""
