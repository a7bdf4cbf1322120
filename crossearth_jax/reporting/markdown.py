"""Tables as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from crossearth_jax.reporting.tables import NOTHING, Entry, Table


def escape(text: str) -> str:
    """Text that neither ends a table cell nor starts markup; underscores inside words are harmless."""
    for character in "\\|<>*`[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def table(data: Table) -> str:
    """The table with its caption; columns that only hold plots are left out."""
    kept = [i for i, entry in enumerate(data.head) if entry.text]
    rules = ["---" if i in data.plain else "---:" for i in kept]
    lines = [data.caption, "", _row([_text(data.head[i]) for i in kept]), _row(rules)]
    for block in data.blocks:
        if block.title:
            lines.append(_row([f"**{escape(block.title)}**", *[""] * (len(kept) - 1)]))
        lines += [_row([_text(row[i]) for i in kept]) for row in block.rows]
    return "\n".join(lines)


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _text(entry: Entry) -> str:
    text = f"{escape(entry.text)} ({escape(entry.note)})" if entry.note else escape(entry.text)
    mark = "**" if entry.bold else "*" if entry.muted and text != NOTHING else ""
    return f"{mark}{text}{mark}" if text else ""
