"""Summary numbers of a report: groups of settings, means over unseen domains, domain gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from crossearth_jax.reporting.run import Cell

type Value = Callable[[Cell], float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Settings with the same gap between source and target."""

    title: str
    cross_domain: bool
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """The change of IoU from the source domain to an unseen domain, in points; negative means worse.

    Only classes that are scored in both domains are compared, since means over different classes are not comparable.
    """

    cell: Cell
    reference: Cell  # the in-domain setting of the same source
    change: Mapping[str, float]  # class -> change of IoU
    mean: float  # mean over these classes


def groups(cells: Sequence[Cell]) -> tuple[Group, ...]:
    """Return the settings grouped by gap: in-domain first, then single gaps, then combinations of gaps."""
    found: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.cross_domain, len(cell.gap))):
        found.setdefault(gap_title(cell), []).append(cell)
    return tuple(
        Group(title=title, cross_domain=members[0].cross_domain, cells=tuple(members))
        for title, members in found.items()
    )


def gap_title(cell: Cell) -> str:
    """Return the title of a setting's gap, such as "In-domain", "Cross-climate" or "Cross-climate and season"."""
    if not cell.cross_domain:
        return "In-domain"
    return "Cross-" + " and ".join(name.replace("_", " ") for name in cell.gap or ("domain",))


def unseen(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return the cross-domain settings, which are the only ones whose scores are averaged."""
    return tuple(cell for cell in cells if cell.cross_domain)


def mean(cells: Sequence[Cell], value: Value) -> float | None:
    """Return the unweighted mean over settings; None if there are none or one of them lacks the value."""
    return mean_of([value(cell) for cell in cells])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the unweighted mean; None if there are no values or one of them is None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def model(cell: Cell) -> float | None:
    """Return the mIoU of the run's model."""
    return cell.miou


def published(cell: Cell) -> float | None:
    """Return the published mIoU of the setting."""
    return cell.published


def class_iou(name: str) -> Value:
    """Return a function that gives the model's IoU of the class `name`."""
    return lambda cell: cell.iou.get(name)


def baseline(name: str) -> Value:
    """Return a function that gives the mIoU of the baseline `name`."""
    return lambda cell: cell.baselines[name].miou if name in cell.baselines else None


def baseline_names(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the names of the baselines: "colour", then "majority", then all others in order of appearance."""
    names = dict.fromkeys(name for cell in cells for name in cell.baselines)
    return tuple(sorted(names, key=lambda name: {"colour": 0, "majority": 1}.get(name, 2)))


def gaps(cells: Sequence[Cell]) -> tuple[Gap, ...]:
    """Return the `Gap` of every cross-domain setting whose source also has an in-domain setting."""
    references = {cell.source: cell for cell in cells if not cell.cross_domain}
    found: list[Gap] = []
    for cell in unseen(cells):
        reference = references.get(cell.source)
        if reference is None:
            continue
        change: dict[str, float] = {}
        for name in cell.classes:
            here, there = cell.iou.get(name), reference.iou.get(name)
            if name in reference.classes and here is not None and there is not None:
                change[name] = here - there
        if change:
            mean_change = sum(change.values()) / len(change)
            found.append(Gap(cell=cell, reference=reference, change=change, mean=mean_change))
    return tuple(found)
