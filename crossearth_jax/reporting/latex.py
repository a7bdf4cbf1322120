"""Tables for LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from crossearth_jax.reporting.tables import NOTHING, Entry, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "\u2193": r"$\downarrow$",
    "\u2192": r"$\rightarrow$",
    NOTHING: "--",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def escape(text: str) -> str:
    """Text in which no character is a command."""
    return "".join(_SPECIAL.get(character, character) for character in text.replace("\n", " "))


def table(data: Table, label: str) -> str:
    """A `table` environment (`\\usepackage{booktabs}`); columns that only hold plots are left out."""
    kept = [i for i, entry in enumerate(data.head) if entry.text]
    bodies = [_rows(data, kept, number) for number in range(len(data.blocks))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(data.caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{''.join('l' if i in data.plain else 'r' for i in kept)}}}",
        r"\toprule",
        _row([_text(data.head[i]) for i in kept]),
        r"\midrule",
        "\n\\addlinespace\n".join(bodies),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _rows(data: Table, kept: Sequence[int], number: int) -> str:
    block = data.blocks[number]
    title = [rf"\multicolumn{{{len(kept)}}}{{l}}{{\textit{{{escape(block.title)}}}}} \\"] if block.title else []
    return "\n".join([*title, *(_row([_text(row[i]) for i in kept]) for row in block.rows)])


def _row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _text(entry: Entry) -> str:
    text = escape(entry.text)
    return rf"\textbf{{{text}}}" if entry.bold and text else text
