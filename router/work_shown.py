"""What a terminal is told while a strategy of several calls is at work: how far it is, and what each call brought.

`WorkShown` is a listener of calls (`router/run.py`); where its words go is the command line's choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from .core import Call, Outcome, Reply

_PLACE = re.compile(r"\b(\d+) of (\d+)\b")


class WorkShown:
    """Told of every call as it ends. Runs on the event loop, so it only prints.

    say: changes the words of the progress indication.
    notes: where each call's words go, dimmed; None where they are not wanted.
    """

    def __init__(self, say: Callable[[str], None], notes: Console | None = None) -> None:
        self._say = say
        self._notes = notes
        self._furthest = 0

    def __call__(self, call: Call, outcome: Outcome) -> None:
        if self._notes is not None:
            self._notes.print(block(call, outcome))
        if place := _PLACE.search(call.purpose):
            number, of = int(place[1]), int(place[2])
            self._furthest = max(self._furthest, number)  # paths side by side must not make it jump back
            self._say(f"Reading {self._furthest + 1} of {of}" if self._furthest < of else "Answering")


def block(call: Call, outcome: Outcome) -> Text:
    """One call: its purpose and size in a line, below it what was said; the answer itself is printed elsewhere."""
    if isinstance(outcome, Reply):
        usage = outcome.usage
        size = f": {usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written"
        head = f"── {call.purpose}{size if usage.prompt_tokens else ''}"  # not every backend counts
        notes = "".join(f"\nnote: {note}" for note in outcome.notes)
        said = "" if call.final else f"\n{outcome.text.strip()}"
        return Text(head + said + notes, style="dim")
    return Text.assemble(
        (f"── {call.purpose}: failed", "yellow"),
        (f"\n{type(outcome).__name__}: {outcome}", "dim"),
    )
