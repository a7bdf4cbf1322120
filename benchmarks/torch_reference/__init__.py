"""The reference's network and losses restated in PyTorch: an independent check, and what speed is compared with."""
