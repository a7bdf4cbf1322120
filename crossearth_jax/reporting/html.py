"""Elements that pages are built from: tables, legends, diagrams and example strips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

import numpy as np

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.reporting import figures
from crossearth_jax.reporting.markup import Html, element, join
from crossearth_jax.reporting.run import Evaluation, StyleExamples
from crossearth_jax.reporting.tables import Colour, Entry, Table

EXAMPLE_COLUMNS = ("image", "truth", "prediction", "errors")


def document(title: str, content: Iterable[str]) -> str:
    """A whole page that needs no other file."""
    css = resources.files("crossearth_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(css)),
    )
    body = element("body", element("main", *content))
    return "<!doctype html>\n" + element("html", head, "\n", body, lang="en") + "\n"


def section(anchor: str, title: str, *content: str) -> Html:
    """A part of the page that can be linked to."""
    return element("section", element("h2", title), *content, "\n", id=anchor)


def table(data: Table, *, matrix: bool = False) -> Html:
    """A table that scrolls sideways on a narrow screen; a matrix is small and has upright column names."""
    head = element("tr", *(_head(entry, i in data.plain) for i, entry in enumerate(data.head)))
    bodies = (element("tbody", *_rows(data, block.title, block.rows)) for block in data.blocks)
    caption = [element("caption", data.caption)] if matrix else []
    kind = "matrix" if matrix else None
    whole = element("table", *caption, element("thead", head), *bodies, aria_label=data.caption, class_=kind)
    wrapped = element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=data.caption)
    return wrapped if matrix else join([element("p", data.caption, class_="caption"), wrapped])


def _rows(data: Table, title: str, rows: Sequence[Sequence[Entry]]) -> Iterable[Html]:
    if title:
        heading = element("th", title, class_="group", scope="rowgroup", colspan=str(len(data.head)))
        yield element("tr", heading, class_="head")
    for row in rows:
        first = element("th", *_content(row[0]), class_=_classes(row[0], plain=True), scope="row")
        rest = (_cell(entry, i in data.plain) for i, entry in enumerate(row[1:], 1))
        yield element("tr", first, *rest)


def _head(entry: Entry, plain: bool) -> Html:
    if not entry.text:
        return element("td", class_="plot")
    name = element("span", *_content(entry), class_="name")
    return element("th", name, class_=_classes(entry, plain=plain), scope="col")


def _cell(entry: Entry, plain: bool) -> Html:
    if entry.marks:
        return element("td", _track(entry), class_="plot")
    heat = None if entry.heat is None else f"--heat:{abs(entry.heat):.3f}"
    return element("td", *_content(entry), class_=_classes(entry, plain=plain), style=heat)


def _classes(entry: Entry, *, plain: bool) -> str | None:
    names = {
        "plain": plain,
        "bold": entry.bold,
        "muted": entry.muted,
        "gain": (entry.heat or 0) > 0,
        "loss": (entry.heat or 0) < 0,
    }
    return " ".join(name for name, applies in names.items() if applies) or None


def _content(entry: Entry) -> Iterable[str]:
    if entry.swatch is not None:
        yield swatch(entry.swatch)
    yield from (swatch(colour, title=name) for name, colour in entry.swatches)
    yield element("span", entry.text, class_="spoken") if entry.swatches else entry.text
    if entry.note:
        yield element("span", entry.note, class_="note")


def _track(entry: Entry) -> Html:
    """The marks of one row on a line from 0 to 100 %; the numbers stand beside it, so it is decoration."""
    marks = [_mark(i, title, value) for i, (title, value) in enumerate(entry.marks)]
    return element("span", *reversed(marks), class_="track", aria_hidden="true")


def _mark(index: int, title: str, value: float) -> Html:
    at = f"left:{min(100.0, max(0.0, value)):.1f}%"
    return element("i", class_=f"mark s{index + 1}", style=at, title=f"{title} {value:.1f}")


def marks_legend(titles: Sequence[str]) -> Html:
    """Names of the marks in a table's plot column."""
    items = (element("li", element("i", class_=f"mark s{i}"), title) for i, title in enumerate(titles, 1))
    return element("ul", *items, class_="legend")


def swatch(colour: Colour, title: str | None = None) -> Html:
    """A small square in a class's colour."""
    return element("i", class_="swatch", style="background:rgb({},{},{})".format(*colour), title=title)


def class_legend(palette: Mapping[str, Colour]) -> Html:
    """Names and colours of the classes."""
    items = (element("li", swatch(colour), name) for name, colour in palette.items())
    return element("ul", *items, class_="legend")


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """A list of terms and what they are; empty ones are left out."""
    filled = ((term, text) for term, text in pairs if text)
    return element(
        "dl", *(part for term, text in filled for part in (element("dt", term), element("dd", text))), class_="facts"
    )


def tile(label: str, value: str, detail: str, *, main: bool = False) -> Html:
    """One number worth reading first."""
    parts = (("label", label), ("value", value), ("detail", detail))
    return element("div", *(element("div", t, class_=c) for c, t in parts), class_="tile main" if main else "tile")


def teaser(evaluations: Mapping[str, Evaluation]) -> Html:
    """The first example of every domain side by side: image above truth above prediction."""
    columns = []
    for title, evaluation in evaluations.items():
        sources = (
            ("image", figures.photograph(evaluation.images[0])),
            ("truth", figures.class_map(evaluation.labels[0], evaluation.palette)),
            ("prediction", figures.class_map(evaluation.predictions[0], evaluation.palette)),
        )
        pictures = (element("img", src=uri, alt=f"{title}, first example: {name}") for name, uri in sources)
        columns.append(element("figure", element("figcaption", title), *pictures))
    names = (element("span", name) for name in ("image", "truth", "prediction"))
    rows = element("div", element("b"), *names, class_="rows", aria_hidden="true")
    return element("div", element("div", rows, *columns, class_="teaser"), class_="scroll")


def examples(evaluation: Evaluation, domain: str) -> Html:
    """One strip per example: image, truth, prediction, errors."""
    count = len(evaluation.images)
    return element(
        "div", *(_strip(evaluation, i, f"{domain}, example {i + 1}") for i in range(count)), class_="examples"
    )


def _strip(evaluation: Evaluation, index: int, name: str) -> Html:
    image, truth = evaluation.images[index], evaluation.labels[index]
    prediction = evaluation.predictions[index]
    scored = truth != IGNORE
    right = f"{np.mean(truth[scored] == prediction[scored]):.0%} right" if scored.any() else "no label"
    sources = (
        figures.photograph(image),
        figures.class_map(truth, evaluation.palette),
        figures.class_map(prediction, evaluation.palette),
        figures.error_map(image, truth, prediction),
    )
    captions = (*EXAMPLE_COLUMNS[:3], right)
    return _images(zip(sources, captions, (f"{name}: {column}" for column in EXAMPLE_COLUMNS), strict=True))


def style_examples(styles: StyleExamples) -> Html:
    """Pairs of a training image and its restyled version."""
    pairs = zip(styles.images, styles.restyled, strict=True)
    strips = []
    for i, (image, restyled) in enumerate(pairs, 1):
        sources = (figures.photograph(image), figures.photograph(restyled))
        names = ("image", "restyled")
        strips.append(_images(zip(sources, names, (f"style {i}: {n}" for n in names), strict=True), pair=True))
    return element("div", *strips, class_="grid")


def _images(pictures: Iterable[tuple[str, str, str]], *, pair: bool = False) -> Html:
    shown = (
        element("figure", element("img", src=uri, alt=alt), element("figcaption", caption))
        for uri, caption, alt in pictures
    )
    return element("div", *shown, class_="strip pair" if pair else "strip")
