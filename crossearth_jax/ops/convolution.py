"""Convolution of images whose gradients are fast inside conditions and loops on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
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

    XLA's CPU compiler (jax 0.12) brings convolutions to its fast form only at the top level of a program. The gradients
    that JAX derives have another form, so that inside `cond` and `scan` they take twenty times as long. With stride 1
    and without groups, they are therefore written here as convolutions of the fast form. The numbers are the same up to
    rounding.
    """
    dilation = tuple(options["rhs_dilation"])
    simple = set(strides) == {1} and set(options["lhs_dilation"]) == {1} and options["feature_group_count"] == 1
    if platform() != "cpu" or not simple:
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)
    if isinstance(padding, str):
        sides = [(n - 1) * d + 1 for n, d in zip(kernel.shape, dilation, strict=False)]
        padding = jax.lax.padtype_to_pads(images.shape[1:3], sides, (1, 1), padding)
    return _convolve(tuple(map(tuple, padding)), dilation, options["precision"], images, kernel)


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
