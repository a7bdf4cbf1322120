"""Invalid input to the real command: one line that says what is wrong, exit code 2, and no files left."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from crossearth_jax.config import HeadConfig, ModelConfig, ReinsConfig, ViTConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description, save_native

MODEL = ModelConfig(
    classes=3,
    vit=ViTConfig(image_size=32, width=16, depth=4, heads=2, mlp_width=16, feature_blocks=(0, 1, 2, 3)),
    reins=ReinsConfig(tokens=4, rank=2),
    head=HeadConfig(width=16, heads=2, groups=4, encoder_layers=1, encoder_mlp_width=16, decoder_layers=1,
                    decoder_mlp_width=16),
)  # fmt: skip

# Name -> (arguments, exit code, text of the last line on stderr); {} is the folder of the inputs.
CALLS = {
    "no raster": (["{}/text.tif", "--out={}/out/a.tif"], 2, "error: cannot open {}/text.tif as a raster: "),
    "missing band": (["{}/good.tif", "--bands=nir,red,green", "--out={}/out/b.tif"], 2,
                     "error: {}/good.tif has no band 'nir'; it has bands 1 (red), 2 (green), 3 (blue); choose"),
    "no reference system": (["{}/plain.tif", "--out={}/out/c.tif"], 0, "wrote {}/out/c.tif"),
    "no reference system, but metres": (["{}/plain.tif", "--gsd=1", "--out={}/out/d.tif"], 2,
                                        "error: a ground resolution in metres needs a scene with a coordinate"),
    "no overlap": (["{}/good.tif", "--bounds=0,0,1,1", "--out={}/out/e.tif"], 2,
                   "error: the bounds 0, 0, 1, 1 do not overlap the scene, which covers 500000, 3999904, 500144, "),
    "wrong class count": (["{}/good.tif", "--classes=land,sea", "--out={}/out/f.tif"], 2,
                          "error: found 2 class names for 3 classes; give one for each class"),
    "unreadable tile": (["{}/broken.tif", "--out={}/out/g.tif"], 2, "error: cannot read {}/broken.tif, rows "),
    "read-only output": (["{}/good.tif", "--out={}/closed/h.tif"], 2,
                         "error: cannot write {}/closed/h.tif: [Errno 13] Permission denied"),
    "two bad ones of four": (["{}/good.tif", "{}/broken.tif", "{}/text.tif", "{}/plain.tif", "--out={}/out"], 2,
                           "error: 2 of 4 scenes could not be mapped: {}/broken.tif, {}/text.tif; see above"),
}  # fmt: skip


def write_scene(path, pixels, **profile):
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "photometric": "rgb", "compress": "deflate", "blockysize": 8} | profile
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype="uint8", **profile) as dataset:
        dataset.write(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a tiny model and scenes of 72 x 48 pixels, most of them with a fault."""
    folder = tmp_path_factory.mktemp("inputs")
    params = jax.jit(SegmentationModel(MODEL).init)(jax.random.key(0))
    save_native(folder / "tiny.safetensors", params, Description(model=MODEL, class_names=("a", "b", "c")))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 72), np.uint8)
    place = {"crs": "EPSG:32618", "transform": Affine(2, 0, 500_000, 0, -2, 4_000_000)}
    write_scene(folder / "good.tif", pixels, **place)
    write_scene(folder / "broken.tif", pixels, **place)
    os.truncate(folder / "broken.tif", os.path.getsize(folder / "broken.tif") // 2)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_scene(folder / "plain.tif", pixels)
    (folder / "text.tif").write_text("not a raster")
    (folder / "closed").mkdir(mode=0o555)
    return folder


def without_root_rights():
    """Return the prefix of a command with which file permissions also apply to root."""
    return ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 and shutil.which("setpriv") else []


# Runs the module as `python -m` does, once per line of arguments, and gives each call its own file for stderr.
DRIVER = """
import json, os, runpy, sys, warnings
warnings.filterwarnings("ignore", "'crossearth_jax.predict' found in sys.modules", RuntimeWarning)
for number, arguments in enumerate(json.load(open(sys.argv[1]))):
    os.dup2(os.open(f"{sys.argv[1]}.{number}", os.O_WRONLY | os.O_CREAT), 2)
    call, sys.argv = sys.argv, ["predict", *arguments]
    try:
        runpy.run_module("crossearth_jax.predict", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        print(stopped.code, flush=True)
    sys.argv = call
"""


@pytest.fixture(scope="module")
def finished(folder):
    """Return exit code and stderr of every call; one process makes all calls, since imports take most of the time."""
    calls = [[argument.format(folder) for argument in arguments] for arguments, *_ in CALLS.values()]
    orders = folder / "calls.json"
    orders.write_text(json.dumps([[f"--checkpoint={folder}/tiny.safetensors", *call] for call in calls]))
    command = [*without_root_rights(), sys.executable, "-c", DRIVER, str(orders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = map(int, done.stdout.splitlines())
    texts = [(folder / f"calls.json.{number}").read_text() for number in range(len(calls))]
    return dict(zip(CALLS, zip(codes, texts, strict=True), strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_ends_with_one_line(folder, finished, name):
    _, expected, message = CALLS[name]
    code, text = finished[name]
    lines = text.splitlines()
    assert code == expected
    assert message.replace("{}", str(folder)) in lines[-1]
    errors = sum(line.startswith("error: ") for line in lines)
    assert errors == {0: 0, 2: 3 if name == "two bad ones of four" else 1}[code]
    assert "Traceback" not in text


def test_a_scene_without_reference_system_is_mapped_with_a_warning(finished):
    assert "plain.tif has no coordinate reference system, so its map will have" in finished["no reference system"][1]


def test_good_scenes_among_bad_ones_are_mapped_and_nothing_else_is_left(folder, finished):
    wanted = {"good_map.tif", "plain_map.tif", "c.tif"}
    beside = {f"{name}.aux.xml" for name in wanted} | {f"{name.removesuffix('.tif')}.json" for name in wanted}
    assert set(os.listdir(folder / "out")) == wanted | beside
    assert os.listdir(folder / "closed") == []
    with rasterio.open(folder / "out" / "good_map.tif") as found, rasterio.open(folder / "good.tif") as scene:
        assert (found.shape, found.crs, found.transform) == (scene.shape, scene.crs, scene.transform)
