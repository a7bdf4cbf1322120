"""The benchmark scripts run at tiny size without PyTorch; their timings are not checked."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

import benchmarks
from benchmarks import growth, heads, parts, run
from benchmarks.checkpoint import reference_tensors
from benchmarks.network import Options, backbone_flops
from benchmarks.sizes import SIZES
from crossearth_jax.config import ModelConfig, ViTConfig


def test_scripts_run(tmp_path, capsys):
    out = tmp_path / "result.json"
    run.main(["parity", "forward", "--size=tiny", "--rounds=1", f"--scratch={tmp_path}", f"--out={out}"])
    result = json.loads(out.read_text())
    assert result["forward"]["ours"]["scores"]["median"] > 0
    assert 0 < result["parity"]["least_score"] < result["parity"]["greatest_score"] < 8
    printed = capsys.readouterr().out
    assert "| converting: peak memory, bytes | ≤ 6e+09 |" in printed and "scores: greatest difference" not in printed


def test_checkpoint_has_every_tensor_of_the_reference():
    shapes = {name: x.shape for name, x in reference_tensors(SIZES["tiny"].model).items()}
    # The paper's model has 646: 14 per backbone block, 16 per encoder layer, 18 per decoder layer, and others.
    trained = {name for name in shapes if name.startswith(("backbone.", "decode_head."))}
    assert len(trained) == 646 - 20 * 14 - 5 * 16 - 7 * 18
    assert shapes["backbone.mask_token"] == (1, 64) and shapes["mask_token"] == (1, 3, 64, 64)


def test_flops_of_a_backbone_by_hand():
    # 24 blocks, 1025 tokens of width 1024: 24 n c^2 + 4 n^2 c each, Reins, and the patch embedding.
    n, m, c = 1025, 1024, 1024
    reins = 2 * (2 * m * 100 * c + m * c * c + 100 * c * c)
    expected = 24 * (24 * n * c * c + 4 * n * n * c + reins) + 2 * m * 3 * 256 * c
    assert backbone_flops(ModelConfig(), 512) == expected
    assert backbone_flops(ModelConfig(), 512) == pytest.approx(7.9e11, rel=0.02)


def test_heads_are_counted(monkeypatch, capsys):
    vit = ViTConfig(image_size=64, width=8, depth=4, heads=1, mlp_width=16, feature_blocks=(0, 1, 2, 3))
    monkeypatch.setattr(heads, "SIZES", {"vit_l": (vit, 1)})
    monkeypatch.setattr(heads, "SIDE", 64)
    model = heads.build("vit_l", "linear")
    head, _ = heads.split(model.shapes())
    assert {name: x.shape for name, x in head.items()} == {
        "head/classifier/kernel": (1, 1, 32, 6), "head/classifier/bias": (6,)
    }  # fmt: skip
    heads.main(["--heads", "linear", "eomt"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("| linear | 198 |") and printed[3].startswith("| eomt |")


def test_table_says_what_misses():
    found = {"ratios": {"step/seconds": {"median": np.float64(0.8)}}}
    lines = list(run.table({"step": {ViTConfig.remat: found}}))
    assert "| training step: time / PyTorch's | ≤ 0.7 | 0.8 | misses |" in lines


def test_without_the_libraries_of_maps_their_measure_is_left_out(monkeypatch):
    for name in [*filter(lambda name: name.startswith("rasterio"), sys.modules), "rasterio", "benchmarks.maps"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "benchmarks.maps")
    monkeypatch.delattr(benchmarks, "maps", raising=False)
    found = run.MEASURES["predict"](Options(pathlib.Path()))
    assert found == {"left_out": "rasterio is not installed; install the extra geo"}


def test_growth_is_measured_and_drawn(tmp_path):
    arguments = ["records", "--points=1", f"--out={tmp_path}/growth.json", f"--figure={tmp_path}/growth.png"]
    growth.main(arguments)
    growth.main(arguments)  # the results of earlier calls are kept
    found = json.loads((tmp_path / "growth.json").read_text())["records"]["points"]
    assert list(found) == ["100"] and found["100"]["prepare seconds"] > 0
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 1000


def test_decoders_are_compared():
    rates = parts.decoders(Options(pathlib.Path(), rounds=1))["megapixels_per_second"]
    assert {"jpeg/pillow", "png/pillow"} <= set(rates) and min(rate["median"] for rate in rates.values()) > 0
