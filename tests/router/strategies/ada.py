"""A portion about Ada Lovelace, and notes as workers take them of it."""

from __future__ import annotations

from longroute.router.core import Passage
from longroute.router.strategies.notes import Notes
from longroute.router.strategies.reports import parse
from longroute.router.strategies.view import view

TEXT = (
    "Ada Lovelace wrote the first program in 1843. It computed Bernoulli numbers. She did not build the engine. "
    "Two dogs sat by the gate. A dog barked at noon. Another dog slept."
)
PORTION = (Passage("doc", 100, 100 + len(TEXT), TEXT),)


def after(*replies: str) -> Notes:
    """Notes after these replies, each about the same portion."""
    notes = Notes()
    for part, reply in enumerate(replies, start=1):
        notes = notes.after(parse(reply).lines, part, PORTION)
    return notes


def shown(notes: Notes, room: int = 10_000) -> str:
    """What a prompt shows of them, a token a character."""
    return view(notes, room, len).text
