"""The tables of a report as data, from which the page and the files beside it are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from crossearth_jax.reporting import summary
from crossearth_jax.reporting.run import Cell, Evaluation, Robustness, Run

BASELINE_TITLES = {"colour": "Colour only", "majority": "Majority class"}
NOTHING = "\u2013"

type Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a table: its text and its appearance in the page."""

    text: str
    note: str = ""  # second, smaller line
    heat: float | None = None  # -1 … 1: strength of the background colour; negative values use the colour of losses
    marks: tuple[tuple[str, float], ...] = ()  # (series, percent): marks on a line from 0 to 100
    swatch: Colour | None = None  # small square of this colour before the text
    swatches: tuple[tuple[str, Colour], ...] = ()  # squares shown instead of the text, which stays for screen readers
    bold: bool = False
    muted: bool = False  # grey and italic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Rows under one subheading; the first entry of a row is its name."""

    title: str
    rows: tuple[tuple[Entry, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of blocks; the columns with indices in `plain` are left-aligned text, all others are numbers."""

    caption: str
    head: tuple[Entry, ...]
    blocks: tuple[Block, ...]
    plain: tuple[int, ...] = (0,)

    def without_plots(self) -> Table:
        """Return the table without the columns that contain only plots, which have no head."""
        kept = [i for i, entry in enumerate(self.head) if entry.text]
        blocks = (
            Block(title=block.title, rows=tuple(tuple(row[i] for i in kept) for row in block.rows))
            for block in self.blocks
        )
        return Table(
            caption=self.caption,
            head=tuple(self.head[i] for i in kept),
            blocks=tuple(blocks),
            plain=tuple(new for new, old in enumerate(kept) if old in self.plain),
        )


def domain_title(name: str) -> str:
    """Return a short title: "blue_marble/cold_brown" -> "cold brown"; several sources stay joined by "+"."""
    return " + ".join(part.rsplit("/", 1)[-1] for part in name.split("+")).replace("_", " ")


def number(value: float | None, **dress: object) -> Entry:
    """Return an entry with one decimal, or `NOTHING` for None."""
    return Entry(text=NOTHING if value is None else f"{value:.1f}", muted=value is None, **dress)  # type: ignore


def signed(value: float | None, scale: float = 40.0) -> Entry:
    """Return an entry of a difference in points with its sign; the background is strongest from ±`scale` on."""
    if value is None:
        return Entry(text=NOTHING, muted=True)
    text = f"{value:+.1f}".replace("-", "\u2212")
    return Entry(text=text, heat=max(-1.0, min(1.0, value / scale)))


def score_columns(cells: Sequence[Cell]) -> list[tuple[str, summary.Value]]:
    """Return the columns of scores as (title, value): the model, the baselines, and published numbers if any."""
    columns: list[tuple[str, summary.Value]] = [("This model", summary.model)]
    for name in summary.baseline_names(cells):
        title = BASELINE_TITLES.get(name, name.replace("_", " ").capitalize())
        columns.append((title, summary.baseline(name)))
    if any(cell.published is not None for cell in cells):
        columns.append(("Published", summary.published))
    return columns


def _calibration_columns(cells: Sequence[Cell]) -> list[tuple[str, summary.Value]]:
    """Return the columns of calibration errors as (title, value): without and with a temperature, if there are any."""
    columns: list[tuple[str, summary.Value]] = [
        ("ECE", lambda cell: cell.ece),
        ("ECE calibrated", lambda cell: cell.ece_calibrated),
    ]
    return [(title, value) for title, value in columns if any(value(cell) is not None for cell in cells)]


def main_table(run: Run) -> Table:
    """Return a table with the mIoU of every setting beside baselines and published numbers, grouped by gap.

    Calibration errors follow, if they were computed. Means are over unseen domains only.
    """
    cells, columns, errors = run.cells, score_columns(run.cells), _calibration_columns(run.cells)
    blocks = []
    for group in summary.groups(cells):
        rows = [_setting_row(cell, columns, errors, run.palette) for cell in group.cells]
        if group.cross_domain and len(group.cells) > 1:
            rows.append(_mean_row(f"Mean of {len(rows)}", group.cells, columns, errors))
        blocks.append(Block(title=group.title, rows=tuple(rows)))
    unseen = summary.unseen(cells)
    if unseen:
        mean = _mean_row(f"Mean of all {len(unseen)} unseen", unseen, columns, errors)
        blocks.append(Block(title="All unseen domains", rows=(mean,)))
    head = ("Target", "", *(title for title, _ in [*columns, *errors]), "Scored classes")
    temperatures = {f"{cell.temperature:.2f}" for cell in cells if cell.temperature is not None}
    caption = "mIoU in percent, for each target over the classes in the last column."
    if errors:
        caption += " ECE: expected calibration error of the model's probabilities, in percent of all labelled pixels."
    if temperatures:
        caption += f" Calibrated: with temperature {', '.join(sorted(temperatures))}, fitted on the source's hold-out."
    return Table(
        caption=caption,
        head=tuple(Entry(text=title) for title in head),
        blocks=tuple(blocks),
        plain=(0, len(head) - 1),
    )


def _setting_row(
    cell: Cell,
    columns: Sequence[tuple[str, summary.Value]],
    errors: Sequence[tuple[str, summary.Value]],
    palette: Mapping[str, Colour],
) -> tuple[Entry, ...]:
    numbers = [number(value(cell), bold=value is summary.model) for _, value in columns]
    if cell.published is not None:
        numbers[-1] = number(cell.published, note=cell.published_source)
    known = tuple((name, palette[name]) for name in cell.classes if name in palette)
    return (
        Entry(text=domain_title(cell.target), note=cell.name),
        _marks(columns, [value(cell) for _, value in columns]),
        *numbers,
        *(number(value(cell)) for _, value in errors),
        Entry(text=", ".join(cell.classes), swatches=known if len(known) == len(cell.classes) else ()),
    )


def _mean_row(
    title: str,
    cells: Sequence[Cell],
    columns: Sequence[tuple[str, summary.Value]],
    errors: Sequence[tuple[str, summary.Value]],
) -> tuple[Entry, ...]:
    means = [summary.mean(cells, value) for _, value in columns]
    numbers = [number(mean, bold=True) for mean in means]
    numbers += [number(summary.mean(cells, value)) for _, value in errors]
    return (Entry(text=title, bold=True), _marks(columns, means), *numbers, Entry(text=""))


def _marks(columns: Sequence[tuple[str, summary.Value]], values: Sequence[float | None]) -> Entry:
    pairs = zip((title for title, _ in columns), values, strict=True)
    return Entry(text="", marks=tuple((title, value) for title, value in pairs if value is not None))


def class_table(run: Run) -> Table:
    """Return a table with the IoU of every class in every setting; classes that a setting does not score are muted."""
    blocks = []
    for group in summary.groups(run.cells):
        rows = []
        for cell in group.cells:
            entries = (_class_entry(cell, name) for name in run.classes)
            miou = number(cell.miou, bold=True)
            accuracy = number(cell.accuracy)
            rows.append((Entry(text=domain_title(cell.target)), *entries, miou, accuracy))
        blocks.append(Block(title=group.title, rows=tuple(rows)))
    heads = (Entry(text=name, swatch=run.palette.get(name)) for name in run.classes)
    return Table(
        caption="IoU in percent. The mIoU of a target does not include classes whose numbers are in italics.",
        head=(Entry(text="Target"), *heads, Entry(text="mIoU"), Entry(text="Pixel accuracy")),
        blocks=tuple(blocks),
    )


def _class_entry(cell: Cell, name: str) -> Entry:
    value = cell.iou.get(name)
    if value is None or name not in cell.classes:
        return dataclasses.replace(number(value), muted=True)
    return number(value, heat=value / 100)


def gap_table(run: Run) -> Table | None:
    """Return a table of the changes of class IoU from the source domain to each unseen domain.

    None if no unseen domain can be compared with an in-domain score.
    """
    gaps = summary.gaps(run.cells)
    if not gaps:
        return None
    distances = any(gap.cell.style_distance is not None for gap in gaps)
    by_title: dict[str, list[tuple[Entry, ...]]] = {}
    for gap in gaps:
        row = [Entry(text=domain_title(gap.cell.target)), signed(gap.mean)]
        row += [signed(gap.change.get(name)) for name in run.classes]
        if distances:
            row.append(number(gap.cell.style_distance))
        by_title.setdefault(summary.gap_title(gap.cell), []).append(tuple(row))
    heads = [Entry(text="Target"), Entry(text="Mean")]
    heads += [Entry(text=name, swatch=run.palette.get(name)) for name in run.classes]
    if distances:
        heads.append(Entry(text="Style distance"))
    return Table(
        caption=(
            "Change of the IoU against the in-domain IoU, in points (negative: worse), for the classes scored in both. "
            "Mean: mean over these classes."
            + (" Style distance: Fréchet distance between the style codes of source and target." if distances else "")
        ),
        head=tuple(heads),
        blocks=tuple(Block(title=title, rows=tuple(rows)) for title, rows in by_title.items()),
    )


def shift_table(robustness: Robustness) -> Table:
    """Return a table of the mIoU by shift and strength, its mean over strengths, and the change to the clean mIoU."""
    strengths = sorted({strength for shift in robustness.shifts.values() for strength in shift.scores})
    clean = robustness.clean.miou
    rows, means = [], []
    for name, shift in robustness.shifts.items():
        values = [shift.scores[k].miou if k in shift.scores else None for k in strengths]
        means.append(summary.mean_of(values))
        note = shift.parameter + ": " + ", ".join(f"{value:g}" for _, value in sorted(shift.values.items()))
        rows.append((Entry(text=name, note=note), *map(number, values), *_mean_and_drop(means[-1], clean)))
    overall = summary.mean_of(means)
    blank = [Entry(text="")] * len(strengths)
    rows.append((Entry(text=f"Mean of {len(rows)}", bold=True), *blank, *_mean_and_drop(overall, clean)))
    first = (Entry(text="clean"), *blank, number(clean, bold=True), Entry(text=""))
    return Table(
        caption=(
            "mIoU in percent on the test images of the source domain under appearance shifts of strength 1 (weak) to 5 "
            "(strong); clean means without a shift. Mean: over the strengths. Change: this mean minus the clean mIoU, "
            "in points. Shifted images are not real domains and are not part of the means over unseen domains."
        ),
        head=(Entry(text="Shift"), *(Entry(text=str(k)) for k in strengths), Entry(text="Mean"), Entry(text="Change")),
        blocks=(Block(title="", rows=(first, *rows)),),
    )


def _mean_and_drop(mean: float | None, clean: float | None) -> tuple[Entry, Entry]:
    change = None if mean is None or clean is None else mean - clean
    return number(mean, bold=True), signed(change)


def confusion_table(evaluation: Evaluation, title: str) -> Table:
    """Return the confusion matrix as a table, in percent of the pixels of each true class (row)."""
    counts = evaluation.confusion.astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    colours = [(int(r), int(g), int(b)) for r, g, b in evaluation.palette]
    labels = [Entry(text=n, swatch=colour) for n, colour in zip(evaluation.classes, colours, strict=True)]
    rows = tuple(
        (label, *(_share(value, diagonal=i == j) for j, value in enumerate(row)))
        for i, (label, row) in enumerate(zip(labels, shares, strict=True))
    )
    return Table(
        caption=title,
        head=(Entry(text="truth \u2193  prediction \u2192", muted=True), *labels),
        blocks=(Block(title="", rows=rows),),
    )


def _share(value: float, *, diagonal: bool) -> Entry:
    if np.isnan(value):
        return Entry(text=NOTHING, muted=True)
    return Entry(text=f"{100 * value:.0f}", heat=float(value if diagonal else -value))


def comparison_table(runs: Mapping[str, Run]) -> Table:
    """Return a table of the mIoU by setting and run, with means over the unseen settings that all runs have.

    The best run of a row is bold.
    """
    everything: dict[str, Cell] = {cell.name: cell for run in runs.values() for cell in run.cells}
    of_run = {title: {cell.name: cell for cell in run.cells} for title, run in runs.items()}
    blocks = []
    for group in summary.groups(tuple(everything.values())):
        rows = [
            (
                Entry(text=domain_title(cell.target), note=cell.name),
                *_best_bold([cells[cell.name].miou if cell.name in cells else None for cells in of_run.values()]),
            )
            for cell in group.cells
        ]
        blocks.append(Block(title=group.title, rows=tuple(rows)))
    common = [n for n, c in everything.items() if c.cross_domain and all(n in cells for cells in of_run.values())]
    if common:
        means = [summary.mean([cells[n] for n in common], summary.model) for cells in of_run.values()]
        row = (Entry(text=f"Mean of {len(common)}", bold=True), *_best_bold(means))
        blocks.append(Block(title="Unseen domains that all runs share", rows=(row,)))
    return Table(
        caption="mIoU in percent, by run. The best run of each row is in bold.",
        head=(Entry(text="Target"), *(Entry(text=title) for title in runs)),
        blocks=tuple(blocks),
    )


def class_comparison_table(runs: Mapping[str, Run]) -> Table | None:
    """Return a table of the mean IoU by class and run, over the unseen settings that score the class in every run.

    None if there are no such settings.
    """
    of_run = [{cell.name: cell for cell in summary.unseen(run.cells)} for run in runs.values()]
    shared = [name for name in of_run[0] if all(name in cells for cells in of_run)]
    palette = {name: colour for run in runs.values() for name, colour in run.palette.items()}
    rows = []
    for name in dict.fromkeys(name for run in runs.values() for name in run.classes):
        scored = [setting for setting in shared if all(name in cells[setting].classes for cells in of_run)]
        means = [summary.mean([cells[setting] for setting in scored], summary.class_iou(name)) for cells in of_run]
        if scored:
            label = Entry(text=name, swatch=palette.get(name), note=f"{len(scored)} settings")
            rows.append((label, *_best_bold(means)))
    if not rows:
        return None
    return Table(
        caption="Class IoU in percent, by run: mean over the unseen settings that score the class in every run.",
        head=(Entry(text="Class"), *(Entry(text=title) for title in runs)),
        blocks=(Block(title="", rows=tuple(rows)),),
    )


def _best_bold(values: Sequence[float | None]) -> list[Entry]:
    best = max((value for value in values if value is not None), default=None)
    return [number(value, bold=value is not None and value == best) for value in values]


def difference_table(runs: Mapping[str, Run]) -> Table | None:
    """Return a table of the configuration fields whose values differ between the runs; None if there are none."""
    keys = dict.fromkeys(key for run in runs.values() for key in run.config)
    rows = []
    for key in keys:
        values = [run.config.get(key, NOTHING) for run in runs.values()]
        if len(set(values)) > 1:
            rows.append((Entry(text=key), *(Entry(text=value) for value in values)))
    if not rows:
        return None
    return Table(
        caption="Configuration fields whose values differ between the runs.",
        head=(Entry(text="Field"), *(Entry(text=title) for title in runs)),
        blocks=(Block(title="", rows=tuple(rows)),),
        plain=tuple(range(len(runs) + 1)),
    )
