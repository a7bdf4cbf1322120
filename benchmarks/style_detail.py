"""Measure how much detail of an image each form of `style.detail` keeps, and its cost; draw them side by side.

    python -m benchmarks.style_detail FOLDER… --size=512 --figure=forms.jpg

The central parts of some images of every folder, spread evenly over it, are restyled by the included style network.

* gradients kept: correlation of the differences between neighbouring pixels before and after, mean over images
* contrast of gradients: their root mean square after restyling, divided by that before
* colour: difference of the mean colour from that of "network", relative to the change of colour by "network"
* cost: processor time of style encoding and drawing, divided by that of "network" in the same round, median
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from crossearth_jax.augment.style_injection import mix_codes, redraw, sample_codes
from crossearth_jax.config import StyleConfig
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics

FORMS = {
    "network": StyleConfig(),
    "scaled": StyleConfig(detail="scaled"),
    "scaled, three times": StyleConfig(detail="scaled", draw_scale=3.0),
    "low, drawn whole": StyleConfig(detail="low", draw_scale=1.0),
    "low": StyleConfig(detail="low"),
    "low, drawn at a quarter": StyleConfig(detail="low", draw_scale=0.25),
}
SHOWN = ("network", "scaled", "low")  # columns of the picture, after the originals
PICTURES, SIDE, MARGIN, HEADER = 4, 224, 4, 16

Form = Callable[[jax.Array, jax.Array], jax.Array]  # of images and standard normal codes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=512, help="side of the parts, in pixels")
    parser.add_argument("--count", type=int, default=8, help="images per folder")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of the sampled style")
    parser.add_argument("--rounds", type=int, default=5, help="of the cost; 0 leaves it out")
    parser.add_argument("--figure", type=Path, help="picture of the first folder's images to write")
    options = parser.parse_args(arguments)
    images = [middles(folder, options.size, options.count) for folder in options.folders]
    forms = {name: form(config, options.alpha) for name, config in FORMS.items()}
    everything = jnp.concatenate(images)
    noise = jax.random.normal(jax.random.key(0), (len(everything), 100))
    restyled = {name: in_batches(draw, everything, noise) for name, draw in forms.items()}
    ratios = costs(forms, everything[:4], noise[:4], options.rounds)
    print(f"{len(everything)} parts of {options.size} pixels, alpha {options.alpha:g}\n")
    print("| form | gradients kept | contrast of gradients | colour | cost |\n|---|---|---|---|---|")
    for name, found in restyled.items():
        kept, contrast = gradients(np.asarray(everything), found)
        off = colour_error(np.asarray(everything), restyled["network"], found)
        print(f"| {name} | {kept:.2f} | {contrast:.2f} | {off:.3f} | {ratios.get(name, float('nan')):.2f} |")
    if options.figure:
        first = len(images[0])
        columns = {"image": np.asarray(images[0]), **{name: restyled[name][:first] for name in SHOWN}}
        sheet({name: column[:PICTURES] for name, column in columns.items()}).save(options.figure, quality=80)


def middles(folder: Path, size: int, count: int) -> jax.Array:
    """Return central parts of `count` images spread evenly over a folder, in [0, 1]; skip images that are too small."""
    parts = []
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".tif")):
        with Image.open(path) as picture:
            if min(picture.size) >= size:
                left, top = (side - size for side in picture.size)
                box = (left // 2, top // 2, left // 2 + size, top // 2 + size)
                parts.append(np.asarray(picture.convert("RGB").crop(box), np.float32) / 255)
    chosen = np.linspace(0, len(parts) - 1, min(count, len(parts))).astype(int)
    return jnp.asarray(np.stack([parts[i] for i in chosen]))


def form(config: StyleConfig, alpha: float) -> Form:
    """Return the jitted function that restyles images in one form."""
    network, distribution = StyleNetwork("mobile"), load_statistics(None, "mobile").sampler
    params = load_style(network)

    @jax.jit
    def restyle(images: jax.Array, noise: jax.Array) -> jax.Array:
        codes = mix_codes(alpha, sample_codes(distribution, noise), network.encode(params, images))
        return redraw(config, functools.partial(network.stylize, params), images, codes)

    return restyle


def in_batches(draw: Form, images: jax.Array, noise: jax.Array) -> np.ndarray:
    """Restyle four images at a time."""
    batches = itertools.batched(range(len(images)), 4)
    return np.concatenate([draw(images[np.array(batch)], noise[np.array(batch)]) for batch in batches])


def costs(forms: dict[str, Form], images: jax.Array, noise: jax.Array, rounds: int) -> dict[str, float]:
    """Return the processor time of each form divided by that of "network" in the same round, median over rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):  # the first one compiles
        for name, draw in forms.items():
            start = time.process_time()
            jax.block_until_ready(draw(images, noise))
            if number:
                seconds[name].append(time.process_time() - start)
    return {
        name: statistics.median(mine / whole for mine, whole in zip(values, seconds["network"], strict=True))
        for name, values in seconds.items()
        if values
    }


def gradients(images: np.ndarray, restyled: np.ndarray) -> tuple[float, float]:
    """Return correlation and ratio of root mean squares of the differences between neighbouring pixels."""
    kept, contrast = [], []
    for pair in zip(images, restyled, strict=True):
        before, after = (np.concatenate([np.diff(x, axis=axis).ravel() for axis in (0, 1)]) for x in pair)
        kept.append(np.corrcoef(before, after)[0, 1])
        contrast.append(np.sqrt(np.mean(after**2) / np.mean(before**2)))
    return float(np.mean(kept)), float(np.mean(contrast))


def colour_error(images: np.ndarray, whole: np.ndarray, restyled: np.ndarray) -> float:
    """Return the distance of the mean colours from those of `whole`, relative to the change of colour by `whole`."""
    before, expected, found = (x.mean((1, 2)) for x in (images, whole, restyled))
    return float(np.linalg.norm(found - expected, axis=-1).mean() / np.linalg.norm(expected - before, axis=-1).mean())


def sheet(columns: dict[str, np.ndarray]) -> Image.Image:
    """Draw central parts of images (in [0, 1]) in columns with captions."""
    step, rows = SIDE + MARGIN, len(next(iter(columns.values())))
    page = Image.new("RGB", (len(columns) * step + MARGIN, rows * step + HEADER + MARGIN), "white")
    for column, (caption, images) in enumerate(columns.items()):
        left = MARGIN + column * step
        ImageDraw.Draw(page).text((left, 2), caption, fill="black")
        for row, image in enumerate(images):
            first = (len(image) - SIDE) // 2
            part = image[first : first + SIDE, first : first + SIDE]
            page.paste(Image.fromarray(np.rint(255 * part).astype(np.uint8)), (left, HEADER + row * step))
    return page


if __name__ == "__main__":
    main()
