"""Start and end of every command: logging, compilation cache, and one line with exit code 2 for a user error."""

from __future__ import annotations

import logging as python_logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags, logging

from crossearth_jax.config import UserError
from crossearth_jax.runtime.compilation_cache import use_compilation_cache


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Call `main(arguments)` and exit with its code (None is 0).

    A `UserError` is printed as one line on stderr with exit code 2, an interrupt gives exit code 130. Any other
    exception is a bug and is shown with its traceback.
    """
    sys.unraisablehook = _unraisable
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_worth_reading)
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers and tfds read absl flags
    use_compilation_cache()
    try:
        code = main(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


def class_names(text: str) -> str | list[str]:
    """Parse the value of --classes: names separated by commas, or the name of a taxonomy."""
    return text.split(",") if "," in text else text


def without_extra(extra: str, error: ModuleNotFoundError) -> NoReturn:
    """Print how to install a missing extra and exit with code 2; for the imports of a command, before `run`."""
    print(
        f"error: {error.name} is not installed; this command needs the extra {extra}: "
        f"python -m uv pip install --python .venv -c constraints.txt -e '.[{extra}]'",
        file=sys.stderr,
    )
    sys.exit(2)


def _worth_reading(record: python_logging.LogRecord) -> bool:
    """Return False for records below warning level, or with a traceback, of orbax, asyncio, jax and fontTools.

    When a save fails, orbax and asyncio log a traceback for each thread and task before orbax raises the error.
    """
    origin = {"orbax", "asyncio", "jax", "fontTools"} & set(record.pathname.split("/"))
    return not origin or (record.levelno >= python_logging.WARNING and not record.exc_info)


def _unraisable(found: Any) -> None:
    """Print an exception that Python cannot raise, unless it is of an orbax read or write that ends after a failure."""
    late_write = found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"
    late_read = "/orbax/" in getattr(getattr(found.object, "cr_code", None), "co_filename", "")
    if not (late_write or late_read):
        sys.__unraisablehook__(found)
