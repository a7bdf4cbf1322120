"""Write a trained model as an ONNX file that the QGIS plugin Deepness and any ONNX runtime can load."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import external_data_helper, helper

from crossearth_jax.exporting.interface import INPUT, OUTPUT, class_probabilities, input_shape, metadata_strings
from crossearth_jax.exporting.onnx_graph import OPSET, build_graph
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.ops.backend import tracing_for
from crossearth_jax.runtime.atomic import replacing

IR_VERSION = 8  # Deepness installs onnxruntime 1.17 or older, which loads IR up to 9; 8 is the oldest for the operators
SINGLE_FILE = 2_000_000_000  # bytes of weights; a protobuf message cannot be larger than 2 GiB


def write_onnx(path: Path, segmentor: Segmentor, single_file: int = SINGLE_FILE) -> None:
    """Write a model to `path`, and its weights to `<path>.data` if they are larger than `single_file` bytes.

    Raises:
      UserError: a file cannot be written, or the network has an operation without a rule for ONNX.
    """
    with tracing_for("onnx"):
        graph = build_graph(lambda x: class_probabilities(segmentor, x), input_shape(segmentor), INPUT, OUTPUT)
    model = helper.make_model(
        graph,
        producer_name="crossearth_jax",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, metadata_strings(segmentor))
    with replacing(path) as temporary:
        if sum(len(tensor.raw_data) for tensor in graph.initializer) > single_file:
            _write_data(model, path)
        temporary.write_bytes(model.SerializeToString())


def _write_data(model: onnx.ModelProto, path: Path) -> None:
    """Move the weights of a model to a file beside `path`."""
    data = path.with_name(f"{path.name}.data")
    with replacing(data) as temporary:
        external_data_helper.convert_model_to_external_data(model, location=temporary.name)
        external_data_helper.write_external_data_tensors(model, str(path.parent))
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data.name
        path.unlink(missing_ok=True)  # an older model must not be read with the new weights
