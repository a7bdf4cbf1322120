"""Tables that show where a model fails: the largest losses of class IoU, and how well features separate classes."""

from __future__ import annotations

import numpy as np

from crossearth_jax.reporting import projection, summary
from crossearth_jax.reporting.run import ClassFeatures, Evaluation, Run
from crossearth_jax.reporting.score_tables import NOTHING, Block, Entry, Table, domain_title, number, signed

LOSSES = 12  # rows of the table


def loss_table(run: Run) -> Table | None:
    """Return a table of the largest losses of class IoU from the source domain to a target; None if no class loses.

    Where the confusion matrix is available, the table also names the most frequent confusions of the class.
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
            "Classes and target domains where the class IoU is furthest below that in the source domain (at most "
            f"{LOSSES} rows; IoU in percent, change in points). Missed as: the wrong class that is predicted most "
            "often for pixels of this class, with its percentage of all true pixels of this class. False alarms on: "
            "the true class of most pixels wrongly predicted as this class, with its percentage of all pixels "
            "predicted as this class."
        ),
        head=tuple(Entry(text=head) for head in heads),
        blocks=(Block(title="", rows=tuple(rows)),),
        plain=(0, 1, 5, 6),
    )


def confusions(evaluation: Evaluation | None, name: str) -> tuple[str, str]:
    """Return the class predicted most often instead of class `name`, and the class most often mistaken for it.

    The first has its percentage of the true pixels of `name`, the second its percentage of the pixels predicted as
    `name`; both are `NOTHING` without a confusion matrix of this class.
    """
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
    """Return a table of `projection.nearest_centres` by domain and class, with centres in the source domain.

    None if the features do not include an in-domain target.
    """
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
            "Percentage of the features of a class whose nearest class centre is that of their own class. A feature is "
            "the mean of the backbone's last feature level over the pixels of one class in one image. The centre of a "
            f"class is the mean of its features in the source domain ({domain_title(homes[0])}). The values in the row "
            "of the source domain are optimistic, since the centres are computed from the same features."
        ),
        head=(Entry(text="Domain"), *heads),
        blocks=(Block(title="", rows=tuple(rows)),),
    )
