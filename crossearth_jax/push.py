"""Publish a model on the Hugging Face Hub: weights as safetensors, configuration, scores and a model card.

```
python -m crossearth_jax.push RUN hf://organisation/name --licence=apache-2.0
python -m crossearth_jax.push model.safetensors hf://organisation/name@branch
```

RUN is a run folder or a weights file (then the card has no scores). The command needs the extra `hub` and a token with
write permission (`hf auth login`, or HF_TOKEN). `crossearth_jax.load("hf://organisation/name")` loads the model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from absl import logging

from crossearth_jax.config import to_config_dict
from crossearth_jax.inference.segmentor import read
from crossearth_jax.reporting.model_card import UNKNOWN, model_card
from crossearth_jax.reporting.run import read_run
from crossearth_jax.runtime import command
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.runtime.buckets import AnyPath, any_path
from crossearth_jax.weights import hub
from crossearth_jax.weights.native import digest, save_native


def push(
    source: str | os.PathLike[str], address: str, *, licence: str = UNKNOWN, message: str = "", private: bool = False
) -> str:
    """Publish a run or a weights file.

    Args:
      source: folder of an evaluated run, or a file that `crossearth_jax.load` reads.
      address: `hf://organisation/name[@branch]`; the repository and the branch are created if they do not exist.
      licence: licence of the weights, as an identifier of the hub, e.g. "apache-2.0".
      message: message of the commit.
      private: whether a newly created repository is private.

    Returns:
      Address of the commit.

    Raises:
      UserError: the source cannot be read, or the hub refuses or cannot be reached.
    """
    target = hub.parse(address)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(any_path(source), Path(folder), str(target), licence)
        return hub.upload(Path(folder), target, message or f"Add {Path(source).name}", private=private)


def write_repository(source: AnyPath, folder: Path, address: str, licence: str) -> None:
    """Write the published files: `model.safetensors`, `config.json`, `README.md` and, for a run, `results.json`.

    Raises:
      UserError: the source cannot be read.
    """
    run = read_run(source) if source.is_dir() else None
    weights = read(source)
    described = weights.description
    save_native(folder / hub.WEIGHTS, weights.params, described)
    config = {
        "library_name": "crossearth_jax",
        "model": json.loads(to_config_dict(described.model).to_json()),
        "class_names": described.class_names,
        "palette": described.palette,
        "window": described.window,
        "stride": described.stride,
        "experiment": json.loads((source / "config.json").read_text(encoding="utf-8")) if run else None,
    }
    write_json(folder / "config.json", config)
    if run:
        (folder / "results.json").write_bytes((source / "results.json").read_bytes())
    card = model_card(described, digest(weights.params), address, licence, run)
    (folder / "README.md").write_text(card, encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Publish the model that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="RUN", help="folder of an evaluated run, or a weights file")
    parser.add_argument("address", metavar="hf://ACCOUNT/NAME[@BRANCH]", help="repository to publish in")
    parser.add_argument(
        "--licence", default=UNKNOWN, help="licence of the weights, e.g. apache-2.0; the card states it"
    )
    parser.add_argument("--message", default="", help="message of the commit")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    given = parser.parse_args(arguments)
    if given.licence == UNKNOWN:
        logging.warning("no --licence is given, so it is unclear how the weights may be used")
    url = push(given.source, given.address, licence=given.licence, message=given.message, private=given.private)
    print(f"{given.source} is published: {url}")


if __name__ == "__main__":
    command.run(main)
