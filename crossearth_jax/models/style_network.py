"""The style transfer network as pure functions: `encode` computes style codes, `stylize` applies them to images.

Two networks share the interface. "inception" is the paper's (Ghiasi et al. 2017, as trained by style-augmentation); its
weights come from published files. "mobile" is the small network shipped with the package. Each has its own space of
style codes, so codes and statistics of one network cannot be used with the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import reduce
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from crossearth_jax.config import UserError
from crossearth_jax.models.style_predictor import (
    INCEPTION_LEAST_SIDE,
    MOBILE_SIDE,
    InceptionPredictor,
    MobilePredictor,
)
from crossearth_jax.models.style_transformer import StyleTransformer, StyleTransformerConfig

StyleKind = Literal["mobile", "inception"]

_PREDICTORS = {"mobile": MobilePredictor, "inception": InceptionPredictor}
_TRANSFORMERS = {
    "mobile": StyleTransformerConfig(widths=(8, 16, 32), contract_norm=False),
    "inception": StyleTransformerConfig(),
}
_LEAST_SIDES = {"mobile": 128, "inception": 1}  # pixels; smaller images are enlarged before the style transfer


class StyleModules(nnx.Module):
    """The root module of predictor and transformer. Parameter names are paths below it."""

    def __init__(self, network: StyleNetwork, *, rngs: nnx.Rngs):
        config = _TRANSFORMERS[network.kind]
        self.predictor = _PREDICTORS[network.kind](config.code_size, network.dtype, rngs=rngs)
        self.transformer = StyleTransformer(config, network.dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class StyleNetwork:
    """A style transfer network without its parameters, which every method takes as an argument.

    Parameters are one flat dict (`style/predictor/…`, `style/transformer/…`). Methods ignore other entries of `params`,
    and raise `UserError` if a parameter is missing.
    """

    kind: StyleKind = "mobile"
    dtype: str = "float32"  # of the computation; the statistics of instance norms are always float32

    def init(self, key: PRNGKeyArray) -> dict[str, jax.Array]:
        """Draw random parameters."""
        modules = StyleModules(self, rngs=nnx.Rngs(key))
        return {_name(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(modules))}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the names, shapes and types of the parameters."""
        _, leaves = _abstract_modules(self)
        return {_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}

    def modules(self, params: Mapping[str, jax.Array]) -> StyleModules:
        """Build the modules with these parameters."""
        graph, leaves = _abstract_modules(self)
        missing = [name for path, _ in leaves if (name := _name(path)) not in params]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(leaves)} parameters of the '{self.kind}' style network are missing, "
                f"e.g. {', '.join(missing[:3])}; load weights of this network"
            )
        state = nnx.from_flat_state([(path, leaf.replace(params[_name(path)])) for path, leaf in leaves])
        return nnx.merge(graph, state)

    def encode(self, params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Compute the style codes of images in [0, 1]: float32, k = 100.

        "mobile" resizes images to 256 x 256 first (bilinear, antialiased if they shrink), the only size that its
        published graph accepts. "inception" uses images of any size, as the reference does.

        Raises:
          UserError: the images are too small for "inception".
        """
        if self.kind == "inception" and min(images.shape[1:3]) < INCEPTION_LEAST_SIDE:
            raise UserError(
                f"the 'inception' style network needs images of at least {INCEPTION_LEAST_SIDE} pixels a side, found "
                f"{images.shape[1]} x {images.shape[2]}; use larger crops or the 'mobile' network"
            )
        if self.kind == "mobile" and images.shape[1:3] != (MOBILE_SIDE, MOBILE_SIDE):
            shape = (len(images), MOBILE_SIDE, MOBILE_SIDE, 3)
            images = jax.image.resize(images, shape, "linear", antialias=True)
        return self.modules(params).predictor(images).astype(jnp.float32)

    def stylize(
        self, params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"], codes: Float[Array, "b k"]
    ) -> Float[Array, "b h w 3"]:
        """Transfer the styles `codes` to images in [0, 1]: float32 in [0, 1], of the same size.

        The transformer's output has sides 4 ceil(side / 4); surplus rows and columns are cut off at the bottom and at
        the right. "mobile" blurs details of a few pixels. So images with a side below 128 pixels are enlarged for it
        by a whole factor, and its output is averaged back. (Measured on 32-pixel crops in their own style: the
        gradients of output and original correlate to 0.25 without enlargement, to 0.83 with it.)
        """
        _, height, width, _ = images.shape
        factor = -(-_LEAST_SIDES[self.kind] // min(height, width))
        if factor > 1:
            images = jax.image.resize(images, (len(images), factor * height, factor * width, 3), "linear")
        styled = self.modules(params).transformer(images, codes).astype(jnp.float32)
        styled = styled[:, : factor * height, : factor * width]
        return reduce(styled, "b (h f) (w g) c -> b h w c", "mean", f=factor, g=factor)


@functools.lru_cache
def _abstract_modules(network: StyleNetwork) -> tuple[Any, list[Any]]:
    """Return the structure of the network, and its parameters as pairs of path and abstract leaf."""
    graph, state = nnx.split(jax.eval_shape(lambda: StyleModules(network, rngs=nnx.Rngs(0))))
    return graph, list(nnx.to_flat_state(state))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(("style", *map(str, path)))
