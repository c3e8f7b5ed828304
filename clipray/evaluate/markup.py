"""HTML built from pieces: every text is escaped, what is a tag already is not.

What comes out is well-formed XML as well, so that a parser can check it.
"""

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

EMPTY = ("br", "img", "meta", "line", "rect", "circle", "polyline")

# What XML has no way to say: control characters, halves of surrogates, and two more.
_UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Inner: TypeAlias = "str | float | Iterable[Inner]"


def tag(name: str, /, *inner: Inner, **attributes: str | float) -> Markup:
    """An element.

    Args:
        name: of the element.
        inner: what is in it: texts, numbers, elements, or lists of them.
        attributes: an underscore stands for a hyphen; one at the end is left out (`class_`).
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    if name in EMPTY:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{joined(inner)}</{name}>")


def joined(inner: Inner) -> Markup:
    """Pieces one after the other."""
    if isinstance(inner, Markup):
        return inner
    if isinstance(inner, str | float | int):
        return escape(inner)
    return Markup("".join(map(joined, inner)))


def escape(text: str | float) -> Markup:
    """A text or number as HTML."""
    return Markup(html.escape(_UNSPEAKABLE.sub("\ufffd", str(text))))
