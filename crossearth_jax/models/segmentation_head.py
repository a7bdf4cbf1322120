"""What all segmentation heads have in common: their input, their predictions, and their base classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from crossearth_jax.config import ModelConfig
from crossearth_jax.models.vit import Adapter, Tokens, VisionTransformer
from crossearth_jax.ops.resize import resize_bilinear
from crossearth_jax.ops.scores import pixel_scores

# Parameters of the layer of the classes, of every head; see `Head`.
CLASS_LAYER = re.compile(r"head/(?:.+/)?(?P<layer>class_head|classifier)/(?P<array>kernel|bias)")


class Encoder(NamedTuple):
    """The backbone and its adapter, for heads that run the last blocks with tokens of their own."""

    backbone: VisionTransformer
    adapter: Adapter | None


class Features(NamedTuple):
    """Output of the backbone, input of the heads."""

    levels: tuple[Float[Array, "b h w c"], ...]  # of the feature blocks, all on the patch grid
    # Of a head that takes the tokens of Rein as its queries, the same for every image; None: not needed.
    queries: Float[Array, "q d"] | None = None
    tokens: Tokens | None = None  # before the head's own blocks; None: it has none


class Training(NamedTuple):
    """What the predictions of a head may depend on in a training step, beside the features."""

    progress: Float[Array, ""]  # share of the training steps that are done, 0 to 1
    key: PRNGKeyArray


class Predictions(NamedTuple):
    """Class and mask logits of the queries at several depths; the last entry is the final one."""

    class_logits: Float[Array, "p b q k1"]  # of the K classes, then of "no object"
    mask_logits: Float[Array, "p b q h w"]  # at stride 4 if patches have 16 pixels


class Head(nnx.Module):
    """Base class of segmentation heads.

    The layer of the classes is called `class_head` if its last output is "no object", otherwise `classifier`. So the
    number of classes of a file is known, and the layer can be left out when training starts from other classes.
    """

    rein_queries: ClassVar[bool] = False  # whether the queries are computed from the tokens of Rein, if there is Rein
    # Parameters that start from a tensor of the backbone's file which the backbone itself does not use: their names
    # below `head/`, and the tensor's name in the reference.
    from_backbone: ClassVar[Mapping[str, str]] = {}
    own_blocks: int = 0  # last blocks of the backbone that the head runs itself

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """Create the parameters; `dtype` is the type of the matrix products."""
        raise NotImplementedError

    @classmethod
    def query_count(cls, config: ModelConfig) -> int | None:
        """Return the number of queries, for the set loss; None for a head that classifies pixels."""
        raise NotImplementedError

    def predict(
        self, features: Features, encoder: Encoder, training: Training | None
    ) -> Predictions | Float[Array, "b h w k"]:
        """Compute the predictions that the losses compare with the labels; `training` is None outside of training."""
        raise NotImplementedError

    def scores(self, features: Features, encoder: Encoder, size: tuple[int, ...]) -> Float[Array, "b h w k"]:
        """Compute the class scores of every pixel of images of this size."""
        raise NotImplementedError


class PixelHead(Head):
    """Base class of heads that classify every pixel directly. A subclass maps feature levels to class logits."""

    @classmethod
    def query_count(cls, config: ModelConfig) -> None:
        """Return None: there are no queries."""

    def __call__(self, levels: tuple[Float[Array, "b h w c"], ...]) -> Float[Array, "b H W k"]:
        """Predict float32 class logits from feature levels, which are all on the patch grid, at any size."""
        raise NotImplementedError

    def predict(self, features: Features, encoder: Encoder, training: Training | None) -> Float[Array, "b h w k"]:
        """Compute the class logits of every pixel."""
        return self(features.levels)

    def scores(self, features: Features, encoder: Encoder, size: tuple[int, ...]) -> Float[Array, "b h w k"]:
        """Compute the class probabilities of every pixel."""
        return jax.nn.softmax(resize_bilinear(self(features.levels), size))


class MaskHead(Head):
    """Base class of heads whose queries predict a class and a mask each."""

    def final(self, features: Features, encoder: Encoder) -> tuple[Float[Array, "b q k1"], Float[Array, "b q h w"]]:
        """Compute the class and mask logits of the last prediction only."""
        raise NotImplementedError

    def scores(self, features: Features, encoder: Encoder, size: tuple[int, ...]) -> Float[Array, "b h w k"]:
        """Compute the sums of `ops.scores.pixel_scores`, which are neither probabilities nor logits."""
        return pixel_scores(*self.final(features, encoder), size)
