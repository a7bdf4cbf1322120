"""Regex tables over parameter names: first full match wins, nothing may be left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from crossearth_jax.config import UserError


def resolve[T](table: Sequence[tuple[str, T]], names: Iterable[str], what: str) -> dict[str, T]:
    """Gives every name the value of the first pattern that matches all of it.

    Args:
      table: (regular expression, value) pairs in order of precedence.
      names: parameter names such as `backbone/blocks/attention/qkv/kernel`.
      what: what the table decides, for messages ("freezing", "sharding").

    Raises:
      UserError: a name is matched by no pattern. A renamed layer must stop the run, not train a frozen backbone.
    """
    patterns = [(re.compile(pattern), value) for pattern, value in table]
    values: dict[str, T] = {}
    for name in names:
        match = next(((value,) for pattern, value in patterns if pattern.fullmatch(name)), None)
        if match is None:
            raise UserError(f"the {what} table has no pattern for parameter '{name}'; add one to the config")
        values[name] = match[0]
    return values


def log_summary(values: Mapping[str, object], sizes: Mapping[str, int], what: str) -> None:
    """Logs how many parameters and numbers fall to each value of a resolved table."""
    for value in sorted({str(v) for v in values.values()}):
        names = [name for name, v in values.items() if str(v) == value]
        total = sum(sizes[name] for name in names)
        logging.info("%s = %s: %d tensors, %s numbers", what, value, len(names), f"{total:,}")
