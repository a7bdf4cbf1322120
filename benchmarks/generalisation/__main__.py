"""Trains every variant on every source and scores it on all domains that it has not seen.

    python -m benchmarks.generalisation.backbone vit_s.safetensors
    python -m benchmarks.generalisation --data=domains.toml --backbone=vit_s.safetensors --out=runs/generalisation

Every domain of the file with a train split is a source in turn; the others are its unseen targets. A cell is one run:
head, variant, source, seed. Cells are taken seed by seed, so that an interrupted study has whole tables of fewer seeds.
The same command continues: finished cells are left alone, and an unfinished run goes on from its last checkpoint.

`OUT/results.csv` has a row for each cell and target; `OUT/report.md` is written again after every cell. The protocol is
in docs/generalisation.md.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from benchmarks.generalisation import summary
from benchmarks.generalisation.variants import HEADS, REFERENCE, VARIANTS, Budget, Variant, find, recipe
from crossearth_jax.benchmark.registry import find_domain
from crossearth_jax.config import Config, UserError, ViTConfig
from crossearth_jax.inference.evaluate import evaluate
from crossearth_jax.inference.segmentor import load
from crossearth_jax.prepare import prepare_file
from crossearth_jax.runtime import command
from crossearth_jax.runtime.atomic import replacing, write_json
from crossearth_jax.training.export import ensure_exported
from crossearth_jax.training.loop import train
from crossearth_jax.training.stop import Stopped
from crossearth_jax.weights.native import read_description

COLUMNS: list[str] = [
    "head", "variant", "source", "target", "seed", "cross_domain", "miou", "iou", "pixels", "steps", "trainable",
    "seconds", "device",
]  # fmt: skip
QUICK = Budget(steps=2, crop=64, batch=8)


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
    """Runs the cells that are missing."""
    arguments = _parser().parse_args(argv)
    try:
        variants = find(arguments.variants)
    except KeyError as error:
        known = ", ".join(variant.name for variant in VARIANTS)
        raise UserError(f"unknown variants: {error.args[0]}; known: {known}") from None
    if REFERENCE not in [variant.name for variant in variants]:
        raise UserError(f"--variants leaves out {REFERENCE}, which all others are compared with; add it")
    budget = QUICK if arguments.quick else Budget(arguments.steps, arguments.crop, arguments.batch)
    vit = _backbone(arguments.backbone, budget)
    data_dir = str(arguments.data_dir or arguments.out / "data")
    file = prepare_file(arguments.data, data_dir)
    sources = [own.key for own in file.find(arguments.sources or None)]
    sources = [key for key in sources if find_domain(key, data_dir).counts.get("train")]
    cells = [
        Cell(head, variant, source, seed)
        for seed in range(arguments.seeds)
        for head in arguments.heads
        for source in sources
        for variant in variants
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, ran = time.monotonic(), 0
    for i, cell in enumerate(cells):
        if _result(arguments.out, cell).exists():
            continue
        logging.info("cell %d of %d: %s", i + 1, len(cells), cell.name)
        config = _config(cell, budget, vit, len(file.taxonomy.classes), data_dir, arguments.backbone)
        try:
            run_cell(cell, config, arguments.out)
        except Stopped as stopped:
            logging.warning("%s", stopped)
            return stopped.exit_code
        ran += 1
        left = sum(not _result(arguments.out, other).exists() for other in cells)
        each = (time.monotonic() - began) / ran
        logging.info("%d of %d cells are missing, about %.1f hours", left, len(cells), left * each / 3600)
        write_tables(arguments.out, cells)
    write_tables(arguments.out, cells)
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
    parser.add_argument("--variants", nargs="*", default=[], help=f"of {', '.join(v.name for v in VARIANTS)}")
    parser.add_argument("--heads", nargs="*", default=HEADS[:1], choices=HEADS)
    parser.add_argument("--sources", nargs="*", default=[], help="domains to train on; all of the file without")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--crop", type=int, default=160, help="side of crops, in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two steps of a tiny backbone: does the study run?")
    return parser


def _backbone(path: Path | None, budget: Budget) -> ViTConfig:
    if path is None:
        side = budget.crop
        return ViTConfig(
            image_size=side, width=48, depth=4, heads=4, mlp_width=96, feature_blocks=(0, 1, 2, 3), layer_scale=1.0
        )
    return read_description(path).model.vit


def _config(cell: Cell, budget: Budget, vit: ViTConfig, classes: int, data_dir: str, backbone: Path | None) -> Config:
    config = cell.variant.change(recipe(budget, cell.head, vit, classes))
    return dataclasses.replace(
        config,
        seed=cell.seed,
        data=dataclasses.replace(config.data, source=cell.source, data_dir=data_dir),
        train=dataclasses.replace(config.train, init_from=None if backbone is None else str(backbone)),
    )


def run_cell(cell: Cell, config: Config, out: Path) -> None:
    """Trains, scores all targets, and keeps the scores alone."""
    workdir, began = out / "runs" / cell.name, time.monotonic()
    run = train(config, workdir)
    trainable = sum(value.size for value in jax.tree.leaves(run.state.trainable))
    evaluate(
        config, workdir, load(ensure_exported(workdir), window=config.evaluate.window, stride=config.evaluate.stride)
    )
    rows = json.loads((workdir / "results.json").read_text("utf-8"))
    made = {
        "steps": config.train.steps,
        "trainable": trainable,
        "seconds": round(time.monotonic() - began),  # since the last start, where a run was interrupted
        "device": jax.devices()[0].device_kind,
    }
    write_json(_result(out, cell), {"rows": rows, "made": made})
    shutil.rmtree(workdir)
    jax.clear_caches()


def _result(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def records(out: Path, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row of `results.csv` for each finished cell and each of its targets."""
    for cell in cells:
        path = _result(out, cell)
        if not path.exists():
            continue
        content = json.loads(path.read_text("utf-8"))
        for row in content["rows"].values():
            yield {
                "head": cell.head,
                "variant": cell.variant.name,
                "source": cell.source,
                "target": row["target"],
                "seed": cell.seed,
                "cross_domain": row["cross_domain"],
                "miou": row["miou"],
                "iou": json.dumps(row["iou"]),
                "pixels": row["pixels"],
                **content["made"],
            }


def write_tables(out: Path, cells: Sequence[Cell]) -> None:
    """Writes `results.csv` and `report.md` of the finished cells."""
    rows = list(records(out, cells))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(out / "results.csv") as temporary:
        temporary.write_text(text.getvalue(), "utf-8")
    with replacing(out / "report.md") as temporary:
        temporary.write_text(summary.report(rows), "utf-8")


if __name__ == "__main__":
    command.run(main)
