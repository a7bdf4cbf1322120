"""The tables of docs/benchmark.md agree with the facts; CROSSEARTH_UPDATE_GOLDEN=1 rewrites them."""

import os
import re
from pathlib import Path

import pytest

from crossearth_jax.benchmark import DOMAINS, SETTINGS, TRAININGS, training_of

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings():
    rows = []
    for setting in SETTINGS.values():
        if training_of(setting.name) is None:
            continue
        split = DOMAINS[setting.target].eval_split
        score = f"{setting.object} IoU" if setting.object else f"mIoU of {len(setting.classes)}"
        gap = ", ".join(name.replace("_", " ") for name in setting.gap) or "in-domain"
        images = f"{DOMAINS[setting.target].counts[split]:,}"
        rows.append([setting.name, setting.source, f"{setting.target}, {split}", gap, images, score])
    return table(["Setting", "Trained on", "Scored on", "Unseen", "Images", "Score"], rows)


def trainings():
    rows = []
    for training in TRAININGS.values():
        served = ", ".join(setting.name for setting in SETTINGS.values() if setting.source == training.source)
        images = f"{DOMAINS[training.source].counts['train']:,}"
        weights = f"`{training.weights}`" if training.weights else "none published"
        rows.append([f"`{training.name}`", images, str(training.crop), served, weights])
    return table(["Training", "Images", "Crop", "Serves", "Published weights"], rows)


def domains():
    rows = []
    for domain in DOMAINS.values():
        if domain.dataset == "blue_marble":
            continue
        splits = ", ".join(f"{split} {count:,}" for split, count in domain.counts.items())
        box = "never scored"
        if domain.resize is not None:
            box = " x ".join(map(str, domain.resize.box)) + ("" if domain.resize.keep_ratio else ", stretched")
        gsd = "varies" if domain.gsd is None else f"{domain.gsd:g} m"
        classes = ", ".join(domain.classes)
        rows.append([f"`{domain.name}`", splits, gsd, box, classes])
    return table(["Domain", "Images", "Pixel", "Box", "Classes"], rows)


@pytest.mark.parametrize("make", [settings, trainings, domains], ids=lambda make: make.__name__)
def test_table_of_the_page(make):
    name = make.__name__
    block = re.compile(rf"(<!-- {name} -->\n)(.*?)\n?(<!-- /{name} -->)", re.S)
    text = PAGE.read_text("utf-8")
    if os.environ.get("CROSSEARTH_UPDATE_GOLDEN") == "1":
        PAGE.write_text(block.sub(lambda m: f"{m[1]}{make()}\n{m[3]}", text), "utf-8")
    found = block.search(PAGE.read_text("utf-8"))
    assert found is not None and found[2].strip() == make()
