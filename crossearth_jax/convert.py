"""Convert weights: published files to those of this package, and back to the format of the reference's tools.

`python -m crossearth_jax.convert SRC OUT.safetensors [--image_size=512] [--patch_size=14] [--backbone=FILE]`
`python -m crossearth_jax.convert SRC OUT.pth --to=torch`

SRC is a CrossEarth checkpoint, a DINOv2 or DINOv3 backbone (original `.pth` or Hugging Face safetensors), a weights
file of this package, a run folder, or the two files of style-augmentation (their folder, or one of them). No code in a
`.pth` is executed, and torch is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from crossearth_jax.config import ModelConfig, UserError, from_config_dict
from crossearth_jax.inference.segmentor import read
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.runtime import command
from crossearth_jax.runtime.buckets import AnyPath, any_path
from crossearth_jax.weights import reference_names
from crossearth_jax.weights.load import Weights
from crossearth_jax.weights.native import digest, save_native, save_tensors
from crossearth_jax.weights.style_files import legacy_files, load_style
from crossearth_jax.weights.torch_writer import write_torch_zip


def main(argv: list[str]) -> None:
    """Convert the file that the command line names."""
    arguments = _parser().parse_args(argv)
    source, out = any_path(arguments.source), any_path(arguments.out)
    _check_out(source, out, arguments.to)
    if isinstance(source, Path) and legacy_files(source) is not None:
        params = load_style(StyleNetwork("inception"), source)
        save_tensors(out, params, {"source": source.name})
    else:
        params = convert(source, out, arguments)
    numbers = sum(np.size(value) for value in params.values())
    print(f"{out}: {len(params)} arrays, {numbers:,} numbers, sha256 {digest(params)}")


def convert(source: AnyPath, out: AnyPath, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Convert a segmentation model or a backbone as the arguments say; return its parameters."""
    weights = read(
        source,
        config=None if arguments.config is None else read_config(arguments.config),
        backbone=arguments.backbone,
        image_size=arguments.image_size,
        patch_size=arguments.patch_size,
        ignore=arguments.ignore,
    )
    if arguments.to == "torch":
        write_reference(out, weights)
    else:
        save_native(out, weights.params, weights.description)
    return weights.params


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="file to read")
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument("--to", choices=("native", "torch"), default="native", help="parameter names and layout of OUT")
    parser.add_argument(
        "--image_size", type=int,
        help="image side to which the position embedding of an original DINOv2 is resampled (512)",
    )  # fmt: skip
    parser.add_argument(
        "--patch_size", type=int,
        help="patch side to which the patch kernel of an original DINOv2 is resampled (16); 14 keeps it",
    )  # fmt: skip
    parser.add_argument("--backbone", help="weights file of the frozen backbone, if SRC holds only Reins and head")
    parser.add_argument("--config", help="JSON of the model (or a run's config.json), if shapes do not determine it")
    parser.add_argument("--ignore", help="regular expression of names in SRC to leave out")
    return parser


def _check_out(source: AnyPath, out: AnyPath, to: str) -> None:
    suffixes = (".pth", ".safetensors") if to == "torch" else (".safetensors",)
    if out.suffix not in suffixes:
        raise UserError(f"{out} ends in {out.suffix!r}, expected {' or '.join(suffixes)} for --to={to}")
    if to == "torch" and isinstance(source, Path) and legacy_files(source) is not None:
        raise UserError(f"{source} holds the style network's torch files already; leave out --to=torch")
    same = source == out
    if isinstance(source, Path) and isinstance(out, Path):
        same = out.exists() and source.exists() and out.samefile(source)
    if same:
        raise UserError(f"{out} is the input file; name another output file")


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a model from its own JSON, or from the entry "model" in the JSON of a run.

    Raises:
      UserError: the file is missing or is not such a JSON.
    """
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object, expected the fields of the model's configuration")
    return from_config_dict(values.get("model", values), ModelConfig)


def write_reference(path: AnyPath, weights: Weights) -> None:
    """Write weights with the reference's names and layout, so that its test tool can load them.

    A `.pth` is a torch zip file with the weights under `state_dict`; a `.safetensors` holds them directly.

    Raises:
      UserError: the reference has no such parameter, or the file cannot be written.
    """
    tensors = reference_names.to_reference(weights.params)
    logging.info("writing %d tensors under the reference's names", len(tensors))
    if path.suffix == ".safetensors":
        save_tensors(path, tensors, {})
        return
    described = weights.description
    classes = {"classes": described.class_names, "palette": [list(colour) for colour in described.palette]}
    meta = {"dataset_meta": {key: value for key, value in classes.items() if value}}
    write_torch_zip(path, {"meta": meta, "state_dict": tensors})


if __name__ == "__main__":
    command.run(main)
