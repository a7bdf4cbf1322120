"""Names of scenes: local files, files on a web server or in a bucket, and assets of STAC items.

| scene | read as |
|---|---|
| `https://…/scene.tif`, `http://…` | `/vsicurl/https://…/scene.tif` |
| `s3://…`, `gs://…`, `az://…` | `/vsis3/…`, `/vsigs/…`, `/vsiaz/…` |
| `…/item.json#visual` | the file of the asset `visual` of the STAC item, which may be local or remote |
| anything else | as GDAL reads it, e.g. a local file or `/vsizip/…` |

GDAL finds credentials in its own environment variables (`AWS_ACCESS_KEY_ID`, `GS_OAUTH2_…`, `GDAL_HTTP_HEADERS`, …).
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from crossearth_jax.config import UserError

_DRIVERS = {"http": "/vsicurl/http://", "https": "/vsicurl/https://", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
_NETWORK = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss", "/vsiswift", "/vsihdfs", "/vsiwebhdfs")
# Only the parts of a file that are needed are requested. No folder is listed, so files beside a scene (.msk, .aux.xml)
# are not read. A request that fails is repeated, and a server that does not answer does not stop the command for ever.
_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": True,
    "VSI_CACHE": True,
}


def gdal_name(scene: str) -> str:
    """Return the name under which GDAL opens a scene.

    Raises:
      UserError: the scene is an asset of a STAC item that cannot be read or has no such asset.
    """
    item, hash_sign, asset = scene.rpartition("#")
    if hash_sign and item.lower().endswith(".json"):
        scene = _asset(item, asset)
    scheme, separator, rest = scene.partition("://")
    return _DRIVERS[scheme] + rest if separator and scheme in _DRIVERS else scene


def gdal_options(name: str) -> dict[str, Any]:
    """Return the options of GDAL with which a file is opened; `name` is a result of `gdal_name`."""
    return _OPTIONS if name.startswith(_NETWORK) else {}


def stem(scene: str) -> str:
    """Return the file name of a scene without its ending, after which its map is named.

    The name of the asset is appended to that of a STAC item: `S2A_31UFU_visual` for `…/S2A_31UFU.json#visual`.
    """
    item, hash_sign, asset = scene.rpartition("#")
    if hash_sign and item.lower().endswith(".json"):
        return f"{stem(item)}_{re.sub(r'[^A-Za-z0-9._-]', '_', asset)}"
    address = scene.removeprefix("/vsicurl/")
    return PurePosixPath(urlsplit(address).path if "://" in address else scene).stem


@functools.lru_cache(maxsize=4096)  # a scene is opened several times
def _asset(item: str, name: str) -> str:
    """Return the address of the file of an asset of a STAC item."""
    try:
        pystac = importlib.import_module("pystac")
    except ModuleNotFoundError:
        raise UserError(
            f"{item} is a STAC item, which is read by the package pystac; install the extra 'stac': "
            "python -m uv pip install --python .venv -c constraints.txt -e '.[stac]'"
        ) from None
    try:
        found = pystac.Item.from_file(item)
        assets = found.assets
    except Exception as error:  # of the network, JSON and pystac, which has many classes
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"cannot read the STAC item {item}: {reason}; check the address") from None
    if name not in assets:
        raise UserError(f"the STAC item {item} has no asset '{name}'; name one of {', '.join(sorted(assets))}")
    return str(assets[name].get_absolute_href())
