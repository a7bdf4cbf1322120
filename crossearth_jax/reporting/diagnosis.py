"""Tables that say where a model fails: its largest losses, and classes whose features wander off."""

from __future__ import annotations

import numpy as np

from crossearth_jax.reporting import projection, summary
from crossearth_jax.reporting.run import ClassFeatures, Evaluation, Run
from crossearth_jax.reporting.score_tables import NOTHING, Block, Entry, Table, domain_title, number, signed

LOSSES = 12  # rows of the table


def loss_table(run: Run) -> Table | None:
    """The class and domain pairs that lose most against the source's own domain; None if none loses.

    Where the confusion matrix is kept, also what becomes of the class' pixels and what is mistaken for it.
    """
    found = [(change, name, gap) for gap in summary.gaps(run.cells) for name, change in gap.change.items()]
    worst = sorted((item for item in found if item[0] < 0), key=lambda item: item[0])[:LOSSES]
    if not worst:
        return None
    rows = []
    for change, name, gap in worst:
        evaluation = run.evaluations.get(gap.cell.name)
        rows.append(
            (
                Entry(text=name, swatch=run.palette.get(name)),
                Entry(text=domain_title(gap.cell.target)),
                number(gap.reference.iou[name]),
                number(gap.cell.iou[name]),
                signed(change),
                *(Entry(text=text) for text in confusions(evaluation, name)),
            )
        )
    heads = ("Class", "Target", "In-domain IoU", "IoU", "Change", "Missed as", "False alarms on")
    return Table(
        caption=(
            "The largest losses of a class. Missed as: the class that most of its wrong pixels are given to, in "
            "percent of its pixels. False alarms on: the class that most of the pixels wrongly given to it are of, in "
            "percent of all given to it."
        ),
        head=tuple(Entry(text=head) for head in heads),
        blocks=(Block(title="", rows=tuple(rows)),),
        plain=(0, 1, 5, 6),
    )


def confusions(evaluation: Evaluation | None, name: str) -> tuple[str, str]:
    """What a class is most often missed as, and what is most often mistaken for it, each with its percentage."""
    if evaluation is None or name not in evaluation.classes:
        return NOTHING, NOTHING
    index = evaluation.classes.index(name)
    found = []
    for counts in (evaluation.confusion[index], evaluation.confusion[:, index]):
        wrong = np.where(np.arange(len(counts)) == index, 0, counts)
        other = int(wrong.argmax())
        share = f"{evaluation.classes[other]} {100 * wrong[other] / counts.sum():.0f} %"
        found.append(share if wrong[other] else NOTHING)
    return found[0], found[1]


def centre_table(run: Run, features: ClassFeatures) -> Table | None:
    """Domain x class: do features lie nearest to their own class' centre in the source's domain; None without it."""
    homes = [cell.target for cell in run.cells if not cell.cross_domain and cell.target in features.domain_names]
    if not homes:
        return None
    shares = projection.nearest_centres(features, homes[0])
    order = [homes[0], *(name for name in features.domain_names if name != homes[0])]
    rows = []
    for domain in order:
        values = shares[features.domain_names.index(domain)]
        cells = (number(None if np.isnan(v) else float(v), heat=None if np.isnan(v) else v / 100) for v in values)
        rows.append((Entry(text=domain_title(domain)), *cells))
    heads = (Entry(text=name, swatch=run.palette.get(name)) for name in features.class_names)
    return Table(
        caption=(
            "Percent of a class' features that lie nearest to that class' own centre in the source's domain "
            f"({domain_title(homes[0])}, where the centres are made of these features). One feature per image and "
            "class: the mean of the backbone's last level over the pixels of the class."
        ),
        head=(Entry(text="Domain"), *heads),
        blocks=(Block(title="", rows=tuple(rows)),),
    )
