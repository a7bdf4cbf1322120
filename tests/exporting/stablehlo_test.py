"""A StableHLO file is read by a process that does not have this package."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.exporting import stablehlo
from crossearth_jax.exporting.stablehlo import write_stablehlo

READER = """
import sys
import jax
import numpy as np
sys.modules["crossearth_jax"] = None  # an import of the package would fail
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], exported.call(np.load(sys.argv[2])))
print(exported.platforms)
"""


def test_another_process_computes_the_same(random_model, tmp_path):
    model = random_model("fcn", "float32")
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = np.moveaxis(np.asarray(model.scores(np.moveaxis(images, 1, -1))), -1, 1)
    write_stablehlo(tmp_path / "model.stablehlo", model)
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("model.stablehlo", "images.npy", "found.npy")]
    done = subprocess.run([sys.executable, "-c", READER, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('cpu', 'cuda', 'tpu')"
    found = np.load(tmp_path / "found.npy")
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9999
    described = json.loads((tmp_path / "model.stablehlo.json").read_text("utf-8"))
    assert described["class_names"]["5"] == "snow" and described["tile_size"] == 32


def test_number_of_images_stays_free_in_the_whole_network(random_model, tmp_path):
    write_stablehlo(tmp_path / "model.stablehlo", random_model("mask2former", "float32"))
    exported = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert [str(aval) for aval in (*exported.in_avals, *exported.out_avals)] == [
        "float32[b,3,32,32]",
        "float32[b,6,32,32]",
    ]


def test_larger_weights_than_the_format_holds_are_refused(random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "LARGEST", 1000)
    with pytest.raises(UserError, match="holds at most 2 GB"):
        write_stablehlo(tmp_path / "model.stablehlo", random_model("linear", "float32"))
    assert list(tmp_path.iterdir()) == []
