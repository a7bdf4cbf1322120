"""The numbers a report adds to the measured ones: groups of settings, means over unseen domains, domain gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from crossearth_jax.reporting.run import Cell

type Value = Callable[[Cell], float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that cross the same gap."""

    title: str
    cross_domain: bool
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """How far a setting falls short of its source's own domain; points of IoU, negative is worse.

    Only classes that both cells score are compared, since a mean over other classes is another quantity.
    """

    cell: Cell
    reference: Cell  # the in-domain cell
    change: Mapping[str, float]  # by class
    mean: float  # over those classes


def groups(cells: Sequence[Cell]) -> tuple[Group, ...]:
    """In-domain first, then one gap at a time, then settings that cross several."""
    found: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.cross_domain, len(cell.gap))):
        found.setdefault(gap_title(cell), []).append(cell)
    return tuple(
        Group(title=title, cross_domain=members[0].cross_domain, cells=tuple(members))
        for title, members in found.items()
    )


def gap_title(cell: Cell) -> str:
    """ "In-domain", "Cross-climate", "Cross-climate and season"."""
    if not cell.cross_domain:
        return "In-domain"
    return "Cross-" + " and ".join(name.replace("_", " ") for name in cell.gap or ("domain",))


def unseen(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cross-domain settings: the only ones whose scores are ever averaged."""
    return tuple(cell for cell in cells if cell.cross_domain)


def mean(cells: Sequence[Cell], value: Value) -> float | None:
    """Unweighted mean over settings; None if there are none or one of them lacks the value."""
    return mean_of([value(cell) for cell in cells])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Unweighted mean; None if there are no values or one is None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def model(cell: Cell) -> float | None:
    """The run's own mIoU."""
    return cell.miou


def published(cell: Cell) -> float | None:
    """The mIoU somebody else printed."""
    return cell.published


def class_iou(name: str) -> Value:
    """The run's own IoU of the class called `name`."""
    return lambda cell: cell.iou.get(name)


def baseline(name: str) -> Value:
    """The mIoU of the baseline called `name`."""
    return lambda cell: cell.baselines[name].miou if name in cell.baselines else None


def baseline_names(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Strongest baseline first as a rule: "colour" before "majority", others as they come."""
    names = dict.fromkeys(name for cell in cells for name in cell.baselines)
    return tuple(sorted(names, key=lambda name: {"colour": 0, "majority": 1}.get(name, 2)))


def gaps(cells: Sequence[Cell]) -> tuple[Gap, ...]:
    """The gap of every cross-domain setting whose source has an in-domain cell."""
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
