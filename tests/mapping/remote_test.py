"""Scenes on a web server on this machine, whose requests are counted: names, bytes, STAC items and errors."""

import http.server
import json
import re
import threading

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from mapping.conftest import UTM
from rasterio.transform import Affine

from crossearth_jax.config import UserError
from crossearth_jax.mapping import remote
from crossearth_jax.mapping.mapper import map_scene
from crossearth_jax.mapping.scene import SceneOptions, check_scene, open_scene, scene_files

SIDE = 1024


class Files(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` (path -> bytes), with ranges unless the path contains "whole"; counts what it sends."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        content = self.server.files.get(self.path.partition("?")[0])
        if content is None:
            return self.send_error(404)
        code, span = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        size = len(content)
        self.server.asked.append(self.path)
        if span and "whole" not in self.path:
            code, first, last = 206, int(span[1]), min(int(span[2] or size), size - 1)
            content = content[first : last + 1]
        self.send_response(code)
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.server.sent += len(content)
            self.wfile.write(content)

    do_HEAD = do_GET


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.files, server.asked, server.sent = {}, [], 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), np.uint8)


@pytest.fixture(scope="module")
def cog(noise, tmp_path_factory):
    """Return the bytes of a Cloud Optimized GeoTIFF of noise, which cannot be compressed."""
    folder = tmp_path_factory.mktemp("cog")
    profile = {"driver": "GTiff", "count": 3, "height": SIDE, "width": SIDE, "dtype": "uint8", "crs": UTM}
    place = Affine(10, 0, 500_000, 0, -10, 4_000_000)
    with rasterio.open(folder / "plain.tif", "w", transform=place, **profile) as dataset:
        dataset.write(noise)
    rasterio.shutil.copy(folder / "plain.tif", folder / "cog.tif", driver="COG", blocksize=128, overviews="NONE")
    return (folder / "cog.tif").read_bytes()


@pytest.mark.parametrize(
    ("scene", "name", "stem"),
    [
        ("https://host/a/b.tif", "/vsicurl/https://host/a/b.tif", "b"),
        ("https://host/b.tif?token=x.y/z", "/vsicurl/https://host/b.tif?token=x.y/z", "b"),
        ("s3://bucket/a/b.tif", "/vsis3/bucket/a/b.tif", "b"),
        ("gs://bucket/b.tif", "/vsigs/bucket/b.tif", "b"),
        ("/vsis3/bucket/b.tif", "/vsis3/bucket/b.tif", "b"),
        ("/vsicurl/https://host/b.tif", "/vsicurl/https://host/b.tif", "b"),
        ("scenes/b#1.tif", "scenes/b#1.tif", "b#1"),
        ("NETCDF:b.nc:red", "NETCDF:b.nc:red", "NETCDF:b"),
    ],
)
def test_names(scene, name, stem):
    assert remote.gdal_name(scene) == name
    assert remote.stem(scene) == stem
    assert bool(remote.gdal_options(name)) == name.startswith("/vsi")


def test_map_of_a_window_reads_only_what_it_needs(rule, server, cog, noise, tmp_path):
    server.files["/noise.tif"] = cog
    scene, place = f"{server.url}/noise.tif", Affine(10, 0, 500_000, 0, -10, 4_000_000)
    left, top = place @ (400, 700)
    right, bottom = place @ (500, 800)
    bounds = SceneOptions(bounds=(left, bottom, right, top))
    check_scene(scene, bounds)
    map_scene(rule.windows(), rule.legend, scene, tmp_path / "map.tif", bounds)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.tags()["SCENE"] == scene
        part = np.moveaxis(noise[:, 700:800, 400:500], 0, -1)
        valid = np.ones(part.shape[:2], bool)
        np.testing.assert_array_equal(dataset.read(1), rule.score(part, valid).argmax(-1))
    assert len(cog) > 3_000_000
    # The window lies in 4 of 64 tiles. The header and the rounding of requests to 16 KiB are added.
    assert server.sent < 0.1 * len(cog)


def stac_item(**assets):
    return json.dumps(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "S2A",
            "geometry": None,
            "properties": {"datetime": "2026-07-01T00:00:00Z"},
            "links": [],
            "assets": {name: {"href": address} for name, address in assets.items()},
        }
    ).encode()


def test_an_asset_of_a_stac_item_is_a_scene(server, cog, noise, tmp_path):
    server.files["/noise.tif"] = cog
    server.files["/items/S2A.json"] = stac_item(visual="../noise.tif", other=f"{server.url}/absent.tif")
    scene = f"{server.url}/items/S2A.json#visual"
    assert remote.stem(scene) == "S2A_visual"
    with open_scene(scene, SceneOptions()) as opened:
        image, valid = opened.read(5, 7, 20, 30)
    np.testing.assert_array_equal(image, np.moveaxis(noise[:, 5:25, 7:37], 0, -1))
    assert valid.all() and server.asked.count("/items/S2A.json") == 1
    (tmp_path / "local.json").write_bytes(stac_item(visual=f"{server.url}/noise.tif"))
    check_scene(f"{tmp_path}/local.json#visual", SceneOptions())
    with pytest.raises(UserError, match=r"S2A\.json has no asset 'red'; name one of other, visual$"):
        check_scene(f"{server.url}/items/S2A.json#red", SceneOptions())
    with pytest.raises(UserError, match=r"S2A\.json#other as a raster: .*404.*; check the address"):
        check_scene(f"{server.url}/items/S2A.json#other", SceneOptions())
    with pytest.raises(UserError, match=r"cannot read the STAC item .*/items/none\.json: .*404.*; check the address"):
        check_scene(f"{server.url}/items/none.json#visual", SceneOptions())
    with pytest.raises(
        UserError, match=r"S2A\.json as a raster: .*; of a STAC item name an asset: .*S2A\.json#visual$"
    ):
        check_scene(f"{server.url}/items/S2A.json", SceneOptions())


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pystac", None)
    with pytest.raises(UserError, match="install the extra 'stac'"):
        remote.gdal_name("not_asked_before.json#visual")


def test_addresses_that_cannot_be_read(server, cog):
    server.files |= {"/whole.tif": cog, "/page.tif": b"<html>no raster</html>"}
    for name, reason in (("absent.tif", "404"), ("whole.tif", "[Rr]ange"), ("page.tif", "not recognized")):
        with pytest.raises(UserError, match=rf"{name}.*{reason}.*; check the address") as error:
            check_scene(f"{server.url}/{name}", SceneOptions())
        assert "\n" not in str(error.value)
        assert scene_files(f"{server.url}/{name}") == {f"{server.url}/{name}"}
