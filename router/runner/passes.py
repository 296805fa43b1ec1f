"""Passes of models: what a step of one answer asks for, and how the steps of several answers share them.

A step is a generator. It yields each `Pass` that it needs, is sent what came of it, and returns its result; so the same
code serves an answer alone (`run_alone`) and in company (`run_together`), where each model reads its weights once for
all rows that ask for it. Rows may draft for longer or shorter: the last passes of all wait for one another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .memory import is_out_of_memory

T = TypeVar("T")

_MOST_SHARED = 64  # tokens of one row: a longer pass is bound by computing, so that company would only make it wait


class DecodingModel(Protocol):
    """What decoding needs of a model; `model.LanguageModel` has it. A cache has `n_tokens`, the tokens it holds."""

    device: torch.device
    vocab_size: int
    eos_ids: frozenset[int]
    max_positions: int | None
    can_roll_back: bool
    batches_rows: bool
    weight_bytes: int

    def new_cache(self, room: int = 0) -> Any: ...

    def tokens(self, ids: Sequence[int]) -> Tensor: ...

    def forward(self, tokens: Tensor, cache: Any, *, logits: Any = "last") -> Tensor: ...

    def forward_rows(
        self, rows: Sequence[Sequence[int]], caches: Sequence[Any], wanted: Sequence[int] | None = None
    ) -> Tensor: ...

    def crop(self, cache: Any, n_tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Pass:
    """One model is to append tokens to one cache.

    wanted: logits behind this many of the last tokens. last: no other pass of this step will follow.
    """

    model: DecodingModel
    cache: Any
    ids: Sequence[int]
    wanted: int = 1
    last: bool = False


class Passed(NamedTuple):
    """logits: float32, shape (wanted, V). began: the clock's time when the pass began, in company or not."""

    logits: Tensor
    began: float


Step = Generator[Pass, Passed, T]
Clock = Callable[[], float]


def run_alone(step: Step[T], clock: Clock) -> T:
    """The result of one step, each pass on its own."""
    with torch.inference_mode():
        try:
            asked = next(step)
            while True:
                asked = step.send(_passed(asked, clock))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def run_together(steps: Sequence[Step[T]], clock: Clock, failed: Callable[[bool], None]) -> list[T | Exception]:
    """The results of several steps that share passes; what failed in one of them is its own error.

    A shared pass that fails is tried again for each row alone, so that only the row to blame ends. Before that,
    `failed` is told whether memory ran out, and may free some. All models must have `batches_rows`.
    """
    results: dict[int, T | Exception] = {}
    asked: dict[int, Pass] = {}

    def go_on(row: int, passed: Passed | Exception | None) -> None:
        step = steps[row]
        try:
            if isinstance(passed, Exception):
                asked[row] = step.throw(passed)
            else:
                asked[row] = next(step) if passed is None else step.send(passed)
        except StopIteration as end:
            results[row] = end.value
        except Exception as error:  # whatever it is, it is this row's alone
            results[row] = error

    with torch.inference_mode():
        for row in range(len(steps)):
            go_on(row, None)
        while asked:
            now = [row for row, one in asked.items() if not one.last] or list(asked)
            model = asked[now[0]].model
            now = [row for row in now if asked[row].model is model]
            for row, passed in zip(now, _shared([asked.pop(row) for row in now], clock, failed), strict=True):
                go_on(row, passed)
    return [results[row] for row in range(len(steps))]


def _shared(several: Sequence[Pass], clock: Clock, failed: Callable[[bool], None]) -> list[Passed | Exception]:
    """What came of passes of one model: of one pass over all rows where that works."""
    held = [one.cache.n_tokens for one in several]
    if len(several) > 1 and max(len(one.ids) for one in several) <= _MOST_SHARED:
        began = clock()
        try:
            logits = several[0].model.forward_rows(
                [one.ids for one in several], [one.cache for one in several], [one.wanted for one in several]
            )
        except Exception as error:  # one row may be to blame; alone, the others will do
            short_of_memory = is_out_of_memory(error)
        else:
            return [Passed(part, began) for part in torch.split(logits, [one.wanted for one in several])]
        for one, n_tokens in zip(several, held, strict=True):
            one.model.crop(one.cache, n_tokens)
        failed(short_of_memory)  # outside of the handler: an exception keeps the tensors of its frames alive
    outcomes: list[Passed | Exception] = []
    for one in several:
        try:
            outcomes.append(_passed(one, clock))
        except Exception as error:
            outcomes.append(error)
    return outcomes


def _passed(one: Pass, clock: Clock) -> Passed:
    began = clock()
    return Passed(one.model.forward(one.model.tokens(one.ids), one.cache, logits=one.wanted)[0], began)
