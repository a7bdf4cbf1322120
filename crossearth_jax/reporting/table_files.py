"""Tables as Markdown, LaTeX and CSV, without the columns that contain only plots."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from crossearth_jax.reporting import rendering
from crossearth_jax.reporting.score_tables import NOTHING, Entry, Table


def as_markdown(table: Table) -> str:
    """Return the table with its caption as GitHub-flavoured Markdown."""
    return rendering.render("table.md", data=table.without_plots(), nothing=NOTHING)


def as_latex(table: Table, label: str) -> str:
    """Return the table as a LaTeX `table` environment that uses the package booktabs."""
    return rendering.render("table.tex", data=table.without_plots(), label=label)


def as_csv(table: Table) -> str:
    """Return the table as CSV.

    If blocks have titles, the first column holds that of the row's block. Missing numbers are empty, and minus signs
    are ASCII.
    """
    table = table.without_plots()
    grouped = any(block.title for block in table.blocks)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(["Group"] if grouped else []), *_texts(table.head)])
    for block in table.blocks:
        writer.writerows([*([block.title] if grouped else []), *_texts(row)] for row in block.rows)
    return buffer.getvalue()


def _texts(row: Sequence[Entry]) -> Iterator[str]:
    for entry in row:
        text = entry.text.replace("\u2212", "-")
        # A spreadsheet program would interpret such a text as a formula.
        formula = text[:1] in ("=", "@", "+", "-") and not re.fullmatch(r"[+-][\d.]+", text)
        yield "" if text == NOTHING else f"'{text}" if formula else text
