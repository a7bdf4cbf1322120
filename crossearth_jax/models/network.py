"""The whole network behind pure functions: the only door to this package for segmentation.

Parameters are one flat dict, "/"-joined path -> float32 array (`backbone/…`, `reins/…`, `head/…`, `mim/…`). How
modules hold them is nobody else's business: a call rebuilds the module inside the trace, which costs nothing at
run time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.mask_decoder import MaskDecoder, Predictions
from crossearth_jax.models.mim_head import MimHead
from crossearth_jax.models.parameters import initial_values
from crossearth_jax.models.pixel_decoder import PixelDecoder
from crossearth_jax.models.rein import Rein
from crossearth_jax.models.vit import VisionTransformer
from crossearth_jax.ops.scores import pixel_scores
from crossearth_jax.runtime import parallel

Params = dict[str, jax.Array]


class Features(NamedTuple):
    """What the backbone hands to the heads."""

    levels: tuple[Float[Array, "b h w c"], ...]  # the four feature blocks, all at the patch grid
    queries: Float[Array, "q d"]  # of the mask decoder, the same for every image


class Head(nnx.Module):
    """Mask2Former head."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        assert config.head is not None
        self.pixel_decoder = PixelDecoder(config.head, config.vit, dtype, rngs=rngs)
        self.mask_decoder = MaskDecoder(config.head, config.classes, config.reins is None, dtype, rngs=rngs)


class Network(nnx.Module):
    """All modules under one root, which gives parameters their names."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.backbone = VisionTransformer(config.vit, dtype, rngs=rngs)
        self.reins = (
            Rein(config.reins, config.vit.depth, config.vit.width, config.head.width, dtype, rngs=rngs)
            if config.reins and config.head
            else None
        )
        self.head = Head(config, dtype, rngs=rngs) if config.head else None
        self.mim = MimHead(config.mim, config.vit, dtype, rngs=rngs) if config.mim else None


@dataclasses.dataclass(frozen=True)
class SegmentationModel:
    """CrossEarth without its parameters.

    Every method that takes `params` ignores entries it does not know and raises `UserError` on missing ones.
    """

    config: ModelConfig

    def init(self, key: PRNGKeyArray) -> Params:
        """Draws the reference's initial values; jit it, with `out_shardings` for a sharded model."""
        _, leaves = _abstract_network(self.config)
        distributions = {_name(path): leaf.get_metadata("initial") for path, leaf in leaves}
        return initial_values(distributions, self.shapes(), key)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and types of the parameters."""
        _, leaves = _abstract_network(self.config)
        return {_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}

    def axes(self) -> dict[str, parallel.LogicalAxes]:
        """Logical axes of every parameter, see `parallel.MESH_AXES`."""
        _, leaves = _abstract_network(self.config)
        return {_name(path): leaf.get_metadata("axes") for path, leaf in leaves}

    def network(self, params: Mapping[str, jax.Array]) -> Network:
        """The modules with these parameters in place, for a look inside."""
        graph, leaves = _abstract_network(self.config)
        missing = [name for path, _ in leaves if (name := _name(path)) not in params]
        if missing:
            raise UserError(
                f"{len(missing)} of the model's {len(leaves)} parameters are missing, e.g. {', '.join(missing[:3])}; "
                "load a checkpoint that matches the model's config"
            )
        whole = parallel.whole_for_use({_name(path): params[_name(path)] for path, _ in leaves}, self.axes())
        state = nnx.from_flat_state([(path, leaf.replace(whole[_name(path)])) for path, leaf in leaves])
        return nnx.merge(graph, state)

    def features(self, params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"]) -> Features:
        """Runs the backbone on normalised images, whose sides are multiples of the patch size."""
        network = self.network(params)
        levels = network.backbone(images, network.reins)
        if network.reins:
            return Features(levels, network.reins.queries())
        return Features(levels, network.head.mask_decoder.queries[...] if network.head else jnp.zeros((0, 0)))

    def decode(self, params: Mapping[str, jax.Array], features: Features) -> Predictions:
        """Predicts classes and masks, once before the first decoder layer and once after each."""
        head = self._head(params)
        pixels = head.pixel_decoder(features.levels)
        return head.mask_decoder.predict(head.mask_decoder.states(pixels, features.queries), pixels.masks)

    def _head(self, params: Mapping[str, jax.Array]) -> Head:
        head = self.network(params).head
        if head is None:
            raise UserError("config.model.head is None: the model was built for pretraining and cannot segment")
        return head

    def reconstruct(
        self, params: Mapping[str, jax.Array], levels: tuple[Float[Array, "b h w c"], ...]
    ) -> Float[Array, "b s s 3"]:
        """Reconstructs normalised images at `config.mim.image_size` from feature levels.

        Raises:
          UserError: the model has no reconstruction head.
        """
        mim = self.network(params).mim
        if mim is None:
            raise UserError("config.model.mim is None: masked image modelling needs a reconstruction head")
        return mim(levels)

    def scores(self, params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"]) -> Float[Array, "b h w k"]:
        """Scores every pixel of one window of normalised images.

        See `ops.scores.pixel_scores`: neither probabilities nor logits.
        """
        features = self.features(params, images)
        head = self._head(params)
        pixels = head.pixel_decoder(features.levels)
        last = head.mask_decoder.states(pixels, features.queries)[-1:]
        class_logits, masks = (x[0] for x in head.mask_decoder.predict(last, pixels.masks))
        return pixel_scores(class_logits, masks, images.shape[1:3])


@functools.lru_cache
def _abstract_network(config: ModelConfig) -> tuple[Any, list[Any]]:
    """Structure of the network and its parameters as (path, abstract leaf)."""
    abstract = jax.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    return graph, list(nnx.to_flat_state(state))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
