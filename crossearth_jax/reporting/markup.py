"""HTML as values: text is escaped unless it is already `Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Text that is markup already."""


_VOID = {"img", "meta", "br"}


def element(tag: str, *children: str, **attributes: str | None) -> Html:
    """`<tag attributes>children</tag>`.

    Attribute names may end in "_" (`class_`) and have "_" for "-"; an attribute that is None is left out, an
    empty one (`open=""`) is kept.
    """
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    inside = "".join(f' {name}="{html.escape(value)}"' for name, value in pairs if value is not None)
    if tag in _VOID:
        return Html(f"<{tag}{inside}>")
    return Html(f"<{tag}{inside}>{join(children)}</{tag}>")


def join(children: Iterable[str]) -> Html:
    """Markup and escaped text one after the other."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))
