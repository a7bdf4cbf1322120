"""Conversion between the names and layouts of the reference's checkpoints and ours, in both directions.

The names of the parameters that the network uses are in the `TORCH_NAMES` table of each of its modules. Published
checkpoints hold more tensors: convolutions below `backbone.reins.high_extractor` become `gse/…`, and tensors without
a counterpart among our parameters are kept unchanged under `extra/<reference name>`, so that the conversion can be
inverted exactly.
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

EXTRA = "extra/"  # prefix of tensors that are kept under the reference's name


RULES: tuple[Rule, ...] = tuple(
    one for part in (vit, rein, pixel_decoder, mask_decoder, mim_head) for one in part.TORCH_NAMES
)

# Tensors that are kept but not used, and why. A tensor that matches no row here and no rule is refused.
CARRIED: tuple[tuple[str, str], ...] = (
    (r"backbone\.mask_token", "without effect: the mask token of DINOv2 and DINOv3, used in their pre-training only"),
    (r"backbone\.local_cls_norm\.(weight|bias)", "without effect: used in the pre-training of DINOv3 only"),
    (r"backbone\.rope_embed\.periods", "periods of the rotary embeddings, which are computed here"),
    (r"backbone\.blocks\.\d+\.attn\.qkv\.bias_mask", "marks the biases of keys, which count as zero"),
    (r"backbone\.norm\.(weight|bias)", "without effect: the features have no final norm"),
    (r"task_head\.(LN|MLP)\.(weight|bias)", "without effect: the reconstruction head does not use it"),
    (r"augmentor\..+", "the style network of the training code; style.weights can name this file"),
    (r"backbone\.reins\.high_extractor\..+", "a layer of the semantic extractor that is not a convolution"),
)

_EXTRACTOR = "backbone.reins.high_extractor"
_GSE = re.compile(rf"{re.escape(_EXTRACTOR)}\.(.+)\.(weight|bias)")


def from_reference(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Turn tensors under the reference's names into our parameters.

    A part of a checkpoint gives a part of the parameters. The caller must check with `SegmentationModel.shapes` whether
    they are complete.

    Returns:
      `backbone/…`, `reins/…`, `head/…`, `mim/…`, `gse/…` in float32, and `extra/<reference name>` unchanged.

    Raises:
      UserError: a tensor is unknown, or one layer of a stack is missing.
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
            f"{len(unknown)} of {len(tensors)} tensors are not parameters of CrossEarth: {', '.join(unknown[:3])}"
            f"{' …' if len(unknown) > 3 else ''}; expected a checkpoint of CrossEarth. If they are not needed, leave "
            "them out (ignore= in Python, --ignore for crossearth_jax.convert)"
        )
    return params


def to_reference(params: Mapping[str, np.ndarray]) -> Tensors:
    """Invert `from_reference`; tensors under `extra/…` get their old names back.

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
    """Rename tensors to the names that the rules expect.

    The prefix "module." of a data-parallel wrapper is removed. The modules that exist in training only (reconstruction
    head and style network) are recognised by their content, because the name of the attribute that holds them is known
    only from compiled files.
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
    """Return the name prefix that the pattern matches in one of the tensors' names; None without a match."""
    return next((match[0] for name in tensors if (match := re.match(pattern, name))), None)


def _convolutions(tensors: Mapping[str, np.ndarray]) -> set[str]:
    """Return the modules of the semantic extractor that are convolutions."""
    modules = {match[1] for name in tensors if (match := _GSE.fullmatch(name))}
    kernels = {module: tensors.get(f"{_EXTRACTOR}.{module}.weight") for module in modules}
    return {module for module, kernel in kernels.items() if kernel is not None and kernel.ndim == 4}


def _gse(modules: Iterable[str]) -> list[Rule]:
    """Create the rules for convolutions of the semantic extractor, under the names that the file gives them."""
    pairs = ((f"{_EXTRACTOR}.{module}", f"gse/{module.replace('.', '/')}") for module in sorted(modules))
    return [one for reference, ours in pairs for one in affine(reference, ours, CONV)]
