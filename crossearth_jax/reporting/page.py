"""The page and the Markdown file of a run, and of a comparison of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from crossearth_jax.reporting import diagrams, html, markdown, summary, tables
from crossearth_jax.reporting.content import Content
from crossearth_jax.reporting.markup import Html, element
from crossearth_jax.reporting.run import Run

AVERAGES = (
    "Cells of the source's own domain are reference points: they stand apart and enter no mean of unseen domains. "
    "Means are unweighted over settings."
)


def run_page(run: Run, content: Content) -> str:
    """The self-contained HTML report of one run."""
    parts = [part for part in _sections(run, content) if part is not None]
    links = (element("a", part.title, href=f"#{part.anchor}") for part in parts)
    header = element(
        "header",
        element("h1", _title(run)),
        element("p", _lead(run), class_="lead"),
        html.facts(header_facts(run)),
        _tiles(run),
        *_teaser(run),
        element("nav", *links, aria_label="Sections"),
    )
    body = (html.section(part.anchor, part.title, *part.content) for part in parts)
    return html.document(_title(run), [header, *body, _footer()])


def run_markdown(run: Run, content: Content) -> str:
    """The numbers of the page as Markdown, for a repository or a pull request."""
    titles = {
        "results": "Results",
        "classes": "IoU by class",
        "gap": "Domain gap",
        "losses": "Largest losses",
        "features": "Features of classes",
    }
    found = [(title, content.tables[name]) for name, title in titles.items() if name in content.tables]
    facts = "\n".join(f"- {term}: {markdown.escape(text)}" for term, text in header_facts(run) if text)
    parts = [f"# {markdown.escape(_title(run))}", facts, AVERAGES]
    parts += [f"## {title}\n\n{markdown.table(data)}" for title, data in found]
    parts.append("Confusion matrices, training curves and examples are in `report.html`.")
    return "\n\n".join(parts) + "\n"


def comparison_page(runs: Mapping[str, Run], content: Content) -> str:
    """The self-contained HTML page that puts several runs side by side."""
    body: list[str] = [element("h1", f"{len(runs)} runs compared"), element("p", AVERAGES, class_="lead")]
    diagram = diagrams.inline(content.diagrams["comparison"])
    results = [html.table(content.tables["comparison"]), element("div", diagram, class_="figure")]
    body.append(html.section("results", "Results", *results))
    for name, title in (("comparison_classes", "IoU by class"), ("differences", "Configuration")):
        if name in content.tables:
            body.append(html.section(name, title, html.table(content.tables[name])))
    if content.curves:
        curves = (diagrams.inline(curve) for curve in content.curves)
        body.append(html.section("training", "Training", element("div", *curves, class_="grid wide")))
    return html.document(f"{len(runs)} runs compared", [*body, _footer()])


def comparison_markdown(runs: Mapping[str, Run], content: Content) -> str:
    """The numbers of the comparison as Markdown."""
    parts = [f"# {len(runs)} runs compared", AVERAGES, *map(markdown.table, content.tables.values())]
    return "\n\n".join(parts) + "\n"


def header_facts(run: Run) -> list[tuple[str, str]]:
    """What was trained, which checkpoint is scored and, in the words of the evaluation, how it was chosen."""
    steps = sorted({cell.checkpoint_step for cell in run.cells})
    protocols = dict.fromkeys(cell.protocol for cell in run.cells if cell.protocol)
    return [
        ("Run", f"{run.name} ({run.path.resolve().name})"),
        ("Source domain", ", ".join(dict.fromkeys(cell.source for cell in run.cells))),
        ("Checkpoint", f"step {', '.join(f'{step:,}' for step in steps)}"),
        ("Evaluated", run.date.isoformat()),
        ("Protocol", "; ".join(protocols)),
    ]


def _title(run: Run) -> str:
    sources = dict.fromkeys(tables.domain_title(cell.source) for cell in run.cells)
    return f"Trained on {', '.join(sources)}"


def _lead(run: Run) -> str:
    unseen = summary.unseen(run.cells)
    if not unseen:
        return "Semantic segmentation, scored in the source's own domain only."
    return f"Semantic segmentation of {len({c.target for c in unseen})} domains that the model has never seen."


def _tiles(run: Run) -> Html:
    unseen = summary.unseen(run.cells)
    tiles = [
        html.tile(
            "In-domain mIoU", tables.number(cell.miou).text, f"{tables.domain_title(cell.target)}, held-out split"
        )
        for cell in run.cells
        if not cell.cross_domain
    ]
    mean = summary.mean(unseen, summary.model)
    if mean is not None:
        tiles.insert(0, html.tile("Mean mIoU, unseen domains", f"{mean:.1f}", f"{len(unseen)} settings", main=True))
        for name in summary.baseline_names(run.cells):
            value = summary.mean(unseen, summary.baseline(name))
            if value is not None:
                title = tables.BASELINE_TITLES.get(name, name)
                difference = f"{mean - value:+.1f}".replace("-", "\u2212")
                tiles.append(html.tile(f"{title}, unseen domains", f"{value:.1f}", f"this model {difference} points"))
    return element("div", *tiles, class_="tiles")


def _teaser(run: Run) -> Iterator[Html]:
    shown = {tables.domain_title(c.target): evaluation for c, evaluation in run.evaluated() if len(evaluation.images)}
    if shown:
        yield html.teaser(shown)
        yield html.class_legend(run.palette)


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    content: Sequence[str]


def _sections(run: Run, content: Content) -> Iterator[Section | None]:
    """Every part in order; None where the run has nothing to show."""
    main = content.tables["results"]
    series = [entry.text for entry in main.head[2:-1]]
    results = [element("p", AVERAGES), html.marks_legend(series), html.table(main)]
    yield Section("results", "Results", results)
    yield Section("classes", "IoU by class", [html.table(content.tables["classes"])])
    yield _gap(content)
    yield _features(content)
    yield _confusion(run)
    yield _training(content)
    yield _styles(run)
    yield _examples(run)
    yield Section("configuration", "Configuration", [_configuration(run)])


def _gap(content: Content) -> Section | None:
    if "gap" not in content.tables:
        return None
    body: list[str] = [html.table(content.tables["gap"])]
    if "losses" in content.diagrams:
        body.append(element("div", diagrams.inline(content.diagrams["losses"]), class_="figure"))
    if "losses" in content.tables:
        body += [element("h3", "Largest losses"), html.table(content.tables["losses"])]
    return Section("gap", "Domain gap", body)


def _features(content: Content) -> Section | None:
    if "features" not in content.diagrams:
        return None
    body: list[str] = [element("div", diagrams.inline(content.diagrams["features"]), class_="figure broad")]
    if "features" in content.tables:
        body.append(html.table(content.tables["features"]))
    intro = "A class that keeps its place from domain to domain can be recognised there."
    return Section("features", "Features of classes", [element("p", intro, class_="caption"), *body])


def _confusion(run: Run) -> Section | None:
    matrices = [
        html.table(tables.confusion_table(evaluation, tables.domain_title(cell.target)), matrix=True)
        for cell, evaluation in run.evaluated()
    ]
    intro = "Where the pixels of each true class go, in percent of the row. The diagonal is what is right."
    body = [element("p", intro, class_="caption"), element("div", *matrices, class_="grid")]
    return Section("confusion", "Confusion matrices", body) if matrices else None


def _training(content: Content) -> Section | None:
    body = [element("div", *map(diagrams.inline, content.curves), class_="grid wide")]
    return Section("training", "Training", body) if content.curves else None


def _styles(run: Run) -> Section | None:
    if run.styles is None:
        return None
    intro = "Augmented training images, and what Earth-Style Injection makes of them where it is applied."
    body = [element("p", intro, class_="caption"), html.style_examples(run.styles)]
    return Section("style", "Earth-Style Injection", body)


def _examples(run: Run) -> Section | None:
    body: list[str] = []
    for cell, evaluation in run.evaluated():
        if len(evaluation.images):
            title = tables.domain_title(cell.target)
            body += [element("h3", f"{title} ", element("span", summary.gap_title(cell), class_="muted"))]
            body.append(html.examples(evaluation, title))
    if not body:
        return None
    intro = "Image, truth, prediction, and the pixels that are wrong in red. Chequered pixels carry no label."
    head = [element("p", intro, class_="caption"), html.class_legend(run.palette)]
    return Section("examples", "Examples", [*head, *body])


def _configuration(run: Run) -> Html:
    rows = (
        element(
            "tr", element("th", element("code", key), class_="plain", scope="row"), element("td", value, class_="plain")
        )
        for key, value in run.config.items()
    )
    whole = element("div", element("table", element("tbody", *rows)), class_="scroll")
    return element("details", element("summary", f"All {len(run.config)} fields"), whole)


def _footer() -> Html:
    files = "Its tables are also in tables/ (Markdown, LaTeX, CSV), its diagrams in figures/ (SVG, PDF)."
    return element("footer", f"Written by crossearth_jax. The page needs no other file and loads nothing. {files}")
