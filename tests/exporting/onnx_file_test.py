"""An exported ONNX file, run by onnxruntime, gives the probabilities of the reference's scores."""

import json

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from crossearth_jax.exporting.onnx_file import write_onnx


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session, images):
    return session.run(["output"], {"input": images})[0]


@pytest.fixture(scope="module")
def reference_session(reference_file):
    return session_of(reference_file)


@pytest.fixture(scope="module")
def reference_file(reference_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "model.onnx"
    write_onnx(path, reference_model)
    return path


def test_probabilities_are_those_of_the_reference(reference_session, reference_result):
    images, expected = reference_result
    found = run(reference_session, images)
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9999
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_number_of_images_is_free(reference_session, reference_result):
    images, expected = reference_result
    found = run(reference_session, np.repeat(images[:1], 3, axis=0))
    np.testing.assert_allclose(found, np.repeat(expected[:1], 3, axis=0), atol=1e-4)


@pytest.mark.parametrize("kind", ["eomt", "fcn", "linear"])
def test_other_heads(kind, random_model, tmp_path):
    """The model computes in bfloat16, its export in float32, like a model of float32."""
    trained, same_in_float32 = random_model(kind, "bfloat16"), random_model(kind, "float32")
    write_onnx(tmp_path / "model.onnx", trained)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = np.moveaxis(np.asarray(same_in_float32.scores(jnp.moveaxis(images, 1, -1))), -1, 1)
    expected = expected / expected.sum(1, keepdims=True)  # the scores of "eomt" are not probabilities
    found = run(session_of(tmp_path / "model.onnx"), images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9999


def test_registers_and_rotary_positions(random_model, tmp_path):
    model = random_model("linear", "float32", registers=4, position="rope", key_bias=False)
    write_onnx(tmp_path / "model.onnx", model)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = np.moveaxis(np.asarray(model.scores(jnp.moveaxis(images, 1, -1))), -1, 1)
    np.testing.assert_allclose(run(session_of(tmp_path / "model.onnx"), images), expected, atol=1e-5)


def test_old_runtimes_and_deepness_can_read_it(reference_file, reference_session):
    """Deepness 0.6.5 installs onnxruntime 1.17 or older, which reads IR up to 9 and operator sets up to 20."""
    model = onnx.load(reference_file)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    (given,), (returned,) = reference_session.get_inputs(), reference_session.get_outputs()
    assert (given.type, given.shape) == ("tensor(float)", ["b", 3, 64, 64])
    assert (returned.type, returned.shape) == ("tensor(float)", ["b", 6, 64, 64])


def test_metadata_is_that_of_deepness(reference_session):
    found = reference_session.get_modelmeta().custom_metadata_map
    values = {key: json.loads(text) for key, text in found.items()}
    assert values.pop("standardization_mean") == pytest.approx([0.485, 0.456, 0.406])  # ImageNet
    assert values.pop("standardization_std") == pytest.approx([0.229, 0.224, 0.225])
    assert values == {
        "model_type": "Segmentor",
        "class_names": {"0": "water", "1": "forest", "2": "shrub", "3": "crop", "4": "bare", "5": "snow"},
        "resolution": 5.0,  # cm; the ground resolution is 0.05 m
        "tile_size": 64,
        "tiles_overlap": 34,  # percent; the stride is 42
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
        "palette": {str(i): [i, 10 * i, 255 - i] for i in range(6)},
        "bands": ["nir", "red", "green"],
        "trained_on": "potsdam/irrg",
        "source": "tiny, step 4",
    }


def test_large_weights_are_in_a_second_file(random_model, tmp_path):
    model, path = random_model("fcn", "float32"), tmp_path / "model.onnx"
    images = np.ones((1, 3, 32, 32), np.float32)
    write_onnx(path, model)
    whole = path.stat().st_size
    expected = run(session_of(path), images)
    for _ in range(2):  # the second time over existing files
        write_onnx(path, model, single_file=1000)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
        assert path.stat().st_size + (tmp_path / "model.onnx.data").stat().st_size == pytest.approx(whole, rel=0.3)
        assert path.stat().st_size < whole
        np.testing.assert_array_equal(run(session_of(path), images), expected)
