"""Tiles of a user's domain: pairs, sizes, splits and labels; and one-line errors for unusable files."""

import re
from pathlib import Path

import numpy as np
import pytest
from crossearth_data.own import plan  # pyright: ignore[reportMissingImports]
from crossearth_data.own.splits import by_image  # pyright: ignore[reportMissingImports]
from miniatures import own

from crossearth_jax.benchmark.domains_file import RandomSplit
from crossearth_jax.benchmark.own_files import Pair
from crossearth_jax.config import UserError

PAIRS = 'images = "i/*.png"\nlabels = "l/*.png"\n'


def make(folder, rows, **options):
    return plan.make_plan(own.domains(folder, rows, **options).domains["x"])


def tiles(made, split):
    return [name for piece in made.pieces.get(split, []) for name, _ in piece.tiles]


def read(made, split="test"):
    """Return {id: (image, label)} of a split."""
    pieces = made.pieces[split]
    count = sum(len(piece.tiles) for piece in pieces)
    return {name: (image, label) for name, image, label in plan.examples(pieces, count)}


def test_small_pictures_stay_whole_and_large_ones_are_cut_without_overlap(tmp_path):
    image, label = own.picture(tmp_path / "i/a.png", (200, 90)), np.arange(90 * 200).reshape(90, 200) % 3
    own.save(tmp_path / "l/a.png", label.astype(np.uint8))
    own.picture(tmp_path / "i/b.png", (95, 64))
    own.save(tmp_path / "l/b.png", np.zeros((64, 95), np.uint8))
    made = make(tmp_path, PAIRS + "tile = 64")
    assert tiles(made, "test") == ["a_0_0_67_90", "a_67_0_133_90", "a_133_0_200_90", "b"]
    found = read(made)
    np.testing.assert_array_equal(found["a_67_0_133_90"][0], image[:, 67:133])
    np.testing.assert_array_equal(found["a_67_0_133_90"][1], label[:, 67:133])
    converted = plan.convert(made.pieces["test"][0])
    assert converted.sizes == [(90, 67), (90, 66), (90, 67)]
    assert converted.histogram[:3].tolist() == np.bincount(label.ravel()).tolist()


def test_tiles_without_a_label_are_left_out(tmp_path):
    own.picture(tmp_path / "i/a.png", (128, 64))
    label = np.full((64, 128), 255, np.uint8)
    label[3, 3] = 1
    own.save(tmp_path / "l/a.png", label)
    converted = plan.convert(make(tmp_path, PAIRS + "tile = 64").pieces["test"][0])
    assert ([tile.id for tile in converted.tiles], converted.unlabelled) == (["a_0_0_64_64"], 1)


def test_colours_and_numbers_of_other_values(tmp_path):
    own.picture(tmp_path / "i/1.png", (4, 1))
    own.save(tmp_path / "l/1.png", np.array([[[200, 0, 0], [0, 0, 0], [9, 9, 9], [0, 0, 0]]], np.uint8))
    rows = 'images = "i/*.png"\nlabels = { files = "l/*.png", colours = { building = ["#c80000"], land = "#000000" }, '
    made = make(tmp_path, rows + 'ignore = ["#090909"] }')
    assert read(made)["1"][1].tolist() == [[0, 2, 255, 2]]
    own.save(tmp_path / "l/1.png", np.array([[7, 9, 8, 255]], np.uint8))
    rows = 'images = "i/*.png"\nlabels = { files = "l/*.png", ids = { road = [7, 8], land = 9 } }'
    assert read(make(tmp_path, rows))["1"][1].tolist() == [[1, 2, 1, 255]]


def test_a_label_one_pixel_off_only_where_it_is_allowed(tmp_path):
    own.picture(tmp_path / "i/1.png", (4, 3))
    own.save(tmp_path / "l/1.png", np.ones((2, 5), np.uint8))
    with pytest.raises(UserError, match=r"l/1.png has 5 x 2 pixels, its image .*i/1.png 4 x 3; .* off_by_one = true"):
        make(tmp_path, PAIRS)
    label = read(make(tmp_path, PAIRS + "off_by_one = true"))["1"][1]
    assert label.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [255, 255, 255, 255]]


def test_rasters_are_read_as_predict_reads_scenes(tmp_path):
    values = np.arange(4 * 32 * 32, dtype=np.uint16).reshape(4, 32, 32)
    values[:, 0, 0] = 65535  # nodata
    own.raster(tmp_path / "a.tif", values, descriptions=("blue", "green", "red", "nir"), nodata=65535)
    own.raster(tmp_path / "a_label.tif", np.ones((1, 32, 32), np.uint8))
    rows = 'images = "a.tif"\nlabels = "a_label.tif"\nbands = ["nir", 3, "green"]\n'
    with pytest.raises(UserError, match=r'a.tif holds uint16 numbers, expected 8 bit; .*range = "p2,p98"'):
        make(tmp_path, rows)
    made = make(tmp_path, rows + 'range = "0,4095"\n')
    assert (made.bands, made.gsd) == (("nir", "3", "green"), 2.0)
    image, label = read(made)["a"]
    expected = np.rint(values[[3, 2, 1]].astype(float) * 255 / 4095).transpose(1, 2, 0)
    np.testing.assert_allclose(image[1:].astype(int), expected[1:], atol=1)
    assert label[0, :2].tolist() == [255, 1]


def test_a_raster_cut_in_tiles_has_one_stretch(tmp_path):
    values = np.linspace(0, 1000, 64 * 128).reshape(1, 64, 128).astype(np.float32)
    own.raster(tmp_path / "a.tif", values)
    own.raster(tmp_path / "a_label.tif", np.ones((1, 64, 128), np.uint8))
    made = make(tmp_path, 'images = "a.tif"\nlabels = "a_label.tif"\nbands = "1"\nrange = "p0,p100"\ntile = 64')
    left, right = (image for image, _ in read(made).values())
    whole = np.concatenate([left, right], axis=1)[..., 0]
    np.testing.assert_allclose(whole, values[0] * 255 / 1000, atol=0.51)


def test_rasters_are_resampled_to_the_stated_distance_with_their_labels(tmp_path):
    values = np.repeat(np.arange(8, dtype=np.uint8) * 30, 4)[None, :, None] * np.ones((3, 1, 32), np.uint8)
    label = np.repeat(np.arange(8, dtype=np.uint8) % 3, 4)[None, :, None] * np.ones((1, 1, 32), np.uint8)
    own.raster(tmp_path / "a.tif", values)
    own.raster(tmp_path / "a_label.tif", label)
    made = make(tmp_path, 'images = "a.tif"\nlabels = "a_label.tif"\ngsd = 8')
    image, found = read(made)["a"]
    assert (image.shape, made.gsd) == ((8, 8, 3), 8)
    assert image[:, 0, 0].tolist() == [0, 30, 60, 90, 120, 150, 180, 210]
    assert found[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_alpha_and_grey_pictures(tmp_path):
    rgba = np.full((6, 5, 4), 100, np.uint8)
    rgba[0, 0, 3] = 0
    own.save(tmp_path / "i/1.png", rgba)
    own.save(tmp_path / "l/1.png", np.ones((6, 5), np.uint8))
    image, label = read(make(tmp_path, PAIRS))["1"]
    assert label[0, :2].tolist() == [255, 1]
    own.save(tmp_path / "i/1.png", np.full((6, 5), 70, np.uint8))
    image, _ = read(make(tmp_path, PAIRS))["1"]
    assert image[0, 0].tolist() == [70, 70, 70]
    own.save(tmp_path / "i/1.png", np.full((6, 5), 70, np.uint16))
    with pytest.raises(UserError, match=r"i/1.png holds uint16 numbers, expected 8 bit"):
        make(tmp_path, PAIRS)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ('{ by = "group", group = "(.).*", test = ["3"], validation = "2" }',
         {"train": "14", "validation": "2", "test": "3"}),
        ('{ by = "list", train = "train.txt", test = "test.txt" }', {"train": "12", "test": "4"}),
        ('{ by = "list", test = "test.txt" }', {"train": "123", "test": "4"}),
        ('{ by = "random", test = 0.25, validation = 0.25 }', {"train": 2, "validation": 1, "test": 1}),
        ('"test"', {"test": "1234"}),
        ('"train"', {"train": "1234"}),
    ],
)  # fmt: skip
def test_splits_by_image(tmp_path, split, expected):
    own.pairs(tmp_path)
    (tmp_path / "train.txt").write_text("1\n2.png\n\n")
    (tmp_path / "test.txt").write_text("4\n")
    made = make(tmp_path, f"{PAIRS}split = {split}")
    found = {name: tiles(made, name) for name in made.pieces}
    if "random" in split:
        assert {name: len(ids) for name, ids in found.items()} == expected
        assert any("neighbours" in note for note in made.notes)
        again = make(tmp_path, f"{PAIRS}split = {split}")
        assert found == {name: tiles(again, name) for name in found}
    else:
        assert found == {name: list(ids) for name, ids in expected.items()}


def test_split_by_the_innermost_folder(tmp_path):
    folder = tmp_path / "test"  # an outer folder also has the name of a split
    for split in ("train", "val"):
        own.picture(folder / f"i/{split}/1.png")
        own.save(folder / f"l/{split}/1.png", np.zeros((30, 40), np.uint8))
    rows = 'images = "i/*/*.png"\nlabels = "l/*/*.png"\nsplit = { by = "folder", test = "val", validation = "none" }'
    made = make(folder, rows)
    assert {name: tiles(made, name) for name in made.pieces} == {"train": ["train/1"], "test": ["val/1"]}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (
            '{ by = "group", group = "(.).*", test = ["9"] }',
            r"split: no image belongs to group '9'; the groups are 1, 2, 3, 4",
        ),
        ('{ by = "group", group = "t(.).*", test = ["9"] }', r"split.group = 't\(.\).\*' does not match the name 1"),
        ('{ by = "group", group = "(.).*", test = ["1", "2", "3", "4"] }', r"domains/x: split train is empty"),
        ('{ by = "list", train = "train.txt" }', r"train.txt: no image is called '7'"),
        ('{ by = "folder" }', r"i/1.png is in no folder called train, val, validation, test"),
        ('{ by = "block", test = 0.5 }', r"needs georeferenced images, .*i/1.png is not"),
    ],
)
def test_splits_that_do_not_fit(tmp_path, split, expected):
    own.pairs(tmp_path)
    (tmp_path / "train.txt").write_text("7\n")
    with pytest.raises(UserError, match=expected):
        make(tmp_path, f"{PAIRS}split = {split}")


def blocks_of(folder, rows, size=(100, 100), corners=((500_000, 5_000_000),)):
    for number, corner in enumerate(corners):
        values = np.random.default_rng(number).integers(0, 255, (3, *size), np.uint8)
        own.raster(folder / f"i/{number}.tif", values, corner=corner)
        own.raster(folder / f"l/{number}.tif", np.ones((1, *size), np.uint8), corner=corner)
    return make(folder, f'images = "i/*.tif"\nlabels = "l/*.tif"\ntile = 32\n{rows}')


def test_blocks_of_ground_cover_everything_once_and_repeat(tmp_path):
    rows = 'split = { by = "block", test = 0.3, validation = 0.1, block = 80 }'  # 40 pixels: 2.5 blocks a side
    made = blocks_of(tmp_path, rows)
    count = np.zeros((100, 100), int)
    owner = np.full((100, 100), "", object)
    for split, pieces in made.pieces.items():
        for piece in pieces:
            for _, box in piece.tiles:
                count[box.slices] += 1
                owner[box.slices] = split
    assert (count == 1).all()
    blocks = [owner[top : top + 40, left : left + 40] for top in (0, 40, 80) for left in (0, 40, 80)]
    assert all(len(set(block.ravel())) == 1 for block in blocks)
    assert sum(block[0, 0] == "test" for block in blocks) == 3
    assert made.choices == {"split": "over 9 blocks of 80 m"}
    assert blocks_of(tmp_path, rows).pieces.keys() == made.pieces.keys()


def test_rasters_that_overlap_share_blocks(tmp_path):
    """The second raster starts 30 pixels to the right of the first and uses the same grid of blocks."""
    made = blocks_of(
        tmp_path,
        'split = { by = "block", test = 0.3, block = 80 }',
        corners=((500_000, 5_000_000), (500_060, 5_000_000)),
    )
    owner = np.full((100, 130), "", object)
    for split, pieces in made.pieces.items():
        for piece in pieces:
            for _, box in piece.tiles:
                shift = 30 * int(piece.image.path.stem)
                ground = owner[box.top : box.bottom, box.left + shift : box.right + shift]
                assert set(ground.ravel()) <= {"", split}
                ground[:] = split


def test_too_few_blocks(tmp_path):
    with pytest.raises(UserError, match=r"the rasters cover 1 blocks of 400 m, expected at least 2; set a smaller"):
        blocks_of(tmp_path, 'split = { by = "block", test = 0.3, block = 400 }')


def test_default_block_is_a_fifth_of_a_small_raster(tmp_path):
    made = blocks_of(tmp_path, 'split = { by = "block", test = 0.3 }')
    assert made.choices == {"split": "over 25 blocks of 40 m"}


@pytest.mark.parametrize(("shift", "refused"), [(100, True), (196, True), (200, False)])
def test_train_and_test_must_not_share_ground(tmp_path, shift, refused):
    """Images are 200 m wide; with a shift of 200 m they touch without overlap."""
    rows = 'split = { by = "group", group = "(.)", test = "1" }'
    corners = ((500_000, 5_000_000), (500_000 + shift, 5_000_000))
    if refused:
        with pytest.raises(UserError, match=r"0.tif \(split train\) and .*1.tif \(split test\) show the same area"):
            blocks_of(tmp_path, rows, corners=corners)
    else:
        assert set(blocks_of(tmp_path, rows, corners=corners).pieces) == {"train", "test"}


def test_ground_is_compared_across_coordinate_systems(tmp_path):
    """The two images show the same area in different UTM zones."""
    from rasterio.warp import transform

    x, y = transform("EPSG:32632", "EPSG:32633", [500_000], [5_000_000])[:2]
    for name, corner, crs in (("0", (500_000, 5_000_000), "EPSG:32632"), ("1", (x[0], y[0]), "EPSG:32633")):
        own.raster(tmp_path / f"i/{name}.tif", np.ones((3, 50, 50), np.uint8), corner=corner, crs=crs)
        own.raster(tmp_path / f"l/{name}.tif", np.ones((1, 50, 50), np.uint8), corner=corner, crs=crs)
    rows = 'images = "i/*.tif"\nlabels = "l/*.tif"\nsplit = { by = "group", group = "(.)", test = "1" }'
    with pytest.raises(UserError, match="show the same area"):
        make(tmp_path, rows)


def test_a_label_raster_on_other_ground_or_grid(tmp_path):
    own.raster(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8))
    rows = 'images = "a.tif"\nlabels = "b.tif"'
    own.raster(tmp_path / "b.tif", np.ones((1, 8, 8), np.uint8), corner=(500_010, 5_000_000))
    with pytest.raises(UserError, match=r"b.tif does not have the extent of its image .*a.tif; .*gdalwarp"):
        make(tmp_path, rows)
    own.raster(tmp_path / "b.tif", np.ones((1, 8, 8), np.uint8), crs="EPSG:32633")
    with pytest.raises(UserError, match=r"b.tif and its image .* different coordinate reference systems"):
        make(tmp_path, rows)


def test_nodata_and_wide_numbers_of_a_label_raster(tmp_path):
    own.raster(tmp_path / "a.tif", np.full((3, 2, 2), 9, np.uint8))
    own.raster(tmp_path / "b.tif", np.array([[[-1, 1000], [2000, 1000]]], np.int16), nodata=-1)
    rows = 'images = "a.tif"\nlabels = { files = "b.tif", ids = { building = 1000, road = 2000 } }'
    assert read(make(tmp_path, rows))["a"][1].tolist() == [[255, 0], [1, 0]]


FAULTS = {
    "unknown value": ({"l/1.png": np.full((30, 40), 7, np.uint8)},
                      r"l/1.png has the unknown label values 7 \(1200 pixels\); expected 0, 1, 2, 255; assign"),
    "colours without colours": ({"l/1.png": np.full((30, 40, 3), (1, 2, 3), np.uint8)},
                                r"l/1.png contains colours, expected one class number per pixel"),
    "damaged image": ({"i/1.png": b"\x89PNG\r\n\x1a\nno"}, r"i/1.png cannot be read as a picture"),
    "damaged label": ({"l/1.png": b"nothing"}, r"l/1.png cannot be read as a picture"),
    "float label": ({"l/1.tif": np.ones((1, 30, 40), np.float32), "l/1.png": None},
                    r"l/1.tif holds float32 numbers, expected integers"),
    "bands in a label": ({"l/1.tif": np.ones((2, 30, 40), np.uint8), "l/1.png": None},
                         r"l/1.tif has 2 bands, expected one with class"),
    "no raster": ({"i/1.tif": b"II*\x00nothing", "i/1.png": None}, r"cannot open .*i/1.tif as a raster"),
    "no label": ({"l/1.png": None}, r"domains/x: no file matches labels"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_that_names_the_file(tmp_path, fault):
    own.pairs(tmp_path, 1)
    changes, expected = FAULTS[fault]
    for name, content in changes.items():
        (tmp_path / name).unlink(missing_ok=True)
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None and name.endswith(".tif"):
            own.raster(tmp_path / name, content)
        elif content is not None:
            own.save(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        made = make(tmp_path, 'images = "i/*"\nlabels = "l/*"')
        plan.convert(made.pieces["test"][0])
    message = str(error.value)
    assert re.search(expected, message), message
    assert "\n" not in message
    assert "1.tif" in message or "1.png" in message or "domains/x" in message


def test_labels_as_jpeg_are_refused(tmp_path):
    own.picture(tmp_path / "i/1.png")
    own.picture(tmp_path / "l/1.jpg")
    with pytest.raises(UserError, match=r"l/1.jpg is a JPEG, whose compression changes the values of labels; .*as PNG"):
        make(tmp_path, 'images = "i/*.png"\nlabels = { files = "l/*.jpg", colours = { road = "#000000" } }')


def test_images_of_one_domain_have_the_same_bands(tmp_path):
    own.raster(tmp_path / "i/1.tif", np.ones((3, 8, 8), np.uint8), descriptions=("nir", "red", "green"))
    own.picture(tmp_path / "i/2.png", (8, 8))
    for name in "12":
        own.save(tmp_path / f"l/{name}.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"1.tif has the bands nir, red, green, .*2.png has red, green, blue; choose"):
        make(tmp_path, 'images = "i/*"\nlabels = "l/*.png"')


def test_pairs_of_imagefolder_and_mmseg_come_with_their_splits(tmp_path):
    for split in ("train", "val"):
        for part, seed in (("img_dir", 1), ("ann_dir", 2)):
            pixels = np.random.default_rng(seed).integers(0, 3, (30, 40, 3), np.uint8)
            own.save(tmp_path / f"set/{part}/{split}/{split}_1.png", pixels if part == "img_dir" else pixels[..., 0])
    made = make(tmp_path, 'mmseg = "set"')
    assert {name: tiles(made, name) for name in made.pieces} == {"train": ["train_1"], "test": ["val_1"]}
    made = make(tmp_path, 'mmseg = "set"\nlabels = { ignore = [0] }')
    assert set(np.unique(read(made)["val_1"][1])) == {1, 2, 255}


def test_one_image_cannot_be_drawn():
    with pytest.raises(UserError, match="needs at least 2 images, found 1"):
        by_image(RandomSplit(validation=0.0, test=0.5, seed=0), [Pair("a", Path("a.png"), None)])
