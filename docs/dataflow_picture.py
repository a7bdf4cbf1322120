"""Draw docs/images/dataflow.svg: how data flows from an archive to a report, and the parts of a training step.

Run `python docs/dataflow_picture.py` in the repository's root.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).parent / "images" / "dataflow.svg"
WIDTH, HEIGHT = 1086, 470
# Colours that are legible on a light and on a dark page.
HOST, DEVICE, INK, ON_DEVICE = "#5b7083", "#00796b", "#78909c", "#ffffff"

# The grid of boxes, in pixels: distances between columns and rows, and the size of a box.
COLUMN, ROW, BOX_WIDTH, BOX_HEIGHT = 180, 150, 156, 84
LEFT, TOP = 14, 20


def main() -> None:
    """Write the picture."""
    parts = [*host_row(), *step_frame(), *step_rows(), *result_row()]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="Roboto, Helvetica, Arial, sans-serif" font-size="13">'
        "<title>How data flows through crossearth_jax</title>"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    )
    OUT.write_text(head + "".join(parts) + "</svg>\n", encoding="utf-8")


def host_row() -> list[str]:
    """Draw the first row: from files on disk to a global batch."""
    boxes = [
        ("archives", "official files", "or this repository"),
        ("data/<name>", "TFDS builder:", "tiles, train ids"),
        ("array_record", "prepared once,", "checked on reading"),
        ("inputs", "decode, fixed window,", "shard per process"),
        ("parallel", "batch sharded over", "(data, fsdp)"),
    ]
    drawn = [box(i, 0, title, lines, HOST) for i, (title, *lines) in enumerate(boxes)]
    return drawn + [arrow(i, 0, i + 1, 0) for i in range(4)] + [elbow()]


def step_frame() -> list[str]:
    """Draw the frame and caption around the jitted step."""
    x, y = LEFT - 6, TOP + ROW - 14
    return [
        f'<rect x="{x}" y="{y}" width="{5 * COLUMN + BOX_WIDTH + 12}" height="{BOX_HEIGHT + 44}" rx="10" fill="none" '
        f'stroke="{DEVICE}" stroke-width="1.5" stroke-dasharray="6 4"/>',
        text(x + COLUMN, y + BOX_HEIGHT + 35, "one jitted step; random numbers are derived from (seed, step)", DEVICE),
    ]


def step_rows() -> list[str]:
    """Draw the second row: the parts of the training step, from right to left."""
    boxes = [
        (5, 1, "augment", "scale, crop, flip,", "colour"),
        (4, 1, "style injection", "a share p of images", "is restyled in blocks"),
        (3, 1, "content mask", "masked blocks for", "the second task"),
        (2, 1, "backbone", "ViT + Rein, once for", "both stacked images"),
        (1, 1, "two heads", "Mask2Former and", "reconstruction"),
        (0, 1, "losses", "matching on device;", "gradient, AdamW"),
    ]
    return [box(x, y, title, lines, DEVICE) for x, y, title, *lines in boxes] + [
        arrow(x, 1, x - 1, 1) for x in range(5, 0, -1)
    ]


def result_row() -> list[str]:
    """Draw the third row: what is done with the trained parameters."""
    boxes = [
        (0, "training", "checkpoints, metrics,", "weights file"),
        (1, "evaluate", "sliding windows, one", "matrix per domain"),
        (2, "report", "scores of unseen", "domains, figures"),
        (4, "predict", "scenes of any size:", "GeoTIFF, polygons"),
        (5, "convert", "published files to", "ours and back"),
    ]
    drawn = [box(x, 2, title, lines, HOST) for x, title, *lines in boxes]
    return [*drawn, down(0, 1, 2), arrow(0, 2, 1, 2), arrow(1, 2, 2, 2), *under()]


def under() -> list[str]:
    """Draw the arrows from training to maps and files, below the boxes."""
    y = TOP + 2 * ROW + BOX_HEIGHT
    x0, x1, x2 = (LEFT + column * COLUMN + BOX_WIDTH / 2 for column in (0, 4, 5))
    return [
        line(f"M{x0} {y}V{y + 26}H{x1}V{y + 3}"),
        line(f"M{x1} {y + 26}H{x2}V{y + 3}"),
    ]


def box(column: float, row: float, title: str, lines: list[str], colour: str) -> str:
    """Return a box with a title and lines of text at a place of the grid."""
    x, y = LEFT + column * COLUMN, TOP + row * ROW
    rows = "".join(text(x + 12, y + 46 + 18 * i, each, ON_DEVICE) for i, each in enumerate(lines))
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" fill="{colour}"/>'
        + text(x + 12, y + 25, title, ON_DEVICE, "700")
        + rows
    )


def text(x: float, y: float, words: str, colour: str, weight: str = "400") -> str:
    """Return one line of text."""
    return f'<text x="{x}" y="{y}" fill="{colour}" font-weight="{weight}">{escape(words)}</text>'


def arrow(x0: int, y0: int, x1: int, y1: int) -> str:
    """Return an arrow between neighbouring boxes of a row."""
    y = TOP + y0 * ROW + BOX_HEIGHT / 2
    start, end = LEFT + x0 * COLUMN, LEFT + x1 * COLUMN
    return line(f"M{start + BOX_WIDTH} {y}H{end - 3}" if x1 > x0 else f"M{start} {y}H{end + BOX_WIDTH + 3}")


def down(column: int, row: int, below: int) -> str:
    """Return an arrow to a box in a lower row."""
    x = LEFT + column * COLUMN + BOX_WIDTH / 2
    return line(f"M{x} {TOP + row * ROW + BOX_HEIGHT}V{TOP + below * ROW - 3}")


def elbow() -> str:
    """Return an arrow from the end of the first row to the start of the step."""
    y, x = TOP + BOX_HEIGHT / 2, LEFT + 5 * COLUMN + BOX_WIDTH / 2
    return line(f"M{LEFT + 4 * COLUMN + BOX_WIDTH} {y}H{x}V{TOP + ROW - 3}")


def line(path: str) -> str:
    """Return a line with an arrowhead."""
    return f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.8" marker-end="url(#head)"/>'


if __name__ == "__main__":
    main()
