"""Keep compiled programs on disk, so that the second start of a command does not compile them again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from absl import logging

FOLDER = "~/.cache/crossearth_jax/compiled"
MAX_BYTES = 4 * 2**30  # the least recently used programs are deleted first
MIN_SECONDS = 0.2  # programs that compile faster are not stored; JAX's own limit, 1 s, leaves out most of a start


def use_compilation_cache(folder: str = FOLDER) -> None:
    """Let JAX store compiled programs in a folder of bounded size, and read them from there.

    Nothing is changed if the user has chosen a folder (`JAX_COMPILATION_CACHE_DIR`) or has switched the cache off
    (`JAX_ENABLE_COMPILATION_CACHE=false`). JAX finds a program by its computation, its compiler options, the version of
    the compiler and the devices, so a stored program is never used for another one.

    JAX is not imported here, which takes longer than some commands. It reads its options from the environment when it
    is imported later.
    """
    if _option("jax_compilation_cache_dir", "") or not _option("jax_enable_compilation_cache", True):
        return
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("compiled programs are not stored: %s cannot be created (%s)", path, error.strerror)
        return
    for name, value in {
        "jax_compilation_cache_dir": str(path),
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": MIN_SECONDS,
    }.items():
        if (jax := sys.modules.get("jax")) is not None:
            jax.config.update(name, value)
        else:
            os.environ[name.upper()] = str(value)


def _option(name: str, default: str | bool) -> Any:
    """Return the value of an option of JAX, from the environment if JAX is not imported yet."""
    if (jax := sys.modules.get("jax")) is not None:
        return getattr(jax.config, name)
    value = os.environ.get(name.upper(), default)
    return value if not isinstance(default, bool) else str(value).lower() not in ("n", "no", "f", "false", "off", "0")
