"""A trained model as one object: `load` reads it from a file or a run's folder, a `Segmentor` applies it to images."""

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
from einops import reduce
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from crossearth_jax import benchmark
from crossearth_jax.config import MeshConfig, ModelConfig, UserError
from crossearth_jax.inference.windows import Blend, ScoreWindows, SlidingWindows
from crossearth_jax.models.network import Features, Params, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.buckets import any_path, check_access
from crossearth_jax.training.weights_file import ensure_exported
from crossearth_jax.weights import hub
from crossearth_jax.weights.load import Weights, load_weights
from crossearth_jax.weights.native import MODEL_FILE, Description, Palette

LEAST_VALID = 0.5  # least share of valid pixels of a window that gets a descriptor

# A function that receives the descriptors (n, d) of a batch of windows, whose computation may still be running.
Observe = Callable[[jax.Array], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentor:
    """A network with its parameters, its classes, and the window and stride with which it is applied to images."""

    model: SegmentationModel
    params: Params
    description: Description  # `window`, `stride` and `palette` are always set

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.model.config.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the score channels.

        Raises:
          UserError: neither the weights file nor the caller of `load` gave class names.
        """
        if not self.description.class_names:
            raise UserError(
                f"the weights file does not name its {self.classes} classes; give class_names=[…] or class_names= with "
                f"the name of a taxonomy ({', '.join(benchmark.TAXONOMIES)})"
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
        """Distance between the starts of neighbouring windows, in pixels."""
        assert self.description.stride is not None
        return self.description.stride

    @property
    def multiple(self) -> int:
        """Patch size in pixels: height and width of an image given to `scores` must be multiples of it."""
        return self.model.config.vit.patch_size

    def scores(self, images: Float[Array, "b h w 3"] | Float[np.ndarray, "b h w 3"]) -> Float[Array, "b h w k"]:
        """Return the class scores of every pixel of normalised RGB images; each image is one window.

        With the Mask2Former head a score is the class probability times the mask probability, summed over queries. It
        lies in [0, number of queries] and is neither a probability nor a logit. With the head "fcn" scores are
        probabilities.

        Raises:
          UserError: height or width is not a multiple of the patch size. The reference fails for such images too.
        """
        return _scores(self.model, self.params, jnp.asarray(images, jnp.float32))

    def predict(
        self, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"], batch_size: int = 4
    ) -> UInt8[np.ndarray, "b h w"]:
        """Return the class of every pixel of 8-bit RGB images of any size, found with a sliding window.

        Windows and averaging are those of the reference. The reference fails where an axis is shorter than the window
        and not a multiple of the patch size. Here such an axis is padded with the mean colour, on the right or at the
        bottom, as in training.

        Args:
          images: all of the same size.
          batch_size: windows per call of the network; rounded up to a multiple of the number of local devices.
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
        observe: Observe | None = None,
    ) -> SlidingWindows:
        """Return a `SlidingWindows` that applies this model to images and scenes of any size, on all local devices.

        Args:
          stride: distance between windows in pixels; None means the stride of the model.
          blend: how overlapping windows are combined; see `inference.windows`.
          flips: average the scores of every window and its three mirror images, at four times the cost.
          batch_size: windows per call of the network; rounded up to a multiple of the number of local devices.
          observe: called with the descriptors of every batch of windows; see `window_descriptors`.

        Raises:
          UserError: the window is not a valid multiple of the patch size, or the stride leaves gaps between windows.
        """
        mesh, params = self._on_devices
        return SlidingWindows(
            score=score_on_devices(self.model, params, mesh, flips=flips, observe=observe),
            classes=self.classes,
            window=self.window,
            stride=self.stride if stride is None else stride,
            multiple=self.multiple,
            blend=blend,
            batch_size=-(-batch_size // mesh.size) * mesh.size,
        )

    @functools.cached_property
    def _on_devices(self) -> tuple[Mesh, Params]:
        """A mesh of all local devices, and the parameters replicated on it; the copy is made once for all calls."""
        mesh = parallel.make_mesh(MeshConfig(), jax.local_devices())
        return mesh, parallel.copy_to(mesh, {name: self.params[name] for name in self.model.shapes()})


def default_stride(window: int) -> int:
    """Return two thirds of the window in pixels, as in the published settings (341 for 512, 683 for 1024)."""
    return round(window * 2 / 3)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: SegmentationModel, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w k"]:
    return model.scores(params, images)


def score_on_devices(
    model: SegmentationModel, params: Params, mesh: Mesh, *, flips: bool = False, observe: Observe | None = None
) -> ScoreWindows:
    """Return a function that scores batches of windows on all devices of a mesh.

    The batch size must be a multiple of the number of devices.

    Args:
      model: the network.
      params: its parameters, replicated on every device.
      mesh: devices of this process; each scores an equal share of every batch.
      flips: average the scores over the mirror images of each window.
      observe: called with the descriptors of every batch.
    """
    step = jit_window_scores(model, mesh, flips)
    batch = parallel.batch_sharding(mesh)

    def score(images: UInt8[np.ndarray, "n h w 3"], valid: Bool[np.ndarray, "n h w"]) -> jax.Array:
        with jax.set_mesh(mesh):
            scores, descriptors = step(params, *jax.device_put((images, valid), batch))
        if observe is not None:
            observe(descriptors)
        return scores

    return score


@functools.lru_cache(maxsize=32)  # models of the same architecture share one compiled function
def jit_window_scores(model: SegmentationModel, mesh: Mesh, flips: bool = False) -> Any:
    """Return `window_scores` as a jitted function of (params, images, valid) that shards the windows over the mesh."""
    batch, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    step = functools.partial(window_scores, model, flips)
    return jax.jit(step, in_shardings=(whole, batch, batch), out_shardings=batch)


def window_scores(
    model: SegmentationModel,
    flips: bool,
    params: Params,
    images: UInt8[Array, "n h w 3"],
    valid: Bool[Array, "n h w"],
) -> tuple[Float[Array, "n h w k"], Float[Array, "n d"]]:
    """Return the scores of 8-bit windows and their descriptors (`window_descriptors`).

    Invalid pixels get the mean colour, which is zero after normalisation. With `flips` the scores are averaged over a
    window and its three mirror images (test-time augmentation); the descriptors are those of the window itself.
    """
    normalised = jnp.where(valid[..., None], normalize(images), 0.0)
    features = model.features(params, normalised, for_head_only=True)
    scores = model.scores_of(params, features, images.shape[1:3])
    if flips:
        for axes in ((1,), (2,), (1, 2)):
            scores = scores + jnp.flip(model.scores(params, jnp.flip(normalised, axes)), axes)
        scores = scores / 4
    return scores.astype(jnp.float32), window_descriptors(features, normalised, valid)


def window_descriptors(
    features: Features, normalised: Float[Array, "n h w 3"], valid: Bool[Array, "n h w"]
) -> Float[Array, "n d"]:
    """Describe each window by means of its features and by mean and standard deviation of its bands.

    Features are those of the backbone's last level, or the tokens that the head takes, averaged over the window. A
    patch has the weight of the share of its pixels that are valid. A window of which less than half is valid has no
    descriptor: its row is NaN.

    Args:
      features: of the windows.
      normalised: the windows, zero at invalid pixels.
      valid: their valid pixels.
    """
    level = (features.tokens.patches if features.tokens else features.levels[-1]).astype(jnp.float32)
    rows, columns = level.shape[1:3]
    patches = reduce(valid.astype(jnp.float32), "n (y dy) (x dx) -> n y x 1", "mean", y=rows, x=columns)
    pooled = (level * patches).sum((1, 2)) / patches.sum((1, 2))
    share = valid.mean((1, 2))[:, None]
    mean = normalised.mean((1, 2)) / share
    variance = (normalised**2).mean((1, 2)) / share - mean**2
    found = jnp.concatenate([pooled, mean, jnp.sqrt(jnp.maximum(variance, 0))], axis=1)
    return jnp.where(share >= LEAST_VALID, found, jnp.nan)


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
    """Load a trained model.

    Args:
      path: one of: a CrossEarth `.pth`; a `.safetensors` file written by training or by `crossearth_jax.convert`; the
        folder of a run, of which only `model.safetensors` is read; or `hf://organisation/name[@revision]`, a
        repository on a hub, of which only the safetensors file is downloaded (needs the extra `hub`).
      num_classes: the number of classes that the caller expects. It is only checked: the file determines the number.
      class_names: names in the order of the score channels, or the name of a taxonomy in `benchmark.TAXONOMIES`; None
        takes the names in the file.
      palette: RGB of each class; None takes the colours of the taxonomy or the file, else evenly spaced hues.
      config: configuration of the network, for architectures that cannot be derived from the shapes in the file
        (sizes that were never released).
      backbone: file with the frozen DINOv2 weights, for checkpoints that hold only Rein adapters and head.
      window: side of the sliding window in pixels; None means the value in the file, else the image size of the
        model's configuration.
      stride: distance between windows in pixels; None means the value in the file if the window is that of the file,
        else two thirds of the window, as in the published settings.
      ignore: regular expression; parameters in the file whose names match are not loaded.

    Raises:
      UserError: the file cannot be read, is incomplete, or contradicts an argument.
    """
    weights = read(path, config=config, backbone=backbone, ignore=ignore)
    described = weights.description
    model = SegmentationModel(dataclasses.replace(described.model, mim=None))
    _check_complete(weights, model, Path(path).name)
    if num_classes not in (None, described.model.classes):
        raise UserError(
            f"{Path(path).name} has {described.model.classes} classes, but num_classes={num_classes} was expected; "
            "leave num_classes out to accept the file"
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
    """Read the weights from a file, a repository on a hub, or the folder of a run.

    Args:
      path: as in `load`.
      options: passed to `load_weights`; not allowed for the folder of a run.

    Raises:
      UserError: see `load_weights` and `training.weights_file.ensure_exported`.
    """
    if hub.is_address(path):
        return load_weights(hub.download(hub.parse(str(path))), **options)
    found = any_path(path)
    check_access(found)
    if not found.is_dir():
        return load_weights(path, **options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(
            f"{os.fspath(path)} is the folder of a run, and its {MODEL_FILE} is complete; leave out {given[0]}"
        )
    return load_weights(ensure_exported(found))


def _check_complete(weights: Weights, model: SegmentationModel, name: str) -> None:
    missing = {key.split("/")[0] for key in model.shapes()} - set(weights.parts())
    if missing == {"backbone"}:
        raise UserError(
            f"{name} holds the trained parameters (Rein adapters and head) but not the frozen backbone; give the "
            "backbone's file too (backbone=, --backbone), e.g. dinov2_vitl14_pretrain.pth"
        )
    if missing or model.config.head is None:
        absent = " and no ".join(sorted(missing or {"head"}))
        raise UserError(f"{name} holds no {absent}; expected a trained segmentation model")


def _classes(
    described: Description, class_names: str | Sequence[str] | None, palette: Palette | None
) -> tuple[tuple[str, ...], Palette]:
    """Return class names and colours: those of the caller, else those of the file; missing colours are generated."""
    classes = described.model.classes
    names, colours = described.class_names, described.palette
    if isinstance(class_names, str):
        if class_names not in benchmark.TAXONOMIES:
            raise UserError(
                f"unknown taxonomy {class_names!r}; expected one of {', '.join(benchmark.TAXONOMIES)}, or a list of "
                "class names"
            )
        names, colours = benchmark.TAXONOMIES[class_names].classes, benchmark.TAXONOMIES[class_names].palette
    elif class_names is not None:
        names = tuple(class_names)
    colours = tuple(palette or colours)
    if not colours:  # evenly spaced hues
        rgb = (colorsys.hsv_to_rgb(i / classes, 0.6, 0.9) for i in range(classes))
        colours = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)
    for what, found in (("class names", names or colours), ("colours", colours)):
        if len(found) != classes:
            raise UserError(f"found {len(found)} {what} for {classes} classes; give one for each class")
    return names, colours
