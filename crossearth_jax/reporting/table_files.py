"""Tables as Markdown, LaTeX and CSV; columns that only hold plots are left out of all three."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from crossearth_jax.reporting import rendering
from crossearth_jax.reporting.score_tables import NOTHING, Entry, Table


def as_markdown(table: Table) -> str:
    """Write the table with its caption as GitHub-flavoured Markdown."""
    return rendering.render("table.md", data=table.without_plots(), nothing=NOTHING)


def as_latex(table: Table, label: str) -> str:
    """Write a `table` environment with the rules of the package booktabs."""
    return rendering.render("table.tex", data=table.without_plots(), label=label)


def as_csv(table: Table) -> str:
    """Write one row per row; the title of its block comes first. Missing numbers are empty, minus signs are ASCII."""
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
        # A spreadsheet would take such a name for a formula.
        formula = text[:1] in ("=", "@", "+", "-") and not re.fullmatch(r"[+-][\d.]+", text)
        yield "" if text == NOTHING else f"'{text}" if formula else text
