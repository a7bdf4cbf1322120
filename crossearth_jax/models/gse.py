"""Geospatial Semantic Extractor: a small stack of convolutions beside the backbone, read from a checkpoint.

Published checkpoints hold it under `backbone.reins.high_extractor`. The paper's figure shows five convolutions with
ReLU from a 3 x 1024 x 1024 image to 1024 x 64 x 64, and an injector that lets the backbone's features attend to the
result after each of its four stages. The public record does not say how it was wired: the released code has neither,
its test tool skips the weights without a word, and no injector weights are known. So nothing calls this module by
default, and the numbers to compare with are those without it. `weights.load.load_weights(path).params` holds the
weights under `gse/…`.

Kernel sizes and widths are read from the file; strides and padding are not in it. We assume that the image is halved
by the first convolutions until a patch is one pixel, and padding that keeps the grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import UserError

HALVINGS = 4  # 1024 -> 64


def layers(params: Mapping[str, jax.Array]) -> list[str]:
    """The convolutions' names (`gse/0`, `gse/2`, …) in the order of the numbers in them.

    Raises:
      UserError: there are none, or one does not take what the one before it gives.
    """
    names = [name.removesuffix("/kernel") for name in params if name.startswith("gse/") and name.endswith("/kernel")]
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    widths = [3]
    for name in names:
        *_, inputs, outputs = params[f"{name}/kernel"].shape
        if inputs != widths[-1]:
            raise UserError(f"{name} takes {inputs} channels, the layer before it gives {widths[-1]}")
        widths.append(outputs)
    if not names:
        raise UserError("there are no weights of the extractor (gse/…); load a checkpoint that carries them")
    return names


def extract(params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"]) -> Float[Array, "b h16 w16 c"]:
    """Runs the stack on normalised images whose sides are multiples of 16.

    Raises:
      UserError: the weights are missing or do not form a stack.
    """
    x = images
    for i, name in enumerate(layers(params)):
        kernel = params[f"{name}/kernel"]
        stride = 2 if i < HALVINGS else 1
        padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = nnx.relu(x + params.get(f"{name}/bias", 0))
    return x
