"""Weights files of every origin: reading them into flat parameter dictionaries, and writing them."""
