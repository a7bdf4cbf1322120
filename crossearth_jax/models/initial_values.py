"""Initial values of every parameter: one table by name, in place of an initialiser in every layer.

The values are the reference's (PyTorch's defaults unless Mask2Former, Rein or DINOv2 set others). All tensors of one
part of the network that share a distribution are cut from one draw: XLA compiles a random generator of its own for
every draw, and hundreds of them take minutes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from crossearth_jax.config import HeadConfig, ModelConfig
from crossearth_jax.models.pixel_decoder import LEVELS
from crossearth_jax.runtime import regex_table

Shape = tuple[int, ...]


class Distribution(NamedTuple):
    """Where a tensor's numbers come from."""

    kind: Literal["uniform", "normal", "constant"]
    size: float | np.ndarray  # half of the width, standard deviation, value


# From the shape of the layer's kernel (or of the parameter itself where there is no layer).
Rule = Callable[[Shape], Distribution]


def initial_values(
    config: ModelConfig, shapes: Mapping[str, jax.ShapeDtypeStruct], key: PRNGKeyArray
) -> dict[str, jax.Array]:
    """Draws the values of all parameters, float32; jittable.

    A part of the network (`backbone`, `head`, …) gets the same values whatever other parts there are.
    """
    rules = regex_table.resolve(_table(config), shapes, "initial value")
    distributions = {name: rule(_kernel_shape(shapes, name)) for name, rule in rules.items()}
    values: dict[str, jax.Array] = {
        name: jnp.broadcast_to(jnp.asarray(d.size, jnp.float32), shapes[name].shape)
        for name, d in distributions.items()
        if d.kind == "constant"
    }
    for part in sorted({name.split("/")[0] for name in shapes}):
        for kind in ("uniform", "normal"):
            names = [name for name, d in distributions.items() if d.kind == kind and name.split("/")[0] == part]
            part_key = jax.random.fold_in(key, zlib.crc32(f"{part}/{kind}".encode()))
            cut = _draw(kind, part_key, [shapes[name].shape for name in names])
            values |= {name: jnp.asarray(distributions[name].size) * x for name, x in zip(names, cut, strict=True)}
    return values


def _draw(kind: str, key: PRNGKeyArray, shapes: Iterable[Shape]) -> list[jax.Array]:
    """Numbers of unit size in these shapes, all from one draw."""
    shapes = list(shapes)
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int).tolist()
    total = (ends[-1] if ends else 0,)
    numbers = jax.random.normal(key, total) if kind == "normal" else jax.random.uniform(key, total, minval=-1)
    return [x.reshape(shape) for x, shape in zip(jnp.split(numbers, ends[:-1]), shapes, strict=bool(shapes))]


def _kernel_shape(shapes: Mapping[str, jax.ShapeDtypeStruct], name: str) -> Shape:
    """The shape of the kernel beside a bias, from which its spread follows."""
    return shapes.get(f"{name.rpartition('/')[0]}/kernel", shapes[name]).shape


def _fan_in(kernel: Shape) -> int:
    """Inputs of one output: of a convolution (h, w, in, out) or a linear layer (in, out), also stacked ones."""
    return math.prod(kernel[:-1]) if len(kernel) == 4 else kernel[-2]


def _constant(value: float | np.ndarray) -> Rule:
    return lambda kernel: Distribution("constant", value)


def _normal(std: float) -> Rule:
    return lambda kernel: Distribution("normal", std)


def _uniform(limit: float) -> Rule:
    return lambda kernel: Distribution("uniform", limit)


def _pytorch(kernel: Shape) -> Distribution:
    """PyTorch's default for kernels and biases."""
    return Distribution("uniform", _fan_in(kernel) ** -0.5)


def _caffe(kernel: Shape) -> Distribution:
    """Caffe's "Xavier" filler, which Mask2Former's convolutions start from."""
    return Distribution("uniform", math.sqrt(3 / _fan_in(kernel)))


def _xavier_uniform(kernel: Shape) -> Distribution:
    return Distribution("uniform", math.sqrt(6 / sum(kernel[-2:])))


def _xavier_normal(kernel: Shape) -> Distribution:
    return Distribution("normal", math.sqrt(2 / sum(kernel[-2:])))


def _packed_xavier_normal(kernel: Shape) -> Distribution:
    """PyTorch initialises the projections of queries, keys and values as one matrix of three times the outputs."""
    return Distribution("normal", math.sqrt(2 / (kernel[-2] + 3 * kernel[-1])))


def _table(config: ModelConfig) -> tuple[tuple[str, Rule], ...]:
    norms = ((r".*norm\d?/scale", _constant(1.0)), (r".*norm\d?/bias", _constant(0.0)))
    return (*norms, *_backbone(config), *_reins(config), *(_head(config.head) if config.head else ()), *_MIM)


def _backbone(config: ModelConfig) -> tuple[tuple[str, Rule], ...]:
    return (
        (r"backbone/patch_embed/.*", _pytorch),
        (r"backbone/class_token", _normal(1e-6)),
        (r"backbone/(position|blocks/.*/kernel)", _normal(0.02)),
        (r"backbone/blocks/gain\d", _constant(config.vit.layer_scale)),
        (r"backbone/blocks/.*/bias", _constant(0.0)),
    )


def _reins(config: ModelConfig) -> tuple[tuple[str, Rule], ...]:
    if config.reins is None:
        return ()
    # The bound of visual prompts, for a patch of 16 x 16 pixels whatever the backbone's.
    bound = math.sqrt(6 / (3 * 16**2 + math.sqrt(config.vit.width * config.reins.rank)))
    return (
        (r"reins/tokens_[ab]", _uniform(bound)),
        (r"reins/scale", _constant(config.reins.scale)),
        (r"reins/.*", _pytorch),
    )


def _head(config: HeadConfig) -> tuple[tuple[str, Rule], ...]:
    encoder = "head/pixel_decoder/encoder/attention"
    return (
        (r"head/pixel_decoder/input_convs/\d+/conv/kernel", _xavier_uniform),
        (r"head/pixel_decoder/(lateral_conv|output_conv|mask_feature).*kernel", _caffe),
        (r"head/pixel_decoder/.*(conv|mask_feature)/bias", _constant(0.0)),
        (r"head/pixel_decoder/level_encoding|head/mask_decoder/(level_embed|queries)", _normal(1.0)),
        (f"{encoder}/(sampling_offsets|attention_weights)/kernel", _constant(0.0)),
        (f"{encoder}/sampling_offsets/bias", _constant(_ray_offsets(config))),
        (f"{encoder}/.*/kernel", _xavier_uniform),
        (r"head/.*attention/(query|key|value)/kernel", _packed_xavier_normal),
        (r"head/.*attention/.*/bias", _constant(0.0)),
        (r"head/.*(attention/out|mlp/fc\d)/kernel", _xavier_normal),
        (r"head/.*mlp/fc\d/bias", _pytorch),
        (r"head/mask_decoder/(query_projection|class_head|mask_head/\d)/.*", _pytorch),
    )


_MIM: tuple[tuple[str, Rule], ...] = ((r"mim/mask_token", _constant(0.0)), (r"mim/.*", _pytorch))


def _ray_offsets(config: HeadConfig) -> np.ndarray:
    """Sampling offsets: each head looks along its own ray, point i at distance i (in the larger coordinate)."""
    angles = 2 * math.pi * np.arange(config.heads) / config.heads
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rays /= np.abs(rays).max(axis=-1, keepdims=True)
    points = np.arange(1, config.points + 1)[:, None] * rays[:, None, None]
    return np.broadcast_to(points, (config.heads, LEVELS, config.points, 2)).reshape(-1)
