"""How every command starts and ends: logging to stderr, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import logging as python_logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags, logging

from crossearth_jax.config import UserError


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Calls `main(arguments)` and exits with its code (None is 0).

    A `UserError` becomes one line on stderr and exit code 2, an interrupt exit code 130; anything else is a bug
    of ours and keeps its traceback.
    """
    sys.unraisablehook = _unraisable
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_worth_reading)
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers and tfds read absl flags
    try:
        code = main(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


def without_extra(extra: str, error: ModuleNotFoundError) -> NoReturn:
    """Exits with code 2 and says how to install what a whole command needs; for its imports, before `run`."""
    print(
        f"error: {error.name} is not installed; this command needs the extra {extra}: "
        f"python -m uv pip install --python .venv -c constraints.txt -e '.[{extra}]'",
        file=sys.stderr,
    )
    sys.exit(2)


def _worth_reading(record: python_logging.LogRecord) -> bool:
    """Leaves out the running commentary of orbax, jax and the font packer of figures; their warnings stay.

    A save that fails is told by orbax and its asyncio once for each thread and task, each time with a traceback,
    before it raises.
    """
    origin = {"orbax", "asyncio", "jax", "fontTools"} & set(record.pathname.split("/"))
    return not origin or (record.levelno >= python_logging.WARNING and not record.exc_info)


def _unraisable(found: Any) -> None:
    """Prints what Python could not raise, except for orbax's reads and writes that end after another one has failed."""
    late_write = found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"
    late_read = "/orbax/" in getattr(getattr(found.object, "cr_code", None), "co_filename", "")
    if not (late_write or late_read):
        sys.__unraisablehook__(found)
