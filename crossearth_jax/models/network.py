"""The whole segmentation network as pure functions. Other packages call `SegmentationModel`, not the Flax modules.

Parameters are one flat dict from "/"-joined path to float32 array (`backbone/…`, `reins/…`, `adapter/…`, `head/…`,
`mim/…`). Each
call rebuilds the Flax modules while it is traced, which takes no time when the compiled program runs.
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
from crossearth_jax.models.adapters import build_adapter
from crossearth_jax.models.fcn_head import FcnHead, LinearHead, PixelHead
from crossearth_jax.models.mask_decoder import MaskDecoder, Predictions
from crossearth_jax.models.mim_head import MimHead
from crossearth_jax.models.parameters import initial_values
from crossearth_jax.models.pixel_decoder import PixelDecoder
from crossearth_jax.models.rein import Rein
from crossearth_jax.models.vit import VisionTransformer
from crossearth_jax.ops.resize import resize_bilinear
from crossearth_jax.ops.scores import pixel_scores
from crossearth_jax.runtime import parallel

Params = dict[str, jax.Array]


class Features(NamedTuple):
    """Output of the backbone, input of the heads."""

    levels: tuple[Float[Array, "b h w c"], ...]  # of the four feature blocks, all on the patch grid
    queries: Float[Array, "q d"]  # of the mask decoder, the same for every image


class Mask2FormerHead(nnx.Module):
    """Pixel decoder and mask decoder."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        assert config.head is not None
        self.pixel_decoder = PixelDecoder(config.head, config.vit, dtype, rngs=rngs)
        self.mask_decoder = MaskDecoder(config.head, config.classes, config.rein is None, dtype, rngs=rngs)


class Network(nnx.Module):
    """The root module. Parameter names are paths below it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.backbone = VisionTransformer(config.vit, dtype, rngs=rngs)
        self.reins = _rein(config, dtype, rngs=rngs)
        self.adapter = build_adapter(config, dtype, rngs=rngs)
        self.head = _head(config, dtype, rngs=rngs)
        self.mim = MimHead(config.mim, config.vit, dtype, rngs=rngs) if config.mim else None


def _rein(config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> Rein | None:
    if config.rein is None or config.head is None:
        return None
    query_width = config.head.width if config.head.kind == "mask2former" else None
    return Rein(config.rein, config.vit.depth, config.vit.width, query_width, dtype, rngs=rngs)


def _head(config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> Mask2FormerHead | PixelHead | None:
    if config.head is None:
        return None
    if config.head.kind == "linear":
        return LinearHead(config.vit, config.classes, dtype, rngs=rngs)
    if config.head.kind == "fcn":
        return FcnHead(config.head, config.vit, config.classes, dtype, rngs=rngs)
    return Mask2FormerHead(config, dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class SegmentationModel:
    """The CrossEarth model without its parameters, which every method takes as an argument.

    Methods ignore entries of `params` that are not parameters of the model, and raise `UserError` if one is missing.
    """

    config: ModelConfig

    def init(self, key: PRNGKeyArray) -> Params:
        """Draw initial values with the reference's distributions.

        Call it under `jax.jit`, with `out_shardings` for a sharded model.
        """
        _, leaves = _abstract_network(self.config)
        distributions = {_name(path): leaf.get_metadata("initial") for path, leaf in leaves}
        return initial_values(distributions, self.shapes(), key)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the names, shapes and types of the parameters."""
        _, leaves = _abstract_network(self.config)
        return {_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}

    def axes(self) -> dict[str, parallel.LogicalAxes]:
        """Return the logical axes of every parameter, see `parallel.MESH_AXES`."""
        _, leaves = _abstract_network(self.config)
        return {_name(path): leaf.get_metadata("axes") for path, leaf in leaves}

    def network(self, params: Mapping[str, jax.Array]) -> Network:
        """Build the modules with these parameters."""
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
        """Run the backbone on normalised images, whose sides must be multiples of the patch size."""
        network = self.network(params)
        levels = network.backbone(images, network.reins or network.adapter)
        if not isinstance(network.head, Mask2FormerHead):
            return Features(levels, jnp.zeros((0, 0)))
        if network.reins:
            return Features(levels, network.reins.queries())
        return Features(levels, network.head.mask_decoder.queries[...])

    def decode(self, params: Mapping[str, jax.Array], features: Features) -> Predictions | Float[Array, "b h w k"]:
        """Compute the predictions that the losses compare with the labels.

        Returns:
          Head "mask2former": class and mask logits before the first decoder layer and after each. Head "fcn": float32
          class logits of every pixel, at a quarter of the images' size if patches have 16 pixels. Head "linear":
          float32 class logits of every patch.

        Raises:
          UserError: the model has no head.
        """
        head = self._head(params)
        if isinstance(head, PixelHead):
            return head(features.levels)
        pixels = head.pixel_decoder(features.levels)
        return head.mask_decoder.predict(head.mask_decoder.states(pixels, features.queries), pixels.masks)

    def _head(self, params: Mapping[str, jax.Array]) -> Mask2FormerHead | PixelHead:
        head = self.network(params).head
        if head is None:
            raise UserError("config.model.head is None: the model is for pretraining only; set model.head to segment")
        return head

    def reconstruct(
        self, params: Mapping[str, jax.Array], levels: tuple[Float[Array, "b h w c"], ...]
    ) -> Float[Array, "b s s 3"]:
        """Reconstruct normalised images of side `config.mim.image_size` from feature levels.

        Raises:
          UserError: the model has no reconstruction head.
        """
        mim = self.network(params).mim
        if mim is None:
            raise UserError("config.model.mim is None: masked image modelling needs a reconstruction head")
        return mim(levels)

    def scores(self, params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"]) -> Float[Array, "b h w k"]:
        """Compute the class scores of every pixel of normalised images, each of one window.

        With the head "mask2former" these are the sums of `ops.scores.pixel_scores`, which are neither probabilities nor
        logits. With the other heads they are probabilities.

        Raises:
          UserError: the model has no head.
        """
        features = self.features(params, images)
        head = self._head(params)
        if isinstance(head, PixelHead):
            return jax.nn.softmax(resize_bilinear(head(features.levels), images.shape[1:3]))
        pixels = head.pixel_decoder(features.levels)
        last = head.mask_decoder.states(pixels, features.queries)[-1:]
        class_logits, masks = (x[0] for x in head.mask_decoder.predict(last, pixels.masks))
        return pixel_scores(class_logits, masks, images.shape[1:3])


@functools.lru_cache
def _abstract_network(config: ModelConfig) -> tuple[Any, list[Any]]:
    """Return the structure of the network, and its parameters as pairs of path and abstract leaf."""
    abstract = jax.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    return graph, list(nnx.to_flat_state(state))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
