"""Check the values of a configuration before a run starts.

`config.from_config_dict` checks names and types. This module checks the range of every number and the consistency of
fields that belong together.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from crossearth_jax.benchmark.registry import is_known, source_domains
from crossearth_jax.config import Config, HeadConfig, UserError, ViTConfig

# Pattern of field names -> test and description of the valid range. The first full match counts; the last pattern
# covers all remaining fields.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (r"seed", lambda x: 0 <= x < 2**32, "0 to 4294967295"),
    (r"mesh\..*", lambda x: x == -1 or x >= 1, "1 or more, or -1 for all remaining devices"),
    (r"(data\.(workers|prefetch)|augment\.crop_tries|evaluate\.examples|optimizer\.warmup_steps)", lambda x: x >= 0,
     "0 or more"),
    (r"augment\.(brightness|contrast|saturation|hue)", lambda x: x >= 0, "0 or more"),
    (r"augment\.max_class_share", lambda x: 0.5 < x <= 1, "more than 0.5 and at most 1 (1 accepts every crop)"),
    (r"augment\.(scales|longest)", lambda x: x > 0, "more than 0"),
    (r"augment\.mix\.(probability|strength)", lambda x: 0 <= x <= 1, "0 to 1"),
    (r"augment\.mix\.grid", lambda x: x >= 2, "2 or more"),
    (r"(style|mim)\.(probability|alpha|mask_ratio)", lambda x: 0 <= x <= 1, "0 to 1"),
    (r"style\.draw_scale", lambda x: x > 0, "more than 0"),
    (r"loss\.importance", lambda x: 0 <= x <= 1, "0 to 1"),
    (r"(data\.source_weights|loss\.class_weights)", lambda x: 0 < x < float("inf"), "more than 0"),
    (r"loss\.oversample", lambda x: x >= 1, "1 or more"),
    (r"(loss|mim)\..*_weight", lambda x: x >= 0, "0 or more"),
    (r"optimizer\.(b1|b2|ema)", lambda x: 0 <= x < 1, "0 or more and less than 1"),
    (r"optimizer\.warmup_factor", lambda x: 0 <= x <= 1, "0 to 1"),
    (r"optimizer\.(weight_decay|power|rates)", lambda x: x >= 0, "0 or more"),
    (r"(optimizer\.(learning_rate|eps|clip_norm)|data\.timeout)", lambda x: x > 0, "more than 0"),
    (r"model\.vit\.(feature_blocks|registers)", lambda x: x >= 0, "0 or more"),
    (r"model\.vit\.norm_epsilon", lambda x: x > 0, "more than 0"),
    (r"model\.vit\.pyramid", lambda x: x > 0, "more than 0"),
    (r"model\.vit\.pixel_statistics", lambda x: 0 <= x <= 255, "0 to 255"),
    (r"model\.head\.annealing_power", lambda x: x >= 0, "0 or more"),
    (r"model\.lora\.first_block", lambda x: x >= 0, "0 or more"),
    (r"model\.earth_adapter\.cutoff", lambda x: 0 < x <= 1, "more than 0 and at most 1"),
    (r"model\.earth_adapter\.(frequency_blocks|scale)", lambda x: abs(x) < float("inf"), "a finite number"),
    (r"model\.lora\.scale", lambda x: x > 0, "more than 0"),
    (r"model\.(vit\.layer_scale|reins\.scale)", lambda x: abs(x) < float("inf"), "a finite number"),
    # Sizes, counts and intervals.
    (r"(data|model|augment|style|mim|loss|optimizer|train|evaluate)\..*", lambda x: x >= 1, "1 or more"),
)  # fmt: skip

_CHOICES = {
    "augment.mix.kind": ("fourier", "statistics", "cutmix", "grid_shuffle"),
    "data.corrupt_records": ("stop", "skip"),
    "model.vit.position": ("table", "antialiased_table", "rope"),
    "model.vit.remat": ("blocks", "cheap", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "style.backend": ("mobile", "inception"),
    "style.detail": ("network", "low", "scaled"),
    "train.nonfinite": ("stop", "skip"),
    "evaluate.select": ("last", "best_on_source"),
}
_DASHBOARDS = ("mlflow", "wandb")


def check_config(config: Config) -> None:
    """Check the ranges of all numbers and the consistency of a configuration.

    What depends on the devices is checked later, when they are known: in `parallel.make_mesh`,
    `training.program.check_batch` and `training.styles.build_styles`.

    Raises:
      UserError: a number is out of range, an option is unknown, or two fields contradict each other.
    """
    for name, value in numbers(config):
        fits, range_ = next((test, words) for pattern, test, words in _RANGES if re.fullmatch(pattern, name))
        if not fits(value):
            raise UserError(f"{name} is {value}, expected {range_}")
    for name, choices in _CHOICES.items():
        value = functools.reduce(lambda section, field: getattr(section, field, None), name.split("."), config)
        if value is not None and value not in choices:  # None: a section is left out
            raise UserError(f"{name} is '{value}', expected one of {', '.join(choices)}")
    for check in (
        _check_tasks,
        _check_dashboards,
        _check_sources,
        _check_class_weights,
        _check_model,
        _check_sizes,
        _check_style,
        _check_schedule,
        _check_batch,
        _check_tables,
    ):
        check(config)
    if config.data.domains_file is None:  # domains of such a file are prepared first, then checked
        check_classes(config)


def numbers(section: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the field name and value of every number in a configuration; items of tuples have the name of the tuple."""
    if dataclasses.is_dataclass(section):
        for field in dataclasses.fields(section):
            yield from numbers(getattr(section, field.name), f"{prefix}.{field.name}" if prefix else field.name)
    elif isinstance(section, tuple):
        for item in section:
            yield from numbers(item, prefix)
    elif isinstance(section, int | float) and not isinstance(section, bool):
        yield prefix, section


def _check_tasks(config: Config) -> None:
    if config.loss is None and config.mim is None:
        raise UserError("the config has no task; set loss (segmentation), mim (masked image modelling) or both")
    if config.loss is not None and config.model.head is None:
        raise UserError("loss (segmentation) needs model.head, which is None; set model.head, or loss to None")
    if config.mim is not None and config.model.mim is None:
        raise UserError("mim (masked image modelling) needs model.mim, which is None; set model.mim, or mim to None")


def _check_dashboards(config: Config) -> None:
    for name in config.train.dashboards:
        if name not in _DASHBOARDS:
            raise UserError(f"train.dashboards has '{name}', expected names of {', '.join(_DASHBOARDS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{name} is not installed; train.dashboards=('{name}',) needs the extra {name}: "
                f"python -m uv pip install --python .venv -c constraints.txt -e '.[{name}]'"
            )


def _check_sources(config: Config) -> None:
    count, weights = len(config.data.source.split("+")), config.data.source_weights
    if weights and len(weights) != count:
        raise UserError(
            f"data.source_weights has {len(weights)} entries, but {config.data.source} has {count} domains; give one "
            "for each, or none to weight them by their numbers of images"
        )


def _check_class_weights(config: Config) -> None:
    weights, classes = config.loss and config.loss.class_weights, config.model.classes
    if isinstance(weights, str) and weights != "inverse_frequency":
        raise UserError(
            f"loss.class_weights is '{weights}', expected 'inverse_frequency', or numbers such as '(1.0, 2.5)'"
        )
    if isinstance(weights, tuple) and len(weights) != classes:
        raise UserError(f"loss.class_weights has {len(weights)} entries for {classes} classes; give one for each")


def _check_model(config: Config) -> None:
    vit, head = config.model.vit, config.model.head
    divisors = [("model.vit.width", "model.vit.heads", vit), ("model.vit.image_size", "model.vit.patch_size", vit)]
    if head is not None:
        divisors += [("model.head.width", "model.head.heads", head), ("model.head.width", "model.head.groups", head)]
    for whole, part, section in divisors:
        _check_multiple(whole, part, section)
    if vit.position == "rope" and vit.width // vit.heads % 4:
        raise UserError(
            f"model.vit.width / model.vit.heads is {vit.width // vit.heads}, expected a multiple of 4 for "
            "model.vit.position=rope"
        )
    blocks = vit.feature_blocks
    if list(blocks) != sorted(set(blocks)) or not blocks or blocks[-1] != vit.depth - 1:
        raise UserError(
            f"model.vit.feature_blocks are {blocks}, expected increasing numbers that end with the last block, "
            f"{vit.depth - 1} (later blocks would have no effect)"
        )
    if len(blocks) != len(vit.pyramid):
        raise UserError(
            f"model.vit.feature_blocks names {len(blocks)} blocks, expected one for each of the {len(vit.pyramid)} "
            "levels of model.vit.pyramid"
        )
    if isinstance(vit.pixel_statistics, str):
        if vit.pixel_statistics != "source":
            raise UserError(f"model.vit.pixel_statistics is '{vit.pixel_statistics}', expected numbers or 'source'")
    elif vit.pixel_statistics is not None and min(vit.pixel_statistics[1]) == 0:
        raise UserError(f"model.vit.pixel_statistics has deviations {vit.pixel_statistics[1]}, expected more than 0")


def _check_multiple(whole: str, part: str, section: ViTConfig | HeadConfig) -> None:
    size, divisor = (getattr(section, name.rpartition(".")[2]) for name in (whole, part))
    if size % divisor:
        raise UserError(f"{whole} is {size}, expected a multiple of {part} = {divisor}")


def _check_sizes(config: Config) -> None:
    patch, crop, evaluate = config.model.vit.patch_size, config.augment.crop_size, config.evaluate
    for name, size in (("augment.crop_size", crop), ("evaluate.window", evaluate.window)):
        if size % patch:
            raise UserError(
                f"{name} is {size}, expected a multiple of model.vit.patch_size = {patch}, such as "
                f"{max(size // patch, 1) * patch}"
            )
    if evaluate.stride > evaluate.window:
        raise UserError(
            f"evaluate.stride is {evaluate.stride}, expected at most evaluate.window = {evaluate.window}; pixels "
            "between the windows would have no score"
        )
    for name, section in (("style", config.style), ("mim", config.mim)):
        # Blocks are proportionally smaller for crops below 512 pixels (`augment.masking.scaled_block`).
        if section is not None and section.block_size > max(crop, 512):
            raise UserError(
                f"{name}.block_size is {section.block_size} pixels, expected at most {max(crop, 512)}; no block would "
                "fit into the crop"
            )
    if config.mim is not None and config.model.mim is not None and config.model.mim.token_size < crop:
        raise UserError(
            f"model.mim.token_size is {config.model.mim.token_size}, expected at least augment.crop_size = {crop}"
        )
    for name in ("contrast", "saturation"):
        low, high = getattr(config.augment, name)
        if low > high:
            raise UserError(f"augment.{name} is ({low}, {high}), expected the smaller factor first; swap them")


def _check_style(config: Config) -> None:
    style = config.style
    if style is None:
        return
    if style.cell_size > max(config.augment.crop_size, 512):
        raise UserError(
            f"style.cell_size is {style.cell_size} pixels, expected at most {max(config.augment.crop_size, 512)}; no "
            "cell would fit into the crop"
        )
    if style.draw_scale is not None and style.detail == "network":
        raise UserError(
            f"style.draw_scale is {style.draw_scale}, but style.detail=network keeps the size of the images; leave it "
            "out, or set style.detail to low or scaled"
        )
    if style.draw_scale is not None and style.detail == "scaled" and style.draw_scale < 1:
        raise UserError(f"style.draw_scale is {style.draw_scale}, expected 1 or more for style.detail=scaled")


def _check_schedule(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if config.horizon < steps:
        raise UserError(
            f"optimizer.horizon is {config.horizon}, less than train.steps = {steps}: the last "
            f"{steps - config.horizon} steps would have a learning rate of 0; set it to train.steps or more, or to "
            "None to use train.steps"
        )
    if optimizer.horizon is not None and optimizer.warmup_steps >= optimizer.horizon:
        raise UserError(
            f"optimizer.warmup_steps is {optimizer.warmup_steps}, expected less than optimizer.horizon = "
            f"{optimizer.horizon}"
        )
    if optimizer.warmup_steps >= steps > 1:
        logging.warning(
            "training ends during the warm-up of the learning rate: optimizer.warmup_steps is %d, train.steps is %d",
            optimizer.warmup_steps, steps,
        )  # fmt: skip


def _check_batch(config: Config) -> None:
    parts = {"optimizer.accumulate": config.optimizer.accumulate}
    # The size of an axis of -1 depends on the devices and is checked later.
    parts |= {f"mesh.{axis}": getattr(config.mesh, axis) for axis in ("data", "fsdp")}
    known = {name: size for name, size in parts.items() if size > 1}
    pieces = 1
    for size in known.values():
        pieces *= size
    if config.data.batch_size % pieces:
        product = " x ".join(f"{name} = {size}" for name, size in known.items())
        raise UserError(f"data.batch_size is {config.data.batch_size}, expected a multiple of {pieces} ({product})")


def _check_tables(config: Config) -> None:
    for name, table in (
        ("optimizer.decay", config.optimizer.decay),
        ("optimizer.rates", config.optimizer.rates),
        ("train.frozen", config.train.frozen),
    ):
        for pattern, _ in table:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{name} holds '{pattern}', which is not a regular expression ({error})") from None


def check_classes(config: Config) -> None:
    """Raise a UserError if the number of classes of the model is not that of the source's labels."""
    source, data_dir = config.data.source, config.data.data_dir
    if not all(is_known(name, data_dir) for name in source.split("+")):
        return  # the error is raised where the domain is opened
    classes = source_domains(source, data_dir)[0].classes
    if classes and config.model.head and config.model.classes != len(classes):
        raise UserError(
            f"model.classes is {config.model.classes}, but {source} has {len(classes)} classes "
            f"({', '.join(classes)}); set --config.model.classes={len(classes)}"
        )
