"""A trained model as one object: `load` it from a file or a run's folder, ask it for scores or class maps."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from crossearth_jax import benchmark
from crossearth_jax.config import MeshConfig, ModelConfig, UserError
from crossearth_jax.inference.windows import Blend, ScoreWindows, SlidingWindows
from crossearth_jax.models.network import Params, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import parallel
from crossearth_jax.training.export import ensure_exported
from crossearth_jax.weights import hub
from crossearth_jax.weights.load import Weights, load_weights
from crossearth_jax.weights.native import Description, Palette


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentor:
    """A model with its parameters, its classes and the way it is applied to images."""

    model: SegmentationModel
    params: Params
    description: Description  # complete in window, stride and palette

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.model.config.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the scores.

        Raises:
          UserError: neither the file nor the caller of `load` named them.
        """
        if not self.description.class_names:
            raise UserError(
                f"the file does not name its {self.classes} classes; give class_names=[…] or the name of a taxonomy "
                f"({', '.join(benchmark.TAXONOMIES)})"
            )
        return self.description.class_names

    @property
    def palette(self) -> Palette:
        """RGB colour of each class."""
        return self.description.palette

    @property
    def window(self) -> int:
        """Side of the sliding window, in pixels."""
        assert self.description.window is not None
        return self.description.window

    @property
    def stride(self) -> int:
        """Distance of windows, in pixels."""
        assert self.description.stride is not None
        return self.description.stride

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

    def predict(
        self, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"], batch_size: int = 4
    ) -> UInt8[np.ndarray, "b h w"]:
        """Finds the class of every pixel of 8-bit RGB images of any size by sliding window.

        As the reference does, except where it fails: an axis that is shorter than the window and no multiple of the
        patch size is filled up on the right or at the bottom with the mean colour, as training fills its crops.

        Args:
          images: all of one size.
          batch_size: windows that go through the network together; rounded up to a multiple of the local devices.
        """
        labels = np.empty(images.shape[:3], np.uint8)
        for position, found in self.sliding_windows(batch_size=batch_size).labels(np.asarray(images)):
            labels[position] = found
        return labels

    def sliding_windows(
        self,
        *,
        stride: int | None = None,
        blend: Blend = "mean",
        flips: bool = False,
        batch_size: int = 4,
    ) -> SlidingWindows:
        """Builds the engine that applies this model to images and scenes of any size, on all local devices.

        Args:
          stride: distance of windows in pixels; None is the model's own.
          blend: how overlapping windows are combined; see `inference.windows`.
          flips: average the scores over the mirror images of every window, which takes four times the work.
          batch_size: windows that go through the network together; rounded up to a multiple of the local devices.

        Raises:
          UserError: the window does not fit the patch size, or the stride would leave gaps.
        """
        mesh, params = self._on_devices
        return SlidingWindows(
            score=score_on_devices(self.model, params, mesh, flips=flips),
            classes=self.classes,
            window=self.window,
            stride=self.stride if stride is None else stride,
            multiple=self.multiple,
            blend=blend,
            batch_size=-(-batch_size // mesh.size) * mesh.size,
        )

    @functools.cached_property
    def _on_devices(self) -> tuple[Mesh, Params]:
        """A mesh of all local devices, and the parameters whole on each of them, copied once for all calls."""
        mesh = parallel.make_mesh(MeshConfig(), jax.local_devices())
        return mesh, parallel.copy_to(mesh, {name: self.params[name] for name in self.model.shapes()})


def default_stride(window: int) -> int:
    """Two thirds of the window, the published setting (341 of 512, 683 of 1024)."""
    return round(window * 2 / 3)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: SegmentationModel, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w k"]:
    return model.scores(params, images)


def score_on_devices(model: SegmentationModel, params: Params, mesh: Mesh, *, flips: bool = False) -> ScoreWindows:
    """Builds the function that scores batches of windows, whose number is a multiple of the devices, over a mesh.

    Args:
      model: the network.
      params: its parameters, whole on every device.
      mesh: of devices of this process; each gets its share of every batch.
      flips: average over the mirror images.
    """
    step = jit_window_scores(model, mesh, flips)
    batch = parallel.batch_sharding(mesh)

    def score(images: UInt8[np.ndarray, "n h w 3"], valid: Bool[np.ndarray, "n h w"]) -> jax.Array:
        with jax.set_mesh(mesh):
            return step(params, *jax.device_put((images, valid), batch))

    return score


@functools.lru_cache(maxsize=32)  # one compilation serves all models of one shape
def jit_window_scores(model: SegmentationModel, mesh: Mesh, flips: bool = False) -> Any:
    """`window_scores` of (params, images, valid), jitted with the windows split over the mesh."""
    batch, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    scores = functools.partial(window_scores, with_flips(model.scores) if flips else model.scores)
    return jax.jit(scores, in_shardings=(whole, batch, batch), out_shardings=batch)


def window_scores(
    scores: Callable[[Params, Float[Array, "n h w 3"]], Float[Array, "n h w k"]],
    params: Params,
    images: UInt8[Array, "n h w 3"],
    valid: Bool[Array, "n h w"],
) -> Float[Array, "n h w k"]:
    """Scores of 8-bit windows; pixels that are not valid have the mean colour, which is zero after normalisation."""
    return scores(params, jnp.where(valid[..., None], normalize(images), 0.0)).astype(jnp.float32)


def with_flips(
    scores: Callable[[Params, Float[Array, "n h w 3"]], Float[Array, "n h w k"]],
) -> Callable[[Params, Float[Array, "n h w 3"]], Float[Array, "n h w k"]]:
    """Averages the scores of a window and of its three mirror images, a cheap test-time augmentation."""

    def averaged(params: Params, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w k"]:
        total = scores(params, images)
        for axes in ((1,), (2,), (1, 2)):
            total = total + jnp.flip(scores(params, jnp.flip(images, axes)), axes)
        return total / 4

    return averaged


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
      path: a CrossEarth `.pth`, a `.safetensors` that training or `crossearth_jax.convert` wrote, the folder of a run
        (of which only `model.safetensors` is read), or `hf://organisation/name[@revision]` for a repository on a hub
        (extra `hub`), of which only the safetensors are fetched.
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
    described = weights.description
    model = SegmentationModel(dataclasses.replace(described.model, mim=None))
    _check_complete(weights, model, Path(path).name)
    if num_classes not in (None, described.model.classes):
        raise UserError(
            f"{Path(path).name} has {described.model.classes} classes, expected {num_classes}; leave num_classes out"
        )
    names, colours = _classes(described, class_names, palette)
    params = {name: jnp.asarray(weights.params[name]) for name in model.shapes()}
    side = window or described.window or described.model.vit.image_size
    if stride is None:
        stride = described.stride if side == described.window else None
    description = dataclasses.replace(
        described,
        model=model.config,
        class_names=names,
        palette=colours,
        window=side,
        stride=stride or default_stride(side),
    )
    return Segmentor(model, params, description)


def read(path: str | os.PathLike[str], **options: Any) -> Weights:
    """Reads the weights of a file, of a hub's repository, or of a run's folder.

    Args:
      path: as in `load`.
      options: of `load_weights`.

    Raises:
      UserError: see `load_weights` and `training.export.ensure_exported`.
    """
    if hub.is_address(path):
        return load_weights(hub.download(hub.parse(str(path))), **options)
    if not Path(path).is_dir():
        return load_weights(path, **options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{os.fspath(path)} is the folder of a run, whose file is complete; leave out {given[0]}")
    return load_weights(ensure_exported(Path(path)))


def _check_complete(weights: Weights, model: SegmentationModel, name: str) -> None:
    missing = {key.split("/")[0] for key in model.shapes()} - set(weights.parts())
    if missing == {"backbone"}:
        raise UserError(
            f"{name} holds what was trained (Reins and head) but not the frozen backbone; name its file too "
            "(backbone=, --backbone), e.g. dinov2_vitl14_pretrain.pth"
        )
    if missing or model.config.head is None:
        absent = " and no ".join(sorted(missing or {"head"}))
        raise UserError(f"{name} holds no {absent}; expected a trained segmentation model")


def _classes(
    described: Description, class_names: str | Sequence[str] | None, palette: Palette | None
) -> tuple[tuple[str, ...], Palette]:
    """Names and colours of the classes, from the caller, else the file, else (colours only) made up."""
    classes = described.model.classes
    names, colours = described.class_names, described.palette
    if isinstance(class_names, str):
        if class_names not in benchmark.TAXONOMIES:
            raise UserError(f"taxonomy {class_names!r} is unknown; known are {', '.join(benchmark.TAXONOMIES)}")
        names, colours = benchmark.TAXONOMIES[class_names].classes, benchmark.TAXONOMIES[class_names].palette
    elif class_names is not None:
        names = tuple(class_names)
    colours = tuple(palette or colours)
    if not colours:  # hues around the circle
        rgb = (colorsys.hsv_to_rgb(i / classes, 0.6, 0.9) for i in range(classes))
        colours = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)
    for what, found in (("class names", names or colours), ("colours", colours)):
        if len(found) != classes:
            raise UserError(f"there are {len(found)} {what} for {classes} classes; give one for each")
    return names, colours
