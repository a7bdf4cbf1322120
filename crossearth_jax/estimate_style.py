"""Estimate the distribution of style codes that Earth-Style Injection samples from.

`python -m crossearth_jax.estimate_style PATHS... --out=style_statistics.npz [--backend=mobile|inception]`

PATHS are folders of images, single images, rasters (cut into tiles; "scene.tif:nir,red,green" or "scene.tif:5,4,3"
chooses bands) and prepared domains ("blue_marble/temperate_green"; only the train split is read). Every image or tile
is resized to 256 x 256 pixels and its style code is computed. The file holds the mean and covariance of all codes, the
style network, and the names of the inputs.

Styles of the target domains must not be used in training. If PATHS names prepared domains, --source must therefore
name the domain that the model will be trained on. Its target domains are refused unless --allow_target is given; the
file then records them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8

from crossearth_jax.analysis.style_codes import code_moments
from crossearth_jax.benchmark.registry import is_known, known_domains, source_domains
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.ops.moments import Moments, effective_dimension
from crossearth_jax.runtime import command, picture_files
from crossearth_jax.runtime.progress import Progress
from crossearth_jax.weights.style_files import load_style, style_digest
from crossearth_jax.weights.style_statistics import (
    CodeStatistics,
    Provenance,
    from_moments,
    save_statistics,
    targets_among,
)

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
RASTERS = (".tif", ".tiff", ".jp2", ".img", ".vrt")

VALID_SHARE = 0.99  # of a tile; below 1, since a few saturated pixels of an image look like nodata if that is white
FEW_IMAGES = 1000  # the relative error of a covariance of 100 numbers is about sqrt(100 / n): a third for n = 1000


@runtime_checkable
class Images(Protocol):
    """Images of one of the command's PATHS."""

    @property
    def name(self) -> str:
        """Name of the input, which the file records."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]: ...


def main(argv: list[str]) -> None:
    """Estimate the statistics that the command line asks for, write the file and print a summary."""
    arguments = _parser().parse_args(argv)
    if Path(arguments.out).suffix != ".npz":
        raise UserError(
            f"--out={arguments.out} does not end in .npz; name a .npz file, so that no image is overwritten"
        )
    domains = tuple(path for path in arguments.paths if is_known(path, arguments.data_dir))
    allowed = allowed_targets(domains, arguments.source, arguments.allow_target, arguments.data_dir)
    tiling = Tiling(tuple(arguments.tile_size), arguments.overlap)
    corpora = [corpus for path in arguments.paths for corpus in open_images(path, tiling, arguments.data_dir)]
    network = StyleNetwork(arguments.backend)
    params = load_style(network, arguments.weights)
    moments = estimate(network, params, corpora, arguments.batch_size)
    provenance = Provenance(
        network=network.kind,
        digest=style_digest(params),
        count=moments.count,
        sources=tuple(corpus.name for corpus in corpora),
        domains=domains,
        allowed_targets=allowed,
    )
    statistics = from_moments(moments.mean, moments.covariance, provenance)
    save_statistics(arguments.out, statistics)
    print(summary(statistics))
    logging.info("wrote %s", arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.estimate_style",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder, raster or prepared domain")
    parser.add_argument("--out", required=True, help="file to write (.npz)")
    parser.add_argument("--backend", choices=["mobile", "inception"], default="mobile", help="style network")
    parser.add_argument("--weights", help="weights of the style network; needed for inception")
    parser.add_argument("--source", help="domain the model will be trained on; needed if PATHS names domains")
    parser.add_argument("--allow_target", action="store_true", help="accept target domains of the source")
    parser.add_argument("--tile_size", type=int, nargs="+", default=[256], help="sides of the tiles of rasters, pixels")
    parser.add_argument(
        "--overlap", type=float, default=0.0, help="overlap of neighbouring tiles, as a share of their side"
    )
    parser.add_argument("--data_dir", default=DataConfig().data_dir, help="where prepared datasets are kept")
    parser.add_argument("--batch_size", type=int, default=16)
    return parser


def allowed_targets(domains: Sequence[str], source: str | None, allow: bool, data_dir: str) -> tuple[str, ...]:
    """Return the target domains of `source` among `domains`; () if there are none.

    Raises:
      UserError: there are some and `allow` is False, or `domains` are given without a source.
    """
    if source is not None:
        source_domains(source, data_dir)
    elif domains:
        raise UserError(
            f"{domains[0]} is a prepared domain; name the domain that the model will be trained on, e.g. "
            f"--source={domains[0]}, so that styles of its target domains can be refused"
        )
    targets = targets_among(domains, source, data_dir) if source else ()
    if targets and not allow:
        raise UserError(
            f"a model trained on {source} is scored on {', '.join(targets)} or images of it; leave it out, or give "
            "--allow_target to accept (and record) that the target is not unseen any more"
        )
    return targets


def estimate(
    network: StyleNetwork, params: dict[str, jax.Array], corpora: Sequence[Images], batch_size: int
) -> Moments:
    """Compute the style codes of all images and return their moments.

    Raises:
      UserError: fewer than two images can be used.
    """
    total = sum(map(len, corpora))
    progress = Progress(total, "images")
    logging.info("computing the style codes of up to %d images with the '%s' network", total, network.kind)
    moments, seen = None, 0
    for moments in code_moments(network, params, itertools.chain.from_iterable(corpora), batch_size):
        progress.advance(moments.count - seen)
        seen = moments.count
    if moments is None or seen < 2:
        raise UserError(f"found {seen} usable images in {len(corpora)} inputs, expected at least two; add images")
    if seen < total:
        logging.warning(
            "%d of %d images were not used (unreadable, or tiles with many nodata pixels)", total - seen, total
        )
    return moments


def summary(statistics: CodeStatistics) -> str:
    """Return the key figures of the statistics, with warnings, as a few lines of text."""
    size, count = len(statistics.mean), statistics.provenance.count
    rank = int(np.linalg.matrix_rank(statistics.covariance, hermitian=True))
    lines = [
        f"images               {count}",
        f"rank                 {rank} of {size}",
        f"effective dimension  {effective_dimension(statistics.covariance):.1f}",
        f"total variance       {np.trace(statistics.covariance):.4g}",
    ]
    if count <= size:
        lines.append(
            f"warning: {count} images give a covariance of rank {count - 1} at most, but codes have {size} dimensions; "
            f"use more than {size} images, better a thousand"
        )
    elif count < FEW_IMAGES:
        lines.append(
            f"warning: {count} images give an inaccurate covariance of {size} dimensions; use a thousand or more"
        )
    if statistics.provenance.allowed_targets:
        lines.append(f"warning: contains styles of the targets {', '.join(statistics.provenance.allowed_targets)}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How rasters are cut into tiles."""

    sizes: tuple[int, ...] = (256,)  # sides, pixels
    overlap: float = 0.0  # of neighbouring tiles, as a share of their side

    def __post_init__(self) -> None:
        if min(self.sizes) < 8 or not 0 <= self.overlap < 1:
            raise UserError(
                f"tiles of {self.sizes} pixels with an overlap of {self.overlap}; expected sides of at least 8 pixels "
                "and an overlap of 0 or more but less than 1"
            )

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return (top, left, side) of every tile; an image smaller than a tile gets tiles of its own shorter side."""
        found = dict.fromkeys(
            (top, left, side)
            for side in (min(size, height, width) for size in self.sizes)
            for top in range(0, height - side + 1, self._stride(side))
            for left in range(0, width - side + 1, self._stride(side))
        )
        return list(found)

    def _stride(self, side: int) -> int:
        return max(1, round(side * (1 - self.overlap)))


@dataclasses.dataclass(frozen=True)
class Photos:
    """Image files; unreadable ones are skipped with a warning."""

    name: str
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yield RGB images."""
        for file in self.files:
            try:
                yield picture_files.read_image(file.read_bytes(), str(file))
            except (OSError, UserError) as error:
                logging.warning("skipped %s", error)


@dataclasses.dataclass(frozen=True)
class Domain:
    """The train split of a prepared domain."""

    name: str
    data_dir: str

    def __len__(self) -> int:
        return len(PreparedSplit(self.name, "train", self.data_dir))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yield its images."""
        split = PreparedSplit(self.name, "train", self.data_dir)
        return (split[index]["image"] for index in range(len(split)))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of a raster as 8-bit RGB, converted as for prediction; tiles with nodata in over 1 % are left out."""

    name: str
    path: str
    bands: str | None
    tiling: Tiling

    def __len__(self) -> int:
        with self._open() as scene:
            return len(self.tiling.boxes(scene.grid.height, scene.grid.width))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yield tiles, row by row for each size."""
        with self._open() as scene:
            for top, left, side in self.tiling.boxes(scene.grid.height, scene.grid.width):
                image, valid = scene.read(top, left, side, side)
                if valid.mean() >= VALID_SHARE:
                    yield image

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            from crossearth_jax.mapping.scene import SceneOptions, open_scene
        except ImportError:
            raise UserError(
                f"{self.path} is a raster, which needs the extra geo: "
                "python -m uv pip install --python .venv -c constraints.txt -e '.[geo]'"
            ) from None
        with open_scene(self.path, SceneOptions(bands=self.bands)) as scene:
            yield scene


def open_images(path: str, tiling: Tiling, data_dir: str) -> Sequence[Images]:
    """Return the images that one of PATHS stands for.

    Raises:
      UserError: the path does not exist or holds no images.
    """
    if is_known(path, data_dir):
        return [Domain(path, data_dir)]
    file, bands = (path, None) if Path(path).exists() or ":" not in path else path.rsplit(":", 1)
    if not Path(file).exists():
        known = ", ".join(known_domains(data_dir))
        raise UserError(f"{path} does not exist; expected an image, a folder, a raster or one of {known}")
    if Path(file).is_file():
        return [Photos(path, (Path(file),))] if file.lower().endswith(PHOTOS) else [Tiles(path, file, bands, tiling)]
    found = sorted(entry for entry in Path(file).rglob("*") if entry.is_file())
    photos = tuple(entry for entry in found if entry.suffix.lower() in PHOTOS)
    rasters = [Tiles(str(entry), str(entry), bands, tiling) for entry in found if entry.suffix.lower() in RASTERS]
    if not photos and not rasters:
        raise UserError(f"{path} holds no images, expected files ending in {', '.join(PHOTOS + RASTERS)}")
    return [*([Photos(path, photos)] if photos else []), *rasters]


if __name__ == "__main__":
    command.run(main)
