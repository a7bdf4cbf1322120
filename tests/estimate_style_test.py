"""The command on a few images against two-pass moments, and its errors and warnings."""

import numpy as np
import pytest
import rasterio
from einops import rearrange
from PIL import Image

from crossearth_jax import estimate_style
from crossearth_jax.config import UserError
from crossearth_jax.estimate_style import Tiling, allowed_targets, open_images, summary
from crossearth_jax.mapping.scene import FILL
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights.style_files import load_style, style_digest
from crossearth_jax.weights.style_statistics import Provenance, from_moments, load_statistics

SOURCE, TARGET = "blue_marble/temperate_green", "blue_marble/cold_green"
RNG = np.random.default_rng(0)


def picture(height, width):
    coarse = Image.fromarray(RNG.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def write_raster(path, bands):
    profile = {"driver": "GTiff", "count": len(bands), "height": bands[0].shape[0], "width": bands[0].shape[1]}
    transform = rasterio.transform.from_origin(500_000, 100, 10, 10)
    with rasterio.open(
        path, "w", dtype="uint8", crs="EPSG:32633", transform=transform, nodata=0, photometric="minisblack", **profile
    ) as file:
        file.write(np.stack(bands))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write a folder of three images and an unreadable one, and a raster of six tiles of which one is nodata."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "photos" / "deeper").mkdir(parents=True)
    images = [picture(256, 256), picture(90, 300), picture(300, 280)]
    for image, name in zip(images, ("a.png", "b.png", "deeper/c.png"), strict=True):
        Image.fromarray(image).save(root / "photos" / name)
    (root / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    scene = np.maximum(picture(64, 96), 1)
    scene[32:, :32] = 0
    write_raster(root / "scene.tif", [np.full((64, 96), 9, np.uint8), *np.moveaxis(scene, -1, 0)])
    boxes = [(0, 0), (0, 32), (0, 64), (32, 32), (32, 64)]
    return root, images + [scene[top : top + 32, left : left + 32] for top, left in boxes]


class Thumbnails(StyleNetwork):
    """A style network that compiles quickly: the code is a grid of red pixels."""

    def encode(self, params, images):
        return rearrange(images[:, ::26, ::26, 0], "b h w -> b (h w)")


def test_equals_two_pass_moments(corpus, capsys, monkeypatch):
    root, images = corpus
    monkeypatch.setattr(estimate_style, "StyleNetwork", Thumbnails)
    out = root / "statistics.npz"
    paths = [str(root / "photos"), f"{root}/scene.tif:2,3,4"]
    estimate_style.main([*paths, f"--out={out}", "--tile_size", "32", "--batch_size=3"])
    resized = [Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR) for image in images]
    codes = np.stack([np.asarray(image, np.float64)[::26, ::26, 0].reshape(100) / 255 for image in resized])

    found = load_statistics(out, "mobile")
    np.testing.assert_allclose(found.mean, codes.mean(0), atol=1e-7)
    np.testing.assert_allclose(found.covariance, np.cov(codes.T), atol=1e-7)
    digest = style_digest(load_style(StyleNetwork("mobile")))
    assert found.provenance == Provenance(network="mobile", digest=digest, count=8, sources=tuple(paths))
    printed = capsys.readouterr().out
    assert "images               8\nrank                 7 of 100\n" in printed
    assert "warning: 8 images give a covariance of rank 7 at most, but codes have 100 dimensions" in printed


def test_photographs_are_read_by_the_rules_of_pictures(tmp_path, caplog):
    """Images are read upright as 8-bit RGB; others are skipped with a warning."""
    image, exif = picture(30, 40), Image.Exif()
    exif[0x0112] = 6  # the camera was rotated by 90 degrees
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "b.png")
    Image.fromarray(image).convert("CMYK").save(tmp_path / "c.jpg")
    Image.fromarray(image).convert("L").save(tmp_path / "d.png")
    (photos,) = open_images(str(tmp_path), Tiling(), "")
    (found,) = photos
    np.testing.assert_array_equal(found, np.rot90(image, -1))
    for name, fault in (("b.png", "16 bits per channel"), ("c.jpg", "mode CMYK"), ("d.png", "mode L (grey)")):
        assert any(name in line and fault in line and "skipped" in line for line in caplog.text.splitlines())


def test_tiles_without_data_are_left_out_whatever_says_so(tmp_path):
    """Of four tiles one is nodata, one is masked, and one has a nodata pixel in one band, which is less than 1 %."""
    bands = np.stack([picture(64, 64)[..., 0] // 2 + 20 for _ in range(3)])
    bands[:, :32, :32] = 0
    bands[1, 40, 40] = 0
    path, mask = tmp_path / "scene.tif", np.ones((64, 64), bool)
    mask[:32, 32:] = False
    write_raster(path, bands)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    (tiles,) = open_images(str(path), Tiling((32,)), "")
    expected = np.moveaxis(bands, 0, -1)[32:].copy()
    expected[8, 40] = FILL  # row 40 of the scene
    np.testing.assert_array_equal(np.concatenate(list(tiles), axis=1), expected)


def test_the_output_is_no_image(tmp_path):
    Image.fromarray(picture(32, 32)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match=r"a\.png does not end in \.npz"):
        estimate_style.main([str(tmp_path / "a.png"), f"--out={tmp_path}/a.png"])
    assert (tmp_path / "a.png").read_bytes() == before


def test_reads_the_train_split_of_a_domain(monkeypatch):
    opened = []

    def split(domain, name, data_dir):
        opened.append((domain, name, data_dir))
        return [{"image": np.full((2, 2, 3), index, np.uint8)} for index in range(3)]

    monkeypatch.setattr(estimate_style, "PreparedSplit", split)
    (domain,) = open_images(SOURCE, Tiling(), "prepared")
    assert [image[0, 0, 0] for image in domain] == [0, 1, 2]
    assert len(domain) == 3
    assert set(opened) == {(SOURCE, "train", "prepared")}


def test_targets_need_an_explicit_flag():
    assert allowed_targets((), None, False, "") == ()
    assert allowed_targets((SOURCE,), SOURCE, False, "") == ()
    assert allowed_targets((SOURCE, TARGET), SOURCE, True, "") == (TARGET,)
    with pytest.raises(UserError, match="name the domain that the model will be trained on"):
        allowed_targets((SOURCE,), None, True, "")
    with pytest.raises(UserError, match=f"trained on {SOURCE} is scored on {TARGET} .* --allow_target"):
        allowed_targets((SOURCE, TARGET), SOURCE, False, "")
    with pytest.raises(UserError, match="unknown domain"):
        allowed_targets((), "blue_marble/temperate", False, "")


def test_tiles_cover_in_order():
    assert Tiling((8,)).boxes(16, 23) == [(0, 0, 8), (0, 8, 8), (8, 0, 8), (8, 8, 8)]
    assert Tiling((8, 16), 0.5).boxes(8, 16) == [(0, 0, 8), (0, 4, 8), (0, 8, 8)]  # 16 does not fit: 8 again, once
    assert Tiling((64,)).boxes(10, 12) == [(0, 0, 10)]


@pytest.mark.parametrize(("sizes", "overlap"), [((4,), 0.0), ((64,), 1.0), ((64,), -0.1)])
def test_refuses_tilings_that_make_no_sense(sizes, overlap):
    with pytest.raises(UserError, match="expected sides of at least 8"):
        Tiling(sizes, overlap)


def test_refuses_paths_without_images(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; expected an image, a folder"):
        open_images(str(tmp_path / "nowhere"), Tiling(), "")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="holds no images"):
        open_images(str(tmp_path), Tiling(), "")


def test_refuses_a_corpus_without_two_usable_images(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="found 0 usable images"):
        estimate_style.main([str(tmp_path), f"--out={tmp_path}/s.npz"])
    assert not (tmp_path / "s.npz").exists()


def statistics(count, targets=()):
    codes = np.random.default_rng(1).normal(size=(count, 100))  # of full rank unless there are too few
    provenance = Provenance(network="mobile", digest="", count=count, sources=(), allowed_targets=targets)
    return from_moments(codes.mean(0), np.cov(codes.T), provenance)


def test_summary_warns_in_proportion():
    few = summary(statistics(100))
    assert "99 of 100\n" in few and "100 images give a covariance of rank 99 at most, but codes have 100 dim" in few
    assert "999 images give an inaccurate covariance of 100 dimensions" in summary(statistics(999))
    assert "warning" not in summary(statistics(1000))
    assert f"contains styles of the targets {TARGET}" in summary(statistics(1000, (TARGET,)))
