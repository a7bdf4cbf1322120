"""A trained model as one object: `load` it from a file or a run's folder, ask it for scores or class maps."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from crossearth_jax import benchmark
from crossearth_jax.config import Config, MeshConfig, ModelConfig, UserError, from_config_dict
from crossearth_jax.models.network import Params, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.ops.tiling import sliding_scores
from crossearth_jax.runtime import parallel
from crossearth_jax.training.checkpoint import Checkpoints
from crossearth_jax.training.initialise import initial_params, run_identity, style_parts
from crossearth_jax.training.program import build_program
from crossearth_jax.weights import hub
from crossearth_jax.weights.load import Weights, load_weights
from crossearth_jax.weights.native import Description, Palette


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentor:
    """A model with its parameters, the names and colours of its classes, and its sliding window."""

    model: SegmentationModel
    params: Params
    names: tuple[str, ...]  # () if neither the file nor the caller said
    palette: Palette  # RGB per class
    window: int  # side of the square windows, in pixels
    stride: int  # distance of windows, in pixels
    step: int | None = None  # optimizer steps of the run it comes from, if the file says

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.model.config.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the scores.

        Raises:
          UserError: the file does not say, and nobody else did.
        """
        if not self.names:
            raise UserError(
                f"the file does not name its {self.classes} classes; give class_names=[…] or the name of a taxonomy "
                f"({', '.join(benchmark.TAXONOMIES)})"
            )
        return self.names

    @property
    def multiple(self) -> int:
        """The sides of an image given to `scores` must be multiples of this."""
        return self.model.config.vit.patch_size

    def scores(self, images: Float[Array, "b h w 3"] | Float[np.ndarray, "b h w 3"]) -> Float[Array, "b h w k"]:
        """Scores every pixel of normalised RGB images, each seen as one window.

        The sum over queries of class probability times mask: in [0, queries], neither a probability nor a logit.

        Raises:
          UserError: a side is no multiple of the patch size; the reference fails there too.
        """
        return _scores(self.model, self.params, jnp.asarray(images, jnp.float32))

    def score(self, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"]) -> Float[Array, "b h w k"]:
        """The scores of 8-bit RGB images, each seen as one window."""
        return _scores(self.model, self.params, normalize(jnp.asarray(images)))

    def predict(
        self, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"], batch_size: int = 4
    ) -> UInt8[np.ndarray, "b h w"]:
        """Finds the class of every pixel of 8-bit RGB images of any size by sliding window.

        As the reference does, except where it fails: an axis that is shorter than the window and no multiple of the
        patch size is filled up on the right or at the bottom with the mean colour, as training fills its crops.

        Args:
          images: all of one size.
          batch_size: windows of one image that go through the network together.
        """
        labels = _labels(self.model, self.window, self.stride, batch_size, self.params, jnp.asarray(images))
        return np.asarray(labels)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: SegmentationModel, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w k"]:
    return model.scores(params, images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _labels(
    model: SegmentationModel, window: int, stride: int, batch: int, params: Params, images: UInt8[Array, "b h w 3"]
) -> UInt8[Array, "b h w"]:
    score = functools.partial(model.scores, params)
    scores = sliding_scores(score, normalize(images), window, stride, batch, model.config.vit.patch_size)
    return jnp.argmax(scores, axis=-1).astype(jnp.uint8)


def load(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    class_names: str | Sequence[str] | None = None,
    palette: Palette | None = None,
    config: ModelConfig | None = None,
    backbone: str | os.PathLike[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    ignore: str | None = None,
) -> Segmentor:
    """Loads a trained model.

    Args:
      path: a CrossEarth `.pth`, a `.safetensors` that `crossearth_jax.convert` wrote, the folder of a run, or
        `hf://organisation/name[@revision]` for a repository on a hub (extra `hub`), of which only the safetensors are
        fetched.
      num_classes: what the caller expects; the number itself is read from the file.
      class_names: names in the order of the scores, or the name of a taxonomy of `benchmark.TAXONOMIES`; None takes
        what the file says.
      palette: RGB of each class; None takes what the file or the taxonomy says, else colours around the circle.
      config: the model, where shapes do not tell it (sizes that were never released).
      backbone: file with the frozen DINOv2, for checkpoints that hold only Reins and head.
      window: side of the sliding window of `predict`; None is the size the model was trained for.
      stride: distance of windows; None is two thirds of the window, the published setting.
      ignore: regular expression of names in the file to leave out.

    Raises:
      UserError: the file cannot be read or is incomplete, or does not fit what is asked of it.
    """
    weights = read(path, config=config, backbone=backbone, ignore=ignore)
    model = SegmentationModel(weights.description.model)
    _check_complete(weights, model, Path(path).name)
    classes = model.config.classes
    if num_classes not in (None, classes):
        raise UserError(f"{Path(path).name} has {classes} classes, expected {num_classes}; leave num_classes out")
    names, colours = _classes(weights, class_names, palette)
    described = weights.description
    window = window or described.window or model.config.vit.image_size
    if stride is None:
        stride = described.stride if window == described.window else None
    params = {name: jnp.asarray(weights.params[name]) for name in model.shapes()}
    return Segmentor(model, params, names, colours, window, stride or round(window * 2 / 3), described.step)


def read(path: str | os.PathLike[str], **options: Any) -> Weights:
    """The weights of a file or a hub's repository (with the options of `load_weights`), or of a run's folder.

    Raises:
      UserError: see `load_weights` and `load_run`.
    """
    if hub.is_address(path):
        return load_weights(hub.download(hub.parse(str(path))), **options)
    if not Path(path).is_dir():
        return load_weights(path, **options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{os.fspath(path)} is the folder of a run, which says all by itself; leave out {given[0]}")
    return load_run(Path(path))


def load_run(workdir: Path) -> Weights:
    """The parameters that evaluation uses, from the checkpoint of a run's folder that `evaluate.select` names.

    Where that one is damaged, the next one is read, with a warning.

    The frozen ones, which checkpoints do not hold, are read or drawn again as when the run started, and compared
    by digest.

    Raises:
      UserError: the folder is not of a run, holds no checkpoint, or the file the run started from has changed.
    """
    config = read_run_config(workdir)
    mesh = parallel.make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        program = build_program(config, mesh, *style_parts(config, 1))
        _, frozen = initial_params(program)
        identity = run_identity(config, frozen)
        checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints, identity)
        steps = checkpoints.ranked(config.evaluate.select)
        state = checkpoints.restore(program.state, program.state_shardings, steps)
    params = state.evaluated | {k: v for k, v in frozen.items() if not k.startswith("style/")}
    described = describe_run(config, int(state.step))
    return Weights(jax.device_get(params), described)


def describe_run(config: Config, step: int) -> Description:
    """What a file of a run's parameters should say of them; a run without labels has no classes to name."""
    taxonomy = benchmark.TAXONOMIES.get(benchmark.DOMAINS[config.data.source].taxonomy or "")
    return Description(
        model=config.model,
        class_names=taxonomy.classes if taxonomy else (),
        palette=taxonomy.palette if taxonomy else (),
        source=f"{config.name}, step {step}",
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        step=step,
    )


def read_run_config(workdir: Path) -> Config:
    """The configuration in a run's folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; expected the folder of a run") from None
    return from_config_dict(values)


def _check_complete(weights: Weights, model: SegmentationModel, name: str) -> None:
    missing = {key.split("/")[0] for key in model.shapes()} - set(weights.parts())
    if missing == {"backbone"}:
        raise UserError(
            f"{name} holds what was trained (Reins and head) but not the frozen backbone; name its file too "
            "(backbone=, --backbone), e.g. dinov2_vitl14_pretrain.pth"
        )
    if missing:
        raise UserError(f"{name} holds no {' and no '.join(sorted(missing))}; expected a trained segmentation model")


def _classes(
    weights: Weights, class_names: str | Sequence[str] | None, palette: Palette | None
) -> tuple[tuple[str, ...], Palette]:
    """Names and colours of the classes, from the caller, else the file, else (colours only) made up."""
    described = weights.description
    classes = described.model.classes
    names, colours = described.class_names, described.palette
    if isinstance(class_names, str):
        if class_names not in benchmark.TAXONOMIES:
            raise UserError(f"taxonomy {class_names!r} is unknown; known are {', '.join(benchmark.TAXONOMIES)}")
        names, colours = benchmark.TAXONOMIES[class_names].classes, benchmark.TAXONOMIES[class_names].palette
    elif class_names is not None:
        names = tuple(class_names)
    colours = tuple(palette or colours or _colours(classes))
    for what, found in (("class names", names or colours), ("colours", colours)):
        if len(found) != classes:
            raise UserError(f"there are {len(found)} {what} for {classes} classes; give one for each")
    return names, colours


def _colours(count: int) -> Palette:
    """Distinct colours: hues around the circle."""
    rgb = (colorsys.hsv_to_rgb(i / count, 0.6, 0.9) for i in range(count))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)
