"""Hand-made pictures of every kind: accepted ones have the right values, the others are refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from crossearth_jax.config import UserError
from crossearth_jax.runtime import picture_files

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
PALETTE = [(9, 8, 7), (0, 0, 255), (255, 0, 0), (1, 1, 1)]
INDICES = np.array([[0, 1, 2, 3]], np.uint8)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def indexed():
    image = Image.fromarray(INDICES).convert("P")
    image.putpalette(np.ravel(PALETTE).tolist())
    return image


def png(width, height, bits, colour_type, rows):
    """Return a PNG file written byte by byte, for formats that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff16(channels):
    """Return a TIFF file of one pixel with 16 bits per channel."""
    pixel = struct.pack(f"<{channels}H", *[1000] * channels)
    tags = [
        (256, 4, 1, 1), (257, 4, 1, 1), (258, 3, channels, 122 if channels > 2 else 16), (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, 128), (277, 3, 1, channels), (278, 4, 1, 1),
        (279, 4, 1, len(pixel)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    data = b"II*\0" + struct.pack("<I", 8) + directory
    return data.ljust(122, b"\0") + struct.pack("<3H", 16, 16, 16) + pixel


# The transformation of the stored pixels for each value of the camera's orientation tag.
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_is_applied(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}.get(form, {})
    smooth = np.broadcast_to(IMAGE[:, :1], IMAGE.shape).copy() if form == "JPEG" else IMAGE
    smooth[1] += 100
    data = encoded(Image.fromarray(smooth), form, exif=exif, **options)
    expected = UPRIGHT[orientation](smooth).astype(int)
    for found in (picture_files.read_image(data, "x"), picture_files.read_label(data, "x", colours=True)):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=4 if form == "JPEG" else 0)
    stored = picture_files.is_stored_as(data, picture_files.read_image(data, "x"))
    assert stored == (form in ("PNG", "JPEG") and orientation == 1)


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (png(1, 1, 16, 2, [bytes(6)]), 16),
        (png(1, 1, 16, 0, [bytes(2)]), 16),
        (png(1, 1, 16, 6, [bytes(8)]), 16),
        (tiff16(3), 16),
        (tiff16(1), 16),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), 32),
    ],
    ids=["png rgb", "png grey", "png rgba", "tiff rgb", "tiff grey", "tiff float"],
)
def test_more_than_8_bits_are_refused(data, bits):
    for read in (picture_files.read_image, lambda data, name: picture_files.read_label(data, name, colours=False)):
        with pytest.raises(UserError, match=rf"x\.tif has {bits} bits per channel, expected 8; .* -ot Byte"):
            read(data, "x.tif")


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_indexed_pictures(form):
    data = encoded(indexed(), form)
    np.testing.assert_array_equal(picture_files.read_image(data, "x"), [PALETTE])
    np.testing.assert_array_equal(picture_files.read_label(data, "x", colours=True), [PALETTE])
    np.testing.assert_array_equal(picture_files.read_label(data, "x", colours=False), INDICES)
    assert not picture_files.is_stored_as(data, picture_files.read_image(data, "x"))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_black_and_white(form):
    data = encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), form)
    np.testing.assert_array_equal(picture_files.read_label(data, "x", colours=False), [[0, 1]])
    np.testing.assert_array_equal(picture_files.read_label(data, "x", colours=True), [[0, 255]])


def test_numbers_of_few_bits_are_not_stretched():
    two, four = png(4, 1, 2, 0, [bytes([0b00011011])]), png(2, 1, 4, 0, [bytes([0x5F])])
    np.testing.assert_array_equal(picture_files.read_label(two, "x", colours=False), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(picture_files.read_label(four, "x", colours=False), [[5, 15]])
    np.testing.assert_array_equal(picture_files.read_label(two, "x", colours=True), [[0, 85, 170, 255]])


def test_channels_that_are_equal_are_one():
    grey = np.repeat(INDICES[..., None], 3, axis=-1)
    np.testing.assert_array_equal(picture_files.read_label(encoded(Image.fromarray(grey)), "x", colours=False), INDICES)
    transparent = Image.fromarray(np.dstack([grey, 9 * INDICES]))
    np.testing.assert_array_equal(picture_files.read_label(encoded(transparent), "x", colours=False), INDICES)
    assert picture_files.read_label(encoded(Image.fromarray(IMAGE)), "x", colours=True).shape == (2, 4, 3)


def test_alpha_must_be_opaque():
    opaque = Image.fromarray(np.dstack([IMAGE, np.full((2, 4), 255, np.uint8)]))
    np.testing.assert_array_equal(picture_files.read_image(encoded(opaque), "x"), IMAGE)
    opaque.putpixel((0, 0), (1, 2, 3, 254))
    for data in (encoded(opaque), encoded(indexed(), transparency=2)):
        with pytest.raises(UserError, match=r"x\.png is transparent in places, expected 8-bit RGB without an alpha"):
            picture_files.read_image(data, "x.png")
    unused = encoded(indexed(), transparency=9)  # a transparent colour that no pixel has
    np.testing.assert_array_equal(picture_files.read_image(unused, "x"), [PALETTE])


@pytest.mark.parametrize(
    ("mode", "form", "named"),
    [
        ("CMYK", "JPEG", r"mode CMYK \(CMYK, colours for printing\)"),
        ("CMYK", "TIFF", "mode CMYK"),
        ("L", "PNG", r"mode L \(grey\)"),
        ("LA", "PNG", r"mode LA \(grey with an alpha channel\)"),
        ("1", "PNG", r"mode 1 \(black and white\)"),
    ],
)
def test_other_modes_are_refused_by_name(mode, form, named):
    data = encoded(Image.fromarray(IMAGE).convert(mode), form)
    with pytest.raises(UserError, match=rf"x is an image of {named}.*, expected 8-bit RGB; convert it to that"):
        picture_files.read_image(data, "x")
    if mode == "CMYK":
        with pytest.raises(UserError, match="x is a label image of mode CMYK"):
            picture_files.read_label(data, "x", colours=True)


def test_photographs_with_previews_are_read():
    """Drones write MPO files, which hold several JPEG pictures."""
    image = Image.fromarray(np.full((8, 8, 3), 60, np.uint8))
    data = encoded(image, "MPO", save_all=True, append_images=[image.resize((2, 2))])
    found = picture_files.read_image(data, "x.jpg")
    assert found.shape == (8, 8, 3) and not picture_files.is_stored_as(data, found)


@pytest.mark.parametrize("data", [b"", b"GIF89a", encoded(Image.fromarray(IMAGE), "GIF"), encoded(indexed())[:-30]])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(UserError, match=r"x\.png cannot be decoded \(.*\); download it again"):
        picture_files.read_image(data, "x.png")


def test_size_is_bounded(monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 7)
    with pytest.raises(UserError, match=r"x cannot be decoded \(it has 4 x 2 pixels, expected at most 7\)"):
        picture_files.read_image(encoded(Image.fromarray(IMAGE)), "x")
