"""Names and layouts of the reference's checkpoints against ours, readable in both directions.

`RULES` is the whole knowledge of what the reference computes with (see `mapping` for how a rule reads). Published
checkpoints hold more: the reconstruction head and the pixel mask token become our `mim/…`, convolutions below
`backbone.reins.high_extractor` become `gse/…`, and what has no counterpart among our parameters is carried verbatim
under `extra/<reference name>`, so that the way back is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from crossearth_jax.config import UserError
from crossearth_jax.weights import name_rules
from crossearth_jax.weights.name_rules import CONV, LINEAR, PIXELS, SAME, TABLE, TOKEN, Rule, Tensors, affine, rule

EXTRA = "extra/"  # followed by the reference's name


def _backbone() -> list[Rule]:
    block, ours = "backbone.blocks.{i}", "backbone/blocks"
    return [
        rule("backbone.cls_token", "backbone/class_token", TOKEN),
        rule("backbone.pos_embed", "backbone/position", TABLE),
        *affine("backbone.patch_embed.proj", "backbone/patch_embed", CONV),
        *affine(f"{block}.norm1", f"{ours}/norm1"),
        *affine(f"{block}.attn.qkv", f"{ours}/attention/qkv", LINEAR),
        *affine(f"{block}.attn.proj", f"{ours}/attention/proj", LINEAR),
        rule(f"{block}.ls1.gamma", f"{ours}/gain1", SAME),
        *affine(f"{block}.norm2", f"{ours}/norm2"),
        *affine(f"{block}.mlp.fc1", f"{ours}/mlp/fc1", LINEAR),
        *affine(f"{block}.mlp.fc2", f"{ours}/mlp/fc2", LINEAR),
        *affine(f"{block}.mlp.w12", f"{ours}/mlp/w12", LINEAR),
        *affine(f"{block}.mlp.w3", f"{ours}/mlp/w3", LINEAR),
        rule(f"{block}.ls2.gamma", f"{ours}/gain2", SAME),
    ]


def _reins() -> list[Rule]:
    return [
        rule("backbone.reins.learnable_tokens_a", "reins/tokens_a", SAME),
        rule("backbone.reins.learnable_tokens_b", "reins/tokens_b", SAME),
        rule("backbone.reins.scale", "reins/scale", SAME),
        *affine("backbone.reins.mlp_token2feat", "reins/token_to_feature", LINEAR),
        *affine("backbone.reins.mlp_delta_f", "reins/delta", LINEAR),
        *affine("backbone.reins.transform", "reins/transform", LINEAR),
        *affine("backbone.reins.merge", "reins/merge", LINEAR),
    ]


def _pixel_decoder() -> list[Rule]:
    reference, ours = "decode_head.pixel_decoder", "head/pixel_decoder"
    layer, stack = f"{reference}.encoder.layers.{{i}}", f"{ours}/encoder"
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [
        *affine(f"{reference}.input_convs.{{i}}.conv", f"{ours}/input_convs/{{i}}/conv", CONV),
        *affine(f"{reference}.input_convs.{{i}}.gn", f"{ours}/input_convs/{{i}}/norm"),
        rule(f"{reference}.level_encoding.weight", f"{ours}/level_encoding", SAME),
        *(r for n in attention for r in affine(f"{layer}.self_attn.{n}", f"{stack}/attention/{n}", LINEAR)),
        *affine(f"{layer}.norms.0", f"{stack}/norm1"),
        *affine(f"{layer}.ffn.layers.0.0", f"{stack}/mlp/fc1", LINEAR),
        *affine(f"{layer}.ffn.layers.1", f"{stack}/mlp/fc2", LINEAR),
        *affine(f"{layer}.norms.1", f"{stack}/norm2"),
        rule(f"{reference}.lateral_convs.0.conv.weight", f"{ours}/lateral_conv/conv/kernel", CONV),
        *affine(f"{reference}.lateral_convs.0.gn", f"{ours}/lateral_conv/norm"),
        rule(f"{reference}.output_convs.0.conv.weight", f"{ours}/output_conv/conv/kernel", CONV),
        *affine(f"{reference}.output_convs.0.gn", f"{ours}/output_conv/norm"),
        *affine(f"{reference}.mask_feature", f"{ours}/mask_feature", CONV),
    ]


def _attention(reference: str, ours: str) -> list[Rule]:
    """Attention whose reference packs the projections of queries, keys and values into one."""
    parts = ("query", "key", "value")
    return [
        rule(f"{reference}.in_proj_weight", tuple(f"{ours}/{part}/kernel" for part in parts), LINEAR),
        rule(f"{reference}.in_proj_bias", tuple(f"{ours}/{part}/bias" for part in parts), SAME),
        *affine(f"{reference}.out_proj", f"{ours}/out", LINEAR),
    ]


def _mask_decoder() -> list[Rule]:
    ours = "head/mask_decoder"
    layer, our_layer = "decode_head.transformer_decoder.layers.{i}", f"{ours}/layers/{{i}}"
    return [
        *_attention(f"{layer}.cross_attn.attn", f"{our_layer}/cross_attention"),
        *affine(f"{layer}.norms.0", f"{our_layer}/norm1"),
        *_attention(f"{layer}.self_attn.attn", f"{our_layer}/self_attention"),
        *affine(f"{layer}.norms.1", f"{our_layer}/norm2"),
        *affine(f"{layer}.ffn.layers.0.0", f"{our_layer}/mlp/fc1", LINEAR),
        *affine(f"{layer}.ffn.layers.1", f"{our_layer}/mlp/fc2", LINEAR),
        *affine(f"{layer}.norms.2", f"{our_layer}/norm3"),
        *affine("decode_head.transformer_decoder.post_norm", f"{ours}/norm"),
        rule("decode_head.level_embed.weight", f"{ours}/level_embed", SAME),
        *affine("decode_head.querys2feat", f"{ours}/query_projection", LINEAR),
        *affine("decode_head.cls_embed", f"{ours}/class_head", LINEAR),
        *(r for k in range(3) for r in affine(f"decode_head.mask_embed.{2 * k}", f"{ours}/mask_head/{k}", LINEAR)),
    ]


def _mim() -> list[Rule]:
    reference = "task_head"
    return [
        rule("mask_token", "mim/mask_token", PIXELS),
        *affine(f"{reference}.aspp_head.conv_1x1", "mim/input_conv", CONV),
        *affine(f"{reference}.aspp_head.Convs.{{i}}", "mim/dilated/{i}", CONV),
        *affine(f"{reference}.aspp_head.conv_1x1_2", "mim/merge_conv", CONV),
        *affine(f"{reference}.feature_refine_256.0", "mim/refine", CONV),
        *affine(f"{reference}.final_conv", "mim/output_conv", CONV),
    ]


RULES: tuple[Rule, ...] = (*_backbone(), *_reins(), *_pixel_decoder(), *_mask_decoder(), *_mim())

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
    return {_renamed(name, prefixes): tensor for name, tensor in tensors.items()}


def _prefix(tensors: Mapping[str, np.ndarray], pattern: str) -> str | None:
    """What stands before the module that the pattern looks for; None if it is not there."""
    return next((match[0] for name in tensors if (match := re.match(pattern, name))), None)


def _renamed(name: str, prefixes: Mapping[str | None, str]) -> str:
    for prefix, replacement in prefixes.items():
        if prefix and name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _convolutions(tensors: Mapping[str, np.ndarray]) -> set[str]:
    """The extractor's modules that are convolutions."""
    modules = {match[1] for name in tensors if (match := _GSE.fullmatch(name))}
    kernels = {module: tensors.get(f"{_EXTRACTOR}.{module}.weight") for module in modules}
    return {module for module, kernel in kernels.items() if kernel is not None and kernel.ndim == 4}


def _gse(modules: Iterable[str]) -> list[Rule]:
    """Rules for convolutions of the extractor, whatever the file calls them."""
    pairs = ((f"{_EXTRACTOR}.{module}", f"gse/{module.replace('.', '/')}") for module in sorted(modules))
    return [one for reference, ours in pairs for one in affine(reference, ours, CONV)]
