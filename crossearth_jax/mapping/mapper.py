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
from crossearth_jax.mapping import mosaic, scoring
from crossearth_jax.mapping.map_layers import Legend, class_layer, confidence_layer, score_layer
from crossearth_jax.mapping.mosaic import Block, Plan
from crossearth_jax.mapping.polygons import write_polygons
from crossearth_jax.mapping.preview import write_preview
from crossearth_jax.mapping.rasters import LayerWriter, layer_writer, write_cog
from crossearth_jax.mapping.scene import Scene, SceneOptions, open_scene
from crossearth_jax.mapping.scoring import Scorer
from crossearth_jax.runtime.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How scenes are scored and what is written."""

    stride: int | None = None  # distance of windows in pixels; None: two thirds of the window
    batch_size: int = 4  # windows that go through the model together
    sum_bytes: int = 64 * 2**20  # memory for the running sum; 512-pixel windows and 6 classes: 5,400 columns
    flips: bool = False  # average the scores over the mirror images of a window
    scores: bool = False  # also write the scores
    confidence: bool = False  # also write margin and entropy
    polygons: bool = False  # also write the map as polygons
    preview: bool = False  # also write a picture


def map_scene(
    scorer: Scorer,
    path: str,
    out: Path,
    scene_options: SceneOptions = SceneOptions(),  # noqa: B008  # frozen
    options: MapOptions = MapOptions(),  # frozen
    tags: Mapping[str, str] | None = None,
) -> None:
    """Maps the classes of one scene.

    Args:
      scorer: the model.
      path: a raster GDAL reads.
      out: the class map to write (.tif); other products are named after it (`<stem>_scores.tif`,
        `<stem>_confidence.tif`, `<stem>.gpkg`, `<stem>.png`). All appear when all are whole, the class map last.
      scene_options: how the scene is read.
      options: how it is scored and what is written.
      tags: recorded in the class map's metadata besides bands, stretch, window and stride.

    Raises:
      UserError: the scene cannot be read, has no valid pixel, or the output cannot be written.
    """
    legend = Legend(scorer.class_names, scorer.palette)
    with open_scene(path, scene_options) as scene:
        plan = mosaic.make_plan(
            (scene.grid.height, scene.grid.width),
            scorer.window,
            options.stride or scorer.window * 2 // 3,
            multiple=scorer.multiple,
            classes=len(legend.names),
            sum_bytes=options.sum_bytes,
        )
        bands = ", ".join(scene.band_names)
        logging.info(
            "%s: bands %s; values %s; %d windows of %d x %d", path, bands, scene.stretch, len(plan), *plan.window
        )
        with staged(out) as (work, done):
            for written in _write_blocks(work, scorer, scene, plan, legend, options, _tags(scene, plan, tags or {})):
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


def _write_blocks(
    work: Path,
    scorer: Scorer,
    scene: Scene,
    plan: Plan,
    legend: Legend,
    options: MapOptions,
    tags: Mapping[str, str],
) -> list[LayerWriter]:
    layers = [class_layer()]
    layers += [score_layer(legend)] if options.scores else []
    layers += [confidence_layer()] if options.confidence else []
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(layer_writer(work / f"blocks{layer.suffix}.tif", layer, legend, scene.grid, tags))
            for layer in layers
        ]
        for block in stack.enter_context(contextlib.closing(_blocks(scorer, scene, plan, options))):
            for writer in writers:
                writer.write(block)
    return writers


def _blocks(scorer: Scorer, scene: Scene, plan: Plan, options: MapOptions) -> Generator[Block]:
    classes = len(scorer.class_names)
    score = scoring.with_flips(scorer.score) if options.flips else scorer.score
    empty = True
    # The thread that reads ahead must have ended, whatever ends this, before the scene is closed.
    with contextlib.closing(scoring.ahead(scoring.strips(scene, plan))) as strips:
        scored = scoring.score_tiles(score, classes, scoring.tiles(plan, strips), options.batch_size)
        for block in mosaic.blend(plan, _counted(scored, len(plan)), classes):
            empty = False
            yield block
    if empty:
        raise UserError(f"{scene.path} has no valid pixel to map: all is nodata, masked or transparent")


def _counted[T](scored: Iterator[tuple[mosaic.Tile, T, T]], total: int) -> Iterator[tuple[mosaic.Tile, T, T]]:
    progress, done = Progress(total, "windows"), 0
    for item in scored:
        progress.advance(item[0].number + 1 - done)
        done = item[0].number + 1
        yield item
    if done < total:
        progress.advance(total - done)


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


def _tags(scene: Scene, plan: Plan, tags: Mapping[str, str]) -> dict[str, str]:
    return {
        **tags,
        "AREA_OR_POINT": "Point" if scene.pixel_is_point else "Area",
        "SCENE": scene.path,
        "BANDS": ",".join(scene.band_names),
        "STRETCH": str(scene.stretch),
        "WINDOW": "{}x{}".format(*plan.window),
        "STRIDE": str(plan.stride),
    }
