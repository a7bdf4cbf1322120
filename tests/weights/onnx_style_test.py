"""The shipped style network compared with onnxruntime on the original graphs.

There are two comparisons. If the rounding of activations is removed from the graphs, both compute the same float
network, and differences of 1e-5 come from floating-point rounding. As published, the graphs round every activation to 8
bits, which the float network does not. Measured on these images, codes then correlate to 0.976-0.977 and images to
0.981-0.991, and images differ by 0.015-0.018 on average.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from PIL import Image

import crossearth_jax
from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights import onnx_style
from crossearth_jax.weights.style_files import load_style

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "style"
GRAPHS = {"encode": FIXTURES / "arbitrary_predict.onnx", "stylize": FIXTURES / "arbitrary_transform.onnx"}
ASSET = pathlib.Path(crossearth_jax.__file__).parent / "assets" / "style_mobile.safetensors"
NETWORK = StyleNetwork("mobile")


def without_activation_rounding(path):
    """Return the graph without the quantise/dequantise pairs on activations; constants stay quantised."""
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    source, kept = {}, []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
        rounding = node.op_type == "QuantizeLinear"
        rounding |= node.op_type == "DequantizeLinear" and node.input[0] not in constants
        if rounding:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    kept += [onnx.helper.make_node("Identity", [source[o.name]], [o.name]) for o in graph.output if o.name in source]
    del graph.node[:]
    graph.node.extend(kept)
    return model.SerializeToString()


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # onnxruntime warns of each constant that the edited graph no longer uses
    return onnxruntime.InferenceSession(model, options)


@pytest.fixture(scope="module")
def params():
    return load_style(NETWORK)


@pytest.fixture(scope="module")
def images():
    """Three tiles of Blue Marble: Europe, south-east of North America, Sahel."""
    picture = Image.open(pathlib.Path(__file__).parents[2] / "data" / "blue_marble" / "green_season.jpg")
    corners = ((2700, 480), (1300, 780), (2650, 980))
    tiles = [picture.crop((x, y, x + 384, y + 384)) for x, y in corners]
    return np.stack([np.asarray(tile, np.float32) / 255 for tile in tiles])


@pytest.fixture(scope="module")
def results(params, images):
    """Return the codes of the 256-pixel images, and every image in the style of the next one."""
    small = images[:, 64:320, 64:320]
    codes = jax.jit(NETWORK.encode)(params, jnp.asarray(small))
    styled = jax.jit(NETWORK.stylize)(params, jnp.asarray(images), jnp.roll(codes, 1, axis=0))
    return small, np.asarray(codes), np.asarray(styled)


def run(encoder, transformer, images, small, codes):
    found_codes = [encoder.run(None, {"style_image": image[None]})[0].reshape(100) for image in small]
    feeds = [
        {"content_image": image[None], "mobilenet_conv/Conv/BiasAdd": code.reshape(1, 1, 1, 100)}
        for image, code in zip(images, np.roll(codes, 1, axis=0), strict=True)
    ]
    return np.stack(found_codes), np.concatenate([transformer.run(None, feed)[0] for feed in feeds])


def test_equals_the_graphs_without_activation_rounding(results, images):
    small, codes, styled = results
    sessions = [session(without_activation_rounding(path)) for path in GRAPHS.values()]
    expected_codes, expected = run(*sessions, images, small, codes)
    assert np.abs(expected_codes).max() > 1
    np.testing.assert_allclose(codes, expected_codes, atol=1e-5)
    np.testing.assert_allclose(styled, expected, atol=2e-5)  # thirteen consecutive norms amplify rounding errors


def test_is_close_to_the_graphs_as_published(results, images):
    small, codes, styled = results
    expected_codes, expected = run(*(session(str(path)) for path in GRAPHS.values()), images, small, codes)
    for code, image, expected_code, expected_image in zip(codes, styled, expected_codes, expected, strict=True):
        assert np.corrcoef(code, expected_code)[0, 1] > 0.96
        assert np.corrcoef(image.ravel(), expected_image.ravel())[0, 1] > 0.97
        assert np.abs(image - expected_image).mean() < 0.03


def test_the_shipped_file_is_what_the_converter_writes(tmp_path):
    onnx_style.main([*map(str, GRAPHS.values()), str(tmp_path / "out.safetensors")])
    written, shipped = (safetensors.numpy.load_file(path) for path in (tmp_path / "out.safetensors", ASSET))
    assert written.keys() == shipped.keys()
    for name, value in written.items():
        assert value.dtype == shipped[name].dtype
        np.testing.assert_array_equal(value, shipped[name])
    assert ASSET.stat().st_size < 4e6


def test_stored_values_are_the_graphs_own(params):
    graph = onnx.load(GRAPHS["stylize"]).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    name = "transformer/contract/conv1/weights"
    node = next(node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] == name)
    expected = constants[name].astype(np.float32) * constants[node.input[1]][:, None, None, None]
    np.testing.assert_array_equal(params["style/transformer/contract/0/kernel"], expected.transpose(2, 3, 1, 0))


def test_refuses_other_files(tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(UserError, match="expected an ONNX file"):
        onnx_style.read_graph(tmp_path / "text.onnx")
    node = onnx.helper.make_node("Conv", ["image", "kernel", "bias"], ["out"])
    constants = [onnx.numpy_helper.from_array(np.zeros(1, np.float32), name) for name in ("kernel", "bias")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], constants)), tmp_path / "other.onnx")
    with pytest.raises(UserError, match="convolution 'kernel'; expected Magenta's"):
        onnx_style.read_graph(tmp_path / "other.onnx")
    with pytest.raises(UserError, match="expected three"):
        onnx_style.main([])
