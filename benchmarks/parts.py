"""Measure single parts: input pipeline, image decoders and deformable attention."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import workers
from benchmarks.network import Options, Result
from crossearth_jax import prepare
from crossearth_jax.augment.pipeline import augment
from crossearth_jax.config import AugmentConfig, DataConfig
from crossearth_jax.inputs.loader import train_iterator
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.ops import deformable_attention

DOMAIN = "blue_marble/temperate_green"


def inputs(options: Options) -> Result:
    """Measure images per second: batches from memory, records from disk, PNG decoding, augmentations."""
    data_dir = options.scratch / "data"
    prepare.prepare_domains([DOMAIN], data_dir)
    batch = 32
    iterator = train_iterator(DataConfig(source=DOMAIN, data_dir=str(data_dir), batch_size=batch), seed=0)
    split = PreparedSplit(DOMAIN, "train", data_dir)
    side = SIDES[options.size]
    pixels = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    png = _png(_smooth(pixels[0]))
    config = AugmentConfig(crop_size=side)
    jitted = jax.jit(augment, static_argnums=0)
    labels = jnp.zeros((4, side, side), jnp.uint8)
    work: dict[str, tuple[int, Callable[[], Any]]] = {
        "batches_from_memory_64px": (batch * 50, lambda: [next(iterator) for _ in range(50)]),
        "records_from_disk_64px": (200, lambda: [split[i % len(split)] for i in range(200)]),
        f"png_decoding_{side}px": (20, lambda: [np.asarray(Image.open(io.BytesIO(png))) for _ in range(20)]),
        f"augmentations_{side}px": (
            4,
            lambda: jax.block_until_ready(jitted(config, jax.random.key(0), jnp.asarray(pixels), labels)),
        ),
    }
    rates = {}
    for name, (count, task) in work.items():
        task()
        rates[name] = workers.spread([count / workers.timed(task)["seconds"] for _ in range(options.rounds)])
    return {"images_per_second": rates}


def decoders(options: Options) -> Result:
    """Measure megapixels per second that one thread decodes of real JPEG tiles, and of the same tiles as PNG.

    Pillow, which the package uses, is compared with those of simplejpeg, OpenCV and imagecodecs that are installed.
    """
    tiles = [path.read_bytes() for path in sorted((workers.ROOT / "data/dubai_sample/image").glob("*.jpg"))[:12]]
    images = [np.asarray(Image.open(io.BytesIO(tile))) for tile in tiles]
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    files = {"jpeg": tiles, "png": [_png(image) for image in images]}
    tasks = {
        (name, kind): lambda decode=decode, kind=kind: [decode(data) for data in files[kind]]
        for name, kinds, decode in _decoders()
        for kind in kinds
    }
    times = _in_turn(tasks, options.rounds)
    result: Result = {"megapixels_per_second": {}, "ratio_to_pillow": {}}
    for (name, kind), found in times.items():
        result["megapixels_per_second"][f"{kind}/{name}"] = workers.spread([megapixels / t for t in found])
        if name != "pillow":
            result["ratio_to_pillow"][f"{kind}/{name}"] = workers.ratios(found, times["pillow", kind])
    return result


def _decoders() -> Iterator[tuple[str, tuple[str, ...], Callable[[bytes], np.ndarray]]]:
    """Yield name, formats and function of the installed decoders; all return RGB except OpenCV's BGR."""
    yield "pillow", ("jpeg", "png"), lambda data: np.asarray(Image.open(io.BytesIO(data)))
    with contextlib.suppress(ModuleNotFoundError):
        simplejpeg = importlib.import_module("simplejpeg")
        yield "simplejpeg", ("jpeg",), simplejpeg.decode_jpeg
    with contextlib.suppress(ModuleNotFoundError):
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        yield "opencv", ("jpeg", "png"), lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    with contextlib.suppress(ModuleNotFoundError):
        imagecodecs = importlib.import_module("imagecodecs")
        yield "imagecodecs", ("jpeg", "png"), imagecodecs.imread


SIDES = {"vit_l": 512, "tiny": 64}


def _png(pixels: np.ndarray) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _smooth(pixels: np.ndarray) -> np.ndarray:
    """Return an image of the same size that compresses like a photograph, which noise would not."""
    small = Image.fromarray(pixels).resize((16, 16))
    return np.asarray(small.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))


def _in_turn[K](tasks: Mapping[K, Callable[[], Any]], rounds: int) -> dict[K, list[float]]:
    """Run all tasks in turn; return the seconds of every round but a first one, which compiles."""
    times: dict[K, list[float]] = {key: [] for key in tasks}
    for number in range(rounds + 1):
        for key, task in tasks.items():
            seconds = workers.timed(task)["seconds"]
            if number:
                times[key].append(seconds)
    return times


def deformable(options: Options) -> Result:
    """Time both formulations of deformable attention at the size of the pixel decoder, forward and with gradient."""
    side = SIDES[options.size] // 32
    sizes = [(side * factor, side * factor) for factor in (1, 2, 4)]
    count = sum(h * w for h, w in sizes)
    keys = jax.random.split(jax.random.key(0), 3)
    values = jax.random.normal(keys[0], (1, count, 8, 32))
    locations = jax.random.uniform(keys[1], (1, count, 8, 3, 4, 2))
    weights = jax.random.uniform(keys[2], (1, count, 8, 3, 4))
    tasks: dict[str, Callable[[], Any]] = {}
    for name in ("sample_by_gather", "sample_by_products"):
        function = getattr(deformable_attention, name)

        def call(v: jax.Array, x: jax.Array, w: jax.Array, function: Any = function) -> jax.Array:
            return function(v, sizes, x, w)

        gradient = jax.grad(lambda v, x, w, call=call: (call(v, x, w) ** 2).sum(), argnums=(0, 1, 2))
        for kind, one in (("forward", call), ("with_gradient", gradient)):
            jitted = jax.jit(one)
            tasks[f"{name}/{kind}"] = lambda jitted=jitted: jax.block_until_ready(jitted(values, locations, weights))
    times = _in_turn(tasks, options.rounds)
    return {"milliseconds": {name: workers.spread([1000 * t for t in found]) for name, found in times.items()}}
