"""The style network behind pure functions: `encode` reads an image's style, `stylize` gives an image a style.

Two networks share the interface: "inception" is the paper's (Ghiasi et al. 2017 as trained by style-augmentation),
whose weights come from published files; "mobile" is the small one shipped with the package. Each has its own code
space: codes and statistics of one mean nothing to the other.
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
_LEAST_SIDES = {"mobile": 128, "inception": 1}  # pixels; smaller images are enlarged before they are redrawn


class StyleModules(nnx.Module):
    """Predictor and transformer under one root, which gives parameters their names."""

    def __init__(self, network: StyleNetwork, *, rngs: nnx.Rngs):
        config = _TRANSFORMERS[network.kind]
        self.predictor = _PREDICTORS[network.kind](config.code_size, network.dtype, rngs=rngs)
        self.transformer = StyleTransformer(config, network.dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class StyleNetwork:
    """A style network without its parameters, which are a flat dict of `style/predictor/…`, `style/transformer/…`.

    Every method that takes `params` ignores entries it does not know and raises `UserError` on missing ones.
    """

    kind: StyleKind = "mobile"
    dtype: str = "float32"  # of the computation; statistics of instance norms are float32 in any case

    def init(self, key: PRNGKeyArray) -> dict[str, jax.Array]:
        """Draws random parameters."""
        modules = StyleModules(self, rngs=nnx.Rngs(key))
        return {_name(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(modules))}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and types of the parameters."""
        _, leaves = _abstract_modules(self)
        return {_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}

    def modules(self, params: Mapping[str, jax.Array]) -> StyleModules:
        """The modules with these parameters in place, for a look inside."""
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
        """Reads the styles of images in [0, 1]: float32 codes, k = 100.

        "mobile" looks at images resized to 256 x 256 (bilinear; antialiased when that shrinks them), the only
        size its published graph takes. "inception" takes them as they are, as the reference does.

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
        """Redraws images in [0, 1] in the styles `codes`: float32 in [0, 1], of the same size.

        The transformer's output has sides 4 ceil(side / 4); what is too much is cut at the bottom and the right.
        "mobile" redraws images with a side below 128 pixels enlarged, because it blurs details of a few pixels: on
        32-pixel crops in their own style, gradients correlate with the original's to 0.25, enlarged to 0.83.
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
    """Structure of the network and its parameters as (path, abstract leaf)."""
    graph, state = nnx.split(jax.eval_shape(lambda: StyleModules(network, rngs=nnx.Rngs(0))))
    return graph, list(nnx.to_flat_state(state))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(("style", *map(str, path)))
