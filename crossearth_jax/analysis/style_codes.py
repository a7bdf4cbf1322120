"""Mean and covariance of the style codes of many images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.ops.moments import Moments

SIDE = 256  # every image is resized to this side in pixels before its style code is computed, as in the reference


def code_moments(
    network: StyleNetwork,
    params: Mapping[str, jax.Array],
    images: Iterable[UInt8[np.ndarray, "h w 3"]],
    batch_size: int = 16,
) -> Iterator[Moments]:
    """Compute the style codes of images of any sizes and accumulate their moments.

    Yields:
      The same accumulator after every batch, so that the caller can report progress. It is complete after the last.
    """

    @jax.jit
    def encode(params: Mapping[str, jax.Array], batch: UInt8[Array, "b h w 3"]) -> Float[Array, "b k"]:
        return network.encode(params, batch.astype(jnp.float32) / 255)

    moments: Moments | None = None
    for batch in itertools.batched(map(_resized, images), batch_size):
        # Pad the last batch with copies of one image, since another shape would need another compilation.
        filled = np.stack(batch + batch[:1] * (batch_size - len(batch)))
        codes = np.asarray(encode(params, filled))[: len(batch)]
        moments = moments or Moments(codes.shape[1])
        moments.add(codes)
        yield moments


def _resized(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "256 256 3"]:
    """Resize bilinearly, with anti-aliasing where the image shrinks."""
    if image.shape[:2] == (SIDE, SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
