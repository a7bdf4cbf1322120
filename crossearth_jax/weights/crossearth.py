"""Names and layouts of the reference's checkpoints against ours, readable in both directions.

`RULES` is the whole knowledge: each rule says under which names the reference keeps a parameter, under which we do,
and how to turn one array into the other. "{i}" stands for a layer number; where only the reference's name has it,
we stack the layers on a leading axis. A rule with several of our names splits one reference tensor into that many
parts along its first axis.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from crossearth_jax.config import UserError

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of memory layout and its inverse."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_reference: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)  # (out, in) -> (in, out)
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW -> HWIO
TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])
TABLE = Layout(lambda x: x[0], lambda x: x[None])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of parameter in both worlds."""

    reference: str
    ours: tuple[str, ...]
    layout: Layout

    @property
    def stacked(self) -> bool:
        """Whether our parameter holds all the layers."""
        return "{i}" in self.reference and "{i}" not in self.ours[0]

    def layers(self, names: Iterable[str]) -> list[str]:
        """Layer numbers for which `names` holds a tensor of this rule, ascending; [""] if it has no layers."""
        pattern = re.compile(re.escape(self.reference).replace(r"\{i\}", r"(\d+)"))
        found = [match for name in names if (match := pattern.fullmatch(name))]
        return sorted((match[1] for match in found), key=int) if "{i}" in self.reference else [""] * len(found)


def _rule(reference: str, ours: str | tuple[str, ...], layout: Layout) -> Rule:
    return Rule(reference, (ours,) if isinstance(ours, str) else ours, layout)


def _affine(reference: str, ours: str, kernel: Layout | None = None) -> list[Rule]:
    """Weight and bias of a linear layer or convolution; of a norm where no kernel layout is given."""
    name = "kernel" if kernel else "scale"
    return [
        _rule(f"{reference}.weight", f"{ours}/{name}", kernel or SAME),
        _rule(f"{reference}.bias", f"{ours}/bias", SAME),
    ]


def _backbone() -> list[Rule]:
    block, ours = "backbone.blocks.{i}", "backbone/blocks"
    return [
        _rule("backbone.cls_token", "backbone/class_token", TOKEN),
        _rule("backbone.pos_embed", "backbone/position", TABLE),
        *_affine("backbone.patch_embed.proj", "backbone/patch_embed", CONV),
        *_affine(f"{block}.norm1", f"{ours}/norm1"),
        *_affine(f"{block}.attn.qkv", f"{ours}/attention/qkv", LINEAR),
        *_affine(f"{block}.attn.proj", f"{ours}/attention/proj", LINEAR),
        _rule(f"{block}.ls1.gamma", f"{ours}/gain1", SAME),
        *_affine(f"{block}.norm2", f"{ours}/norm2"),
        *_affine(f"{block}.mlp.fc1", f"{ours}/mlp/fc1", LINEAR),
        *_affine(f"{block}.mlp.fc2", f"{ours}/mlp/fc2", LINEAR),
        *_affine(f"{block}.mlp.w12", f"{ours}/mlp/w12", LINEAR),
        *_affine(f"{block}.mlp.w3", f"{ours}/mlp/w3", LINEAR),
        _rule(f"{block}.ls2.gamma", f"{ours}/gain2", SAME),
    ]


def _reins() -> list[Rule]:
    return [
        _rule("backbone.reins.learnable_tokens_a", "reins/tokens_a", SAME),
        _rule("backbone.reins.learnable_tokens_b", "reins/tokens_b", SAME),
        _rule("backbone.reins.scale", "reins/scale", SAME),
        *_affine("backbone.reins.mlp_token2feat", "reins/token_to_feature", LINEAR),
        *_affine("backbone.reins.mlp_delta_f", "reins/delta", LINEAR),
        *_affine("backbone.reins.transform", "reins/transform", LINEAR),
        *_affine("backbone.reins.merge", "reins/merge", LINEAR),
    ]


def _pixel_decoder() -> list[Rule]:
    reference, ours = "decode_head.pixel_decoder", "head/pixel_decoder"
    layer, stack = f"{reference}.encoder.layers.{{i}}", f"{ours}/encoder"
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [
        *_affine(f"{reference}.input_convs.{{i}}.conv", f"{ours}/input_convs/{{i}}/conv", CONV),
        *_affine(f"{reference}.input_convs.{{i}}.gn", f"{ours}/input_convs/{{i}}/norm"),
        _rule(f"{reference}.level_encoding.weight", f"{ours}/level_encoding", SAME),
        *(r for n in attention for r in _affine(f"{layer}.self_attn.{n}", f"{stack}/attention/{n}", LINEAR)),
        *_affine(f"{layer}.norms.0", f"{stack}/norm1"),
        *_affine(f"{layer}.ffn.layers.0.0", f"{stack}/mlp/fc1", LINEAR),
        *_affine(f"{layer}.ffn.layers.1", f"{stack}/mlp/fc2", LINEAR),
        *_affine(f"{layer}.norms.1", f"{stack}/norm2"),
        _rule(f"{reference}.lateral_convs.0.conv.weight", f"{ours}/lateral_conv/conv/kernel", CONV),
        *_affine(f"{reference}.lateral_convs.0.gn", f"{ours}/lateral_conv/norm"),
        _rule(f"{reference}.output_convs.0.conv.weight", f"{ours}/output_conv/conv/kernel", CONV),
        *_affine(f"{reference}.output_convs.0.gn", f"{ours}/output_conv/norm"),
        *_affine(f"{reference}.mask_feature", f"{ours}/mask_feature", CONV),
    ]


def _attention(reference: str, ours: str) -> list[Rule]:
    """Attention whose reference packs the projections of queries, keys and values into one."""
    parts = ("query", "key", "value")
    return [
        _rule(f"{reference}.in_proj_weight", tuple(f"{ours}/{part}/kernel" for part in parts), LINEAR),
        _rule(f"{reference}.in_proj_bias", tuple(f"{ours}/{part}/bias" for part in parts), SAME),
        *_affine(f"{reference}.out_proj", f"{ours}/out", LINEAR),
    ]


def _mask_decoder() -> list[Rule]:
    ours = "head/mask_decoder"
    layer, our_layer = "decode_head.transformer_decoder.layers.{i}", f"{ours}/layers/{{i}}"
    return [
        *_attention(f"{layer}.cross_attn.attn", f"{our_layer}/cross_attention"),
        *_affine(f"{layer}.norms.0", f"{our_layer}/norm1"),
        *_attention(f"{layer}.self_attn.attn", f"{our_layer}/self_attention"),
        *_affine(f"{layer}.norms.1", f"{our_layer}/norm2"),
        *_affine(f"{layer}.ffn.layers.0.0", f"{our_layer}/mlp/fc1", LINEAR),
        *_affine(f"{layer}.ffn.layers.1", f"{our_layer}/mlp/fc2", LINEAR),
        *_affine(f"{layer}.norms.2", f"{our_layer}/norm3"),
        *_affine("decode_head.transformer_decoder.post_norm", f"{ours}/norm"),
        _rule("decode_head.level_embed.weight", f"{ours}/level_embed", SAME),
        *_affine("decode_head.querys2feat", f"{ours}/query_projection", LINEAR),
        *_affine("decode_head.cls_embed", f"{ours}/class_head", LINEAR),
        *(r for k in range(3) for r in _affine(f"decode_head.mask_embed.{2 * k}", f"{ours}/mask_head/{k}", LINEAR)),
    ]


RULES: tuple[Rule, ...] = (*_backbone(), *_reins(), *_pixel_decoder(), *_mask_decoder())

# Tensors of the reference without effect on its outputs: there is no final norm on the features.
UNUSED = frozenset({"backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias"})


def from_reference(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Turns tensors under the reference's names into our parameters.

    A part of a checkpoint gives a part of the parameters; whether they are complete for a model is for the caller
    to check against `SegmentationModel.shapes`.

    Raises:
      UserError: a tensor has no place in the table, or one layer of a stack is missing.
    """
    params: Tensors = {}
    used = set(UNUSED)
    for rule in RULES:
        layers = rule.layers(tensors)
        names = [rule.reference.replace("{i}", i) for i in layers]
        used.update(names)
        parts = [_to_ours(rule, tensors[name]) for name in names]
        if rule.stacked and parts:
            _check_stack(rule, layers)
            params[rule.ours[0]] = np.stack([part[0] for part in parts])
        elif not rule.stacked:
            for i, arrays in zip(layers, parts, strict=True):
                params |= {name.replace("{i}", i): x for name, x in zip(rule.ours, arrays, strict=True)}
    if unknown := sorted(set(tensors) - used):
        raise UserError(
            f"{len(unknown)} of {len(tensors)} tensors are no parameters of CrossEarth, e.g. {', '.join(unknown[:3])}; "
            "is this a checkpoint of another model?"
        )
    return params


def to_reference(params: Mapping[str, np.ndarray]) -> Tensors:
    """Inverse of `from_reference`; tensors without effect are not made up.

    Raises:
      UserError: a parameter has no name in the reference, or a part of a packed tensor is missing.
    """
    tensors: Tensors = {}
    used: set[str] = set()
    for rule in RULES:
        layers = Rule(rule.ours[0], rule.ours, rule.layout).layers(params)
        for i in layers:
            names = [name.replace("{i}", i) for name in rule.ours]
            if missing := [name for name in names if name not in params]:
                raise UserError(f"parameter {missing[0]} is missing beside {names[0]}")
            used.update(names)
            tensors |= _to_reference(rule, i, [np.asarray(params[name]) for name in names])
    if unknown := sorted(set(params) - used):
        raise UserError(f"{len(unknown)} parameters have no name in the reference, e.g. {', '.join(unknown[:3])}")
    return tensors


def _to_ours(rule: Rule, tensor: np.ndarray) -> list[np.ndarray]:
    parts = np.split(tensor, len(rule.ours)) if len(rule.ours) > 1 else [tensor]
    return [np.asarray(rule.layout.to_ours(part), order="C") for part in parts]


def _to_reference(rule: Rule, layer: str, arrays: list[np.ndarray]) -> Tensors:
    if rule.stacked:
        return {
            rule.reference.replace("{i}", str(k)): np.asarray(rule.layout.to_reference(x), order="C")
            for k, x in enumerate(arrays[0])
        }
    parts = [rule.layout.to_reference(x) for x in arrays]
    tensor = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return {rule.reference.replace("{i}", layer): np.asarray(tensor, order="C")}


def _check_stack(rule: Rule, layers: list[str]) -> None:
    if [int(i) for i in layers] != list(range(len(layers))):
        raise UserError(f"{rule.reference} has layers {', '.join(layers)}; expected 0, 1, 2 … without a gap")
