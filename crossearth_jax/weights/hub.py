"""Models on a hub: download of a weights file or upload of a folder, at `hf://organisation/name[@revision]`.

Only `model.safetensors` is downloaded, never code or pickles, so a repository cannot run anything on this machine. The
extra `hub` must be installed. The environment variables of huggingface_hub (HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE, …) apply.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from crossearth_jax.config import UserError

PREFIX = "hf://"
WEIGHTS = "model.safetensors"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class Address(NamedTuple):
    """A repository on the hub."""

    repository: str  # organisation/name
    revision: str | None  # branch, tag or commit; None is the main branch

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(path: object) -> bool:
    """Return whether a path is an address on a hub."""
    return str(path).startswith(PREFIX)


def parse(text: str) -> Address:
    """Parse `hf://organisation/name[@revision]`.

    Raises:
      UserError: the text has another form.
    """
    found = re.fullmatch(rf"{PREFIX}({_NAME}/{_NAME})(?:@([\w./-]+))?", text)
    if not found:
        raise UserError(f"'{text}' is not an address on a hub, expected {PREFIX}organisation/name[@revision]")
    return Address(found[1], found[2])


def download(address: Address) -> Path:
    """Download the weights file of a repository, unless its revision is cached, and return the local file.

    Raises:
      UserError: the repository has none, the hub cannot be reached, or the extra is not installed.
    """
    with _client(f"cannot load {address}") as api:
        path = api.hf_hub_download(address.repository, WEIGHTS, revision=address.revision)
    logging.info("%s: %s", address, path)
    return Path(path)


def upload(folder: Path, address: Address, message: str, *, private: bool = False) -> str:
    """Upload all files of a folder as one commit; create the repository and the branch if they do not exist.

    Returns:
      URL of the commit.

    Raises:
      UserError: the hub rejects the upload or cannot be reached, or the extra is not installed.
    """
    with _client(f"cannot push to {address}") as api:
        api.create_repo(address.repository, private=private, exist_ok=True)
        if address.revision:
            api.create_branch(address.repository, branch=address.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=address.repository, folder_path=folder, commit_message=message, revision=address.revision
        )
    return str(done.commit_url)


@contextlib.contextmanager
def _client(failure: str) -> Iterator[Any]:
    try:
        hub, errors = (importlib.import_module(name) for name in ("huggingface_hub", "huggingface_hub.errors"))
    except ImportError:
        raise UserError(
            f"{failure}: the package huggingface_hub is missing; install the extra 'hub': "
            "python -m uv pip install --python .venv -c constraints.txt -e '.[hub]'"
        ) from None
    try:
        yield hub.HfApi()
    except (errors.HTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{failure}: {' '.join(str(error).split())}") from None
