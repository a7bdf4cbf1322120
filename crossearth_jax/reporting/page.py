"""The page and the Markdown file of a run, and of a comparison of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from crossearth_jax.reporting import figures, html, markdown, summary, tables
from crossearth_jax.reporting.markup import Html, element
from crossearth_jax.reporting.run import Cell, Evaluation, Run, Series

AVERAGES = (
    "Cells of the source's own domain are reference points: they stand apart and enter no mean of unseen domains. "
    "Means are unweighted over settings."
)


def run_page(run: Run) -> str:
    """The self-contained HTML report of one run."""
    parts = [part for part in _sections(run) if part is not None]
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
    content = (html.section(part.anchor, part.title, *part.content) for part in parts)
    return html.document(_title(run), [header, *content, _footer()])


def run_markdown(run: Run) -> str:
    """The numbers of the page as Markdown, for a repository or a pull request."""
    found = [("Results", tables.main_table(run)), ("IoU by class", tables.class_table(run))]
    gap = tables.gap_table(run)
    if gap is not None:
        found.append(("Domain gap", gap))
    facts = "\n".join(f"- {term}: {markdown.escape(text)}" for term, text in header_facts(run) if text)
    parts = [f"# {markdown.escape(_title(run))}", facts, AVERAGES]
    parts += [f"## {title}\n\n{markdown.table(data)}" for title, data in found]
    parts.append("Confusion matrices, training curves and examples are in `report.html`.")
    return "\n\n".join(parts) + "\n"


def comparison_page(runs: Mapping[str, Run]) -> str:
    """The self-contained HTML page that puts several runs side by side."""
    losses = {title: run.metrics["loss"] for title, run in runs.items() if "loss" in run.metrics}
    content: list[str] = [
        element("h1", f"{len(runs)} runs compared"),
        element("p", AVERAGES, class_="lead"),
        html.section("results", "Results", html.table(tables.comparison_table(runs))),
    ]
    differences = tables.difference_table(runs)
    if differences is not None:
        content.append(html.section("configuration", "Configuration", html.table(differences)))
    if losses:
        curve = figures.curves("Training loss", dict(list(losses.items())[:8]))
        content.append(html.section("training", "Training", element("div", curve, class_="grid wide")))
    return html.document(f"{len(runs)} runs compared", [*content, _footer()])


def comparison_markdown(runs: Mapping[str, Run]) -> str:
    """The numbers of the comparison as Markdown."""
    found = (tables.comparison_table(runs), tables.difference_table(runs))
    parts = [f"# {len(runs)} runs compared", AVERAGES, *(markdown.table(data) for data in found if data)]
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
    shown = {tables.domain_title(c.target): evaluation for c, evaluation in _evaluated(run) if len(evaluation.images)}
    if shown:
        yield html.teaser(shown)
        yield html.class_legend(run.palette)


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    content: Sequence[str]


def _sections(run: Run) -> Iterator[Section | None]:
    """Every part in order; None where the run has nothing to show."""
    main = tables.main_table(run)
    series = [entry.text for entry in main.head[2:-1]]
    results = [element("p", AVERAGES), html.marks_legend(series), html.table(main)]
    yield Section("results", "Results", results)
    yield Section("classes", "IoU by class", [html.table(tables.class_table(run))])
    gap = tables.gap_table(run)
    yield Section("gap", "Domain gap", [html.table(gap)]) if gap else None
    yield _confusion(run)
    yield _training(run)
    yield _styles(run)
    yield _examples(run)
    yield Section("configuration", "Configuration", [_configuration(run)])


def _confusion(run: Run) -> Section | None:
    matrices = [
        html.table(tables.confusion_table(evaluation, tables.domain_title(cell.target)), matrix=True)
        for cell, evaluation in _evaluated(run)
    ]
    intro = "Where the pixels of each true class go, in percent of the row. The diagonal is what is right."
    body = [element("p", intro, class_="caption"), element("div", *matrices, class_="grid")]
    return Section("confusion", "Confusion matrices", body) if matrices else None


def _training(run: Run) -> Section | None:
    diagrams = [
        figures.curves(title, series, logarithmic=title.startswith("Loss terms"))
        for title, series in curve_groups(run.metrics).items()
    ]
    body = [element("div", *diagrams, class_="grid wide")]
    return Section("training", "Training", body) if diagrams else None


def curve_groups(metrics: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """Diagram title -> its curves: loss terms together, every other quantity alone, none that is always 0.

    Of the mask decoder's losses only those of the last layer are drawn; the auxiliary ones look alike.
    """
    terms = {name.removeprefix("loss/"): values for name, values in metrics.items() if name.startswith("loss/")}
    shown = {name: values for name, values in terms.items() if not name.rsplit("/", 1)[-1].isdigit()}
    diagrams = {"Loss": {"loss": metrics["loss"]}} if "loss" in metrics else {}
    if shown:
        names = ("Loss terms", "Further loss terms", "Still further loss terms")
        items = [(name, values) for name, values in shown.items()]
        for i, title in enumerate(names):
            if items[8 * i : 8 * (i + 1)]:
                diagrams[title] = dict(items[8 * i : 8 * (i + 1)])
    for name, values in metrics.items():
        if name != "loss" and not name.startswith("loss/") and values.values.any():
            diagrams[_quantity(name)] = {name: values}
    return diagrams


def _quantity(name: str) -> str:
    words = name.replace("_per_second", "/s").replace("_", " ")
    return words[:1].upper() + words[1:]


def _styles(run: Run) -> Section | None:
    if run.styles is None:
        return None
    intro = "Augmented training images, and what Earth-Style Injection makes of them where it is applied."
    body = [element("p", intro, class_="caption"), html.style_examples(run.styles)]
    return Section("style", "Earth-Style Injection", body)


def _examples(run: Run) -> Section | None:
    body: list[str] = []
    for cell, evaluation in _evaluated(run):
        if len(evaluation.images):
            title = tables.domain_title(cell.target)
            body += [element("h3", f"{title} ", element("span", summary.gap_title(cell), class_="muted"))]
            body.append(html.examples(evaluation, title))
    if not body:
        return None
    intro = "Image, truth, prediction, and the pixels that are wrong in red. Chequered pixels carry no label."
    head = [element("p", intro, class_="caption"), html.class_legend(run.palette)]
    return Section("examples", "Examples", [*head, *body])


def _evaluated(run: Run) -> Iterator[tuple[Cell, Evaluation]]:
    for group in summary.groups(run.cells):
        for cell in group.cells:
            if cell.name in run.evaluations:
                yield cell, run.evaluations[cell.name]


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
    return element("footer", "Written by crossearth_jax. The page needs no other file and loads nothing.")
