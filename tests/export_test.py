"""The export command: from the folder of a run to a file that onnxruntime reads; mistakes end in one line."""

import builtins
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from crossearth_jax.config import HeadConfig, ModelConfig, UserError, ViTConfig
from crossearth_jax.export import main
from crossearth_jax.inference.segmentor import load
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description, save_native

MODEL = ModelConfig(
    classes=3,
    vit=ViTConfig(image_size=32, width=16, depth=4, heads=2, mlp_width=16, feature_blocks=(0, 1, 2, 3)),
    reins=None,
    head=HeadConfig(kind="linear"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run: of its files only the weights file is read."""
    folder = tmp_path_factory.mktemp("run")
    params = SegmentationModel(MODEL).init(jax.random.key(0))
    save_native(folder / "model.safetensors", params, Description(model=MODEL, window=32, stride=16))
    return folder


def test_a_run_becomes_a_model_with_these_classes_and_this_window(folder, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    main([str(folder), f"--out={out}", "--classes=road,field,other", "--window=48"])
    assert capsys.readouterr().out == f"{out}: images (b, 3, 48, 48) to probabilities (b, 3, 48, 48)\n"
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["class_names"]) == {"0": "road", "1": "field", "2": "other"}
    assert "resolution" not in described  # the ground resolution is not known
    images = np.random.default_rng(0).standard_normal((1, 3, 48, 48)).astype(np.float32)
    expected = load(folder).scores(jnp.moveaxis(images, 1, -1))
    np.testing.assert_allclose(session.run(None, {"input": images})[0], np.moveaxis(expected, -1, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("run", "model.tflite", "ends in '.tflite'; expected .onnx or .stablehlo"),
        ("run", "absent/model.onnx", "name a file in an existing folder"),
        ("empty", "model.onnx", "expected the folder of a run"),
        ("absent", "model.onnx", "absent"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(folder, tmp_path, source, out, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        main([str(folder if source == "run" else tmp_path / source), f"--out={tmp_path / out}"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_missing_extra_is_named(folder, tmp_path, monkeypatch, capsys):
    original = builtins.__import__

    def without_onnx(name, *arguments):
        if name.endswith("onnx_file"):
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(SystemExit) as exit:
        main([str(folder), f"--out={tmp_path / 'model.onnx'}"])
    assert exit.value.code == 2
    assert "onnx is not installed; this command needs the extra export" in capsys.readouterr().err
