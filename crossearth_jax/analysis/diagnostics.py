"""Diagnostics of Earth-Style Injection: restyled training images, and distances between the styles of domains."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from crossearth_jax.analysis.style_codes import code_moments
from crossearth_jax.augment.pipeline import augment
from crossearth_jax.augment.style_injection import draw_style, mix_codes, redraw, sample_codes, style_injection
from crossearth_jax.benchmark.registry import find_domain
from crossearth_jax.config import Config, StyleConfig
from crossearth_jax.inputs.sources import PreparedSplit, prepared_splits
from crossearth_jax.inputs.transforms import window
from crossearth_jax.models.style_network import StyleKind, StyleNetwork
from crossearth_jax.ops.frechet import frechet_distance
from crossearth_jax.ops.moments import Moments
from crossearth_jax.ops.normalization import denormalize, normalize
from crossearth_jax.training.styles import style_network
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics

# Images per distance. The estimated distance is larger for fewer images, so all domains are limited to this number.
DISTANCE_IMAGES = 48
EXAMPLES = 4


def style_distances(config: Config, targets: Iterable[str]) -> dict[str, float]:
    """Return the Fréchet distance between the style codes of the source and of each target; 0 for the source itself.

    A Gaussian is fitted to the style codes of the first `DISTANCE_IMAGES` images of the train split of a domain, or of
    its evaluation split if it has no train split. With several source domains, each contributes an equal part of these
    images. The distances only describe the domains; training does not use them.

    Args:
      config: gives the source and the style network.
      targets: names of domains.
    """
    network, params = _network(config)

    def moments(domains: Sequence[str]) -> Moments:
        images = (
            image for domain in domains for image in _first_images(domain, config, DISTANCE_IMAGES // len(domains))
        )
        return list(code_moments(network, params, images))[-1]

    source = moments(config.data.source.split("+"))
    found = {domain: moments([domain]) for domain in targets if domain != config.data.source}
    distances = {
        name: frechet_distance(source.mean, source.covariance, other.mean, other.covariance)
        for name, other in found.items()
    }
    return {config.data.source: 0.0} | distances


def _first_images(domain: str, config: Config, count: int) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    trained = "train" in prepared_splits(domain, config.data.data_dir)
    scored = find_domain(domain, config.data.data_dir).eval_split
    split = PreparedSplit(domain, "train" if trained else scored, config.data.data_dir)
    return (split[index]["image"] for index in range(min(count, len(split))))


# The network is a static argument, so one compilation serves all styles and seeds.
_encode = jax.jit(StyleNetwork.encode, static_argnums=0)
_stylize = jax.jit(StyleNetwork.stylize, static_argnums=0)


def redrawn(images: UInt8[np.ndarray, "n h w 3"], style: StyleConfig, seed: int = 0) -> UInt8[np.ndarray, "n h w 3"]:
    """Return RGB images as the backbone sees them after Earth-Style Injection with these settings.

    Every image is restyled, whatever `style.probability` is.

    Raises:
      UserError: the weights of the style network or the style statistics cannot be read.
    """
    network = StyleNetwork(cast(StyleKind, style.backend))
    params, statistics = load_style(network, style.weights), load_statistics(style.statistics, network.kind).sampler
    draws = draw_style(style, statistics, jax.random.key(seed), images.shape[:1], *images.shape[1:3])
    originals = jnp.asarray(images, jnp.float32) / 255
    codes = mix_codes(style.alpha, sample_codes(statistics, draws.noise), _encode(network, params, originals))
    drawn = redraw(style, functools.partial(_stylize, network, params), originals, codes)
    shown = jnp.where(draws.kept[..., None], originals, drawn)
    return _to_uint8(255 * shown)


def style_examples(
    config: Config,
) -> tuple[UInt8[np.ndarray, "n s s 3"], UInt8[np.ndarray, "n s s 3"]]:
    """Return a few augmented training images, and the same images restyled.

    The restyling is that of training, except that every image is restyled and `style.literal` is off.
    """
    assert config.style is not None
    splits = [PreparedSplit(name, "train", config.data.data_dir) for name in config.data.source.split("+")]
    in_turn = (split[i] for i in range(EXAMPLES) for split in splits if i < len(split))
    chosen = list(itertools.islice(in_turn, EXAMPLES))
    height, width = np.min([example["label"].shape for example in chosen], axis=0).tolist()
    # The central part of each image, at the largest size that fits into all of them.
    pairs = [window(example["image"], example["label"], (height, width), (0.5, 0.5)) for example in chosen]
    images, labels = (np.stack(column) for column in zip(*pairs, strict=True))
    style = dataclasses.replace(config.style, probability=1.0, literal=False)
    network, params = _network(config)
    statistics = load_statistics(style.statistics, network.kind).sampler
    inject = style_injection(style, network, statistics)

    @jax.jit
    def restyled(params: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
        clean, _, _ = augment(config.augment, key, jnp.asarray(images), jnp.asarray(labels))
        return clean, denormalize(inject(params, key, normalize(clean))[0])

    clean, shown = restyled(params, jax.random.key(config.seed))
    return _to_uint8(clean), _to_uint8(shown)


def _to_uint8(images: jax.Array) -> UInt8[np.ndarray, "n s s 3"]:
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _network(config: Config) -> tuple[StyleNetwork, dict[str, jax.Array]]:
    """Return the style network of the configuration and its parameters."""
    assert config.style is not None
    network = style_network(config)
    return network, {name: jnp.asarray(value) for name, value in load_style(network, config.style.weights).items()}
