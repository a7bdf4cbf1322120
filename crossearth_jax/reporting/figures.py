"""Pictures that live inside the page: curves as SVG that takes the page's colours, images as data URIs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.reporting.markup import Html, element
from crossearth_jax.reporting.run import Series

MAX_SIDE = 384  # pixels of an example in the page; benchmark tiles have up to 1024
MAX_POINTS = 400  # per curve
# Colours drawn by matplotlib and then exchanged for the page's own, which follow the reader's light or dark mode.
_INK, _FAINT = "#010203", "#040506"
_SERIES = tuple(f"#0a0b{i:02x}" for i in range(8))
_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--line)"} | {
    colour: f"var(--series-{i + 1})" for i, colour in enumerate(_SERIES)
}


def curves(title: str, series: Mapping[str, Series], *, logarithmic: bool = False) -> Html:
    """One diagram over training steps: the logged values faintly, their running mean on top.

    Args:
      title: what is shown; also the diagram's name for screen readers.
      series: label -> values; at most eight, one colour each.
      logarithmic: a logarithmic axis, for losses of many sizes.
    """
    # Text stays text, in the page's font; the salt makes names unique among the page's diagrams and stable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        for (label, values), colour in zip(series.items(), _SERIES, strict=False):
            _curve(axes, label, values, colour)
        _dress(axes, title, legend=len(series) > 1, logarithmic=logarithmic)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title)


def _curve(axes: Axes, label: str, series: Series, colour: str) -> None:
    stride = -(-len(series.steps) // MAX_POINTS)
    radius = len(series.steps) // 40
    if radius:
        axes.plot(series.steps[::stride], series.values[::stride], color=colour, alpha=0.25, linewidth=0.8)
    smooth = running_mean(series.values, radius)
    axes.plot(series.steps[::stride], smooth[::stride], color=colour, linewidth=1.6, label=label)


def running_mean(values: Float[np.ndarray, " n"], radius: int) -> Float[np.ndarray, " n"]:
    """Mean of each value and its `radius` neighbours on both sides; of fewer, but as many, towards the ends.

    Being symmetric it leaves a straight line where it is.
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(len(values))
    reach = np.minimum(radius, np.minimum(at, at[::-1]))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def _dress(axes: Axes, title: str, *, legend: bool, logarithmic: bool) -> None:
    axes.set_title(title, color=_INK, fontsize=10, loc="left")
    axes.set_xlabel("step", color=_INK)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(colors=_INK, which="both", length=0)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_FAINT)
    if legend:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, ncols=2)


def _inline(svg: str, title: str) -> Html:
    """The bare <svg> element: no prologue, metadata, global style or fixed size; colours and font of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g\b[^>]*?) id="[^"]*"', r"\1", svg)  # the same names in every diagram
    svg = re.sub(r"'DejaVu Sans'(, ('[^']*'|[\w-]+))*", "inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    box = head.split('viewBox="')[1].split('"')[0]
    opening = element("svg", role="img", aria_label=title, viewBox=box).removesuffix("</svg>")
    return Html(opening + body)


def photograph(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Data URI of an RGB image; small ones lose nothing, large ones are shrunk JPEG."""
    picture = Image.fromarray(image)
    if max(picture.size) <= 128:
        return _data_uri(picture, "png")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _data_uri(picture, "jpeg")


def class_map(labels: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]) -> str:
    """Data URI of a label map in palette colours; ignored pixels are transparent."""
    picture = Image.fromarray(_shrunk(labels))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    picture.putpalette(colours.tobytes())
    return _data_uri(picture, "png", transparency=IGNORE)


def error_map(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], predictions: UInt8[np.ndarray, "h w"]
) -> str:
    """Data URI of the image in pale grey with wrong pixels in red; ignored pixels are transparent."""
    labels, predictions = _shrunk(labels), _shrunk(predictions)
    size = (labels.shape[1], labels.shape[0])
    grey = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX), np.float32)
    pale = np.repeat((140 + 0.4 * grey)[..., None], 3, axis=-1)
    wrong = ((labels != predictions) & (labels != IGNORE))[..., None]
    red = np.array([205, 45, 30], np.float32) * (0.75 + 0.25 * grey[..., None] / 255)
    alpha = np.where(labels == IGNORE, 0, 255).astype(np.uint8)[..., None]
    colours = np.where(wrong, red, pale).astype(np.uint8)
    return _data_uri(Image.fromarray(np.concatenate([colours, alpha], axis=-1)), "png")


def _shrunk(labels: np.ndarray) -> np.ndarray:
    stride = -(-max(labels.shape) // MAX_SIDE)
    return np.ascontiguousarray(labels[::stride, ::stride])


def _data_uri(picture: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
