"""From the rows of a study to its table: means over unseen domains, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.generalisation.variants import FRAMEWORK, GROUPS, REFERENCE, VARIANTS

RESAMPLES = 10_000
LEVEL = 0.95
BASELINE = "baseline"  # in the column `head` of what needs no network

Row = Mapping[str, Any]


def paired(rows: Sequence[Row], variant: str, other: str = REFERENCE) -> dict[tuple[str, str, int], float]:
    """Differences of mIoU, by (source, target, seed), of the pairs of which both runs are finished."""
    scores = {
        name: {(r["source"], r["target"], r["seed"]): r["miou"] for r in rows if r["variant"] == name}
        for name in (variant, other)
    }
    return {key: score - scores[other][key] for key, score in scores[variant].items() if key in scores[other]}


def interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of their mean, by resampling the pairs."""
    values: Float[np.ndarray, " n"] = np.asarray(differences)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def report(rows: Sequence[Row], shifts: Sequence[Row], figures: Sequence[str]) -> str:
    """Write the report as Markdown.

    Args:
      rows: of `results.csv`.
      shifts: of `shifts.csv`.
      figures: paths of the pictures relative to the report.
    """
    parts = ["# Generalisation", ""]
    simple = [row for row in rows if row["head"] == BASELINE]
    for head in dict.fromkeys(row["head"] for row in rows if row["head"] != BASELINE):
        of_head = [row for row in rows if row["head"] == head]
        of_shifts = [row for row in shifts if row["head"] == head]
        parts += [f"## Head {head}", "", *table(of_head, of_shifts), "", *by_target(of_head, simple), ""]
        if of_shifts:
            parts += ["Appearance shifts of the source's test split, mIoU:", "", *by_shift(of_shifts), ""]
    if any(row["variant"] in FRAMEWORK and row["variant"] not in GROUPS["study"] for row in rows):
        parts += ["## Adapter, head and style", "", *framework(rows), ""]
    parts += [line for path in figures for line in (f"![{path}]({path})", "")]
    return "\n".join(parts)


def table(rows: Sequence[Row], shifts: Sequence[Row] = ()) -> list[str]:
    """Write one line for each variant, in the order of the variants."""
    lines = [
        f"| variant | unseen mIoU | difference to {REFERENCE} [95 %] | in-domain mIoU | difference [95 %] | "
        "shifts mIoU | difference [95 %] | runs | trainable | minutes a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    shifted = [{**row, "target": f"{row['shift']} {row['strength']}"} for row in shifts]
    unseen, own = ([row for row in rows if row["cross_domain"] is wanted] for wanted in (True, False))
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant.name]
        if not mine:
            continue
        runs = {(row["source"], row["seed"]): row for row in mine}
        columns = [variant.name]
        for part in (unseen, own, shifted):
            columns += [_mean([row for row in part if row["variant"] == variant.name]), _difference(part, variant.name)]
        parameters = next(iter(runs.values()))["trainable"] / 1e6
        minutes = np.mean([row["seconds"] for row in runs.values()]) / 60
        columns += [str(len(runs)), f"{parameters:.2f} M", f"{minutes:.1f}"]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def framework(rows: Sequence[Row]) -> list[str]:
    """Write one line for each adapter, style and head, with differences between runs of the same head."""
    lines = [
        f"| adapter | head | style | unseen mIoU | difference to {REFERENCE}, off [95 %] | "
        "difference of the style [95 %] | in-domain mIoU | trainable | seconds a step | runs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    variants = {combination: variant for variant, combination in FRAMEWORK.items()}
    for (adapter, style), variant in variants.items():
        for head in dict.fromkeys(row["head"] for row in rows):
            of_head = [row for row in rows if row["head"] == head]
            mine = [row for row in of_head if row["variant"] == variant]
            if not mine:
                continue
            unseen = [row for row in of_head if row["cross_domain"]]
            runs = {(row["source"], row["seed"]): row for row in mine}
            times = [row["step_seconds"] for row in runs.values() if row.get("step_seconds")]
            columns = [adapter, head, style]
            columns += [_mean([row for row in mine if row["cross_domain"]]), _difference(unseen, variant)]
            columns.append("" if style == "off" else _difference(unseen, variant, variants[adapter, "off"]))
            columns.append(_mean([row for row in mine if not row["cross_domain"]]))
            columns.append(f"{mine[0]['trainable'] / 1e6:.2f} M")
            columns += [f"{np.mean(times):.2f}" if times else "-", str(len(runs))]
            lines.append(f"| {' | '.join(columns)} |")
    return lines


def _mean(rows: Sequence[Row]) -> str:
    return f"{np.mean([row['miou'] for row in rows]):.1f}" if rows else "-"


def _difference(rows: Sequence[Row], variant: str, other: str = REFERENCE) -> str:
    if variant == other:
        return ""
    differences = list(paired(rows, variant, other).values())
    if not differences:
        return "-"
    if len(differences) == 1:
        return f"{differences[0]:+.1f}"
    low, high = interval(differences)
    return f"{np.mean(differences):+.1f} [{low:+.1f}, {high:+.1f}]"


def by_target(rows: Sequence[Row], baselines: Sequence[Row] = ()) -> list[str]:
    """Write the mean mIoU over the seeds for each pair of source and target, of every variant and baseline.

    The last line is the score of Rein trained on the target itself: how much of the gap is left.
    """
    pairs = list(dict.fromkeys((row["source"], row["target"]) for row in rows))
    names = [f"{short(source)} → {short(target)}" for source, target in pairs]
    lines = [f"| variant | {' | '.join(names)} |", f"|---{'|---' * len(pairs)}|"]
    own = [row for row in rows if row["variant"] == REFERENCE and not row["cross_domain"]]
    upper = [{**row, "source": source} for row in own for source, target in pairs if target == row["target"]]
    groups = [(name, [row for row in baselines if row["variant"] == name]) for name in _named(baselines)]
    groups += [(v.name, [row for row in rows if row["variant"] == v.name]) for v in VARIANTS]
    groups += [(f"{REFERENCE}, trained on the target", upper)]
    for name, mine in groups:
        if mine:
            lines.append(_means(name, mine, ("source", "target"), pairs))
    return lines


def by_shift(rows: Sequence[Row]) -> list[str]:
    """Write the mean mIoU over sources and seeds for each appearance shift and variant."""
    columns = list(dict.fromkeys((row["shift"], row["strength"]) for row in rows))
    lines = [f"| variant | {' | '.join(f'{s} {k}' for s, k in columns)} |", f"|---{'|---' * len(columns)}|"]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant.name]
        if mine:
            lines.append(_means(variant.name, mine, ("shift", "strength"), columns))
    return lines


def _means(name: str, rows: Sequence[Row], keys: tuple[str, str], columns: Sequence[tuple[Any, Any]]) -> str:
    """Write a line of a table: the mean mIoU of the rows whose values of the two keys are those of a column."""
    cells = [[row["miou"] for row in rows if (row[keys[0]], row[keys[1]]) == column] for column in columns]
    return f"| {name} | {' | '.join(f'{np.mean(cell):.1f}' if cell else '-' for cell in cells)} |"


def _named(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def short(domain: str) -> str:
    """Returns the name of a domain without that of its dataset."""
    return domain.rpartition("/")[2]
