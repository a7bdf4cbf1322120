"""The whole segmentation network as pure functions. Other packages call `SegmentationModel`, not the Flax modules.

Parameters are one flat dict from "/"-joined path to float32 array (`backbone/…`, `reins/…`, `adapter/…`, `head/…`,
`mim/…`). Each call rebuilds the Flax modules while it is traced, which takes no time when the compiled program runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from crossearth_jax.config import ModelConfig, UserError
from crossearth_jax.models.adapters import build_adapter
from crossearth_jax.models.backbones import build_backbone
from crossearth_jax.models.heads import head_class
from crossearth_jax.models.mim_head import MimHead
from crossearth_jax.models.parameters import initial_values
from crossearth_jax.models.rein import Rein
from crossearth_jax.models.segmentation_head import Encoder, Features, Head, Predictions, Training
from crossearth_jax.runtime import parallel

Params = dict[str, jax.Array]


class Network(nnx.Module):
    """The root module. Parameter names are paths below it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.backbone = build_backbone(config.vit, dtype, rngs=rngs)
        self.reins = _rein(config, dtype, rngs=rngs)
        self.adapter = build_adapter(config, dtype, rngs=rngs)
        kind = head_class(config)
        self.head = None if kind is None else kind(config, dtype, rngs=rngs)
        self.mim = MimHead(config.mim, config.vit, dtype, rngs=rngs) if config.mim else None

    @property
    def encoder(self) -> Encoder:
        """The backbone and its adapter."""
        return Encoder(self.backbone, self.reins or self.adapter)


def _rein(config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> Rein | None:
    kind = head_class(config)
    if config.rein is None or config.head is None or kind is None:
        return None
    query_width = config.head.width if kind.rein_queries else None
    return Rein(config.rein, config.vit.depth, config.vit.width, query_width, dtype, rngs=rngs)


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

    @property
    def queries(self) -> int | None:
        """Number of queries of the head; None without a head, or for one that classifies pixels."""
        kind = head_class(self.config)
        return None if kind is None else kind.query_count(self.config)

    def features(
        self, params: Mapping[str, jax.Array], images: Float[Array, "b h w 3"], *, for_head_only: bool = False
    ) -> Features:
        """Run the backbone on normalised images, whose sides must be multiples of the patch size.

        Args:
          params: the parameters.
          images: the images.
          for_head_only: do not run blocks whose results the head does not use. The feature levels are then empty for a
            head that runs the last blocks itself.
        """
        network = self.network(params)
        (backbone, adapter), head = network.encoder, network.head
        if head is not None and head.own_blocks:
            wanted = {self.config.vit.depth - head.own_blocks - 1}
            blocks = sorted(wanted if for_head_only else wanted | set(self.config.vit.feature_blocks))
            tokens = dict(zip(blocks, backbone.tokens_after(blocks, images, adapter), strict=True))
            levels = () if for_head_only else tuple(tokens[i].patches for i in self.config.vit.feature_blocks)
            return Features(levels, tokens=tokens[min(wanted)])
        queries = network.reins.queries() if network.reins and head is not None and head.rein_queries else None
        return Features(backbone(images, adapter), queries)

    def decode(
        self, params: Mapping[str, jax.Array], features: Features, training: Training | None = None
    ) -> Predictions | Float[Array, "b h w k"]:
        """Compute the predictions that the losses compare with the labels.

        Args:
          params: the parameters.
          features: of `features`.
          training: progress and key of a training step; None: predictions as in inference.

        Returns:
          Class and mask logits of the queries, or float32 class logits on a grid of pixels or patches if the head
          classifies pixels. Head "mask2former": before the first decoder layer and after each. Head "eomt": in training
          before each of the last blocks, and always after the last.

        Raises:
          UserError: the model has no head.
        """
        network = self.network(params)
        return _head(network).predict(features, network.encoder, training)

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

        They are probabilities if the head classifies pixels. If it has queries, they are the sums of
        `ops.scores.pixel_scores`, which are neither probabilities nor logits.

        Raises:
          UserError: the model has no head.
        """
        return self.scores_of(params, self.features(params, images, for_head_only=True), images.shape[1:3])

    def scores_of(
        self, params: Mapping[str, jax.Array], features: Features, size: tuple[int, ...]
    ) -> Float[Array, "b h w k"]:
        """Compute the class scores of every pixel from the features of images of (height, width) `size`; see `scores`.

        Raises:
          UserError: the model has no head.
        """
        network = self.network(params)
        return _head(network).scores(features, network.encoder, size)


def _head(network: Network) -> Head:
    if network.head is None:
        raise UserError("config.model.head is None: the model is for pretraining only; set model.head to segment")
    return network.head


@functools.lru_cache
def _abstract_network(config: ModelConfig) -> tuple[Any, list[Any]]:
    """Return the structure of the network, and its parameters as pairs of path and abstract leaf."""
    abstract = jax.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    return graph, list(nnx.to_flat_state(state))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
