"""Placeholder."""


def style_program(config):
    """None."""
    return None
