"""The diagrams of a report: scores, losses of class IoU, appearance shifts, class features and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossearth_jax.reporting import figures, projection, score_tables, summary
from crossearth_jax.reporting.diagrams import FAINT, INK, MUTED, SERIES, Diagram, drawing, dress
from crossearth_jax.reporting.run import Cell, ClassFeatures, Evaluation, Robustness, Run

MARKERS = ("o", "D", "s", "^", "v", "P", "X", "h")
LINE = 0.22  # height in inches of a row of a dot plot


@drawing
def scores(cells: Sequence[Cell], series: Mapping[str, Mapping[str, float | None]], title: str) -> Diagram:
    """Draw a dot plot of the mIoU of every setting, one row per setting, in-domain first.

    Args:
      cells: the settings.
      series: label -> setting -> mIoU in percent; None or a missing setting draws nothing.
      title: title of the diagram.
    """
    ordered = [cell for group in summary.groups(cells) for cell in group.cells]
    figure = Figure(figsize=(6.4, 1.0 + LINE * len(ordered)), layout="constrained")
    axes = figure.subplots()
    for number, (label, values) in reversed(list(enumerate(series.items()))):
        points = [(value, row) for row, cell in enumerate(ordered) if (value := values.get(cell.name)) is not None]
        style = {"color": SERIES[number % 8], "marker": MARKERS[number % 8]}
        axes.scatter(*np.reshape(points, (-1, 2)).T, label=label, s=26, zorder=3, clip_on=False, **style)
    _rows(axes, [score_tables.domain_title(cell.target) for cell in ordered], title)
    axes.set_xlabel("mIoU, percent", color=MUTED)
    _legend(axes, len(series))
    return Diagram(title, figure)


@drawing
def losses(run: Run) -> Diagram | None:
    """Draw for each class its IoU in the source domain and in every unseen domain; None if nothing can be compared."""
    gaps = summary.gaps(run.cells)
    names = [name for name in run.classes if any(name in gap.change for gap in gaps)]
    if not names:
        return None
    kinds = list(dict.fromkeys(summary.gap_title(gap.cell) for gap in gaps))
    figure = Figure(figsize=(6.4, 1.2 + 1.6 * LINE * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        found = [(gap, gap.cell.iou[name] or 0.0) for gap in gaps if name in gap.change]
        home = found[0][0].reference.iou[name] or 0.0
        axes.plot([home, min(value for _, value in found)], [row, row], color=FAINT, linewidth=3, zorder=2)
        for number, kind in enumerate(kinds):
            values = [value for gap, value in found if summary.gap_title(gap.cell) == kind]
            style = {"color": SERIES[number % 8], "marker": MARKERS[number % 8], "alpha": 0.85, "clip_on": False}
            axes.scatter(values, [row] * len(values), s=26, zorder=3, label=kind if row == 0 else None, **style)
        axes.scatter(home, row, s=70, color=INK, marker="|", linewidth=2, zorder=4, label=None if row else "In-domain")
    title = "Class IoU in the source domain and in unseen domains"
    _rows(axes, names, title)
    axes.set_xlabel("IoU, percent", color=MUTED)
    _legend(axes, len(kinds) + 1)
    return Diagram(title, figure)


@drawing
def shifts(robustness: Robustness) -> Diagram:
    """Draw the mIoU against the strength of each appearance shift; strength 0 means the unchanged images."""
    title = "mIoU on the source's test images under appearance shifts"
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, shift) in enumerate(robustness.shifts.items()):
        scores = {0: robustness.clean, **dict(sorted(shift.scores.items()))}
        points = [(strength, score.miou) for strength, score in scores.items() if score.miou is not None]
        axes.plot(
            *np.reshape(points, (-1, 2)).T, label=name, color=SERIES[number % 8], marker=MARKERS[number % 8],
            linestyle="-" if number < 8 else "--", linewidth=1.2, markersize=4, clip_on=False,
        )  # fmt: skip
    dress(axes, title)
    axes.set_xlabel("strength (0: without a shift)", color=MUTED)
    axes.set_ylabel("mIoU, percent", color=MUTED)
    axes.set_ylim(0)
    _legend(axes, len(robustness.shifts))
    return Diagram(title, figure)


def _rows(axes: Axes, names: Sequence[str], title: str) -> None:
    dress(axes, title)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)


def _legend(axes: Axes, count: int) -> None:
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    if count > 1:
        axes.legend(frameon=False, labelcolor=MUTED, fontsize=8, handletextpad=0.3, **place)


@drawing
def feature_maps(
    features: ClassFeatures, palette: Mapping[str, tuple[int, int, int]], points: Float[np.ndarray, "n 2"], method: str
) -> Diagram:
    """Draw the projected class features twice: coloured by class and coloured by domain."""
    title = f"Class features across domains ({projection.TITLES[method]})"
    figure = Figure(figsize=(9.2, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_class = {name: np.divide(palette.get(name, (127, 127, 127)), 255).tolist() for name in features.class_names}
    _scatter(left, points, features.classes, by_class, "Class")
    by_domain = {score_tables.domain_title(name): SERIES[i % 8] for i, name in enumerate(features.domain_names)}
    _scatter(right, points, features.domains, by_domain, "Domain")
    return Diagram(title, figure)


def _scatter(
    axes: Axes, points: Float[np.ndarray, "n 2"], kinds: np.ndarray, colours: Mapping[str, object], title: str
) -> None:
    for number, (name, colour) in enumerate(colours.items()):
        chosen = points[kinds == number]
        if len(chosen):
            style = {"color": colour, "marker": MARKERS[number % 8], "edgecolor": MUTED}
            axes.scatter(*chosen.T, s=13, linewidth=0.25, alpha=0.8, label=name, **style)  # type: ignore
    dress(axes, title, bottom=False)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(
        frameon=False, labelcolor=MUTED, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0),
        handletextpad=0.1, columnspacing=0.9,
    )  # fmt: skip


@drawing
def panels(evaluations: Mapping[str, Evaluation]) -> Diagram:
    """Draw one row per domain: its first example, ground truth, prediction and errors."""
    names = ("image", "truth", "prediction", "errors")
    figure = Figure(figsize=(6.0, 1.5 * len(evaluations) + 0.5), layout="constrained")
    grid = figure.subplots(len(evaluations), 4, squeeze=False)
    for row, (domain, evaluation) in zip(grid, evaluations.items(), strict=True):
        image, truth, prediction = evaluation.images[0], evaluation.labels[0], evaluation.predictions[0]
        pictures = (
            image,
            figures.class_colours(truth, evaluation.palette),
            figures.class_colours(prediction, evaluation.palette),
            figures.error_colours(image, truth, prediction),
        )
        for axes, pixels in zip(row, pictures, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(domain, color=INK)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, color=MUTED, fontsize=9)
    present = {name: colour for evaluation in evaluations.values() for name, colour in evaluation.colours.items()}
    handles = [
        Axes.scatter(grid[0][0], [], [], marker="s", color=np.divide(c, 255).tolist(), label=n)
        for n, c in present.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, labelcolor=MUTED, fontsize=8)
    return Diagram("Examples of every domain", figure)
