"""Train every variant on every source and score it on all domains that it has not seen.

    python -m benchmarks.generalisation.backbone vit_s.safetensors
    python -m benchmarks.generalisation --data=domains.toml --backbone=vit_s.safetensors --out=runs/generalisation

Every domain of the file with a train split is a source in turn; the others are its unseen targets. A cell is one run:
head, variant, source, seed. Cells are taken seed by seed, so that an interrupted study has whole tables of fewer seeds.
The same command continues: finished cells are left alone, and an unfinished run goes on from its last checkpoint.

`OUT/results.csv` has a row for each cell and target, `OUT/shifts.csv` one for each cell and appearance shift;
`OUT/report.md` and `OUT/figures/` are made from them again after every cell. The protocol is in docs/generalisation.md.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8

from benchmarks.generalisation import figures, summary
from benchmarks.generalisation.summary import BASELINE, Row
from benchmarks.generalisation.variants import (
    GROUPS,
    HEADS,
    OF_SOURCE,
    REFERENCE,
    VARIANTS,
    Budget,
    Variant,
    find,
    recipe,
)
from crossearth_jax import estimate_style
from crossearth_jax.analysis import baselines
from crossearth_jax.analysis.diagnostics import style_distances
from crossearth_jax.augment.shifts import SHIFTS
from crossearth_jax.benchmark.registry import find_domain, settings_of
from crossearth_jax.config import Config, DataConfig, StyleConfig, UserError, ViTConfig
from crossearth_jax.inference.evaluate import evaluate
from crossearth_jax.inference.results import row
from crossearth_jax.inference.robustness import score_shifts
from crossearth_jax.inference.segmentor import load
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.prepare import prepare_file
from crossearth_jax.runtime import command
from crossearth_jax.runtime.atomic import replacing, write_json, write_npz
from crossearth_jax.training.loop import train
from crossearth_jax.training.stop import Stopped
from crossearth_jax.training.weights_file import ensure_exported
from crossearth_jax.weights.native import read_description

COLUMNS: tuple[str, ...] = (
    "head", "variant", "source", "target", "seed", "cross_domain", "miou", "iou", "pixels", "steps", "trainable",
    "seconds", "step_seconds", "device",
)  # fmt: skip
SHIFT_COLUMNS: tuple[str, ...] = ("head", "variant", "source", "seed", "shift", "strength", "miou")
SHIFT_STRENGTHS = (3,)  # of five: the middle one, since all five cost more than a training run
QUICK = Budget(steps=2, crop=64, batch=8)
QUICK_SHIFTS = ("haze", "jpeg")
MAP_TILES = 2  # tiles of each domain whose predictions are kept for the figure, of the first seed


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run."""

    head: str
    variant: Variant
    source: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.head}-{self.variant.name}-{self.source.replace('/', '_')}-{self.seed}"


def main(argv: Sequence[str]) -> int:
    """Run the cells that are missing."""
    arguments = _parser().parse_args(argv)
    try:
        variants = find(arguments.variants)
    except KeyError as error:
        known = ", ".join((*GROUPS, *(variant.name for variant in VARIANTS)))
        raise UserError(f"unknown variants: {error.args[0]}; known: {known}") from None
    if REFERENCE not in [variant.name for variant in variants]:
        raise UserError(f"--variants leaves out {REFERENCE}, which all others are compared with; add it")
    chosen = Budget(arguments.steps, arguments.crop, arguments.batch, arguments.learning_rate)
    budget = QUICK if arguments.quick else chosen
    vit = _backbone(arguments.backbone, budget)
    data_dir = str(arguments.data_dir or arguments.out / "data")
    file = prepare_file(arguments.data, data_dir, arguments.domains or None)
    domains = [own.key for own in file.find(arguments.domains or None)]
    named = [own.key for own in file.find(arguments.sources or None)]
    sources = [key for key in domains if key in named and find_domain(key, data_dir).counts.get("train")]
    if not sources:
        raise UserError(f"none of {', '.join(named)} is among the domains of the study and has a train split")
    cells = [
        Cell(head, variant, source, seed)
        for seed in range(arguments.seeds)
        for head in arguments.heads
        for source in sources
        for variant in variants
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        score_baselines(source, data_dir, arguments.out)
    began, ran = time.monotonic(), 0
    for i, cell in enumerate(cells):
        if _result(arguments.out, cell).exists():
            continue
        logging.info("cell %d of %d: %s", i + 1, len(cells), cell.name)
        config = _config(cell, budget, vit, len(file.taxonomy.classes), data_dir, arguments)
        try:
            run_cell(cell, config, arguments.out, QUICK_SHIFTS if arguments.quick else tuple(SHIFTS))
        except Stopped as stopped:
            logging.warning("%s", stopped)
            return stopped.exit_code
        ran += 1
        left = sum(not _result(arguments.out, other).exists() for other in cells)
        each = (time.monotonic() - began) / ran
        logging.info("%d of %d cells are missing, about %.1f hours", left, len(cells), left * each / 3600)
        write_tables(arguments.out, cells, data_dir)
    write_tables(arguments.out, cells, data_dir)
    print(arguments.out / "report.md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generalisation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="domains.toml of the domains, see docs/howto/own_dataset.md")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--backbone", type=Path, help="frozen DINOv2, converted (.safetensors); random weights without")
    parser.add_argument("--data_dir", help="where domains are prepared; OUT/data without")
    parser.add_argument(
        "--variants", nargs="+", default=["study"], help=f"of {', '.join((*GROUPS, *(v.name for v in VARIANTS)))}"
    )
    parser.add_argument("--heads", nargs="*", default=HEADS[:1], choices=HEADS)
    parser.add_argument("--domains", nargs="*", default=[], help="domains of the study; all of the file without")
    parser.add_argument("--sources", nargs="*", default=[], help="domains to train on; all of the study without")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--crop", type=int, default=160, help="side of crops, in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=Budget.learning_rate)
    parser.add_argument("--quick", action="store_true", help="two steps of a tiny backbone: does the study run?")
    return parser


def _backbone(path: Path | None, budget: Budget) -> ViTConfig:
    if path is None:
        side = budget.crop
        return ViTConfig(
            image_size=side, width=48, depth=4, heads=4, mlp_width=96, feature_blocks=(0, 1, 2, 3), layer_scale=1.0
        )
    return read_description(path).model.vit


def _config(
    cell: Cell, budget: Budget, vit: ViTConfig, classes: int, data_dir: str, arguments: argparse.Namespace
) -> Config:
    config = cell.variant.change(recipe(budget, cell.head, vit, classes))
    if config.style is not None and config.style.statistics == OF_SOURCE:
        statistics = str(own_styles(cell.source, data_dir, arguments.out))
        config = dataclasses.replace(config, style=dataclasses.replace(config.style, statistics=statistics))
    init_from = None if arguments.backbone is None else str(arguments.backbone)
    return dataclasses.replace(
        config,
        seed=cell.seed,
        data=dataclasses.replace(config.data, source=cell.source, data_dir=data_dir),
        train=dataclasses.replace(config.train, init_from=init_from),
    )


def own_styles(source: str, data_dir: str, out: Path) -> Path:
    """Estimate the style statistics of the source's own training images, once."""
    path = out / "styles" / f"{source.replace('/', '_')}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        estimate_style.main([source, f"--source={source}", f"--data_dir={data_dir}", f"--out={path}"])
    return path


def run_cell(cell: Cell, config: Config, out: Path, shifts: Sequence[str]) -> None:
    """Trains, score all targets and the appearance shifts of the source, and keep only the scores and a few maps."""
    workdir, began = out / "runs" / cell.name, time.monotonic()
    run = train(config, workdir)
    trained = time.monotonic()
    segmentor = load(ensure_exported(workdir), window=config.evaluate.window, stride=config.evaluate.stride)
    evaluate(config, workdir, segmentor)
    of_shifts = json.loads(score_shifts(config, workdir, segmentor, shifts, SHIFT_STRENGTHS).read_text("utf-8"))
    rows = json.loads((workdir / "results.json").read_text("utf-8"))
    made = {
        "steps": config.train.steps,
        "trainable": sum(value.size for value in jax.tree.leaves(run.state.trainable)),
        "seconds": round(trained - began),  # of training, since the last start where a run was interrupted
        "step_seconds": step_seconds(workdir, config.data.batch_size),
        "device": jax.devices()[0].device_kind,
    }
    if cell.seed == 0:
        predictions = {
            scored["target"]: [
                segmentor.predict(image[None])[0] for image, _ in tiles(scored["target"], config.data.data_dir)
            ]
            for scored in rows.values()
        }
        write_npz(
            _maps(out, cell),
            **{f"{target} {i}": labels for target, found in predictions.items() for i, labels in enumerate(found)},
        )
    write_json(_result(out, cell), {"rows": rows, "shifts": of_shifts["shifts"], "made": made})
    shutil.rmtree(workdir)
    jax.clear_caches()


def step_seconds(workdir: Path, batch: int) -> float | None:
    """Return the median time of a training step with reading and logging; None if there is only one record."""
    lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
    rates = [record["images_per_second"] for record in map(json.loads, lines) if "images_per_second" in record]
    return round(batch / statistics.median(rates), 3) if rates else None


def tiles(domain: str, data_dir: str) -> list[tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]:
    """The tiles of a domain's evaluation split that the figure shows, evenly spread, with their labels."""
    split = PreparedSplit(domain, find_domain(domain, data_dir).eval_split, data_dir)
    chosen = [split[i * len(split) // MAP_TILES] for i in range(min(MAP_TILES, len(split)))]
    return [(record["image"], record["label"]) for record in chosen]


def score_baselines(source: str, data_dir: str, out: Path) -> None:
    """Score the classifiers that need no network, once, and measure how far the style of each target is."""
    path = _baseline_path(out, source)
    if path.exists():
        return
    settings = settings_of(source, (), data_dir)
    targets = [setting.target for setting in settings]
    style = Config(name="styles", data=DataConfig(source=source, data_dir=data_dir), style=StyleConfig())
    distances = style_distances(style, targets)
    matrices = baselines.confusions(source, targets, data_dir)
    rows = {
        name: {
            setting.name: row(setting, find_domain(setting.target, data_dir).classes, found[setting.target], None)
            for setting in settings
        }
        for name, found in matrices.items()
    }
    write_json(path, {"rows": rows, "style_distances": distances})


def _result(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def read_cells(out: Path, cells: Sequence[Cell]) -> tuple[list[Row], list[Row]]:
    """Read the scores of the baselines and of the finished cells.

    Returns:
      The rows of `results.csv`, and those of `shifts.csv`.
    """
    scores: list[Row] = []
    shifts: list[Row] = []
    for source in _sources(cells):
        for name, rows in _baseline(out, source)["rows"].items():
            made = {"head": BASELINE, "variant": name, "source": source, "seed": 0, "steps": 0, "trainable": 0}
            scores += [made | {"seconds": 0, "device": "cpu"} | _scores(scored) for scored in rows.values()]
    for cell in cells:
        if not _result(out, cell).exists():
            continue
        content = json.loads(_result(out, cell).read_text("utf-8"))
        made = {"head": cell.head, "variant": cell.variant.name, "source": cell.source, "seed": cell.seed}
        scores += [made | content["made"] | _scores(scored) for scored in content["rows"].values()]
        shifts += [
            made | {"shift": name, "strength": int(strength), "miou": found["miou"]}
            for name, shift in content["shifts"].items()
            for strength, found in shift["strengths"].items()
        ]
    return scores, shifts


def _sources(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.source for cell in cells))


def _baseline(out: Path, source: str) -> dict[str, Any]:
    return json.loads(_baseline_path(out, source).read_text("utf-8"))


def _baseline_path(out: Path, source: str) -> Path:
    return out / "cells" / f"{BASELINE}-{source.replace('/', '_')}.json"


def _scores(scored: Row) -> dict[str, Any]:
    columns = ("target", "cross_domain", "miou", "pixels")
    return {key: scored[key] for key in columns} | {"iou": json.dumps(scored["iou"])}


def write_tables(out: Path, cells: Sequence[Cell], data_dir: str) -> None:
    """Write `results.csv`, `shifts.csv`, `report.md` and the figures of the finished cells."""
    scores, shifts = read_cells(out, cells)
    for name, columns, rows in (("results", COLUMNS, scores), ("shifts", SHIFT_COLUMNS, shifts)):
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with replacing(out / f"{name}.csv") as temporary:
            temporary.write_text(text.getvalue(), "utf-8")
    folder, drawn = out / "figures", []
    distances = {
        (source, target): distance
        for source in _sources(cells)
        for target, distance in _baseline(out, source)["style_distances"].items()
    }
    for head in HEADS:
        of_head = [scored for scored in scores if scored["head"] == head]
        if any(scored["cross_domain"] for scored in of_head):
            drawn += [
                figures.differences(folder, of_head),
                figures.classes(folder, of_head),
                figures.effective_robustness(folder, of_head),
                figures.style_distance(folder, of_head, distances),
            ]
            drawn += draw_maps(out, [cell for cell in cells if cell.head == head], data_dir)
    with replacing(out / "report.md") as temporary:
        temporary.write_text(summary.report(scores, shifts, [str(path.relative_to(out)) for path in drawn]), "utf-8")


def draw_maps(out: Path, cells: Sequence[Cell], data_dir: str) -> Iterator[Path]:
    """Draws, for each source and target, the kept predictions of all variants on the same tiles."""
    for source in _sources(cells):
        kept = {
            cell.variant.name: np.load(_maps(out, cell))
            for cell in cells
            if cell.source == source and cell.seed == 0 and _maps(out, cell).exists()
        }
        targets = dict.fromkeys(name.rpartition(" ")[0] for arrays in kept.values() for name in arrays)
        for target in targets:
            images, labels = zip(*tiles(target, data_dir), strict=True)
            maps = {"labels": labels} | {
                name: [arrays[f"{target} {i}"] for i in range(len(images))] for name, arrays in kept.items()
            }
            name = f"maps_{cells[0].head}_{source}_{target}.png".replace("/", "_")
            yield figures.sample_maps(out / "figures" / name, images, maps, find_domain(target, data_dir).palette)


def _maps(out: Path, cell: Cell) -> Path:
    return out / "maps" / f"{cell.name}.npz"


if __name__ == "__main__":
    command.run(main)
