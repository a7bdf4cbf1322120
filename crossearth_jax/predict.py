"""Predict class maps of georeferenced scenes of any size.

```
python -m crossearth_jax.predict --checkpoint=RUN scene.tif --out=map.tif
python -m crossearth_jax.predict --checkpoint=potsdam.pth --bands=nir,red,green --gsd=0.3 *.tif --out=maps/
```

A map is a Cloud Optimized GeoTIFF with class names and colours, on the grid of its scene. With --gsd the grid has that
pixel size and the origin and orientation of the scene. Where the scene has no data, the map has nodata.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from crossearth_jax.config import UserError
from crossearth_jax.inference.ensemble import averaged_windows, check_alike
from crossearth_jax.inference.familiarity import Familiarity
from crossearth_jax.inference.segmentor import Segmentor, load
from crossearth_jax.runtime import command, processes
from crossearth_jax.runtime.buckets import local_path

try:
    from crossearth_jax.mapping.map_layers import Legend
    from crossearth_jax.mapping.mapper import MapOptions, check_outputs, map_scene
    from crossearth_jax.mapping.radiometry import PERCENTILES
    from crossearth_jax.mapping.remote import stem
    from crossearth_jax.mapping.scene import SceneOptions, check_scene, scene_files
except ModuleNotFoundError as missing:
    command.without_extra("geo", missing)

WINDOWS_PER_DEVICE = 4  # default in a batch: enough to use a device well, few enough for one with little memory


def main(argv: list[str]) -> None:
    """Map the scenes that the command line names; after an error in one of several scenes the others are still mapped.

    Raises:
      UserError: a scene could not be mapped, or the arguments or the checkpoint cannot be used.
    """
    arguments = _parser().parse_args(argv)
    written_command = shlex.join(["python", "-m", "crossearth_jax.predict", *argv])
    outputs = output_paths(arguments.scenes, arguments.out)
    if not arguments.distributed:
        _map(arguments, outputs, arguments.shard, written_command)
        return
    failure: UserError | None = None
    with processes.joined(arguments.coordinator_address, arguments.num_processes, arguments.process_id):
        try:
            _map(arguments, outputs, (jax.process_index(), jax.process_count()), written_command)
        except UserError as error:  # raised at the end, so that the other processes still map their scenes
            failure = error
    if failure is not None:
        raise failure


def _map(arguments: argparse.Namespace, outputs: dict[str, Path], shard: tuple[int, int], written_command: str) -> None:
    """Map the scenes of a shard (index from 0, count)."""
    index, count = shard
    outputs = dict(itertools.islice(outputs.items(), index, None, count))
    if count > 1:
        logging.info("shard %d of %d: %d scenes", index, count, len(outputs))
    given = len(outputs)
    if arguments.skip_existing:
        outputs = {scene: out for scene, out in outputs.items() if not out.exists()}
        logging.info("%d of %d maps exist", given - len(outputs), given)
    products = MapOptions(
        scores=arguments.scores,
        confidence=arguments.confidence,
        polygons=arguments.polygons,
        preview=arguments.preview,
    )
    inputs = {*checkpoints(arguments.checkpoint), arguments.backbone or ""}.union(*map(scene_files, outputs))
    check_outputs(outputs.values(), inputs, products)
    several, options = len(outputs) > 1, _scene_options(arguments)
    scenes = _each(outputs, lambda scene: check_scene(scene, options), several)
    if scenes:
        scenes = _each(scenes, _mapper(arguments, options, products, outputs, written_command), several)
    missing = [scene for scene in outputs if scene not in scenes]
    if missing:
        raise UserError(f"{len(missing)} of {len(outputs)} scenes could not be mapped: {', '.join(missing)}; see above")


def _each(scenes: Iterable[str], work: Callable[[str], None], several: bool) -> list[str]:
    """Call `work` for every scene and return the scenes without an error.

    With several scenes an error is printed and the next scene follows; an error other than `UserError` is printed with
    its traceback, since it may be a bug.
    """
    good = []
    for scene in scenes:
        try:
            work(scene)
            good.append(scene)
        except Exception as error:
            if not several:
                raise
            if isinstance(error, UserError):
                named = "" if scene in str(error) else f"{scene}: "
                print(f"error: {named}{error}", file=sys.stderr)
            else:
                logging.exception("%s: %s", scene, type(error).__name__)
    return good


def _mapper(
    arguments: argparse.Namespace,
    scene_options: SceneOptions,
    products: MapOptions,
    outputs: Mapping[str, Path],
    written_command: str,
) -> Callable[[str], None]:
    """Load the models and return the function that maps one scene."""
    names = checkpoints(arguments.checkpoint)
    segmentors = [_model(name, arguments) for name in names]
    check_alike(segmentors, names)
    described = segmentors[0].description
    familiarity = described.reference and Familiarity(described.reference)
    windows = averaged_windows(
        segmentors,
        stride=arguments.stride,
        blend=arguments.blend,
        flips=arguments.flips,
        batch_size=arguments.batch_size or WINDOWS_PER_DEVICE * len(jax.local_devices()),
        observe=familiarity and familiarity.observe,
    )
    if scene_options.bands is None and described.bands:
        scene_options = dataclasses.replace(scene_options, bands=",".join(described.bands))
    classes = described.class_names or tuple(f"class {i}" for i in range(segmentors[0].classes))
    legend = Legend(classes, described.palette)
    fitted = [segmentor.description.temperature for segmentor in segmentors]
    temperatures = [value for value in fitted if value is not None]
    temperature = sum(temperatures) / len(temperatures) if len(temperatures) == len(fitted) else 1.0
    if arguments.confidence and len(temperatures) < len(fitted):
        logging.info(
            "no temperature is stored with every checkpoint; the confidence is that of the shares of the scores"
        )
    products = dataclasses.replace(products, temperature=temperature)
    tags = {
        "TEMPERATURE": f"{temperature:.4g}",
        "CHECKPOINT": arguments.checkpoint,
        "MODEL": "; ".join(
            segmentor.description.source or Path(name).name for segmentor, name in zip(segmentors, names, strict=True)
        ),
        "FLIPS": "yes" if arguments.flips else "no",
        "COMMAND": written_command,
    }

    def work(scene: str) -> None:
        found = dict
        if familiarity is not None:
            familiarity.clear()
            found = functools.partial(familiarity.tags, scene)
        map_scene(windows, legend, scene, outputs[scene], scene_options, products, tags, late_tags=found)
        logging.info("wrote %s", outputs[scene])

    return work


def output_paths(scenes: Sequence[str], out: str) -> dict[str, Path]:
    """Return the path of the map of each scene: `out` if that is a .tif file, else `out`/<scene>_map.tif.

    Raises:
      UserError: `out` does not fit the scenes, or two maps would have the same path.
    """
    target = local_path(out, "--out", "map to a local disk and copy the maps to the bucket")
    if target.suffix.lower() in (".tif", ".tiff"):
        if target.is_dir():
            raise UserError(f"--out={out} is a folder with the name of a file; name a file in it, or another folder")
        if len(scenes) > 1:
            raise UserError(f"--out={out} is one file, but there are {len(scenes)} scenes; name a folder")
        outputs = {scenes[0]: target}
    else:
        if target.exists() and not target.is_dir():
            raise UserError(f"--out={out} is a file that does not end in .tif; name a .tif file or a folder")
        outputs = {scene: target / f"{stem(scene)}_map.tif" for scene in scenes}
    if len(set(outputs.values())) < len(scenes):
        raise UserError("two scenes have the same file name, so their maps would too; map them to different folders")
    return outputs


def _scene_options(arguments: argparse.Namespace) -> SceneOptions:
    return SceneOptions(
        bands=arguments.bands,
        value_range=arguments.range,
        percentiles=arguments.percentiles,
        gsd=arguments.gsd,
        bounds=arguments.bounds,
    )


def checkpoints(text: str) -> list[str]:
    """Return the checkpoints that `--checkpoint` names: paths separated by commas, or one path that holds commas."""
    return [text] if Path(text).exists() else text.split(",")


def _model(checkpoint: str, arguments: argparse.Namespace) -> Segmentor:
    return load(
        checkpoint,
        class_names=arguments.classes,
        backbone=arguments.backbone,
        window=arguments.window,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "scenes",
        nargs="+",
        metavar="SCENE",
        help="GeoTIFF, COG, VRT or another raster that GDAL reads, local or https://…, s3://…, gs://…, item.json#ASSET",
    )
    add("--out", required=True, help="a .tif file, or a folder in which each map is named <scene>_map.tif")
    add("--checkpoint", required=True, help="folder of a run, .safetensors or .pth; a,b,c averages their scores")
    add("--backbone", help="weights file of the frozen backbone, for checkpoints without it")
    add(
        "--classes",
        type=command.class_names,
        metavar="NAMES",
        help="class names (a,b,c) or the name of a taxonomy; default: the checkpoint's",
    )
    _add_reading(parser.add_argument_group("reading"))
    _add_scoring(parser.add_argument_group("scoring").add_argument)
    _add_writing(parser.add_argument_group("writing").add_argument)
    _add_processes(parser.add_argument_group("several processes"))
    return parser


def _add_reading(group: argparse._ArgumentGroup) -> None:
    add, stretch = group.add_argument, group.add_mutually_exclusive_group().add_argument
    add(
        "--bands",
        metavar="R,G,B",
        help="three bands by name or number from 1 (nir,red,green); default: the checkpoint's, else red,green,blue",
    )
    stretch("--range", type=_numbers(2), metavar="LOW,HIGH", help="pixel values that become 0 and 255")
    stretch(
        "--percentiles",
        type=_numbers(2),
        metavar="LOW,HIGH",
        help="percentiles of each band over the whole scene that become 0 and 255; default without --range: 8-bit "
        "scenes as they are, others by {:g},{:g}".format(*PERCENTILES),
    )
    add("--gsd", type=_positive(float), metavar="METRES", help="resample to this ground resolution (metres per pixel)")
    add(
        "--bounds",
        type=_numbers(4),
        metavar="LEFT,BOTTOM,RIGHT,TOP",
        help="map only this box, in the coordinates of the scene",
    )


def _add_scoring(add: Callable[..., Any]) -> None:
    add("--window", type=_positive(int), metavar="PIXELS", help="side of the sliding window; default: the model's")
    add(
        "--stride",
        type=_positive(int),
        metavar="PIXELS",
        help="step between windows; default: the model's, or two thirds of another --window",
    )
    add("--batch_size", type=_positive(int), metavar="N", help=f"windows; default: {WINDOWS_PER_DEVICE} per device")
    add(
        "--blend",
        choices=("mean", "taper"),
        default="mean",
        help="how overlapping windows are combined: mean, as evaluation does (default), or taper, which gives a "
        "window less weight towards its border and avoids visible seams",
    )
    add("--flips", action="store_true", help="average the scores of mirrored windows; takes four times as long")


def _add_writing(add: Callable[..., Any]) -> None:
    add("--scores", action="store_true", help="also <map>_scores.tif with a band per class")
    add("--confidence", action="store_true", help="also <map>_confidence.tif with bands margin, entropy, probability")
    add("--polygons", action="store_true", help="also <map>.gpkg, a GeoPackage")
    add("--preview", action="store_true", help="also <map>.png with the scene beside its map")
    add(
        "--skip_existing",
        action="store_true",
        help="skip scenes whose map exists, to continue after an interruption",
    )


def _add_processes(group: argparse._ArgumentGroup) -> None:
    add, split = group.add_argument, group.add_mutually_exclusive_group().add_argument
    split(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="map every N-th scene, beginning with scene I (from 0), e.g. --shard=$SLURM_ARRAY_TASK_ID/8",
    )
    split("--distributed", action="store_true", help="connect to other processes and map a share of the scenes in each")
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, if JAX cannot detect it")
    add("--num_processes", type=_positive(int), metavar="N", help="number of processes, if JAX cannot detect it")
    add("--process_id", type=int, metavar="I", help="index of this process from 0, if JAX cannot detect it")


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if index >= count:
        raise argparse.ArgumentTypeError(f"found {text}, expected I/N with I from 0 to N-1, such as 0/8")
    return index, count


def _numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        values = tuple(map(float, text.split(",")))
        if len(values) != count or not all(map(math.isfinite, values)):
            raise argparse.ArgumentTypeError(f"found {text}, expected {count} finite numbers")
        return values

    return parse


def _positive[T: (int, float)](kind: type[T]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
        return value

    return parse


if __name__ == "__main__":
    command.run(main)
