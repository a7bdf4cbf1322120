"""Convolution of images whose gradients are fast inside conditions and loops on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from crossearth_jax.ops.backend import platform

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    images: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c_per_group d"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b _ _ d"]:
    """Convolve as `jax.lax.conv_general_dilated`, which `nnx.Conv` calls with these arguments.

    XLA's CPU compiler (jax 0.12) brings convolutions to its fast form only at the top level of a program, and no
    gradient of a convolution with strides. The gradients that JAX derives have another form: inside `cond` and `scan`
    they take twenty times as long, and with the patches of a ViT a hundred times. So those with stride 1 are written
    here as convolutions of the fast form, windows that tile the images become a matrix product, and a depthwise
    convolution becomes a sum of shifted images. The numbers are the same up to rounding.
    """
    dilation, groups = tuple(options["rhs_dilation"]), options["feature_group_count"]
    if platform() == "cpu" and set(options["lhs_dilation"]) == {1}:
        if isinstance(padding, str):
            sides = [(n - 1) * d + 1 for n, d in zip(kernel.shape, dilation, strict=False)]
            padding = jax.lax.padtype_to_pads(images.shape[1:3], sides, strides, padding)
        borders = tuple((low, high) for low, high in padding)
        if groups == 1 and _tiled(images, kernel, strides, borders, dilation):
            patches = rearrange(images, "b (h i) (w j) c -> b h w (i j c)", i=strides[0], j=strides[1])
            return jnp.dot(patches, rearrange(kernel, "i j c d -> (i j c) d"), precision=options["precision"])
        if groups == 1 and set(strides) == {1}:
            return _convolve(borders, dilation, options["precision"], images, kernel)
        if groups == images.shape[3] == kernel.shape[3] and set(strides) == {1}:
            return _depthwise(images, kernel[:, :, 0], borders, dilation)
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)


def _depthwise(images: Array, kernel: Array, padding: Any, dilation: Any) -> Array:
    """Convolve every channel by its own kernel."""
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    reach = [(n - 1) * d for n, d in zip(kernel.shape[:2], dilation, strict=True)]
    height, width = (n - r for n, r in zip(padded.shape[1:3], reach, strict=True))
    shifted = (
        padded[:, i * dilation[0] :, j * dilation[1] :][:, :height, :width] * kernel[i, j]
        for i, j in np.ndindex(kernel.shape[:2])
    )
    return sum(shifted, jnp.zeros((), images.dtype))


def _tiled(images: Array, kernel: Array, strides: Sequence[int], padding: Any, dilation: Any) -> bool:
    """Return whether the windows cover every pixel of the images exactly once."""
    sides = kernel.shape[:2]
    whole = all(n % side == 0 for n, side in zip(images.shape[1:3], sides, strict=True))
    return whole and tuple(strides) == sides and set(padding) == {(0, 0)} and set(dilation) == {1}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _convolve(padding: Any, dilation: Any, precision: Any, images: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), padding, rhs_dilation=dilation, dimension_numbers=LAYOUT, precision=precision
    )


def _forward(padding: Any, dilation: Any, precision: Any, images: Array, kernel: Array) -> tuple[Array, Any]:
    return _convolve(padding, dilation, precision, images, kernel), (images, kernel)


def _backward(padding: Any, dilation: Any, precision: Any, saved: tuple[Array, Array], change: Array) -> Any:
    images, kernel = saved
    reach = [(n - 1) * d for n, d in zip(kernel.shape[:2], dilation, strict=True)]
    # Each pixel of an image receives the change of every output that it was multiplied into.
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    around = tuple((far - low, far - high) for far, (low, high) in zip(reach, padding, strict=True))
    of_images = _convolve(around, dilation, precision, change, turned)
    # Each number of the kernel is a sum over pixels and images: channels stand for images, images for channels.
    of_kernel = jax.lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        change.transpose(1, 2, 0, 3),
        window_strides=dilation,
        padding=padding,
        dimension_numbers=LAYOUT,
        precision=precision,
    )
    return of_images, of_kernel.transpose(1, 2, 0, 3)


_convolve.defvjp(_forward, _backward)
