"""Content of a report: tables and diagrams that are made once, for the page and for the files beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from crossearth_jax.reporting import diagnosis, diagrams, plots, projection, score_tables
from crossearth_jax.reporting.diagrams import Diagram
from crossearth_jax.reporting.run import Run, Series
from crossearth_jax.reporting.score_tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Tables and diagrams by the stems of their file names; those for which a run has no data are absent."""

    tables: Mapping[str, Table]
    diagrams: Mapping[str, Diagram]

    @property
    def curves(self) -> list[Diagram]:
        """The diagrams of the training curves."""
        return [diagram for name, diagram in self.diagrams.items() if name.startswith("training_")]


def run_content(run: Run, method: str) -> Content:
    """Make the content of one run's report.

    Args:
      run: the run.
      method: projection of the class features, a key of `projection.METHODS`.
    """
    made = {
        "results": score_tables.main_table(run),
        "classes": score_tables.class_table(run),
        "gap": score_tables.gap_table(run),
        "losses": diagnosis.loss_table(run),
        "features": diagnosis.centre_table(run, run.features) if run.features else None,
        "shifts": score_tables.shift_table(run.robustness) if run.robustness else None,
    }
    scores = {
        title: {cell.name: value(cell) for cell in run.cells} for title, value in score_tables.score_columns(run.cells)
    }
    drawn = {"results": plots.scores(run.cells, scores, "mIoU of every target domain"), "losses": plots.losses(run)}
    if run.features and len(run.features.values) > 1:
        points = projection.project(run.features.values, method)
        drawn["features"] = plots.feature_maps(run.features, run.palette, points, method)
    for title, series in curve_groups(run.metrics).items():
        logarithmic = title.startswith("Loss terms")
        slug = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
        drawn[f"training_{slug}"] = diagrams.curves(title, series, logarithmic=logarithmic)
    if run.robustness:
        drawn["shifts"] = plots.shifts(run.robustness)
    shown = {score_tables.domain_title(c.target): e for c, e in run.evaluated() if len(e.images)}
    if shown:
        drawn["examples"] = plots.panels(shown)
    return _present(made, drawn)


def comparison_content(runs: Mapping[str, Run]) -> Content:
    """Make the content of a comparison of several runs."""
    everything = {cell.name: cell for run in runs.values() for cell in run.cells}
    scores = {title: {cell.name: cell.miou for cell in run.cells} for title, run in runs.items()}
    made = {
        "comparison": score_tables.comparison_table(runs),
        "comparison_classes": score_tables.class_comparison_table(runs),
        "differences": score_tables.difference_table(runs),
    }
    drawn = {"comparison": plots.scores(tuple(everything.values()), scores, "mIoU of every target domain, by run")}
    losses = {title: run.metrics["loss"] for title, run in runs.items() if "loss" in run.metrics}
    if losses:
        drawn["training_loss"] = diagrams.curves("Training loss", dict(list(losses.items())[:8]))
    return _present(made, drawn)


def _present(made: Mapping[str, Table | None], drawn: Mapping[str, Diagram | None]) -> Content:
    return Content(
        tables={name: table for name, table in made.items() if table is not None},
        diagrams={name: diagram for name, diagram in drawn.items() if diagram is not None},
    )


def curve_groups(metrics: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """Return the curves of each training diagram by its title.

    Loss terms share diagrams of up to eight curves; of more than 24 terms the rest is not drawn. Every other quantity
    has a diagram of its own, unless it is always 0. Of the mask decoder's losses only those of the last layer are
    drawn, since those of the earlier layers have similar curves.
    """
    terms = {name.removeprefix("loss/"): values for name, values in metrics.items() if name.startswith("loss/")}
    shown = {name: values for name, values in terms.items() if not name.rsplit("/", 1)[-1].isdigit()}
    found = {"Loss": {"loss": metrics["loss"]}} if "loss" in metrics else {}
    if shown:
        names = ("Loss terms", "Further loss terms", "Still further loss terms")
        items = [(name, values) for name, values in shown.items()]
        for i, title in enumerate(names):
            if items[8 * i : 8 * (i + 1)]:
                found[title] = dict(items[8 * i : 8 * (i + 1)])
    for name, values in metrics.items():
        if name != "loss" and not name.startswith("loss/") and values.values.any():
            words = name.replace("_per_second", "/s").replace("_", " ")
            found[words[:1].upper() + words[1:]] = {name: values}
    return found
