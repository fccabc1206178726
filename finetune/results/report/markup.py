"""HTML and SVG from Python: elements whose text and attributes are always escaped.

Names in a report come from files and from other people. There is no way to write a text into an element without
escaping it, so no name can become markup.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from finetune.errors import printable_lines

_EMPTY = ("img", "meta", "br", "hr", "line", "rect", "circle", "polyline", "path", "stop", "use")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Returns an element.

    >>> element("p", "a < b", element("b", "c"), class_="note")
    '<p class="note">a &lt; b<b>c</b></p>'

    Args:
        tag: Its name.
        children: Texts, which are escaped; elements; lists of them; `None` is left out.
        attributes: A name may end in `_`, as `class_` must; `_` inside becomes `-`; `None` is left out. In SVG, numbers
            are written with at most two decimals.

    Returns:
        The element.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = _joined(children)
    return Markup(f"<{tag}{written}>" if tag in _EMPTY[:4] else f"<{tag}{written}>{inside}</{tag}>")


def table(headers: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str = "", numbers: int = 1) -> Markup:
    """Returns a table that scrolls sideways where the page is narrow.

    Args:
        headers: The heads of the columns.
        rows: The cells of each row; the first names the row.
        caption: What the table shows, above it.
        numbers: The column from which on cells are aligned to the right.

    Returns:
        The table.
    """

    def cells(row: Sequence[Any], tag: str) -> list[Markup]:
        return [
            element("th" if tag == "th" or not place else "td", cell, class_="n" if place >= numbers else None,
                    scope=("col" if tag == "th" else None if place else "row"))
            for place, cell in enumerate(row)
        ]  # fmt: skip

    head = element("thead", element("tr", cells(headers, "th")))
    body = element("tbody", [element("tr", cells(row, "td")) for row in rows])
    named = element("caption", caption) if caption else None
    return element("div", element("table", named, head, body), class_="scroll", tabindex="0")


def definitions(pairs: Iterable[tuple[Any, Any]]) -> Markup:
    """Returns a list of names with their values."""
    return element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in pairs])


def sentence(text: str) -> list[Any]:
    """Returns a sentence with what is in backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # an odd backtick, in a name
        return [text]
    return [element("code", part) if place % 2 else part for place, part in enumerate(parts)]


def _joined(children: Iterable[Any]) -> str:
    return "".join(
        child
        if isinstance(child, Markup)
        else _joined(child)
        if isinstance(child, list | tuple)
        else ""
        if child is None
        else escape(_text(str(child)), quote=False)
        for child in children
    )


def _attribute(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(_text(str(value)))


def _text(text: str) -> str:
    """Returns a text without what HTML cannot hold, such as control characters and halves of surrogate pairs."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", printable_lines(text))
