"""Names and layouts of the reference's checkpoints against ours, readable in both directions.

What the reference computes with is said beside each module of the network (`TORCH_NAMES`). Published checkpoints hold
more: the reconstruction head and the pixel mask token become our `mim/…`, convolutions below
`backbone.reins.high_extractor` become `gse/…`, and what has no counterpart among our parameters is carried verbatim
under `extra/<reference name>`, so that the way back is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from crossearth_jax.config import UserError
from crossearth_jax.models import mask_decoder, mim_head, pixel_decoder, rein, vit
from crossearth_jax.models.torch_names import CONV, Rule, affine
from crossearth_jax.weights import name_rules
from crossearth_jax.weights.name_rules import Tensors

EXTRA = "extra/"  # followed by the reference's name


RULES: tuple[Rule, ...] = tuple(
    one for part in (vit, rein, pixel_decoder, mask_decoder, mim_head) for one in part.TORCH_NAMES
)

# Why a tensor is carried along but not computed with; whatever no line and no rule knows is refused.
CARRIED: tuple[tuple[str, str], ...] = (
    (r"backbone\.mask_token", "without effect: DINOv2's token for its own pre-training"),
    (r"backbone\.norm\.(weight|bias)", "without effect: there is no final norm on the features"),
    (r"task_head\.(LN|MLP)\.(weight|bias)", "without effect: never used by the reconstruction head"),
    (r"augmentor\..+", "the style network of the training code; style.weights can name this file"),
    (r"backbone\.reins\.high_extractor\..+", "a layer of the extractor that is no convolution"),
)

_EXTRACTOR = "backbone.reins.high_extractor"
_GSE = re.compile(rf"{re.escape(_EXTRACTOR)}\.(.+)\.(weight|bias)")


def from_reference(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Turns tensors under the reference's names into our parameters.

    A part of a checkpoint gives a part of the parameters; whether they are complete for a model is for the caller
    to check against `SegmentationModel.shapes`.

    Returns:
      `backbone/…`, `reins/…`, `head/…`, `mim/…`, `gse/…` in float32, and `extra/<reference name>` as they were.

    Raises:
      UserError: a tensor has no place in the table, or one layer of a stack is missing.
    """
    tensors = canonical(tensors)
    params, used = name_rules.to_ours((*RULES, *_gse(_convolutions(tensors))), tensors)
    unknown = []
    for name in sorted(set(tensors) - used):
        if any(re.fullmatch(pattern, name) for pattern, _ in CARRIED):
            params[EXTRA + name] = tensors[name]
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(tensors)} tensors are no parameters of CrossEarth: {', '.join(unknown[:3])}"
            f"{' …' if len(unknown) > 3 else ''}; is this a checkpoint of another model? If it is right without them, "
            "name them to be ignored"
        )
    return params


def to_reference(params: Mapping[str, np.ndarray]) -> Tensors:
    """Inverse of `from_reference`; tensors without effect are there if they were carried along.

    Raises:
      UserError: a parameter has no name in the reference, or a part of a packed tensor is missing.
    """
    carried = {name.removeprefix(EXTRA): np.asarray(x) for name, x in params.items() if name.startswith(EXTRA)}
    own = {name: x for name, x in params.items() if not name.startswith(EXTRA)}
    gse = {name.removeprefix("gse/").rsplit("/", 1)[0].replace("/", ".") for name in own if name.startswith("gse/")}
    tensors, used = name_rules.to_reference((*RULES, *_gse(gse)), own)
    if unknown := sorted(set(own) - used):
        raise UserError(f"{len(unknown)} parameters have no name in the reference, e.g. {', '.join(unknown[:3])}")
    return tensors | carried


def canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names of the table.

    A data-parallel wrapper puts "module." before every name. The training-only modules are known by what they
    contain, since the attributes that hold them are known from compiled files only.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): x for name, x in tensors.items()}
    prefixes = {
        _prefix(tensors, r"(?:.*\.)?(?=aspp_head\.conv_1x1\.weight)"): "task_head.",
        _prefix(tensors, r"(?:.*\.)?(?=ghiasi\.layers\.0\.conv\.weight)"): "augmentor.",
        _prefix(tensors, r"(?:.*\.)?(?=stylePredictor\.fc\.weight)"): "augmentor.",
    }
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in prefixes if prefix and name.startswith(prefix)), None)
        renamed[name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)] = tensor
    return renamed


def _prefix(tensors: Mapping[str, np.ndarray], pattern: str) -> str | None:
    """What stands before the module that the pattern looks for; None if it is not there."""
    return next((match[0] for name in tensors if (match := re.match(pattern, name))), None)


def _convolutions(tensors: Mapping[str, np.ndarray]) -> set[str]:
    """The extractor's modules that are convolutions."""
    modules = {match[1] for name in tensors if (match := _GSE.fullmatch(name))}
    kernels = {module: tensors.get(f"{_EXTRACTOR}.{module}.weight") for module in modules}
    return {module for module, kernel in kernels.items() if kernel is not None and kernel.ndim == 4}


def _gse(modules: Iterable[str]) -> list[Rule]:
    """Rules for convolutions of the extractor, whatever the file calls them."""
    pairs = ((f"{_EXTRACTOR}.{module}", f"gse/{module.replace('.', '/')}") for module in sorted(modules))
    return [one for reference, ours in pairs for one in affine(reference, ours, CONV)]
