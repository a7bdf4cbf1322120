"""Write a trained model as a StableHLO file, which `jax.export.deserialize` reads without this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
from jaxtyping import Array, Float

from crossearth_jax.config import UserError
from crossearth_jax.exporting.interface import class_probabilities, input_shape, metadata
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.ops.backend import tracing_for
from crossearth_jax.runtime.atomic import replacing, write_json

PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 2_000_000_000  # bytes of weights; the format of jax.export cannot hold more than 2 GiB


def write_stablehlo(path: Path, segmentor: Segmentor) -> None:
    """Write a model to `path` and its description to `<path>.json`.

    The file holds the network once for every platform, in the formulation that is fastest there, and the weights once.

    Raises:
      UserError: a file cannot be written, or the model is too large for the format.
    """
    size = sum(value.nbytes for value in segmentor.params.values())
    if size > LARGEST:
        raise UserError(f"the weights have {size / 1e9:.1f} GB, a StableHLO file holds at most 2 GB; export to .onnx")

    def traced_for(platform: str) -> Callable[[Float[Array, "b 3 s s"]], Float[Array, "b k s s"]]:
        def run(images: Float[Array, "b 3 s s"]) -> Float[Array, "b k s s"]:
            with tracing_for(platform):
                return class_probabilities(segmentor, images)

        return run

    @jax.jit
    def on_any_platform(images: Float[Array, "b 3 s s"]) -> Float[Array, "b k s s"]:
        return jax.lax.platform_dependent(images, cpu=traced_for("cpu"), cuda=traced_for("gpu"), tpu=traced_for("tpu"))

    exported = jax.export.export(on_any_platform, platforms=PLATFORMS)(input_shape(segmentor))
    with replacing(path) as temporary:
        temporary.write_bytes(exported.serialize())
    write_json(path.with_name(f"{path.name}.json"), metadata(segmentor))
