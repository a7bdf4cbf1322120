"""Tables of regular expressions over parameter names: the first full match counts, every name needs one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from crossearth_jax.config import UserError


def resolve[T](table: Sequence[tuple[str, T]], names: Iterable[str], what: str) -> dict[str, T]:
    """Return for every name the value of the first pattern that matches the whole name.

    Args:
      table: (regular expression, value) pairs in order of precedence.
      names: parameter names such as `backbone/blocks/attention/qkv/kernel`.
      what: what the table decides, for messages ("freezing", "weight decay").

    Raises:
      UserError: no pattern matches a name. A renamed layer thus stops the run, instead of being trained by mistake.
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
    """Log the number of tensors and of their elements for each value of a resolved table."""
    for value in sorted({str(v) for v in values.values()}):
        names = [name for name, v in values.items() if str(v) == value]
        total = sum(sizes[name] for name in names)
        logging.info("%s = %s: %d tensors, %s numbers", what, value, len(names), f"{total:,}")
