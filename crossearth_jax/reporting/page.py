"""The page and the Markdown file of a run, and of a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from crossearth_jax.reporting import diagrams, figures, rendering, score_tables, summary, table_files
from crossearth_jax.reporting.content import Content
from crossearth_jax.reporting.run import Run
from crossearth_jax.runtime.buckets import resolved

AVERAGES = (
    "In-domain scores (on the source domain itself) are reference points and are not part of any mean. Means over "
    "unseen domains are unweighted."
)


def run_page(run: Run, content: Content) -> str:
    """Return the self-contained HTML report of one run."""
    shown = {score_tables.domain_title(c.target): (c, e) for c, e in run.evaluated() if len(e.images)}
    sections = {
        "results": "Results",
        "classes": "IoU by class",
        "gap": "Domain gap" if "gap" in content.tables else "",
        "shifts": "Appearance shifts" if "shifts" in content.tables else "",
        "features": "Class features" if "features" in content.diagrams else "",
        "confusion": "Confusion matrices" if run.evaluations else "",
        "training": "Training" if content.curves else "",
        "style": "Earth-Style Injection" if run.styles else "",
        "examples": "Examples" if shown else "",
        "configuration": "Configuration",
    }
    return rendering.render(
        "run.html",
        title=_title(run),
        lead=_lead(run),
        facts=header_facts(run),
        tiles=_tiles(run),
        teaser={domain: figures.teaser(evaluation, domain) for domain, (_, evaluation) in shown.items()},
        palette=run.palette,
        sections={anchor: title for anchor, title in sections.items() if title},
        averages=AVERAGES,
        columns=[entry.text for entry in content.tables["results"].head[2:-1]],
        tables=content.tables,
        diagrams={name: diagrams.inline(diagram) for name, diagram in content.diagrams.items()},
        matrices=[score_tables.confusion_table(e, score_tables.domain_title(c.target)) for c, e in run.evaluated()],
        curves=[diagrams.inline(curve) for curve in content.curves],
        styles=figures.style_pairs(run.styles) if run.styles else [],
        examples=[
            (domain, summary.gap_title(cell), figures.example_strips(evaluation, domain))
            for domain, (cell, evaluation) in shown.items()
        ],
        config=run.config,
    )


def run_markdown(run: Run, content: Content) -> str:
    """Return the numbers of the page as Markdown, for a repository or a pull request."""
    headings = {
        "results": "Results",
        "classes": "IoU by class",
        "gap": "Domain gap",
        "losses": "Largest losses",
        "shifts": "Appearance shifts",
        "features": "Class features",
    }
    shown = {heading: content.tables[name] for name, heading in headings.items() if name in content.tables}
    return rendering.render(
        "run.md",
        title=_title(run),
        facts=header_facts(run),
        averages=AVERAGES,
        tables={heading: table_files.as_markdown(table) for heading, table in shown.items()},
    )


def comparison_page(runs: Mapping[str, Run], content: Content) -> str:
    """Return the self-contained HTML page that compares several runs."""
    return rendering.render(
        "comparison.html",
        title=f"{len(runs)} runs compared",
        averages=AVERAGES,
        tables=content.tables,
        diagram=diagrams.inline(content.diagrams["comparison"]),
        curves=[diagrams.inline(curve) for curve in content.curves],
    )


def comparison_markdown(runs: Mapping[str, Run], content: Content) -> str:
    """Return the numbers of the comparison as Markdown."""
    return rendering.render(
        "comparison.md",
        title=f"{len(runs)} runs compared",
        averages=AVERAGES,
        tables=[table_files.as_markdown(table) for table in content.tables.values()],
    )


def header_facts(run: Run) -> list[tuple[str, str]]:
    """Return the facts at the head of the report: run, source domain, checkpoint, date and protocol."""
    steps = sorted({cell.checkpoint_step for cell in run.cells})
    protocols = dict.fromkeys(cell.protocol for cell in run.cells if cell.protocol)
    facts = [
        ("Run", f"{run.name} ({resolved(run.path).name})"),
        ("Source domain", ", ".join(dict.fromkeys(cell.source for cell in run.cells))),
        ("Checkpoint", f"step {', '.join(f'{step:,}' for step in steps)}"),
        ("Evaluated", run.date.isoformat()),
        ("Protocol", "; ".join(protocols)),
    ]
    return [(term, text) for term, text in facts if text]


def _title(run: Run) -> str:
    sources = dict.fromkeys(score_tables.domain_title(cell.source) for cell in run.cells)
    return f"Trained on {', '.join(sources)}"


def _lead(run: Run) -> str:
    unseen = summary.unseen(run.cells)
    if not unseen:
        return "Semantic segmentation, scored only on the source domain itself."
    return f"Semantic segmentation, scored on {len({c.target for c in unseen})} domains that were not trained on."


class Tile(NamedTuple):
    """A highlighted number at the top of the page."""

    label: str
    value: str
    detail: str
    main: bool = False


def _tiles(run: Run) -> list[Tile]:
    unseen = summary.unseen(run.cells)
    tiles = [
        Tile(
            "In-domain mIoU",
            score_tables.number(cell.miou).text,
            f"{score_tables.domain_title(cell.target)}, held-out split",
        )
        for cell in run.cells
        if not cell.cross_domain
    ]
    mean = summary.mean(unseen, summary.model)
    if mean is not None:
        tiles.insert(0, Tile("Mean mIoU, unseen domains", f"{mean:.1f}", f"{len(unseen)} settings", main=True))
        for name in summary.baseline_names(run.cells):
            value = summary.mean(unseen, summary.baseline(name))
            if value is not None:
                title = score_tables.BASELINE_TITLES.get(name, name)
                difference = f"{mean - value:+.1f}".replace("-", "\u2212")
                tiles.append(Tile(f"{title}, unseen domains", f"{value:.1f}", f"this model {difference} points"))
    return tiles
