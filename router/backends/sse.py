"""Server-sent events: bytes in any pieces → events. Leaves reading from the network to `http.py`.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream". Departure: text left over when the stream ends is still an
event, because several model servers forget the blank line after the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import BadReply

MAX_EVENT_BYTES = 8 * 2**20

# A carriage return at the very end may be half of a CRLF, so it waits for the next piece.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


@dataclass(frozen=True, slots=True)
class Event:
    data: str
    name: str = "message"


@dataclass(slots=True)
class EventParser:
    """Feed it the pieces as they come. Lines are decoded whole, so a character split between pieces is safe."""

    _rest: bytes = b""
    _name: str = ""
    _data: list[str] = field(default_factory=list)
    _size: int = 0

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that piece completes. Raises BadReply where one event is longer than MAX_EVENT_BYTES."""
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        for line in lines:
            self._size += len(line)
            if line:
                self._take(line)
            else:
                yield from self._event()
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise BadReply(f"The server sent one event of more than {MAX_EVENT_BYTES} bytes; is this a model server?")

    def finish(self) -> Iterator[Event]:
        """The event that was left without its blank line, if any."""
        yield from self.feed(b"\n")
        yield from self._event()

    def _take(self, line: bytes) -> None:
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value

    def _event(self) -> Iterator[Event]:
        if self._data:
            yield Event("\n".join(self._data), self._name or "message")
        self._name, self._data, self._size = "", [], 0
