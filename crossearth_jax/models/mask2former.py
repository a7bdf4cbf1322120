"""Mask2Former's head (arXiv 2112.01527), as in CrossEarth: pixel decoder and mask decoder."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from crossearth_jax.config import ModelConfig
from crossearth_jax.models.mask_decoder import MaskDecoder
from crossearth_jax.models.pixel_decoder import PixelDecoder, PixelFeatures
from crossearth_jax.models.segmentation_head import Encoder, Features, MaskHead, Predictions, Training


class Mask2FormerHead(MaskHead):
    """Pixel decoder and mask decoder. With Rein adapters the queries are computed from their tokens."""

    rein_queries = True

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        assert config.head is not None
        self.pixel_decoder = PixelDecoder(config.head, config.vit, dtype, rngs=rngs)
        self.mask_decoder = MaskDecoder(config.head, config.classes, config.rein is None, dtype, rngs=rngs)

    @classmethod
    def query_count(cls, config: ModelConfig) -> int:
        """Return the number of Rein tokens, or of learnt queries without Rein."""
        assert config.head is not None
        return config.rein.tokens if config.rein else config.head.queries

    def predict(self, features: Features, encoder: Encoder, training: Training | None) -> Predictions:
        """Compute class and mask logits before the first decoder layer and after each."""
        pixels, states = self._states(features)
        return self.mask_decoder.predict(states, pixels.masks)

    def final(self, features: Features, encoder: Encoder) -> tuple[Float[Array, "b q k1"], Float[Array, "b q h w"]]:
        """Compute the class and mask logits after the last decoder layer."""
        pixels, states = self._states(features)
        class_logits, masks = (x[0] for x in self.mask_decoder.predict(states[-1:], pixels.masks))
        return class_logits, masks

    def _states(self, features: Features) -> tuple[PixelFeatures, list[Float[Array, "b q d"]]]:
        pixels = self.pixel_decoder(features.levels)
        queries = self.mask_decoder.queries[...] if features.queries is None else features.queries
        return pixels, self.mask_decoder.states(pixels, queries)
