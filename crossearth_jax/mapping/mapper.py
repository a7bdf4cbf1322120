"""Map one scene: from a raster file to the finished class map and its other products."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path

from absl import logging
from rasterio.errors import RasterioError

from crossearth_jax.config import UserError
from crossearth_jax.inference.windows import ScoredArea, SlidingWindows
from crossearth_jax.mapping.map_layers import Legend, class_layer, confidence_layer, score_layer
from crossearth_jax.mapping.map_summary import area_tag, class_sizes, summary
from crossearth_jax.mapping.polygons import write_polygons
from crossearth_jax.mapping.preview import write_preview
from crossearth_jax.mapping.rasters import LayerWriter, layer_writer, write_cog
from crossearth_jax.mapping.scene import Scene, SceneOptions, open_scene
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.runtime.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Which files are written besides the class map, and the temperature of the probabilities in them."""

    scores: bool = False  # the blended scores, one band per class
    confidence: bool = False  # margin, entropy and probability, see `map_layers.confidence`
    polygons: bool = False  # the class map as polygons
    preview: bool = False  # a PNG of scene, map and legend
    temperature: float = 1.0  # of the probabilities from which `confidence` is computed


def map_scene(
    windows: SlidingWindows,
    legend: Legend,
    path: str,
    out: Path,
    scene_options: SceneOptions = SceneOptions(),  # noqa: B008  # frozen
    options: MapOptions = MapOptions(),  # frozen
    tags: Mapping[str, str] | None = None,
    late_tags: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Write the class map of one scene, its summary (`map_summary`), and the products that `options` asks for.

    Args:
      windows: applies the model.
      legend: names and colours of the model's classes.
      path: a raster that GDAL can read.
      out: path of the class map (.tif). The other files are named after it: `<stem>.json`, `<stem>_scores.tif`,
        `<stem>_confidence.tif`, `<stem>.gpkg`, `<stem>.png`. The files are moved to their places only when all are
        complete, the class map last.
      scene_options: how the scene is read.
      options: which products are written.
      tags: added to the metadata of the output rasters, besides date, bands, stretch, windows and areas of the
        classes.
      late_tags: called when all windows are scored; returns further tags.

    Raises:
      UserError: the scene cannot be read or has no valid pixel, or an output cannot be written.
    """
    with open_scene(path, scene_options) as scene:
        plan = windows.plan(scene.size)
        bands = ", ".join(scene.band_names)
        logging.info(
            "%s: bands %s; values %s; %d windows of %d x %d", path, bands, scene.stretch, len(plan), *plan.extent
        )
        recorded = {
            **(tags or {}),
            "DATE": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "AREA_OR_POINT": "Point" if scene.pixel_is_point else "Area",
            "SCENE": scene.path,
            "BANDS": ",".join(scene.band_names),
            "STRETCH": str(scene.stretch),
            "WINDOW": "{}x{}".format(*plan.extent),
            "STRIDE": str(plan.stride),
            "BLEND": plan.blend,
        }
        with staged(out) as (work, done):
            class_map, *others = _write_areas(work, windows, scene, legend, options, recorded)
            sizes = class_sizes(class_map.path, scene.grid, len(legend.names))
            late = {**late_tags(), "CLASS_AREAS": area_tag(legend, sizes)}
            write_json(
                (done / out.name).with_suffix(".json"),
                summary(out.name, scene.grid, legend, sizes, recorded | late),
            )
            for written in (class_map, *others):
                write_cog(written, _raster(done / out.name, written.layer.suffix), legend, late)
                written.path.unlink()
            if options.polygons:
                write_polygons(done / out.name, (done / out.name).with_suffix(".gpkg"), legend)
            if options.preview:
                write_preview(scene, done / out.name, (done / out.name).with_suffix(".png"), legend)


def products(out: Path, options: MapOptions) -> list[Path]:
    """Return the paths of all files that `map_scene` may write, including the `.aux.xml` files of GDAL."""
    suffixes = ["", *(["_scores"] if options.scores else []), *(["_confidence"] if options.confidence else [])]
    rasters = [_raster(out, suffix) for suffix in suffixes]
    sidecars = [raster.with_name(f"{raster.name}.aux.xml") for raster in rasters]
    pictures = [out.with_suffix(".png")] if options.preview else []
    return [
        *rasters,
        *sidecars,
        out.with_suffix(".json"),
        *([out.with_suffix(".gpkg")] if options.polygons else []),
        *pictures,
    ]


def check_outputs(outs: Iterable[Path], inputs: Iterable[str], options: MapOptions) -> None:
    """Check that no output would replace an input file or an output of another map.

    Links are followed, so a different path to the same input file is recognised.

    Args:
      outs: paths of the class maps to write.
      inputs: files that are read (`scene_files` of every scene); names that are not files are ignored.
      options: which other products are written.

    Raises:
      UserError: an output would replace an input or another output, or an input lies in the folder for temporary files.
    """
    read: dict[tuple[int, int] | None, str]
    read = {identity: name for name in inputs if (identity := _identity(name))}
    owners: dict[Path, Path] = {}
    for out in outs:
        for product in products(out, options):
            if name := read.get(_identity(product)):
                raise UserError(f"{product} would replace {name}, which is an input; choose another --out")
            owner = owners.setdefault(product.resolve(), out)
            if owner != out:
                raise UserError(f"{product} would be written for both {owner} and {out}; choose another --out for one")
        for name in read.values():
            if Path(name).resolve().is_relative_to(_work_folder(out).resolve()):
                raise UserError(
                    f"{name} is in {_work_folder(out)}, the folder for temporary files of {out}; move it elsewhere"
                )


def _raster(out: Path, suffix: str) -> Path:
    return out.with_stem(f"{out.stem}{suffix}")


def _work_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _identity(name: str | Path) -> tuple[int, int] | None:
    """Return device and inode of a file, which are the same for all links to it; None if it does not exist."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _write_areas(
    work: Path,
    windows: SlidingWindows,
    scene: Scene,
    legend: Legend,
    options: MapOptions,
    tags: Mapping[str, str],
) -> list[LayerWriter]:
    layers = [class_layer()]
    layers += [score_layer(legend)] if options.scores else []
    layers += [confidence_layer(options.temperature)] if options.confidence else []
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(layer_writer(work / f"areas{layer.suffix}.tif", layer, legend, scene.grid, tags))
            for layer in layers
        ]
        progress = Progress(len(windows.plan(scene.size)), "windows")
        areas: Generator[ScoredArea] = windows.areas(scene, progress.advance)
        empty = True
        # Close the reading thread on every exit, also after an error, before the scene is closed.
        for area in stack.enter_context(contextlib.closing(areas)):
            empty = False
            for writer in writers:
                writer.write(area)
        if empty:
            raise UserError(
                f"{scene.path} has no valid pixel: all pixels to map are nodata, masked or transparent; check its "
                "nodata value and masks, or choose other --bounds"
            )
    return writers


@contextlib.contextmanager
def staged(out: Path) -> Iterator[tuple[Path, Path]]:
    """Write several files atomically: after an error in the block, none of them is moved to the folder of `out`.

    Leftovers of a killed run are removed by the next run with the same `out`.

    Yields:
      A folder for intermediate files and a folder for finished files. At the end the finished files are moved to the
      folder of `out`, `out` itself last.

    Raises:
      UserError: the files cannot be written.
    """
    work = _work_folder(out)
    done = work / "done"
    try:
        shutil.rmtree(work, ignore_errors=True)
        done.mkdir(parents=True)
        yield work, done
        for file in sorted(done.iterdir(), key=lambda file: file.name == out.name):
            os.replace(file, out.parent / file.name)
    except (OSError, RasterioError) as error:
        raise UserError(f"cannot write {out}: {error.__cause__ or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
