"""What the shipped policy does with every strategy there is, over a grid of requests: no hopeful guesses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from longroute.router.assemble import make_parts, make_policy, make_strategies
from longroute.router.core import TASKS, Decision, Evidence, Features, Goal, Prefer, Task
from longroute.router.costs import estimate
from longroute.router.settings import load_settings

LENGTHS = (2_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)
PREFER: tuple[Prefer, ...] = ("quality", "balanced", "cheap")
SPREAD_OUT = ("comparison", "aggregation", "summary")  # questions whose evidence stands in many places


def features(tokens: int, window: int, task: Task, coverage: float) -> Features:
    shares: dict[Task, float] = {each: 0.88 if each == task else 0.02 for each in TASKS}
    evidence = Evidence(coverage, 0.8 * coverage, 12.0, 0.2, 0.8, 0.2)
    return Features(tokens, 20, 0, 1024, 0.02, 1, tokens / window, shares, evidence, "text")


def decisions(model: str) -> Iterator[tuple[Task, Decision]]:
    """Decisions with everything allowed. `compressed` is left out: it stands in for full and has a rule of its own."""
    parts = make_parts(load_settings(embedding_model="none", cache=False))
    strategies = {name: made for name, made in make_strategies(parts).items() if name != "compressed"}
    policy, profile = make_policy("learned"), parts.profile_of(model)
    for tokens, task, prefer, coverage in product(LENGTHS, TASKS, PREFER, (0.3, 0.95)):
        seen = features(tokens, profile.context_window, task, coverage)
        options = [
            estimate(name, strategy.footprint(seen, profile), profile, max_output_tokens=1024, token_error=0.02)
            for name, strategy in strategies.items()
        ]
        yield task, policy.decide(seen, profile, options, Goal(prefer=prefer))


MODELS = ("gpt-4o", "gpt-4o-mini", "claude-3-5-sonnet", "gemini-1.5-pro", "qwen2.5-7b-instruct", "nobody-knows-it")


@pytest.mark.parametrize("model", MODELS)
def test_where_the_text_fits_only_what_was_measured_is_chosen(model: str) -> None:
    fitting = 0
    for task, decision in decisions(model):
        full = next(e for e in decision.estimates if e.strategy == "full")
        if full.feasible:
            fitting += 1
            assert decision.estimate.measured, (task, decision.features.document_tokens, decision.goal.prefer)
    assert fitting > 30


@pytest.mark.parametrize("model", MODELS)
def test_beyond_the_window_only_questions_about_much_of_the_text_leave_what_was_measured(model: str) -> None:
    beyond = 0
    for task, decision in decisions(model):
        if all(e.feasible for e in decision.estimates if e.strategy == "full"):
            continue
        beyond += 1
        chosen = decision.estimate
        if not chosen.measured:
            assert task in SPREAD_OUT and chosen.quality_interval is not None
            known = [e for e in decision.estimates if e.feasible and e.measured and e.quality is not None]
            assert chosen.quality_interval[0] > max(e.quality or 0.0 for e in known), "even at its worst it is better"
    assert beyond > 30


def test_a_strategy_that_nobody_measured_is_said_to_be_a_guess() -> None:
    _, decision = next(iter(decisions("gpt-4o")))
    guessed = [e for e in decision.estimates if not e.measured]
    assert guessed and "Not calibrated: " in " ".join(decision.reasons)
    for option in guessed:
        assert "not calibrated" in option.basis and option.strategy in decision.reasons[0]
