"""Selection of the three bands of a scene that the model receives as red, green and blue."""

from __future__ import annotations

from absl import logging
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from crossearth_jax.config import UserError

RGB = ("red", "green", "blue")


def band_names(dataset: DatasetReader) -> tuple[str, ...]:
    """Return a name for every band: its description, else its colour interpretation, else ""."""
    unnamed = (ColorInterp.undefined, ColorInterp.gray)
    colours = ("" if colour in unnamed else colour.name for colour in dataset.colorinterp)
    return tuple((name or colour).strip() for name, colour in zip(dataset.descriptions, colours, strict=True))


def select_bands(dataset: DatasetReader, request: str | None) -> tuple[int, int, int]:
    """Return the numbers (from 1) of the bands used as red, green and blue.

    Args:
      dataset: an open raster.
      request: three names or numbers separated by commas ("nir,red,green", "3,2,1"), or one band to use three times.
        None takes the bands named red, green and blue. If there are none, a single band is used three times; of three
        or more bands the first three are used, with a warning if there are more than three. Alpha bands are not
        counted.

    Raises:
      UserError: a band does not exist, `request` names neither one nor three bands, or it is None and the raster has
        two bands (or alpha bands only).
    """
    names = band_names(dataset)
    if request is not None:
        chosen = [_find(dataset.name, names, wanted.strip()) for wanted in request.split(",")]
        chosen = chosen * 3 if len(chosen) == 1 else chosen
    else:
        chosen = _default(dataset, names)
    if len(chosen) != 3:
        raise UserError(f"{dataset.name}: --bands={request} names {len(chosen)} bands, expected three or one")
    return chosen[0], chosen[1], chosen[2]


def _find(path: str, names: tuple[str, ...], wanted: str) -> int:
    if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted)
    lower = [name.lower() for name in names]
    if wanted and wanted.lower() in lower:
        return lower.index(wanted.lower()) + 1
    raise UserError(
        f"{path} has no band '{wanted}'; it has {_listing(names)}; choose others with --bands (in domains.toml: bands)"
    )


def _default(dataset: DatasetReader, names: tuple[str, ...]) -> list[int]:
    lower = [name.lower() for name in names]
    if all(colour in lower for colour in RGB):
        return [lower.index(colour) + 1 for colour in RGB]
    data = [i for i, colour in zip(dataset.indexes, dataset.colorinterp, strict=True) if colour != ColorInterp.alpha]
    if len(data) == 1:
        return data * 3
    if len(data) in (0, 2):
        raise UserError(f"{dataset.name} has {_listing(names)}; choose which to use with --bands, e.g. --bands=1")
    if len(data) > 3:
        logging.warning(
            "%s has %s; bands %d, %d, %d are used as red, green, blue; choose others with --bands",
            *(dataset.name, _listing(names), *data[:3]),
        )
    return data[:3]


def _listing(names: tuple[str, ...]) -> str:
    found = ", ".join(f"{i} ({name})" if name else str(i) for i, name in enumerate(names, 1))
    return f"band {found}" if len(names) == 1 else f"bands {found}"
