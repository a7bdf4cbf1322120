"""Decode picture files to 8-bit arrays, by the same rules everywhere; errors name the file.

- Formats: PNG, JPEG, TIFF, WebP and BMP, detected from the content. Of a file with several pictures the first is read.
- 8 bits per channel. Pictures with more bits are refused, since the right scaling is not known.
- The orientation that a camera has recorded (EXIF, or the TIFF tag) is applied.
- An image is RGB. An indexed image is converted to its colours. An alpha channel must be opaque everywhere and is
  dropped. Grey, CMYK and all other modes are refused.
- A label is read either as numbers (an indexed picture gives its indices) or as colours (an indexed picture gives the
  colours of its palette). The dataset decides which of the two, not the file.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from crossearth_jax.config import UserError

MAX_PIXELS = 2**26  # 8192 x 8192; the largest scenes of the benchmark have 6000 x 6000
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_BITS_PER_SAMPLE = 258  # TIFF tag
_MODES = {"L": "grey", "LA": "grey with an alpha channel", "1": "black and white", "CMYK": "CMYK, colours for printing"}


def read_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image; see the rules above.

    Args:
      data: content of the file.
      name: name of the file, for messages.

    Raises:
      UserError: the file cannot be decoded, is too large or is not an 8-bit RGB image.
    """
    picture = _decoded(data, name)
    if picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    pixels, mode = np.asarray(picture), picture.mode
    if mode == "RGBA":
        if (pixels[..., 3] < 255).any():
            raise UserError(f"{name} is transparent in places, expected 8-bit RGB without an alpha channel; remove it")
        pixels, mode = pixels[..., :3], "RGB"
    if mode != "RGB":
        raise UserError(f"{name} is an image of mode {mode}{_meaning(mode)}, expected 8-bit RGB; convert it to that")
    return pixels


def read_label(data: bytes, name: str, *, colours: bool) -> UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]:
    """Decode a label to one channel, or to three if they differ anywhere; an alpha channel is dropped.

    Args:
      data: content of the file.
      name: name of the file, for messages.
      colours: whether an indexed picture gives the colours of its palette (True) or its indices (False). A
        black-and-white picture gives 0 and 255 (True) or 0 and 1 (False).

    Raises:
      UserError: the file cannot be decoded, is too large or has neither one nor three 8-bit channels.
    """
    picture = _decoded(data, name)
    if colours and picture.mode in ("P", "PA", "1"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    pixels, mode = np.asarray(picture), picture.mode
    if mode in ("LA", "PA"):
        return pixels[..., 0]
    if mode in ("L", "P", "1"):
        numbers = pixels.astype(np.uint8)
        if not colours and mode == "L" and data.startswith(b"\x89PNG\r\n\x1a\n") and data[24] < 8:
            numbers //= 255 // (2 ** data[24] - 1)  # Pillow scales grey PNG of 2 or 4 bits to 0..255
        return numbers
    if mode not in ("RGB", "RGBA"):
        raise UserError(
            f"{name} is a label image of mode {mode}{_meaning(mode)}, expected one or three channels of 8 bits"
        )
    pixels = pixels[..., :3]
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels


def encode(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Encode pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def is_stored_as(data: bytes, pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Return whether `data` is a PNG or JPEG file that every decoder reads as `pixels`, so that it can be kept."""
    with Image.open(io.BytesIO(data)) as picture:
        opaque, upright = "transparency" not in picture.info, picture.getexif().get(_ORIENTATION, 1) == 1
        plain = picture.format in ("PNG", "JPEG") and picture.mode == "RGB" and opaque and upright
        return plain and picture.size == pixels.shape[1::-1]


def _decoded(data: bytes, name: str) -> Image.Image:
    """Decode a picture and apply its orientation.

    Raises:
      UserError: it cannot be decoded, is too large or has more than 8 bits per channel.
    """
    # Warnings about unknown TIFF tags are ignored; Pillow's warning of a decompression bomb becomes an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"it has {picture.width} x {picture.height} pixels, expected at most {MAX_PIXELS}")
                bits = _bits(picture, data)
                upright = (
                    ImageOps.exif_transpose(picture) if bits <= 8 else picture
                )  # Pillow has applied that of a TIFF
        except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more for damaged files
            raise UserError(
                f"{name} cannot be decoded ({error}); download it again, or cut it if it is too large"
            ) from None
    if bits > 8:
        raise UserError(
            f"{name} has {bits} bits per channel, expected 8; convert it with a stretch that you choose, e.g."
            " gdal_translate -ot Byte -scale"
        )
    return upright


def _bits(picture: Image.Image, data: bytes) -> int:
    """Return the bits per channel of the file; Pillow opens 16-bit RGB as 8-bit RGB without a warning."""
    if picture.format == "PNG":
        return data[24]  # IHDR is always the first chunk
    if picture.format == "TIFF":
        return max(getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,)))
    return 8


def _meaning(mode: str) -> str:
    return f" ({_MODES[mode]})" if mode in _MODES else ""
