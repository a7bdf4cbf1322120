"""Experiment configuration: frozen dataclasses whose comments explain the fields.

A config file builds a `Config` and returns `to_config_dict(config)`, so that every field can be overridden on
the command line (`--config.train.steps=100`). `main` converts the result back with `from_config_dict`, which
refuses unknown keys. All other code uses the typed `Config` only.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict


class UserError(Exception):
    """A mistake of the user, in one line: what was found, what was expected and what to do.

    Commands print it without a traceback and exit with code 2 (`crossearth_jax.runtime.command.run`).
    """


# RGB mean and standard deviation, 0..255.
PixelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The backbone; the defaults are DINOv2 ViT-L/16 as CrossEarth uses it.

    `models.backbones.BACKBONES` holds this section for every backbone with published weights.
    """

    kind: str = "vit"  # the network, a name in `models.backbones.KINDS`

    image_size: int = 512  # pixels; side of the square image that the position embedding is made for
    patch_size: int = 16  # pixels
    width: int = 1024  # channels of a token
    depth: int = 24  # blocks
    heads: int = 16  # attention heads
    mlp_width: int = 4096  # hidden units of the MLP
    # RGB mean and standard deviation, 0..255, of the images that the patch embedding is made for. None: those of
    # ImageNet, as released. "source": measured on the train split of the source when training starts.
    pixel_statistics: str | PixelStatistics | None = None
    swiglu: bool = False  # gated MLP in place of GELU, as in DINOv2 ViT-g
    registers: int = 0  # learnt tokens beside the class token (arXiv 2309.16588)
    # How tokens get their position. "table": learnt embeddings, resized to the image as in DINOv2. "antialiased_table":
    # resized as in DINOv2 with registers. "rope": rotary embeddings in every attention layer, as in DINOv3.
    position: str = "table"
    key_bias: bool = True  # whether the projection to keys has a bias; DINOv3 has none
    norm_epsilon: float = 1e-6  # of the layer norms in the blocks; 1e-5 in DINOv3
    layer_scale: float = 1e-5  # initial value of the per-channel residual gains
    feature_blocks: tuple[int, ...] = (7, 11, 15, 23)  # 0-based blocks whose output becomes a feature level
    # Scale factor of each feature level. With patches of 16 pixels the levels have the strides 4, 8, 16 and 32.
    pyramid: tuple[float, float, float, float] = (4.0, 2.0, 1.0, 0.5)
    # Rematerialisation (gradient checkpointing): what the backward pass recomputes. "blocks": all activations inside a
    # block; needs least memory. "cheap": norms, activation functions and attention weights, while the results of the
    # large matrix products are kept. "none": nothing; needs most memory.
    remat: str = "cheap"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinsConfig:
    """LoRAReins adapters; the number of tokens is also the number of queries of Mask2Former."""

    tokens: int = 100  # learnable tokens of each block
    rank: int = 16  # of the product of two matrices that gives the tokens
    scale: float = 1e-3  # initial value of the shared output gain


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the linear layers of the blocks, for the adapters "lora" and "soma"."""

    rank: int = 16
    scale: float = 1.0  # factor of the update: alpha / rank in the papers
    first_block: int = 0  # blocks before this one are not adapted; SoMA's authors use 8 for ViT-L


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarthAdapterConfig:
    """Small networks (experts) after every block, for the adapter "earth_adapter"."""

    hidden: int = 64  # hidden units of an expert
    scale: float = 0.1  # initial value of the factor of the experts' output, one per block
    # Blocks with experts for low and high frequencies, from 0 or backwards from -1. The authors choose them by dataset.
    frequency_blocks: tuple[int, ...] = (-3, -2, -1)
    cutoff: float = 0.3  # side of the square of low frequencies, relative to the shorter side of the feature map


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The segmentation head. Which head uses which of these fields: docs/howto/heads.md."""

    kind: str = "mask2former"  # "mask2former", "eomt", "fcn" or "linear"
    width: int = 256  # channels
    heads: int = 8  # attention heads
    groups: int = 32  # of the group normalisation
    encoder_layers: int = 6  # deformable-attention layers of the pixel decoder
    encoder_mlp_width: int = 1024
    points: int = 4  # sampling points per head and level of the deformable attention
    decoder_layers: int = 9  # layers of the transformer decoder
    decoder_mlp_width: int = 2048
    queries: int = 100  # learnt queries; not used by "mask2former" with Rein, whose tokens then give the queries
    last_blocks: int = 4  # of "eomt": blocks of the backbone in which the queries join the patches
    annealing_power: float = 0.9  # of "eomt": power of the polynomial by which attention masks disappear in training


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimConfig:
    """Masked-image-modelling head (atrous pyramid) and its pixel mask token."""

    width: int = 256  # channels
    dilations: tuple[int, ...] = (1, 6, 12, 18)  # of the parallel 3 x 3 convolutions
    image_size: int = 512  # side at which the reconstruction is compared
    token_size: int = 1024  # side of the learnable pixel mask token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole network."""

    classes: int = 6  # without "no object"
    vit: ViTConfig = ViTConfig()
    # Of the backbone's blocks: "rein", "lora", "soma", "earth_adapter" or "none" (docs/howto/adapters.md).
    adapter: str = "rein"
    reins: ReinsConfig | None = ReinsConfig()  # of the adapter "rein"; with None it means "none"
    lora: LoraConfig = LoraConfig()  # of "lora" and "soma"
    earth_adapter: EarthAdapterConfig = EarthAdapterConfig()
    head: HeadConfig | None = HeadConfig()  # None for pretraining without labels
    mim: MimConfig | None = None
    # Of matrix products and convolutions: "float32" or "bfloat16". Parameters, residual streams, normalisation and
    # losses are always float32.
    dtype: str = "float32"

    @property
    def rein(self) -> ReinsConfig | None:
        """Configuration of the Rein adapters; None if the model has none."""
        return self.reins if self.adapter == "rein" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data: which domains are read, and how."""

    source: str = "blue_marble/temperate_green"  # training domain; several are joined by "+"
    source_weights: tuple[float, ...] = ()  # shares of several sources; (): proportional to their numbers of images
    domains_file: str | None = None  # a user's domains.toml; its domains are prepared before training
    data_dir: str = "~/.cache/crossearth_jax"  # prepared datasets (array_record)
    window: int | None = None  # pixels; side of the random windows read from larger training images; None: whole images
    batch_size: int = 4  # global, over all devices and processes
    workers: int = 0  # Grain worker processes; 0: read in the main process
    prefetch: int = 2  # batches that are read ahead
    timeout: float = 600.0  # seconds without a new batch after which the run stops
    corrupt_records: str = "stop"  # "stop", or "skip": use the next readable record, count and log it


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """An augmentation that mixes the images of a batch (`augment.mixing`); not part of the reference."""

    kind: str = "fourier"  # "fourier", "statistics" (appearance only), "cutmix" or "grid_shuffle" (with the labels)
    probability: float = 0.5  # that an image is mixed
    strength: float = 1.0  # largest share of the partner: of amplitudes, of the statistics, or of the area
    grid: int = 4  # cells along a side for "grid_shuffle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations inside the jitted step, in the order in which they are applied."""

    crop_size: int = 512
    scales: tuple[float, ...] = tuple(0.1 * k for k in range(5, 21))  # short side = int(crop_size * scale)
    longest: float = 4.0  # limit of the long side in multiples of crop_size; a larger image is scaled down to it
    max_class_share: float = 0.75  # a crop in which one class covers this share of the labelled pixels is drawn again
    crop_tries: int = 10
    flip: bool = True  # horizontal flips
    vertical_flip: bool = False
    photometric: bool = True  # False: the four fields below are not used
    brightness: float = 32.0  # largest change of the 8-bit values
    contrast: tuple[float, float] = (0.5, 1.5)  # smallest and largest factor
    saturation: tuple[float, float] = (0.5, 1.5)  # smallest and largest factor
    hue: int = 18  # largest change, in steps of two degrees
    mix: MixConfig | None = None  # mixes the images of a batch after all of the above


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleConfig:
    """Earth-Style Injection."""

    backend: str = "mobile"  # "mobile" (shipped) or "inception" (the paper's; needs `weights` and `statistics`)
    weights: str | None = None  # weights file of the style network; None: the shipped one of "mobile"
    statistics: str | None = None  # file with mean and covariance of style codes; None: the shipped one of "mobile"
    probability: float = 0.1  # probability that an image is restyled
    alpha: float = 0.1  # share of the sampled style in the mixed code
    mask_ratio: float = 0.7  # share of blocks that are replaced by the restyled image
    block_size: int = 64  # pixels, for crops of 512 and more; proportionally smaller for smaller crops
    # How the output of the style network is used: "network" (as it is, as in the reference), "low" (only its change of
    # colour, averaged over cells) or "scaled" (computed at a larger scale and averaged down). `literal` always uses
    # "network".
    detail: str = "network"
    cell_size: int = 16  # side of the cells of "low", in pixels as `block_size`
    # Side of the images in the style network, relative to the crop. None: 0.5 for "low" and 2 for "scaled".
    draw_scale: float | None = None
    # The reference's behaviour: one random decision for the whole batch, and restyled images enter the backbone in
    # [0, 1] without normalisation.
    literal: bool = False
    # Equal parts of the (micro-)batch that choose their restyled images independently; a multiple of the device
    # shards. None: one per shard, so that the choice depends on the mesh. With a number it does not.
    groups: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimTaskConfig:
    """Masked image modelling, as a second task or alone (needs `model.mim`)."""

    mask_ratio: float = 0.1  # share of blocks that are replaced by the mask token
    block_size: int = 64  # pixels, for crops of 512 and more; proportionally smaller for smaller crops
    masked_weight: float = 1.0  # of the reconstruction from the masked image
    styled_weight: float = 1.0  # of the reconstruction from the restyled image
    consistency_weight: float = 1.0  # of the difference between the two reconstructions


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Set loss and pixel-wise cross-entropy for heads with queries; cross-entropy and Dice loss for the others."""

    points: int = 12544  # sampled points of a mask
    oversample: float = 3.0  # candidates per point, from which the uncertain points are chosen
    importance: float = 0.75  # share of points that are chosen for their uncertainty; the others are random
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1  # of the class "no object"
    pixel_weight: float = 0.0  # of the pixel-wise cross-entropy, which the reference does not have; 0: no such term
    # Weight of each class in the class term and in the pixel-wise cross-entropy, in the order of the classes.
    # "inverse_frequency": computed from the labels of the train split when training starts. None: 1 for all classes.
    class_weights: str | tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a polynomial schedule.

    Tables hold (regular expression, value) pairs. A parameter takes the value of the first pattern that matches its
    whole name; a parameter that no pattern matches is an error.
    """

    learning_rate: float = 1e-4  # at the end of the warm-up
    warmup_steps: int = 0  # steps in which the learning rate rises linearly
    warmup_factor: float = 1e-6  # learning rate of the first warm-up step, relative to `learning_rate`
    # Number of steps after which the polynomial reaches zero; None: train.steps. CrossEarth stops at 30,000 of 40,000.
    horizon: int | None = None
    power: float = 0.9  # of the polynomial
    b1: float = 0.9  # decay of AdamW's mean of gradients
    b2: float = 0.999  # decay of its mean of squared gradients
    eps: float = 1e-8  # added to the denominator
    weight_decay: float = 0.05  # decoupled, multiplied by the learning rate
    decay: tuple[tuple[str, bool], ...] = (  # which parameters decay; in the recipe not norms and embeddings
        (r".*/norm\d?/.*|.*/level_embed|head/mask_decoder/queries|reins/(tokens_[ab]|scale)", False),
        (r".*", True),
    )
    rates: tuple[tuple[str, float], ...] = ((r".*", 1.0),)  # learning-rate multipliers
    clip_norm: float | None = None  # gradient clipping: largest global norm; None: no clipping
    accumulate: int = 1  # micro-batches per step, whose gradients are accumulated
    # Decay of the exponential moving average (EMA) of the parameters, which evaluation then uses; None: no average.
    ema: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the training, logs and checkpoints, initial weights, frozen parameters."""

    steps: int = 30_000  # updates of the parameters
    log_every: int = 50  # steps between two lines of metrics.jsonl
    checkpoint_every: int = 1000  # steps
    keep_checkpoints: int = 3  # newest checkpoints that are kept
    dashboards: tuple[str, ...] = ()  # also send metrics to "wandb" or "mlflow", which are extras of these names
    init_from: str | None = None  # weights file (.safetensors, .pth) or run folder with the initial weights
    # Which parameters are frozen; a table as in `OptimizerConfig`.
    frozen: tuple[tuple[str, bool], ...] = (
        (r"backbone/.*", True),
        (r".*", False),
    )
    nonfinite: str = "stop"  # at a loss, gradient or update that is not finite: "stop", or "skip" and count the step


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Sliding-window evaluation."""

    window: int = 512  # pixels
    stride: int = 341  # pixels
    flips: bool = False  # average the scores of every window and its three mirror images, at four times the cost
    batch_size: int = 8  # windows per batch, over all devices of a process
    examples: int = 4  # example images per domain in the report
    settings: tuple[str, ...] = ()  # settings to score; (): all with this source
    # Which checkpoint is scored: "last", or "best_on_source": best mIoU on the validation split of the source.
    select: str = "last"
    every: int | None = None  # steps between two validations for "best_on_source"; None: train.checkpoint_every


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the axes of the device mesh; one of them may be -1: all remaining devices."""

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
    loss: LossConfig | None = LossConfig()  # of the segmentation task; None for pretraining without labels
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mesh: MeshConfig = MeshConfig()

    @property
    def horizon(self) -> int:
        """Number of steps after which the learning rate reaches zero: `optimizer.horizon` or else `train.steps`."""
        return self.train.steps if self.optimizer.horizon is None else self.optimizer.horizon


def to_config_dict(config: Any) -> ConfigDict:
    """Convert a config dataclass to a `ConfigDict` with the same nesting and all fields."""
    return ConfigDict({field.name: _to_value(config, field.name) for field in dataclasses.fields(config)})


def _to_value(config: Any, name: str) -> Any:
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if value is None:
        # A plain None cannot be overridden. A placeholder can, and it checks the type of optional scalars.
        members = _members(typing.get_type_hints(type(config))[name])
        if any(typing.get_origin(member) is tuple for member in members):
            return config_dict.placeholder(object)
        scalar = [member for member in members if member in (int, float, str)]
        return config_dict.placeholder(scalar[0]) if scalar else None
    return value


def from_config_dict[T](values: Any, cls: type[T] = Config, path: str = "config") -> T:
    """Build the dataclass `cls` from a `ConfigDict` or a plain mapping.

    Raises:
      UserError: a key is unknown, a required one is missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    values = dict(values.items())
    if cls is ViTConfig and isinstance(values.get("remat"), bool):  # in files of earlier versions
        values["remat"] = "blocks" if values["remat"] else "none"
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
    hint = str if isinstance(value, str) and str in some else some[-1]  # of two alternatives the first is str
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
