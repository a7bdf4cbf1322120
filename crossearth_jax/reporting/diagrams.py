"""Diagrams as vector graphics: inside the page, in its colours, and as SVG and PDF files beside it."""

from __future__ import annotations

import dataclasses
import functools
import html
import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from crossearth_jax.reporting.run import Series
from crossearth_jax.runtime.atomic import replacing
from crossearth_jax.runtime.buckets import AnyPath

MAX_POINTS = 400  # per curve
# The light colours of style.css. In the page they are replaced by its CSS variables, which follow the reader's light or
# dark mode.
INK, MUTED, FAINT, LOSS = "#1b211e", "#5d6761", "#dcdfd8", "#b7472a"
SERIES = ("#0b6b58", "#c8792b", "#4a6fb3", "#a2476f", "#6d8f2f", "#7a5bb0", "#3a97a8", "#8a6d4b")
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", FAINT: "var(--line)", LOSS: "var(--loss)"} | {
    colour: f"var(--series-{i + 1})" for i, colour in enumerate(SERIES)
}
# Keep text as text: SVG uses the font of the page or the system, PDF embeds TrueType fonts.
_SAVING: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42}


drawing = matplotlib.rc_context({"font.size": 9})  # decorator for every function that draws


@dataclasses.dataclass(frozen=True)
class Diagram:
    """A drawn figure and its title, which is also its description for screen readers."""

    title: str
    figure: Figure

    @functools.cached_property
    def svg(self) -> str:
        """The figure as SVG text, which is identical for identical drawings."""
        buffer = io.StringIO()
        # The salt makes the ids in the SVG reproducible and different between the diagrams of a page.
        options: dict[Any, Any] = {**_SAVING, "svg.hashsalt": self.title}
        with matplotlib.rc_context(options):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def inline(diagram: Diagram) -> str:
    """Return the <svg> element for a page, with the page's colours and font.

    Prologue, metadata, global style and fixed size are removed.
    """
    svg = diagram.svg[diagram.svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g\b[^>]*?) id="[^"]*"', r"\1", svg)  # these ids would occur in every diagram of the page
    svg = re.sub(r"'DejaVu Sans'(, ('[^']*'|[\w-]+))*", "inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    box = head.split('viewBox="')[1].split('"')[0]
    return f'<svg role="img" aria-label="{html.escape(diagram.title)}" viewBox="{box}">{body}'


def save(diagram: Diagram, stem: AnyPath) -> None:
    """Write `stem`.svg and `stem`.pdf; identical diagrams give identical files.

    Raises:
      UserError: a file cannot be written.
    """
    with replacing(stem.with_suffix(".svg")) as temporary:
        temporary.write_text(diagram.svg, encoding="utf-8")
    with replacing(stem.with_suffix(".pdf")) as temporary, matplotlib.rc_context(_SAVING):
        diagram.figure.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Title": diagram.title})


def dress(axes: Axes, title: str = "", *, bottom: bool = True) -> None:
    """Apply the common style of all diagrams: title at the left, faint grid, no spine except the bottom one."""
    axes.set_title(title, color=MUTED, fontsize=10, loc="left")
    axes.tick_params(colors=MUTED, which="both", length=0)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(bottom and side == "bottom")
        spine.set_color(FAINT)


@drawing
def curves(title: str, series: Mapping[str, Series], *, logarithmic: bool = False) -> Diagram:
    """Draw quantities over training steps: the logged values faintly, their running mean on top.

    Args:
      title: title of the diagram.
      series: label -> values; at most eight, one colour each.
      logarithmic: use a logarithmic vertical axis, for losses of very different size.
    """
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.subplots()
    for (label, logged), colour in zip(series.items(), SERIES, strict=False):
        shown = slice(None, None, -(-len(logged.steps) // MAX_POINTS))
        radius = len(logged.steps) // 40
        if radius:
            axes.plot(logged.steps[shown], logged.values[shown], color=colour, alpha=0.25, linewidth=0.8)
        smooth = running_mean(logged.values, radius)
        axes.plot(logged.steps[shown], smooth[shown], color=colour, linewidth=1.6, label=label)
    dress(axes, title)
    axes.set_xlabel("step", color=MUTED)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    if len(series) > 1:
        figure.legend(loc="outside lower center", frameon=False, labelcolor=MUTED, fontsize=8, ncols=4)
    return Diagram(title, figure)


def running_mean(values: Float[np.ndarray, " n"], radius: int) -> Float[np.ndarray, " n"]:
    """Return for each value its mean with `radius` neighbours on each side; near the ends with equally fewer on both.

    Because the neighbourhood is symmetric, a straight line is not changed.
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(len(values))
    reach = np.minimum(radius, np.minimum(at, at[::-1]))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
