"""One scene from file to finished map."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

from absl import logging
from rasterio.errors import RasterioError

from crossearth_jax.config import UserError
from crossearth_jax.inference.windows import ScoredArea, SlidingWindows
from crossearth_jax.mapping.map_layers import Legend, class_layer, confidence_layer, score_layer
from crossearth_jax.mapping.polygons import write_polygons
from crossearth_jax.mapping.preview import write_preview
from crossearth_jax.mapping.rasters import LayerWriter, layer_writer, write_cog
from crossearth_jax.mapping.scene import Scene, SceneOptions, open_scene
from crossearth_jax.runtime.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapOptions:
    """What is written beside the class map."""

    scores: bool = False  # the scores
    confidence: bool = False  # margin and entropy
    polygons: bool = False  # the map as polygons
    preview: bool = False  # a picture


def map_scene(
    windows: SlidingWindows,
    legend: Legend,
    path: str,
    out: Path,
    scene_options: SceneOptions = SceneOptions(),  # noqa: B008  # frozen
    options: MapOptions = MapOptions(),  # frozen
    tags: Mapping[str, str] | None = None,
) -> None:
    """Maps the classes of one scene.

    Args:
      windows: applies the model.
      legend: names and colours of the model's classes.
      path: a raster GDAL reads.
      out: the class map to write (.tif); other products are named after it (`<stem>_scores.tif`,
        `<stem>_confidence.tif`, `<stem>.gpkg`, `<stem>.png`). All appear when all are whole, the class map last.
      scene_options: how the scene is read.
      options: what is written.
      tags: recorded in the class map's metadata besides bands, stretch and windows.

    Raises:
      UserError: the scene cannot be read, has no valid pixel, or the output cannot be written.
    """
    with open_scene(path, scene_options) as scene:
        plan = windows.plan(scene.size)
        bands = ", ".join(scene.band_names)
        logging.info(
            "%s: bands %s; values %s; %d windows of %d x %d", path, bands, scene.stretch, len(plan), *plan.extent
        )
        recorded = {
            **(tags or {}),
            "AREA_OR_POINT": "Point" if scene.pixel_is_point else "Area",
            "SCENE": scene.path,
            "BANDS": ",".join(scene.band_names),
            "STRETCH": str(scene.stretch),
            "WINDOW": "{}x{}".format(*plan.extent),
            "STRIDE": str(plan.stride),
            "BLEND": plan.blend,
        }
        with staged(out) as (work, done):
            for written in _write_areas(work, windows, scene, legend, options, recorded):
                write_cog(written, _raster(done / out.name, written.layer.suffix), legend)
                written.path.unlink()
            if options.polygons:
                write_polygons(done / out.name, (done / out.name).with_suffix(".gpkg"), legend)
            if options.preview:
                write_preview(scene, done / out.name, (done / out.name).with_suffix(".png"), legend)


def products(out: Path, options: MapOptions) -> list[Path]:
    """Every file that `map_scene` may put beside `out`, with what GDAL writes beside rasters."""
    suffixes = ["", *(["_scores"] if options.scores else []), *(["_confidence"] if options.confidence else [])]
    rasters = [_raster(out, suffix) for suffix in suffixes]
    sidecars = [raster.with_name(f"{raster.name}.aux.xml") for raster in rasters]
    pictures = [out.with_suffix(".png")] if options.preview else []
    return [*rasters, *sidecars, *([out.with_suffix(".gpkg")] if options.polygons else []), *pictures]


def check_outputs(outs: Iterable[Path], inputs: Iterable[str], options: MapOptions) -> None:
    """Makes sure that no file of a map is one that is read, whatever name it goes by, nor one of another map.

    Args:
      outs: class maps to write.
      inputs: files that are read (`scene_files` of every scene); what is no file is ignored.
      options: what else is written.

    Raises:
      UserError: one is.
    """
    read: dict[tuple[int, int] | None, str]
    read = {identity: name for name in inputs if (identity := _identity(name))}
    owners: dict[Path, Path] = {}
    for out in outs:
        for product in products(out, options):
            if name := read.get(_identity(product)):
                raise UserError(f"{product} would replace {name}, which is read; choose another --out")
            owner = owners.setdefault(product.resolve(), out)
            if owner != out:
                raise UserError(f"{product} would belong to both {owner} and {out}; choose another --out for one")
        for name in read.values():
            if Path(name).resolve().is_relative_to(_work_folder(out).resolve()):
                raise UserError(f"{name} lies in the folder for temporary files of {out}; move it out of there first")


def _raster(out: Path, suffix: str) -> Path:
    return out.with_stem(f"{out.stem}{suffix}")


def _work_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _identity(name: str | Path) -> tuple[int, int] | None:
    """What a file's names, links included, have in common; None if there is none."""
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
    layers += [confidence_layer()] if options.confidence else []
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(layer_writer(work / f"areas{layer.suffix}.tif", layer, legend, scene.grid, tags))
            for layer in layers
        ]
        progress = Progress(len(windows.plan(scene.size)), "windows")
        areas: Generator[ScoredArea] = windows.areas(scene, progress.advance)
        empty = True
        # The thread that reads ahead must have ended, whatever ends this, before the scene is closed.
        for area in stack.enter_context(contextlib.closing(areas)):
            empty = False
            for writer in writers:
                writer.write(area)
        if empty:
            raise UserError(f"{scene.path} has no valid pixel to map: all is nodata, masked or transparent")
    return writers


@contextlib.contextmanager
def staged(out: Path) -> Iterator[tuple[Path, Path]]:
    """Lets several files appear beside `out` together, or none.

    Yields:
      A folder for intermediate files and one for finished files. At the end the finished files are moved beside
      `out`, `out` itself last. What a killed run left behind is removed by the next one for the same `out`.

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
