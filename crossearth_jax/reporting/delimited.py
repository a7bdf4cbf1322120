"""Tables as CSV, for spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from crossearth_jax.reporting.tables import NOTHING, Entry, Table


def table(data: Table) -> str:
    """One row per row; the title of its block comes first. Missing numbers are empty, minus signs are ASCII."""
    kept = [i for i, entry in enumerate(data.head) if entry.text]
    grouped = any(block.title for block in data.blocks)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(["Group"] if grouped else []), *_texts(data.head, kept)])
    for block in data.blocks:
        writer.writerows([*([block.title] if grouped else []), *_texts(row, kept)] for row in block.rows)
    return buffer.getvalue()


def _texts(row: Sequence[Entry], kept: Sequence[int]) -> Iterator[str]:
    for i in kept:
        text = row[i].text.replace("\u2212", "-")
        # A spreadsheet would take such a name for a formula.
        formula = text[:1] in ("=", "@", "+", "-") and not re.fullmatch(r"[+-][\d.]+", text)
        yield "" if text == NOTHING else f"'{text}" if formula else text
