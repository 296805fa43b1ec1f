"""A terminal that only longroute steers: documents and replies may hold what moves its cursor or renames its window.

Pipes and JSON get every character as it is; only what a person sees is changed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Invisible, but letters join or part by them, and lines break: soft hyphen, joiners, marks of direction that end with
# the next letter. Others (overrides, embeddings, tags) show a text in another order than it has, or hide it.
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u200e\u200f\u061c\u2060\ufeff")


class Terminal(Console):
    """A rich console that makes all it is given `printable` where it writes to a terminal. Its own styles work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if self.is_terminal and not segment.control:
                segment = Segment(printable(segment.text), segment.style)
            yield segment


def printable(text: str) -> str:
    """Without what could steer a terminal. Spaces of all kinds are one."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character in "\n\t" or character in _INVISIBLE:
        return character
    if character.isspace():
        return " "
    return "�" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
