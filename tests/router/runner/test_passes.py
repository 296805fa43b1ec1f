"""Steps that share passes: who waits for whom, what is shared, and who fails; on a model that only adds numbers up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longroute.router.runner.passes import Pass, Step, run_alone, run_together


@dataclass
class Memory:
    seen: list[int] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return len(self.seen)


class Adder:
    """The one logit behind a token is the sum of all tokens so far. Token 13 breaks whatever pass it is in."""

    device = torch.device("cpu")
    vocab_size = 1
    eos_ids: frozenset[int] = frozenset()
    max_positions: int | None = None
    can_roll_back = batches_rows = True
    weight_bytes = 1

    def __init__(self, broken: type[Exception] = ValueError) -> None:
        self.broken = broken
        self.passes: list[int] = []  # rows of each

    def new_cache(self, room: int = 0) -> Memory:
        return Memory()

    def tokens(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)])

    def forward(self, tokens: Tensor, cache: Memory, *, logits: Any = 1) -> Tensor:
        self.passes.append(1)
        return self._read(tokens[0].tolist(), cache)[None, -logits:]

    def forward_rows(
        self, rows: Sequence[Sequence[int]], caches: Sequence[Memory], wanted: Sequence[int] | None = None
    ) -> Tensor:
        self.passes.append(len(rows))
        counts = wanted or [len(row) for row in rows]
        return torch.cat([self._read(row, cache)[-n:] for row, cache, n in zip(rows, caches, counts, strict=True)])

    def crop(self, cache: Memory, n_tokens: int) -> None:
        del cache.seen[n_tokens:]

    def _read(self, ids: Sequence[int], cache: Memory) -> Tensor:
        sums = []
        for token in ids:
            cache.seen.append(token)
            if token == 13:
                raise self.broken("can't allocate memory")
            sums.append([float(sum(cache.seen))])
        return torch.tensor(sums)


def step(model: Adder, ids: Sequence[int], last: Sequence[int] = (1,)) -> Step[list[float]]:
    """One pass for each id, and a last one over several; returns every logit."""
    cache, found = model.new_cache(), []
    for token in ids:
        passed = yield Pass(model, cache, [token])
        found += passed.logits[:, 0].tolist()
    passed = yield Pass(model, cache, last, wanted=len(last), last=True)
    return found + passed.logits[:, 0].tolist()


def clock() -> float:
    return 0.0


def nothing(short_of_memory: bool) -> None:
    pass


ROWS = st.lists(st.tuples(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), min_size=1)), max_size=6)


@given(ROWS)
def test_company_changes_no_result(rows: list[tuple[list[int], list[int]]]) -> None:
    expected = [run_alone(step(Adder(), *row), clock) for row in rows]
    model = Adder()
    assert run_together([step(model, *row) for row in rows], clock, nothing) == expected
    if rows:
        assert len(model.passes) == max(len(ids) for ids, _ in rows) + 1  # last passes wait for one another


def test_each_model_has_passes_of_its_own() -> None:
    small, large = Adder(), Adder()
    steps = [step(small, [1, 2]), step(large, [3]), step(small, [4])]
    assert run_together(steps, clock, nothing) == [[1, 3, 4], [3, 4], [4, 5]]
    assert (small.passes, large.passes) == ([2, 1, 2], [1, 1])


def test_a_long_pass_is_not_shared() -> None:
    model = Adder()
    run_together([step(model, [], [1] * 100), step(model, [])], clock, nothing)
    assert model.passes == [1, 1]


@pytest.mark.parametrize("error", [ValueError, MemoryError])
def test_only_the_row_to_blame_fails_after_a_shared_pass_did(error: type[Exception]) -> None:
    model = Adder(error)
    told: list[bool] = []
    steps = [step(model, [1, 2]), step(model, [3, 13]), step(model, [5, 6])]
    one, two, three = run_together(steps, clock, told.append)
    assert (one, three) == ([1, 3, 4], [5, 11, 12])
    assert isinstance(two, error)
    assert told == [error is MemoryError]


def test_what_a_step_itself_does_wrong_is_its_own_error() -> None:
    def broken(model: Adder) -> Step[list[float]]:
        yield Pass(model, model.new_cache(), [1])
        raise KeyError("mine")

    model = Adder()
    bad, good = run_together([broken(model), step(model, [2])], clock, nothing)
    assert isinstance(bad, KeyError)
    assert good == [2, 3]
    with pytest.raises(KeyError):
        run_alone(broken(model), clock)
