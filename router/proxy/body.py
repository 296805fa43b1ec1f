"""An untrusted JSON body, read into texts: what the readers of all APIs share.

Nothing here raises, whatever the body holds; what is not understood is not collected. The shapes of each API are left
to `openai.py` and `anthropic.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from .texts import JsonPath, LeftAlone, Text

EXTENSION = "longroute"  # our own field: taken out before a request is sent on

TextRole = Literal["system", "user", "assistant", "tool"]
Source = Literal["message", "document", "tool_result"]
Mark = Literal["", "document", "question", "keep"]
Object = Mapping[str, object]

NOTHING_TO_READ = LeftAlone("the body holds no text that is understood")


def as_object(value: object) -> Object:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_string(value: object) -> str:
    return value if isinstance(value, str) else ""


def positive(value: object) -> int | None:
    """The value where it is a whole number above zero; JSON's true is not one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def filled_list(*values: object) -> bool:
    return any(isinstance(value, list) and value for value in values)


def members(value: object, path: JsonPath) -> Iterator[tuple[JsonPath, Object]]:
    """The JSON objects in a list, each with its path."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield (*path, index), item


@dataclass(frozen=True, slots=True)
class Origin:
    """What all texts of one message or one of its parts have in common."""

    role: TextRole
    turn: int
    source: Source = "message"
    title: str = ""
    mark: Mark = ""
    fixed: bool = False


@dataclass(slots=True)
class Collector:
    """Texts in prompt order, and the places of our own fields, as they are met."""

    texts: list[Text] = field(default_factory=list)
    marks: list[JsonPath] = field(default_factory=list)
    cached_until: int = -1

    def add(self, path: JsonPath, value: object, origin: Origin) -> None:
        if isinstance(value, str) and value:
            o = origin
            self.texts.append(Text(path, value, o.role, o.turn, o.source, o.title, o.mark, o.fixed))

    def mark(self, holder: Object, path: JsonPath, inherited: Mark = "") -> Mark:
        """What the holder's own `longroute` field says it is; a part without one is what its message is."""
        if EXTENSION not in holder:
            return inherited
        self.marks.append((*path, EXTENSION))
        return next((known for known in get_args(Mark) if known == holder[EXTENSION]), "")

    def note_cache(self, holder: Object) -> None:
        """Call it after the holder's texts are added: a `cache_control` covers all that stands up to it."""
        if isinstance(holder.get("cache_control"), dict):
            self.cached_until = len(self.texts) - 1

    def options(self, body: Object) -> Object:
        self.mark(body, ())
        return as_object(body.get(EXTENSION))
