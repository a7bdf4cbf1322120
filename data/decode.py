"""Image files to arrays and back, with errors that name the file."""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from crossearth_jax.config import UserError

MAX_PIXELS = 2**26  # 8192 x 8192; the largest scenes of the benchmark have 6000 x 6000


def read_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an 8-bit RGB image; an alpha channel is dropped if it is opaque everywhere.

    Args:
      data: content of a PNG, TIFF or JPEG file.
      name: of the file, for messages.

    Raises:
      UserError: it cannot be decoded, is too large or is no 8-bit RGB image.
    """
    pixels, mode = _decode(data, name)
    if mode == "RGBA" and (pixels[..., 3] == 255).all():
        pixels, mode = pixels[..., :3], "RGB"
    if mode != "RGB":
        raise UserError(f"{name} is an image of mode {mode}, expected 8-bit RGB")
    return pixels


def read_label(data: bytes, name: str) -> UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]:
    """Decodes a label: numbers (of a palette image: its indices), or colours unless all three channels are equal.

    Raises:
      UserError: it cannot be decoded, is too large or has neither one nor three 8-bit channels.
    """
    pixels, mode = _decode(data, name)
    if mode in ("L", "P", "1"):
        return pixels.astype(np.uint8)
    if mode == "RGBA":
        pixels, mode = pixels[..., :3], "RGB"
    if mode != "RGB":
        raise UserError(f"{name} is a label image of mode {mode}, expected one or three channels of 8 bits")
    grey = (pixels == pixels[..., :1]).all()
    return pixels[..., 0] if grey else pixels


def encode(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def is_stored_as(data: bytes, pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether `data` is a PNG or JPEG file whose plain decoding gives `pixels`, so that it can be kept as it is."""
    with Image.open(io.BytesIO(data)) as image:
        return image.format in ("PNG", "JPEG") and image.mode == "RGB" and image.size == pixels.shape[1::-1]


def _decode(data: bytes, name: str) -> tuple[np.ndarray, str]:
    # TIFF tags that Pillow does not know are none of our business, Pillow's guard against bombs is.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels, at most {MAX_PIXELS} are decoded")
                return np.asarray(image), image.mode
        except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more for damaged files
            raise UserError(f"{name} cannot be decoded ({error}); download it again") from None
