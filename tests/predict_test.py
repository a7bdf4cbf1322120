"""The command with a tiny network: maps against a plain blend of its windows, several devices, and its errors."""

import contextlib
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio
import rasterio.shutil

from crossearth_jax import predict
from crossearth_jax.config import HeadConfig, ModelConfig, ReinsConfig, UserError, ViTConfig
from crossearth_jax.inference.segmentor import load
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.weights.native import Description, save_native

SCENES = "data/scenes"
LANDSAT, SENTINEL, NEON = (
    f"{SCENES}/{name}.tif" for name in ("landsat7_olinda", "sentinel2_virginia", "neon_osbs_029")
)
NAMES = ("water", "forest", "field")

TINY = ModelConfig(
    classes=3,
    vit=ViTConfig(image_size=64, width=32, depth=4, heads=2, mlp_width=64, feature_blocks=(0, 1, 2, 3)),
    reins=ReinsConfig(tokens=8, rank=4),
    head=HeadConfig(width=32, heads=2, groups=4, encoder_layers=1, encoder_mlp_width=32, decoder_layers=1,
                    decoder_mlp_width=32, queries=8),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a tiny network with random weights that predicts every class somewhere in the Landsat scene."""
    model = SegmentationModel(TINY)
    params = jax.jit(model.init)(jax.random.key(0))
    gains = {"reins/tokens_a": 100, "reins/tokens_b": 100, "head/mask_decoder/mask_head/2/kernel": 20}
    for name, gain in gains.items():  # queries that differ, masks that are not grey
        params[name] *= gain
    params |= balanced(model, params, landsat_windows())
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    palette = ((0, 0, 200), (0, 120, 0), (200, 180, 0))
    save_native(path, params, Description(model=TINY, class_names=NAMES, palette=palette, source="tiny"))
    return str(path)


def landsat_windows():
    with rasterio.open(LANDSAT) as dataset:
        image = np.moveaxis(dataset.read([3, 2, 1]), 0, -1)
    return normalize(jax.numpy.stack([image[i : i + 64, j : j + 64] for i in (0, 128, 256) for j in (0, 128)]))


def balanced(model, params, images):
    """Return a class head with about the same mean score for all classes, so that the class depends on the image."""
    kernel, bias = "head/mask_decoder/class_head/kernel", "head/mask_decoder/class_head/bias"
    head = {kernel: params[kernel] * 5, bias: np.zeros(TINY.classes + 1, np.float32)}
    scores = jax.jit(model.scores)
    for _ in range(10):
        means = np.log(np.mean(scores(params | head, images), axis=(0, 1, 2)))
        head[bias] = head[bias] - np.append(means - means.mean(), 0).astype(np.float32)
    return head


def blended(segmentor, image, stride):
    """Return a mosaic computed directly: tapered windows are added to one array and divided by their weights."""
    height, width = image.shape[:2]
    side = segmentor.window
    taper = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
    total, weight = np.zeros((height, width, segmentor.classes)), np.zeros((height, width, 1))
    starts = [[*range(0, size - side, stride), size - side] for size in (height, width)]
    for top in starts[0]:
        row = np.stack([image[top : top + side, left : left + side] for left in starts[1]])
        for left, scores in zip(
            starts[1], np.asarray(segmentor.scores(normalize(jax.numpy.asarray(row)))), strict=True
        ):
            tapers = np.outer(taper, taper)[..., None]
            total[top : top + side, left : left + side] += scores * tapers
            weight[top : top + side, left : left + side] += tapers
    return total / weight


def test_map_of_a_network_is_the_plain_blend_of_its_windows(checkpoint, tmp_path):
    assert len(jax.local_devices()) == 8
    out = tmp_path / "map.tif"
    command = [f"--checkpoint={checkpoint}", LANDSAT, f"--out={out}", "--bands=3,2,1", "--scores", "--stride=41",
               "--batch_size=8", "--blend=taper"]  # fmt: skip
    predict.main(command)
    with rasterio.open(LANDSAT) as dataset:
        image = np.ascontiguousarray(np.moveaxis(dataset.read([3, 2, 1]), 0, -1))
    expected = blended(load(checkpoint), image, 41)
    with rasterio.open(tmp_path / "map_scores.tif") as dataset:
        assert dataset.descriptions == NAMES
        # float32 sums of up to nine windows, in another order and on another number of devices.
        np.testing.assert_allclose(np.moveaxis(dataset.read(), 0, -1), expected, rtol=1e-4, atol=1e-5)
    with rasterio.open(out) as dataset:
        found = dataset.read(1)
        tags = dataset.tags()
    assert tags["CHECKPOINT"] == checkpoint and tags["MODEL"] == "tiny" and tags["FLIPS"] == "no"
    assert tags["COMMAND"] == f"python -m crossearth_jax.predict {shlex.join(command)}"
    top = np.sort(expected, -1)
    clear = top[..., -1] - top[..., -2] > 1e-3
    assert np.unique(found).tolist() == [0, 1, 2] and clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], expected.argmax(-1)[clear])


def test_a_map_is_what_evaluation_predicts(checkpoint, tmp_path):
    out = tmp_path / "map.tif"
    predict.main([f"--checkpoint={checkpoint}", LANDSAT, f"--out={out}", "--bands=3,2,1", "--batch_size=16"])
    with rasterio.open(LANDSAT) as dataset:
        image = np.ascontiguousarray(np.moveaxis(dataset.read([3, 2, 1]), 0, -1))
    with rasterio.open(out) as dataset:
        np.testing.assert_array_equal(dataset.read(1), load(checkpoint).predict(image[None], batch_size=16)[0])
        assert dataset.tags()["BLEND"] == "mean"


def test_several_scenes_and_going_on_after_an_interruption(checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    command = [
        f"--checkpoint={checkpoint}",
        f"--out={tmp_path}",
        "--skip_existing",
        "--bounds=0,0,1e7,1e7",
        "--batch_size=8",
    ]
    predict.main([*command, NEON, "--stride=64"])
    before = (tmp_path / "neon_osbs_029_map.tif").stat().st_mtime_ns
    predict.main([*command, NEON, SENTINEL, "--stride=64"])
    assert (tmp_path / "neon_osbs_029_map.tif").stat().st_mtime_ns == before
    with rasterio.open(tmp_path / "sentinel2_virginia_map.tif") as dataset:
        assert dataset.tags()["BANDS"] == "red,green,blue"
        assert (dataset.read(1) < 3).all()
    assert "1 of 2 maps exist" in caplog.text


def test_several_checkpoints_must_be_alike(checkpoint, tmp_path):
    other = tmp_path / "other.safetensors"
    segmentor = load(checkpoint)
    described = dataclasses.replace(segmentor.description, class_names=("water", "forest", "ice"))
    save_native(other, segmentor.params, described)
    message = (
        r"other\.safetensors has the classes water, forest, ice, but .*tiny\.safetensors has water, forest, field; "
    )
    with pytest.raises(UserError, match=message + "average checkpoints of the same classes"):
        predict.main([f"--checkpoint={checkpoint},{other}", LANDSAT, f"--out={tmp_path}/map.tif"])
    assert os.listdir(tmp_path) == ["other.safetensors"]


def test_several_checkpoints_are_named_in_the_map(checkpoint, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(predict, "map_scene", lambda windows, *others, **_: found.append((windows, others[-1])))
    copy = shutil.copy(checkpoint, tmp_path / "a,b.safetensors")  # a comma in a name
    predict.main([f"--checkpoint={checkpoint},{checkpoint}", LANDSAT, f"--out={tmp_path}/map.tif", "--stride=50"])
    predict.main([f"--checkpoint={copy}", LANDSAT, f"--out={tmp_path}/map.tif"])
    (windows, tags), (_, alone) = found
    assert (windows.stride, windows.window) == (50, 64)
    assert tags["TEMPERATURE"] == "1"
    assert (tags["CHECKPOINT"], tags["MODEL"]) == (f"{checkpoint},{checkpoint}", "tiny; tiny")
    assert (alone["CHECKPOINT"], alone["MODEL"]) == (str(copy), "tiny")


def test_the_temperature_of_the_weights_file_is_used(checkpoint, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(predict, "map_scene", lambda *arguments, **_: found.append(arguments[-2:]))
    segmentor = load(checkpoint)
    files = []
    for temperature in (1.5, 2.5):
        files.append(str(tmp_path / f"{temperature}.safetensors"))
        description = dataclasses.replace(segmentor.description, temperature=temperature)
        save_native(files[-1], segmentor.params, description)
    for names, expected in ((files[:1], 1.5), (files, 2.0), ([checkpoint, *files], 1.0)):
        predict.main([f"--checkpoint={','.join(names)}", LANDSAT, f"--out={tmp_path}/map.tif", "--confidence"])
        options, tags = found.pop()
        assert options.temperature == expected and tags["TEMPERATURE"] == f"{expected:.4g}"


def test_classes_can_be_named(checkpoint, tmp_path):
    out = tmp_path / "map.tif"
    predict.main([f"--checkpoint={checkpoint}", NEON, f"--out={out}", "--classes=sea,wood,acre", "--batch_size=8"])
    assert "<Category>acre</Category>" in (tmp_path / "map.tif.aux.xml").read_text("utf-8")


def test_output_paths(tmp_path):
    inputs = ["a/x.tif", "b/y.vrt"]
    assert predict.output_paths(inputs[:1], "maps/m.TIF") == {"a/x.tif": predict.Path("maps/m.TIF")}
    folder = predict.output_paths(inputs, str(tmp_path))
    assert folder == {"a/x.tif": tmp_path / "x_map.tif", "b/y.vrt": tmp_path / "y_map.tif"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["README.md", "--out={}/m.tif"], "cannot open README.md as a raster"),
        (["absent.tif", "--out={}/m.tif"], "No such file"),
        ([LANDSAT, "--bands=9,2,1", "--out={}/m.tif"], "no band '9'"),
        ([LANDSAT, "--bounds=0,0,1,1", "--out={}/m.tif"], "do not overlap"),
        ([LANDSAT, "--range=9,3", "--out={}/m.tif"], "expected low < high"),
        ([LANDSAT, "--percentiles=2,101", "--out={}/m.tif"], "expected 0 <= low < high <= 100"),
        ([LANDSAT, "--classes=a,b", "--out={}/m.tif"], "2 class names for 3 classes"),
        ([LANDSAT, "--classes=elves", "--out={}/m.tif"], "unknown taxonomy 'elves'"),
        ([LANDSAT, "--stride=65", "--out={}/m.tif"], "stride is 65"),
        ([LANDSAT, "--window=40", "--out={}/m.tif"], "multiple of 16"),
        ([LANDSAT, NEON, "--out={}/m.tif"], "is one file, but there are 2 scenes"),
        ([LANDSAT, LANDSAT.replace("/", "//"), "--out={}"], "same file name"),
        ([LANDSAT, "--out={}/folder.tif"], "is a folder with the name of a file"),
        ([LANDSAT, "--out={}/file"], "is a file that does not end in .tif"),
        ([LANDSAT, "--out={}/file/m.tif"], "cannot write .*Not a directory"),
        ([LANDSAT, f"--out={LANDSAT}"], "would replace data/scenes/landsat7_olinda.tif, which is an input"),
    ],
)
def test_refusals_leave_nothing_behind(checkpoint, tmp_path, arguments, message):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        predict.main([f"--checkpoint={checkpoint}", *(argument.format(tmp_path) for argument in arguments)])
    assert set(os.listdir(tmp_path)) == {"folder.tif", "file"}


@pytest.mark.parametrize(
    "argument",
    [
        "--range=1",
        "--range=0,inf",
        "--bounds=1,2,3",
        "--bounds=1,2,nan,4",
        "--gsd=0",
        "--gsd=inf",
        "--stride=-4",
        "--batch_size=x",
    ],
)
def test_options_of_the_wrong_form(argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--checkpoint=x", "scene.tif", "--out=map.tif", argument])
    assert stopped.value.code == 2
    assert f"argument {argument.split('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 20), (17, 33)])
def test_a_few_rows_or_columns(checkpoint, tmp_path, size):
    """The scene is smaller than a patch of the network, or one patch, for which the coarsest level has half a pixel."""
    with rasterio.open(LANDSAT) as scene:
        left, top = scene.transform @ (50, 60)
        right, bottom = scene.transform @ (50 + size[1], 60 + size[0])
    out = tmp_path / "map.tif"
    predict.main([f"--checkpoint={checkpoint}", LANDSAT, f"--out={out}", "--bands=3,2,1", "--batch_size=8",
                  f"--bounds={left},{bottom},{right},{top}", "--scores", "--polygons", "--preview"])  # fmt: skip
    with rasterio.open(LANDSAT) as dataset, rasterio.open(tmp_path / "map_scores.tif") as scores:
        window = rasterio.windows.Window(50, 60, size[1], size[0])
        part = np.moveaxis(dataset.read([3, 2, 1], window=window), 0, -1)
        assert scores.transform == dataset.window_transform(window)
        found = np.moveaxis(scores.read(), 0, -1)
    sides = [max(32, -(-side // 16) * 16) for side in size]
    if max(sides) <= 64:  # one window, filled up with the mean colour
        filled = np.zeros((1, *sides, 3), np.float32)
        filled[0, : size[0], : size[1]] = normalize(jax.numpy.asarray(part))
        expected = np.asarray(load(checkpoint).scores(filled))[0, : size[0], : size[1]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape[:2] == size and np.isfinite(found).all()


@pytest.mark.parametrize("error", [RuntimeError("device lost"), ValueError("x"), MemoryError(), UserError("x")])
def test_a_bad_scene_leaves_the_others_mapped(checkpoint, tmp_path, monkeypatch, capsys, caplog, error):
    paths = [shutil.copy(NEON, tmp_path / f"{name}.tif") for name in "abc"]
    genuine = predict.map_scene

    def failing(windows, legend, scene, *others, **named):
        if scene == str(paths[1]):
            raise error
        genuine(windows, legend, scene, *others, **named)

    monkeypatch.setattr(predict, "map_scene", failing)
    with pytest.raises(UserError, match=r"^1 of 3 scenes could not be mapped: .*b\.tif; see above$"):
        predict.main([f"--checkpoint={checkpoint}", *map(str, paths), f"--out={tmp_path}/out", "--batch_size=8"])
    assert {path.name for path in (tmp_path / "out").glob("*.tif")} == {"a_map.tif", "c_map.tif"}
    assert f"{paths[1]}: " in capsys.readouterr().err + caplog.text


@pytest.fixture
def five_scenes(tmp_path, monkeypatch):
    """Create five copies of a scene and return (command, names of the maps so far); maps are only copies of a scene."""
    paths = [shutil.copy(NEON, tmp_path / f"{name}.tif") for name in "abcde"]
    mapped = []

    def map_scene(windows, legend, scene, out, *_, **__):
        assert not out.exists()
        mapped.append(out.name)
        out.parent.mkdir(exist_ok=True)
        shutil.copy(scene, out)

    monkeypatch.setattr(predict, "map_scene", map_scene)
    return ["--checkpoint=x", *map(str, paths), f"--out={tmp_path / 'maps'}", "--skip_existing"], mapped


def without_a_model(arguments, options, products, outputs, command):
    return lambda scene: predict.map_scene(None, None, scene, outputs[scene], options, products, {})


def test_shards_map_every_scene_once(five_scenes, monkeypatch, tmp_path):
    command, mapped = five_scenes
    monkeypatch.setattr(predict, "_mapper", without_a_model)
    predict.main([*command, "--shard=1/3"])
    assert mapped == ["b_map.tif", "e_map.tif"]
    (tmp_path / "maps" / "e_map.tif").unlink()
    predict.main([*command, "--shard=1/3"])  # again, after an interruption
    assert mapped[2:] == ["e_map.tif"]
    predict.main([*command, "--shard=0/3"])
    predict.main([*command, "--shard=2/3"])
    assert mapped[3:] == ["a_map.tif", "d_map.tif", "c_map.tif"]
    predict.main([*command, "--shard=5/6"])  # more shards than scenes
    assert len(mapped) == 6


@pytest.mark.parametrize("shard", ["3/3", "1", "-1/3", "a/b", "0/0"])
def test_shards_are_counted_from_zero(shard, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--checkpoint=x", NEON, "--out=maps", f"--shard={shard}"])
    assert f"found {shard}, expected I/N with I from 0 to N-1" in capsys.readouterr().err


def test_processes_share_the_scenes(five_scenes, monkeypatch, tmp_path):
    """A scene that cannot be mapped is reported after all processes have finished."""
    command, mapped = five_scenes
    monkeypatch.setattr(predict, "_mapper", without_a_model)
    events = []

    @contextlib.contextmanager
    def joined(*address):
        events.append(address)
        yield
        events.append("finished")

    monkeypatch.setattr(predict.processes, "joined", joined)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    (tmp_path / "b.tif").write_bytes(b"damaged")
    flags = ["--distributed", "--coordinator_address=host:1", "--num_processes=2", "--process_id=1"]
    with pytest.raises(UserError, match=r"1 of 2 scenes could not be mapped: .*b\.tif"):
        predict.main([*command, *flags])
    assert mapped == ["d_map.tif"]
    assert events == [("host:1", 2, 1), "finished"]


@pytest.mark.parametrize(
    ("name", "out", "arguments"),
    [
        ("x_map.tif", "x_map.tif", []),
        ("x_scores.tif", "x.tif", ["--scores"]),
        ("x_confidence.tif", "x.tif", ["--confidence"]),
        ("x.png", "x.tif", ["--preview"]),
        ("x.gpkg", "x.tif", ["--polygons"]),
        ("x.tif.aux.xml", "x.tif", []),
        ("x.json", "x.tif", []),
        (".x.tif.partial/scene.tif", "x.tif", []),
    ],
)
def test_no_output_replaces_an_input(tmp_path, name, out, arguments):
    """The checkpoint does not exist: whether anything could be replaced is asked before it is read."""
    scene = tmp_path / name
    scene.parent.mkdir(exist_ok=True)
    shutil.copy(NEON, scene)
    with pytest.raises(UserError, match=r"which is an input; choose another --out|move it elsewhere"):
        predict.main(["--checkpoint=absent.pth", str(scene), f"--out={tmp_path / out}", *arguments])
    assert scene.read_bytes() == Path(NEON).read_bytes()
    if arguments:  # outputs that are not requested do not conflict
        with pytest.raises(UserError, match=r"absent\.pth"):
            predict.main(["--checkpoint=absent.pth", str(scene), f"--out={tmp_path / out}"])


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_output_replaces_an_input_by_another_name(tmp_path, link):
    shutil.copy(NEON, tmp_path / "tile.tif")
    rasterio.shutil.copy(tmp_path / "tile.tif", tmp_path / "mosaic.vrt", driver="VRT")
    (tmp_path / "out").mkdir()
    link(tmp_path / "tile.tif", tmp_path / "out" / "other_map.tif")
    shutil.copy(NEON, tmp_path / "other.tif")
    scenes = [str(tmp_path / "other.tif"), str(tmp_path / "mosaic.vrt")]
    with pytest.raises(UserError, match=r"other_map\.tif would replace .*tile\.tif, which is an input"):
        predict.main(["--checkpoint=absent.pth", *scenes, f"--out={tmp_path / 'out'}"])


def test_no_output_replaces_the_checkpoint(tmp_path):
    shutil.copy(NEON, tmp_path / "x.tif")
    (tmp_path / "map.tif").write_text("weights")
    with pytest.raises(UserError, match=r"would replace .*map\.tif, which is an input"):
        predict.main([f"--checkpoint={tmp_path}/map.tif", f"{tmp_path}/x.tif", f"--out={tmp_path}/map.tif"])


def test_without_the_extra_the_command_says_how_to_install_it():
    # With None in sys.modules Python reports a module as missing.
    script = """
import runpy, sys
sys.modules["rasterio"] = None
runpy.run_module("crossearth_jax.predict", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not installed; this command needs the extra geo: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_command_ends_with_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "crossearth_jax.predict", "--checkpoint=x", "README.md", f"--out={tmp_path}/m.tif"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot open README.md as a raster")
    assert "Traceback" not in done.stderr
