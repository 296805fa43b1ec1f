"""The choice of draft lengths: the speed model's published numbers, and what it makes of what it is told."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.router.runner.draft_length import DraftLength, Round, expected_tokens, predicted_speedup


@pytest.mark.parametrize(
    ("acceptance", "speedups"),
    [
        (0.8, {2: 1.43, 4: 1.42, 6: 1.30, 10: 1.05}),
        (0.9, {2: 1.58, 4: 1.73, 6: 1.72, 10: 1.58}),
        (0.6, {2: 1.15, 4: 0.97, 6: 0.80, 10: 0.57}),
    ],
)
def test_the_speed_model_gives_the_numbers_worked_out_for_it(acceptance: float, speedups: dict[int, float]) -> None:
    """A draft step of 0.33 target steps and a verifying pass of 1.05."""
    for drafted, speedup in speedups.items():
        assert predicted_speedup(acceptance, drafted, 0.33, 1.05) == pytest.approx(speedup, abs=0.006)


@given(st.floats(0, 0.999), st.integers(0, 20))
def test_expected_tokens_is_the_closed_form(acceptance: float, drafted: int) -> None:
    closed = (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
    assert expected_tokens(acceptance, drafted) == pytest.approx(closed)
    assert expected_tokens(1.0, drafted) == drafted + 1


def decoded(
    length: DraftLength,
    tokens: int,
    *,
    acceptance: float,
    draft_s: float,
    growth: float = 0.01,
    noise: float = 0.0,
    seed: int = 0,
) -> float:
    """Seconds to decode with steps of 1 s for the target and drafts kept with this chance, whatever the length says."""
    chance, emitted, spent = random.Random(seed), 0, 0.0
    while emitted < tokens:
        drafted = length.choose(tokens - emitted)
        assert 0 <= drafted < max(1, tokens - emitted)
        slower = 1 + noise * chance.random()
        if not drafted:
            length.saw_plain_step(slower)
            emitted, spent = emitted + 1, spent + slower
            continue
        kept = 0
        while kept < drafted and chance.random() < acceptance:
            kept += 1
        seconds = drafted * draft_s * slower, (1 + growth * drafted) * slower
        length.saw_round(Round(drafted, kept, kept < drafted, kept + 1, *seconds))
        emitted, spent = emitted + kept + 1, spent + sum(seconds)
    return spent


@pytest.mark.parametrize("draft_s", [0.05, 0.33])
@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.8, 0.9, 1.0])
def test_long_texts_come_near_the_best_fixed_length(acceptance: float, draft_s: float) -> None:
    """Within 12 % of the best length in hindsight, plain decoding (1.0) included, with step times off by up to 30 %."""
    best = max(1.0, *(predicted_speedup(acceptance, n, draft_s, 1 + 0.01 * n) for n in range(1, 17)))
    tokens, noise = 1000, 0.3
    spent = decoded(DraftLength(), tokens, acceptance=acceptance, draft_s=draft_s, noise=noise)
    assert tokens * (1 + noise / 2) / spent > 0.88 * best


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0.01, 2.0), st.floats(0, 0.2), st.integers(128, 600), st.integers(0, 10**6))
def test_never_much_slower_than_plain_decoding(
    acceptance: float, draft_s: float, growth: float, tokens: int, seed: int
) -> None:
    spent = decoded(DraftLength(), tokens, acceptance=acceptance, draft_s=draft_s, growth=growth, seed=seed)
    assert tokens / spent > 0.93


def test_what_it_has_seen_moves_the_length() -> None:
    chosen = {}
    for acceptance in (0.5, 0.95):
        length = DraftLength()
        decoded(length, 600, acceptance=acceptance, draft_s=0.1)
        chosen[acceptance] = length.best()[0]
        assert length.acceptance == pytest.approx(acceptance, abs=0.2)
    assert chosen[0.5] < chosen[0.95]


def test_it_measures_plain_steps_before_the_first_draft_and_learns_from_a_draft_of_one() -> None:
    length = DraftLength()
    chosen = []
    for _ in range(2):
        chosen.append(length.choose(100))
        length.saw_plain_step(1.0)
    chosen.append(length.choose(100))
    assert chosen == [0, 0, 1]


def test_a_slow_first_step_is_forgotten() -> None:
    """The first step after a prefill is slow; taken at its word it would make any draft look cheap."""
    length = DraftLength()
    for seconds in (20.0, 1.0):
        length.saw_plain_step(seconds)
    length.saw_round(Round(1, 1, False, 2, 0.9, 1.0))
    assert length.best()[1] < 1.05


def test_speculation_that_did_not_pay_is_tried_again_and_taken_up_when_it_does() -> None:
    length = DraftLength()
    decoded(length, 200, acceptance=0.0, draft_s=0.3)
    assert length.choose(100) == 0
    spent = decoded(length, 2000, acceptance=0.95, draft_s=0.1)
    assert spent < 2000 * 0.6


def test_a_promise_that_is_not_kept_ends_in_a_pause() -> None:
    """Every draft is kept and each step looks cheap, yet reading what plain steps emitted eats it all up."""
    length, spent, emitted = DraftLength(), 0.0, 0
    while emitted < 1000:
        drafted = length.choose(1000 - emitted)
        if drafted:
            length.saw_round(Round(drafted, drafted, False, drafted + 1, 0.1 * drafted, 1.0, catch_up_s=2.0 * drafted))
            spent, emitted = spent + 1 + 2.1 * drafted, emitted + drafted + 1
        else:
            length.saw_plain_step(1.0)
            spent, emitted = spent + 1, emitted + 1
    assert 1000 / spent > 0.93


def test_pauses_between_trials_grow() -> None:
    length = DraftLength(may_lose=1.0)  # only the pause holds trials back
    trials: list[int] = []
    step = 0
    while len(trials) < 9:
        drafted = length.choose(10**6)
        step += 1
        if drafted:
            trials.append(step)
            length.saw_round(Round(drafted, 0, True, 1, drafted * 0.5, 1.0))
        else:
            length.saw_plain_step(1.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(trials)]
    assert gaps[-1] == 257
    assert sorted(gaps) == gaps


def test_one_token_left_needs_no_draft() -> None:
    length = DraftLength()
    decoded(length, 100, acceptance=1.0, draft_s=0.1)
    assert length.choose(1) == 0
    assert length.choose(2) <= 1


def test_pauses_are_counted_in_passes_however_many_share_them() -> None:
    length, plain = DraftLength(rows=16), 0
    for _ in range(400):
        choices = [length.choose(10**6) for _ in range(16)]
        assert len(set(choices)) == 1
        plain += choices[0] == 0
        for drafted in choices:
            if drafted:
                length.saw_round(Round(drafted, drafted, False, drafted + 1, 0.1 * drafted, 1.0))
            else:
                length.saw_plain_step(1.0)
    assert plain < 400 / 24
