"""Draw the figures of a study from its rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.generalisation.summary import Row, interval, paired, short
from benchmarks.generalisation.variants import REFERENCE, VARIANTS
from crossearth_jax.benchmark import IGNORE
from crossearth_jax.runtime.atomic import replacing

Maps = Mapping[str, Sequence[UInt8[np.ndarray, "h w"]]]  # variant (or "truth") -> predictions of some tiles
Point = tuple[Any, Any]  # x and y
COLUMNS = 10  # panels side by side, at most


def differences(folder: Path, rows: Sequence[Row]) -> Path:
    """Draw the difference of every unseen run to Rein with the same source, target and seed; a bar is the interval."""
    unseen = [row for row in rows if row["cross_domain"]]
    names = [variant for variant in _variants(unseen) if variant != REFERENCE]
    pairs = sorted({(row["source"], row["target"]) for row in unseen})
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.4 * len(names)), layout="constrained")
    for y, name in enumerate(names):
        found = paired(unseen, name)
        for k, pair in enumerate(pairs):
            values = [value for (source, target, _), value in found.items() if (source, target) == pair]
            axes.plot(values, [y + (k - (len(pairs) - 1) / 2) * 0.1] * len(values), "o", ms=4, alpha=0.7, color=f"C{k}")
        if len(found) > 1:
            low, high = interval(list(found.values()))
            axes.plot([low, high], [y, y], color="black", lw=2, zorder=0)
        if found:
            axes.plot([np.mean(list(found.values()))], [y], "|", color="black", ms=14, mew=2)
    for k, (source, target) in enumerate(pairs):
        axes.plot([], [], "o", color=f"C{k}", label=f"{short(source)} → {short(target)}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="grey", lw=0.8)
    axes.set_xlabel(f"mIoU on the unseen domain, difference to {REFERENCE} (points)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, folder / f"differences_{rows[0]['head']}.png")


def classes(folder: Path, rows: Sequence[Row]) -> Path:
    """Draw the mean difference to Rein of the IoU of every class, over all unseen runs."""
    unseen = [row for row in rows if row["cross_domain"]]
    names = [variant for variant in _variants(unseen) if variant != REFERENCE]
    labels = list(json.loads(unseen[0]["iou"]))
    gains = np.full((len(names), len(labels)), np.nan)
    for k, label in enumerate(labels):
        of_class = [{**row, "miou": value} for row in unseen if (value := json.loads(row["iou"])[label]) is not None]
        for i, name in enumerate(names):
            found = list(paired(of_class, name).values())
            gains[i, k] = np.mean(found) if found else np.nan
    limit = max(np.nanmax(np.abs(gains)), 1.0) if np.isfinite(gains).any() else 1.0
    figure, axes = plt.subplots(figsize=(3 + 0.9 * len(labels), 1.5 + 0.35 * len(names)), layout="constrained")
    axes.imshow(gains, cmap="PiYG", vmin=-limit, vmax=limit, aspect="auto")
    for (i, k), value in np.ndenumerate(gains):
        axes.text(k, i, f"{value:+.1f}" if np.isfinite(value) else "", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"IoU by class on unseen domains, difference to {REFERENCE} (points)", fontsize=9)
    return _save(figure, folder / f"classes_{rows[0]['head']}.png")


def effective_robustness(folder: Path, rows: Sequence[Row]) -> Path:
    """Draw one dot for each run: its score in the source domain against its mean on the unseen domains."""
    points: dict[str, list[Point]] = {}
    for name in _variants(rows):
        points[name] = []
        for source, seed in sorted({(row["source"], row["seed"]) for row in rows if row["variant"] == name}):
            run = [row for row in rows if (row["variant"], row["source"], row["seed"]) == (name, source, seed)]
            own = [row["miou"] for row in run if not row["cross_domain"]]
            unseen = [row["miou"] for row in run if row["cross_domain"]]
            if own and unseen:
                points[name].append((np.mean(own), np.mean(unseen)))
    path = folder / f"effective_robustness_{rows[0]['head']}.png"
    return _scatter(path, points, "mIoU in the source domain", "mean mIoU on unseen domains")


def style_distance(folder: Path, rows: Sequence[Row], distances: Mapping[tuple[str, str], float]) -> Path:
    """Draw how much a pair of domains loses of the in-domain score against the Fréchet distance of their styles."""
    own = {(row["variant"], row["source"], row["seed"]): row["miou"] for row in rows if not row["cross_domain"]}
    points: dict[str, list[Point]] = {name: [] for name in _variants(rows)}
    for row in rows:
        run = row["variant"], row["source"], row["seed"]
        if row["cross_domain"] and run in own:
            points[row["variant"]].append((distances[row["source"], row["target"]], own[run] - row["miou"]))
    path = folder / f"style_distance_{rows[0]['head']}.png"
    x, y = "Fréchet distance of the style codes of source and target", "in-domain mIoU minus mIoU on the target"
    return _scatter(path, points, x, y)


def _scatter(path: Path, points: Mapping[str, Sequence[Point]], x: str, y: str) -> Path:
    """Draw the points of every variant in a colour and marker of its own."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for i, (name, of_variant) in enumerate(points.items()):
        if of_variant:
            marker = "os^Dv"[i // 10 % 5]
            axes.plot(*np.transpose(of_variant), marker, color=f"C{i % 10}", ms=6, alpha=0.8, label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


def sample_maps(
    path: Path, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], maps: Maps, palette: Sequence[tuple[int, int, int]]
) -> Path:
    """Draw tiles with their labels and the predictions of every variant."""
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = 0
    lines = math.ceil((1 + len(maps)) / COLUMNS)
    columns, count = math.ceil((1 + len(maps)) / lines), len(images)
    figure, grid = plt.subplots(
        lines * count, columns, figsize=(1.7 * columns, 1.95 * lines * count), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for i, image in enumerate(images):
        panels: list[tuple[str, np.ndarray]] = [("image", image)]
        panels += [(name, colours[predictions[i]]) for name, predictions in maps.items()]
        for k, (name, picture) in enumerate(panels):
            _panel(grid[i * lines + k // columns, k % columns], name, picture)
    return _save(figure, path)


def _panel(axes: Axes, name: str, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(name, fontsize=8)


def _variants(rows: Sequence[Row]) -> list[str]:
    present = {row["variant"] for row in rows}
    return [variant.name for variant in VARIANTS if variant.name in present]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        options: dict[str, Any] = {"format": "png", "dpi": 100, "metadata": {"Software": None}}
        figure.savefig(temporary, **options)
    plt.close(figure)
    return path
