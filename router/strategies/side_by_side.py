"""Several plans as one: they go on in rounds, each round's calls side by side."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar, cast

from ..core import Call, Outcome, Reply
from ..errors import RouterError

T = TypeVar("T")

Path = Generator[Call | tuple[Call, ...], Reply | tuple[Outcome, ...], T]
"""A plan that need not end in an Answer."""


def side_by_side(paths: Sequence[Path[T]], *, all_or_none: bool = False) -> Path[tuple[T | RouterError, ...]]:
    """What each path came to, or the error it ended in, in their order.

    all_or_none: the first error is raised at once, and no path goes on.
    A round waits for its slowest call. A single path goes on by itself, so nothing is different for its calls.
    """
    ends: dict[int, T | RouterError] = {}
    try:
        steps = {number: _advance(path, None, ends, number) for number, path in enumerate(paths)}
        while going := {number: step for number, step in steps.items() if step is not None}:
            failed = next((end for end in ends.values() if isinstance(end, RouterError)), None)
            if all_or_none and failed is not None:
                raise failed
            if len(going) == 1:
                [(number, step)] = going.items()
                try:
                    outcome: Reply | tuple[Outcome, ...] | RouterError = yield step
                except RouterError as error:
                    outcome = error
                steps = {number: _advance(paths[number], outcome, ends, number)}
                continue
            calls = tuple(call for step in going.values() for call in (step if isinstance(step, tuple) else (step,)))
            outcomes = cast(tuple[Outcome, ...], (yield calls))
            steps, place = {}, 0
            for number, step in going.items():
                if isinstance(step, tuple):
                    own: Outcome | tuple[Outcome, ...] = outcomes[place : place + len(step)]
                    place += len(step)
                else:
                    own = outcomes[place]
                    place += 1
                steps[number] = _advance(paths[number], own, ends, number)
    finally:
        for path in paths:
            path.close()
    return tuple(ends[number] for number in range(len(paths)))


def _advance(
    path: Path[T],
    outcome: Reply | tuple[Outcome, ...] | RouterError | None,
    ends: dict[int, T | RouterError],
    number: int,
) -> Call | tuple[Call, ...] | None:
    """To the path's next calls; None, and its end noted, where it has ended."""
    try:
        return path.throw(outcome) if isinstance(outcome, RouterError) else path.send(outcome)  # type: ignore[arg-type]
    except StopIteration as finished:
        ends[number] = finished.value
    except RouterError as error:
        ends[number] = error
    return None
