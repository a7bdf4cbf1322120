"""Experiment configuration: frozen dataclasses, one comment per field.

A config file builds a `Config` and returns `to_config_dict(config)`, so that every field can be overridden on
the command line (`--config.train.steps=100`); `main` turns the result back with `from_config_dict`, which
refuses unknown keys. Nothing past `main` sees an untyped config.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict


class UserError(Exception):
    """A mistake of the user's: one line that says what was found, what was expected and what to do.

    Commands print it without a traceback and exit with code 2 (`crossearth_jax.main.run_command`).
    """


PixelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]  # RGB mean and deviation, 0..255


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """DINOv2 vision transformer; the defaults are ViT-L/16 as CrossEarth uses it."""

    image_size: int = 512  # side of the square image the position table belongs to
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    # RGB mean and deviation, 0..255, of the images that the patch embedding is made for; None: ImageNet's, as released;
    # "source": measured on the train split of the source when training starts.
    pixel_statistics: str | PixelStatistics | None = None
    swiglu: bool = False  # DINOv2 ViT-g: gated MLP in place of GELU
    layer_scale: float = 1e-5  # initial value of the per-channel residual gains
    feature_blocks: tuple[int, ...] = (7, 11, 15, 23)  # 0-based blocks whose output becomes a feature level
    # Enlargement of each feature level. For 16-pixel patches these make the strides 4, 8, 16 and 32.
    pyramid: tuple[float, float, float, float] = (4.0, 2.0, 1.0, 0.5)
    remat: bool = True  # recompute a block's activations in the backward pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinsConfig:
    """LoRAReins adapters; the number of tokens is also the number of mask queries."""

    tokens: int = 100
    rank: int = 16
    scale: float = 1e-3  # initial value of the shared output gain


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The segmentation head: Mask2Former's pixel decoder and transformer decoder, or a light one of convolutions."""

    kind: str = "mask2former"  # or "fcn", which takes `width` and `groups` alone
    width: int = 256
    heads: int = 8
    groups: int = 32  # of the group norms
    encoder_layers: int = 6
    encoder_mlp_width: int = 1024
    points: int = 4  # sampling points per head and level of deformable attention
    decoder_layers: int = 9
    decoder_mlp_width: int = 2048
    queries: int = 100  # used only without Reins; with them the Reins tokens are the queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimConfig:
    """Masked-image-modelling head (atrous pyramid) and its pixel mask token."""

    width: int = 256
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    image_size: int = 512  # side at which the reconstruction is compared
    token_size: int = 1024  # side of the learnable pixel mask token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole network."""

    classes: int = 6  # without "no object"
    vit: ViTConfig = ViTConfig()
    reins: ReinsConfig | None = ReinsConfig()
    head: HeadConfig | None = HeadConfig()  # None for pretraining without labels
    mim: MimConfig | None = None
    # Of matrix products and convolutions, "float32" or "bfloat16"; parameters, residual streams, norms and losses are
    # always float32.
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how."""

    source: str = "blue_marble/temperate_green"  # training domain; several are joined by "+"
    source_weights: tuple[float, ...] = ()  # shares of several sources in training; (): by their numbers of images
    domains_file: str | None = None  # a user's domains.toml, whose domains are prepared before training
    data_dir: str = "~/.cache/crossearth_jax"  # prepared datasets (array_record)
    window: int | None = None  # side of the windows cut at random from larger training images; None: whole images
    batch_size: int = 4  # global, over all devices and processes
    workers: int = 0  # grain worker processes; 0 reads in the main process
    prefetch: int = 2  # batches kept ready
    timeout: float = 600.0  # seconds without a batch after which the run stops
    corrupt_records: str = "stop"  # "stop" or "skip" (skipped records are counted and logged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations inside the jitted step, in the order they are applied."""

    crop_size: int = 512
    scales: tuple[float, ...] = tuple(0.1 * k for k in range(5, 21))  # short side = int(crop_size * scale)
    longest: float = 4.0  # crops; a long side above it shrinks the image, whatever its scale
    max_class_share: float = 0.75  # a crop whose largest class covers this much is drawn again
    crop_tries: int = 10
    flip: bool = True
    vertical_flip: bool = False  # also vertical flips (dihedral symmetry with `flip`)
    photometric: bool = True
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleConfig:
    """Earth-Style Injection."""

    backend: str = "mobile"  # "mobile" (shipped) or "inception" (the paper's, needs `weights`)
    weights: str | None = None  # file of the style network for "inception"
    statistics: str | None = None  # .npz of mean and covariance factor; None takes the shipped one
    probability: float = 0.1  # that an image is restyled
    alpha: float = 0.1  # share of the sampled style in the mixed code
    mask_ratio: float = 0.7  # share of blocks that take the restyled image
    block_size: int = 64  # pixels at crops of 512 and more
    # What a restyled pixel takes of the image that the style network draws: "network" (all of it, as the reference
    # does), "low" (only the change of colour, averaged over cells) or "scaled" (all of it, drawn larger and averaged
    # back). `literal` always takes "network".
    detail: str = "network"
    cell_size: int = 16  # side of the cells of "low", in pixels at crops of 512 and more
    # Side of the images that the network draws for "low" (None: 0.5) and "scaled" (None: 2), relative to the crop's.
    draw_scale: float | None = None
    literal: bool = False  # the reference's behaviour: one coin per batch, [0, 1] input to the backbone
    # Parts of the (micro-)batch that choose their restyled images on their own, a multiple of the device shards. None
    # takes one per shard, and then another mesh restyles other images; a number makes the mesh irrelevant.
    groups: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimTaskConfig:
    """Masked image modelling as a second task (needs `model.mim`)."""

    mask_ratio: float = 0.1  # share of blocks replaced by the mask token
    block_size: int = 64
    masked_weight: float = 1.0
    styled_weight: float = 1.0
    consistency_weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Mask2Former's set loss and beside it a pixel-wise cross-entropy; with the head "fcn" cross-entropy and Dice."""

    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    pixel_weight: float = 0.0  # of the pixel-wise cross-entropy, which the reference has not; 0 leaves it out
    # Weight of each class in the class term and in the pixels' cross-entropy: given in the order of the classes, or
    # "inverse_frequency", counted from the labels of the train split when training starts; None: all classes weigh 1.
    class_weights: str | tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a polynomial schedule. Tables are (regex, value): first full match wins, none left over."""

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    warmup_factor: float = 1e-6
    # Step at which the polynomial would reach zero; None: train.steps. CrossEarth stops at 30,000 of 40,000.
    horizon: int | None = None
    power: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay: tuple[tuple[str, bool], ...] = (  # which parameters decay; the recipe spares norms and embeddings
        (r".*/norm\d?/.*|.*/level_embed|head/mask_decoder/queries|reins/(tokens_[ab]|scale)", False),
        (r".*", True),
    )
    rates: tuple[tuple[str, float], ...] = ((r".*", 1.0),)  # learning-rate multipliers
    clip_norm: float | None = None
    accumulate: int = 1  # micro-batches per step
    ema: float | None = None  # decay of the averaged parameters that evaluation then uses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = 30_000
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    init_from: str | None = None  # weights file (.safetensors, .pth) or folder of a run that this run starts from
    frozen: tuple[tuple[str, bool], ...] = (
        (r"backbone/.*", True),
        (r".*", False),
    )
    nonfinite: str = "stop"  # "stop" or "skip" (skipped steps are counted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Sliding-window evaluation."""

    window: int = 512
    stride: int = 341
    batch_size: int = 8  # windows scored together, over all devices of a process
    examples: int = 4  # images per domain shown in the report
    settings: tuple[str, ...] = ()  # rows of the benchmark to score; () takes every one of the source
    # Which checkpoint is scored: "last", or "best_on_source" by mIoU on the validation split of the source.
    select: str = "last"
    every: int | None = None  # steps between two validations for "best_on_source"; None: train.checkpoint_every


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Device mesh; one axis may be -1 and takes what is left."""

    data: int = -1
    fsdp: int = 1
    model: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    name: str
    seed: int = 42
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    style: StyleConfig | None = None
    mim: MimTaskConfig | None = None
    loss: LossConfig | None = LossConfig()  # of segmentation; None for pretraining without labels
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mesh: MeshConfig = MeshConfig()

    @property
    def horizon(self) -> int:
        """Step at which the learning rate would reach zero: `optimizer.horizon`, or else the number of steps."""
        return self.train.steps if self.optimizer.horizon is None else self.optimizer.horizon


def to_config_dict(config: Any) -> ConfigDict:
    """Turns a config dataclass into a `ConfigDict` with the same nesting, every field present."""
    return ConfigDict({field.name: _to_value(config, field.name) for field in dataclasses.fields(config)})


def _to_value(config: Any, name: str) -> Any:
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if value is None:
        # A bare None cannot be overridden; a placeholder can, and is type-safe for optional scalars.
        members = _members(typing.get_type_hints(type(config))[name])
        if any(typing.get_origin(member) is tuple for member in members):
            return config_dict.placeholder(object)
        scalar = [member for member in members if member in (int, float, str)]
        return config_dict.placeholder(scalar[0]) if scalar else None
    return value


def from_config_dict[T](values: Any, cls: type[T] = Config, path: str = "config") -> T:
    """Builds the dataclass `cls` from a `ConfigDict` or a plain mapping.

    Raises:
      UserError: a key is unknown, a required one is missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    values = dict(values.items())
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(hints)}"
            raise UserError(f"unknown config key '{path}.{key}'{hint}")
    parsed = {key: _from_value(value, hints[key], f"{path}.{key}") for key, value in values.items()}
    try:
        return cls(**parsed)
    except TypeError as error:
        raise UserError(f"{path}: {error}") from None


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _from_value(value: Any, hint: Any, path: str) -> Any:
    members = _members(hint)
    if value is None:
        if type(None) in members:
            return None
        raise UserError(f"{path} is None, expected {hint}")
    some = [member for member in members if member is not type(None)]
    hint = str if isinstance(value, str) and str in some else some[-1]  # of two, the first is str
    if dataclasses.is_dataclass(hint):
        if not hasattr(value, "items"):
            raise UserError(f"{path} is {value!r}, expected the fields of {typing.cast(type, hint).__name__}")
        return from_config_dict(value, typing.cast(type, hint), path)
    return _checked(value, hint, path)


def _checked(value: Any, hint: Any, path: str) -> Any:
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        args = typing.get_args(hint)
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(hints) != len(value):
            raise UserError(f"{path} has {len(value)} entries, expected {len(hints)}")
        return tuple(_checked(item, h, f"{path}[{i}]") for i, (item, h) in enumerate(zip(value, hints, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path} is {value!r} ({type(value).__name__}), expected {hint.__name__}")
    return value
