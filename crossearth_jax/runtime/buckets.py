"""Paths that a user gives: local, or in a bucket of Google Cloud Storage (`gs://…`) or of S3 (`s3://…`).

Buckets are reached by `etils.epath` through the packages of the extra `bucket`. Credentials, project, region and
endpoint are those that these packages find by themselves, in environment variables and files of the user.

A bucket has no folders, no appending and no renaming. A file is uploaded as a whole and exists when the upload is
complete.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
from etils import epath
from fsspec import config as fsspec_config

from crossearth_jax.config import UserError

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}

type AnyPath = Path | epath.Path  # a local path, or one in a bucket


def is_remote(path: object) -> bool:
    """Return whether a path has a scheme such as `gs:`, so that it is no path of the local file system."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) is not None


def any_path(path: str | os.PathLike[str]) -> AnyPath:
    """Return a path as a local path or a path in a bucket.

    Raises:
      UserError: its scheme is unknown, or the package for its scheme is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text)
    scheme = text.partition(":")[0]
    if scheme not in PACKAGES or not re.match(r"[a-z0-9]+://[^/]", text):
        raise UserError(
            f"'{text}' is not a path that can be used; expected a local path, gs://BUCKET/… or s3://BUCKET/…"
        )
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise UserError(
            f"{text} needs the package {PACKAGES[scheme]}; install the extra 'bucket': "
            "python -m uv pip install --python .venv -c constraints.txt -e '.[bucket]'"
        )
    # Listings are not cached: other processes of a run write to the same folders.
    fsspec_config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def check_access(path: AnyPath) -> None:
    """Check that a bucket answers; whether `path` exists there is not checked.

    Raises:
      UserError: there are no credentials, they are refused, or the service cannot be reached.
    """
    if not isinstance(path, Path):
        with bucket_errors(f"cannot reach {path}"):
            path.exists()


def local_path(path: str | os.PathLike[str], name: str, remedy: str) -> Path:
    """Return a path that must be local.

    Args:
      path: the path.
      name: its flag or field, for the error.
      remedy: what to do instead of naming a bucket, for the error.

    Raises:
      UserError: it is not local.
    """
    if is_remote(path):
        raise UserError(f"{name}={os.fspath(path)} is not a local path, which is needed here; {remedy}")
    return Path(path)


@contextlib.contextmanager
def local_copy(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local file with the content of `path`: `path` itself, or a temporary copy of a file in a bucket.

    Arrays that are mapped from the copy stay valid after the block, although the copy is deleted.

    Raises:
      UserError: the bucket cannot be read, or has no such file.
    """
    found = any_path(path)
    if isinstance(found, Path):
        yield found
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, found.name)
        with bucket_errors(f"cannot read {found}"):
            fsspec.core.url_to_fs(str(found))[0].get_file(str(found), str(local))
        yield local


def upload(local: Path, path: epath.Path) -> None:
    """Upload a file to a bucket; a file that is there is replaced when the upload is complete.

    Raises:
      UserError: the upload fails.
    """
    with bucket_errors(f"cannot write {path}"):
        fsspec.core.url_to_fs(str(path))[0].put_file(str(local), str(path))


def resolved(path: AnyPath) -> AnyPath:
    """Return the absolute form of a path without links; a path in a bucket is returned as it is."""
    return path.resolve() if isinstance(path, Path) else path


def modified(path: AnyPath) -> datetime.datetime:
    """Return when a file was last written, in UTC."""
    if isinstance(path, Path):
        return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return fsspec.core.url_to_fs(str(path))[0].modified(str(path))


def move_folder(path: AnyPath, target: AnyPath) -> None:
    """Move a folder; in a bucket every file is copied and deleted.

    Raises:
      OSError: a file cannot be moved.
    """
    if isinstance(path, Path):
        target.parent.mkdir(exist_ok=True)
        path.rename(str(target))
    else:
        fsspec.core.url_to_fs(str(path))[0].mv(str(path), str(target), recursive=True)


def make_folder(path: AnyPath) -> None:
    """Create a folder and its parents if they do not exist; a bucket has no folders, so nothing is created there."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def bucket_errors(failure: str) -> Iterator[None]:
    """Raise the errors that the packages of the buckets raise as `UserError`, in one line that begins with `failure`.

    Each package has its own classes for a missing bucket, missing credentials and a network that fails; none of them
    is imported here.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{failure}: it does not exist") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{failure}: {reason[:300]}; check the address, the credentials and the network") from None
