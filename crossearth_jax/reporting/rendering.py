"""Rendering of the templates of pages and tables.

HTML is escaped automatically; Markdown and LaTeX are escaped by the filters `md` and `tex` in their templates.
"""

from __future__ import annotations

from typing import Any

import jinja2

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "\u2193": r"$\downarrow$",
    "\u2192": r"$\rightarrow$",
    "\u2013": "--",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def escape_markdown(text: str) -> str:
    """Escape the characters that end a table cell or start markup; underscores inside words need no escape."""
    for character in "\\|<>*`[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def escape_tex(text: str) -> str:
    """Escape every character that has a special meaning in LaTeX."""
    return "".join(_TEX.get(character, character) for character in text.replace("\n", " "))


_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("crossearth_jax.reporting"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PAGES.filters |= {"md": escape_markdown, "tex": escape_tex}
# Other delimiters for LaTeX templates, since LaTeX itself uses braces and percent signs.
_LATEX = _PAGES.overlay(
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
)


def render(name: str, **values: Any) -> str:
    """Render the template `name` of the folder `templates` with these values.

    Raises:
      jinja2.UndefinedError: the template uses a value that is not given.
    """
    return (_LATEX if name.endswith(".tex") else _PAGES).get_template(name).render(values)
