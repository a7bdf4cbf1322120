"""Pairs of images and labels, and sizes of the tiles of a domain."""

import json

import numpy as np
import pytest
import rasterio
from PIL import Image

from crossearth_jax.benchmark.domains_file import read_domains_file
from crossearth_jax.benchmark.own_files import find_pairs, header_size, image_sizes
from crossearth_jax.config import UserError


@pytest.fixture
def domain(tmp_path):
    """Return a function that writes files and returns the domain that reads them."""

    def make(files, rows, folder=tmp_path):
        for name in files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30)).save(path)
        (folder / "domains.toml").write_text(f'[taxonomy]\nclasses = ["a", "b"]\n[domains.x]\n{rows}', "utf-8")
        return read_domains_file(folder / "domains.toml").domains["x"]

    return make


def pairs(domain, folder):
    def name(path):
        return str(path.relative_to(folder))

    return {pair.key: (name(pair.image), name(pair.label)) for pair in find_pairs(domain)}


@pytest.mark.parametrize(
    ("images", "labels", "files", "expected"),
    [
        ("i/*.jpg", "l/*.png", ["i/1.jpg", "l/1.png"], {"1": ("i/1.jpg", "l/1.png")}),
        ("*_img.png", "*_mask.png", ["7_img.png", "7_mask.png"], {"7": ("7_img.png", "7_mask.png")}),
        ("*.png", "*_mask.png", ["7.png", "7_mask.png"], {"7": ("7.png", "7_mask.png")}),
        ("*/i/*.png", "*/l/*.png", ["t1/i/1.png", "t1/l/1.png", "t2/i/1.png", "t2/l/1.png"],
         {"t1/1": ("t1/i/1.png", "t1/l/1.png"), "t2/1": ("t2/i/1.png", "t2/l/1.png")}),
        ("i/**/*.png", "l/**/*.png", ["i/a/1.png", "l/a/1.png", "i/2.png", "l/2.png"],
         {"2": ("i/2.png", "l/2.png"), "a/1": ("i/a/1.png", "l/a/1.png")}),
        ("i/**/*.png", "l/*.png", ["i/a/1.png", "l/1.png"], {"1": ("i/a/1.png", "l/1.png")}),  # by their names
        ("i/*", "l/*", ["i/1.jpg", "l/1.png"], {"1": ("i/1.jpg", "l/1.png")}),
        ("scene.png", "truth.png", ["scene.png", "truth.png"], {"": ("scene.png", "truth.png")}),
        (["i/train/*", "i/val/*"], ["l/train/*", "l/val/*"],
         ["i/train/1.png", "i/val/1.png", "l/train/1.png", "l/val/1.png"],
         {"train/1": ("i/train/1.png", "l/train/1.png"), "val/1": ("i/val/1.png", "l/val/1.png")}),
        (["i/t1_*.jpg", "i/t2_*.jpg"], ["l/t1_*.png", "l/t2_*.png"],
         ["i/t1_1.jpg", "i/t2_1.jpg", "l/t1_1.png", "l/t2_1.png"],
         {"t1_1": ("i/t1_1.jpg", "l/t1_1.png"), "t2_1": ("i/t2_1.jpg", "l/t2_1.png")}),
        ("Bilder ü/*.png", "l [1]/*.png", ["Bilder ü/ä b.png", "l [1]/ä b.png"],
         {"ä b": ("Bilder ü/ä b.png", "l [1]/ä b.png")}),
    ],
)  # fmt: skip
def test_pairs(tmp_path, domain, images, labels, files, expected):
    own = domain(files, f"images = {json.dumps(images)}\nlabels = {json.dumps(labels)}")
    assert pairs(own, tmp_path) == expected


def test_folder_of_the_file_is_no_pattern(tmp_path, domain):
    folder = tmp_path / "data [2024] 東京"
    folder.mkdir()
    own = domain(["i/1.png", "l/1.png"], 'images = "i/*.png"\nlabels = "l/*.png"', folder)
    assert pairs(own, folder) == {"1": ("i/1.png", "l/1.png")}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["i/1.png", "i/2.png", "i/3.png", "l/1.png"], r"domains/x: no label for image .*i/2.png \(and 1 more\)"),
        (["i/1.png", "l/1.png", "l/2.png"], r"domains/x: no image for label .*l/2.png;"),
        (["l/1.png"], r"domains/x: no file matches images = '.*i/\*.png'"),
    ],
)
def test_alone(domain, files, expected):
    with pytest.raises(UserError, match=expected):
        find_pairs(domain(files, 'images = "i/*.png"\nlabels = "l/*.png"'))


def test_two_images_of_one_name(domain):
    own = domain(["i/1.png", "i/1.jpg", "l/1.png"], 'images = ["i/*.png", "i/*.jpg"]\nlabels = "l/*.png"')
    with pytest.raises(UserError, match=r"i/1.png and .*i/1.jpg have the same name '1'"):
        find_pairs(own)


@pytest.mark.parametrize("names", [("file_name", "mask_file_name"), ("input_file_name", "output_file_name")])
def test_imagefolder(tmp_path, domain, names):
    files = ["set/train/1.png", "set/train/m1.png", "set/test/1.png", "set/test/m1.png"]
    (tmp_path / "set/train").mkdir(parents=True)
    own = domain(files, 'imagefolder = "set"')
    row = dict(zip(names, ("1.png", "m1.png"), strict=True))
    (tmp_path / "set/train/metadata.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "set/test/metadata.csv").write_text(f"{','.join(names)}\n1.png,m1.png\n")
    assert pairs(own, tmp_path) == {
        "test/1": ("set/test/1.png", "set/test/m1.png"),
        "train/1": ("set/train/1.png", "set/train/m1.png"),
    }
    (tmp_path / "set/test/m1.png").unlink()
    with pytest.raises(UserError, match=r"no label for image .*test/1.png"):
        find_pairs(own)


def test_sizes_of_tiles(tmp_path, domain):
    own = domain([], 'images = "*.jpg"\nlabels = "*.png"\ntile = 64')
    for key, size in {"1": (64, 40), "2": (128, 90), "3": (130, 90)}.items():  # width, height
        Image.new("RGB", size).save(tmp_path / f"{key}.jpg")
        Image.new("L", size).save(tmp_path / f"{key}.png")
    sizes = image_sizes(own)
    assert sizes.smallest == (40, 64)
    assert sizes.typical == (90, 64)  # 90 rows stay whole, 128 and 130 columns give two tiles
    assert sizes.largest == (90, 65)


def test_size_of_a_turned_picture_and_of_a_raster(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert header_size(tmp_path / "turned.jpg") == (40, 30)
    profile = {"driver": "GTiff", "width": 50, "height": 20, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=rasterio.Affine(1, 0, 9, 0, -1, 9)) as raster:
        raster.write(np.zeros((1, 20, 50), np.uint16))
    assert header_size(tmp_path / "a.tif") == (20, 50)
    (tmp_path / "b.tif").write_bytes(b"no raster")
    with pytest.raises(UserError, match=r"b.tif cannot be read as a raster"):
        header_size(tmp_path / "b.tif")


def test_a_picture_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("crossearth_jax.runtime.picture_files.MAX_PIXELS", 100)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png is too large for a picture \(it has 20 x 10 pixels, .*gdal_translate"):
        header_size(tmp_path / "a.png")
