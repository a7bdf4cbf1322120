"""Atomic writing, also to buckets: a file is complete or does not exist."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crossearth_jax.config import UserError
from crossearth_jax.runtime.buckets import any_path, make_folder, upload


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it is renamed to `path` when the block ends without an error.

    For a path in a bucket, the temporary path is a local one and its file is uploaded at the end.

    Raises:
      UserError: the folder does not exist or cannot be written, the disk is full, or the upload fails.
    """
    path = any_path(path)
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            upload(temporary, path)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors writes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file; its folder is created if it does not exist.

    Raises:
      UserError: the file cannot be written.
    """
    make_folder(any_path(path).parent)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_npz(path: str | os.PathLike[str], **arrays: np.ndarray) -> None:
    """Write a compressed NumPy archive; its folder is created if it does not exist.

    Raises:
      UserError: the file cannot be written.
    """
    make_folder(any_path(path).parent)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
