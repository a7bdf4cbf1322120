"""Draw docs/images/style_injection.png: real scenes, restyled by Earth-Style Injection with sampled style codes.

Run `python docs/style_picture.py` in the repository's root (needs the extra `geo`).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from crossearth_jax.augment.masking import random_block_masks
from crossearth_jax.augment.style_injection import mix_codes, sample_codes
from crossearth_jax.mapping.scene import SceneOptions, open_scene
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics

ROOT = Path(__file__).parents[1]
SCENES = (("landsat7_olinda.tif", "3,2,1"), ("sentinel2_virginia.tif", None), ("neon_osbs_029.tif", None))
SIDE, BLOCK, MARGIN, HEADER = 192, 24, 6, 20  # pixels; blocks are 1/8 of the side, like 64 of 512 in training
ALPHAS = (0.1, 0.5, 1.0)
MASK_RATIO = 0.7  # share of blocks that take the restyled image
SEED = 1


def main() -> None:
    """Restyle the scenes and the Blue Marble tile, and save the sheet."""
    network, statistics = StyleNetwork("mobile"), load_statistics(None, "mobile").sampler
    params = load_style(network)
    images = jnp.asarray(np.stack([*(scene(file, bands) for file, bands in SCENES), blue_marble()]) / 255, "float32")
    own = jax.jit(network.encode)(params, images)
    noise_key, mask_key = jax.random.split(jax.random.key(SEED))
    sampled = sample_codes(statistics, jax.random.normal(noise_key, own.shape))
    stylize = jax.jit(network.stylize)
    restyled = {alpha: stylize(params, images, mix_codes(alpha, sampled, own)) for alpha in ALPHAS}
    kept = random_block_masks(mask_key, MASK_RATIO, BLOCK, (len(images),), SIDE, SIDE)[..., None]
    columns = {
        "image": images,
        **{f"restyled, alpha {alpha:g}": restyled[alpha] for alpha in ALPHAS},
        "blocks of alpha 0.1": jnp.where(kept, images, restyled[0.1]),
        "blocks of alpha 1": jnp.where(kept, images, restyled[1.0]),
    }
    sheet(columns).save(ROOT / "docs" / "images" / "style_injection.png", optimize=True)


def scene(file: str, bands: str | None) -> np.ndarray:
    """Read the middle of a scene as prediction reads it."""
    with open_scene(str(ROOT / "data" / "scenes" / file), SceneOptions(bands=bands)) as raster:
        top, left = (raster.grid.height - SIDE) // 2, (raster.grid.width - SIDE) // 2
        return raster.read(top, left, SIDE, SIDE)[0]


def blue_marble() -> np.ndarray:
    """Return the Alps and the Po plain in the green season."""
    with Image.open(ROOT / "data" / "blue_marble" / "green_season.jpg") as picture:
        return np.asarray(picture.crop((2760, 600, 2760 + SIDE, 600 + SIDE)))


def sheet(columns: dict[str, jax.Array]) -> Image.Image:
    """Arrange images in rows under the captions of their columns."""
    rows = len(next(iter(columns.values())))
    step = SIDE + MARGIN
    page = Image.new("RGB", (len(columns) * step + MARGIN, rows * step + HEADER + MARGIN), "white")
    for column, (caption, images) in enumerate(columns.items()):
        left = MARGIN + column * step
        ImageDraw.Draw(page).text((left, 4), caption, fill="black")
        for row, image in enumerate(np.asarray(images)):
            pixels = Image.fromarray(np.rint(255 * image).astype(np.uint8))
            page.paste(pixels, (left, HEADER + row * step))
    return page


if __name__ == "__main__":
    main()
