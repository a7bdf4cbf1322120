"""Export a trained model to a format of other programs.

```
python -m crossearth_jax.export RUN --out=model.onnx
python -m crossearth_jax.export RUN --out=model.stablehlo
```

RUN is the folder of a run or a weights file. An ONNX file runs in QGIS (plugin Deepness) and in every ONNX runtime.
Writing it needs the extra `export`. A StableHLO file runs in JAX on CPU, CUDA and TPU without this package. A JSON file
beside it describes its classes. The model takes images (b, 3, s, s), where s is the side of the sliding window, and
returns probabilities (b, classes, s, s).
"""

from __future__ import annotations

import argparse

from crossearth_jax.config import UserError
from crossearth_jax.exporting.stablehlo import write_stablehlo
from crossearth_jax.inference.segmentor import load
from crossearth_jax.runtime import command
from crossearth_jax.runtime.buckets import local_path

SUFFIXES = (".onnx", ".stablehlo")


def main(argv: list[str]) -> None:
    """Export the model that the command line names.

    Raises:
      UserError: the model cannot be read, or the file cannot be written.
    """
    arguments = _parser().parse_args(argv)
    out = local_path(arguments.out, "--out", "export to a local disk and copy the files to the bucket")
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out={out} ends in {out.suffix!r}; expected {' or '.join(SUFFIXES)}")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out={out} is a folder or lies in no folder; name a file in an existing folder")
    write = write_stablehlo
    if out.suffix == ".onnx":
        try:
            from crossearth_jax.exporting.onnx_file import write_onnx as write
        except ModuleNotFoundError as missing:
            command.without_extra("export", missing)
    segmentor = load(
        arguments.source, class_names=arguments.classes, backbone=arguments.backbone, window=arguments.window
    )
    write(out, segmentor)
    side = segmentor.window
    print(f"{out}: images (b, 3, {side}, {side}) to probabilities (b, {segmentor.classes}, {side}, {side})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RUN", help="folder of a run, .safetensors, .pth or hf://organisation/name")
    parser.add_argument("--out", required=True, help="file to write: .onnx or .stablehlo")
    parser.add_argument("--backbone", help="weights file of the frozen backbone, for checkpoints without it")
    parser.add_argument(
        "--classes",
        type=command.class_names,
        metavar="NAMES",
        help="class names (a,b,c) or the name of a taxonomy; default: those of the file",
    )
    parser.add_argument("--window", type=int, metavar="PIXELS", help="side of the images; default: the model's window")
    return parser


if __name__ == "__main__":
    command.run(main)
