"""Measure the effect of each part of the network on the scores: `python -m benchmarks.contributions CHECKPOINT IMAGE`.

The parameters of one part at a time are set to zero. A comparison of scores cannot find an error in a part that has no
effect on them.
"""

from __future__ import annotations

import argparse
import json
import re

import jax
import jax.numpy as jnp
import numpy as np

import crossearth_jax
from crossearth_jax import convert
from crossearth_jax.runtime import command

PARTS = (
    r"backbone/position",
    r"backbone/class_token",
    r"backbone/blocks/attention/.*",
    r"backbone/blocks/mlp/.*",
    r"reins/(tokens_.|token_to_feature/.*)",
    r"reins/delta/.*",
    r"reins/(transform|merge)/.*",
    r"head/pixel_decoder/input_convs/.*",
    r"head/pixel_decoder/level_encoding",
    r"head/pixel_decoder/encoder/attention/sampling_offsets/.*",
    r"head/pixel_decoder/encoder/attention/attention_weights/.*",
    r"head/pixel_decoder/encoder/mlp/.*",
    r"head/pixel_decoder/lateral_conv/.*",
    r"head/mask_decoder/layers/\d/cross_attention/.*",
    r"head/mask_decoder/layers/\d/self_attention/.*",
    r"head/mask_decoder/layers/\d/mlp/.*",
    r"head/mask_decoder/level_embed",
    r"head/mask_decoder/query_projection/.*",
)


def main(argv: list[str]) -> None:
    """Print the largest change of any score for each part, as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contributions")
    parser.add_argument("checkpoint", help=".pth that benchmarks.checkpoint wrote")
    parser.add_argument("image", help=".npz with `image` (normalised)")
    arguments = parser.parse_args(argv)
    config = convert.read_config(re.sub(r"\.pth$", ".json", arguments.checkpoint))
    model = crossearth_jax.load(arguments.checkpoint, config=config)
    image = jnp.asarray(np.load(arguments.image)["image"])
    score = jax.jit(model.model.scores)
    whole = score(model.params, image)
    for part in PARTS:
        params = {name: jnp.zeros_like(x) if re.fullmatch(part, name) else x for name, x in model.params.items()}
        change = float(jnp.abs(score(params, image) - whole).max())
        print(json.dumps({"part": part, "change": change}), flush=True)


if __name__ == "__main__":
    command.run(main)
