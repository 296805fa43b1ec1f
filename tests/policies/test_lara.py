from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from itertools import pairwise
from statistics import mean
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.policies.lara import Lara, quality
from longroute.router.core import TASKS, Decision, Estimate, Features, Goal, ModelProfile, Prefer, Task, Tier

PRICE = Decimal("2.5")
TIERS: tuple[Tier, ...] = get_args(Tier)


def profile(name: str = "some-model", tier: Tier = "large") -> ModelProfile:
    return ModelProfile(name, 128_000, tier=tier, input_usd_per_mtok=PRICE)


def features(tokens: int, **task: float) -> Features:
    return Features(tokens, 20, 0, 1024, 0.0, 1, tokens / 128_000, task or {"lookup": 1.0}, None, "text")  # type: ignore[arg-type]


def options(tokens: int) -> list[Estimate]:
    prompts = {"full": tokens, "rag": min(tokens, 3_000), "compressed": tokens // 3}
    return [Estimate(name, n, 300, cost_usd=PRICE * n / 1_000_000) for name, n in prompts.items()]


def decide(f: Features, p: ModelProfile, prefer: Prefer = "balanced") -> Decision:
    return Lara().decide(f, p, options(f.document_tokens), Goal(prefer))


def by_name(decision: Decision) -> dict[str, Estimate]:
    return {estimate.strategy: estimate for estimate in decision.estimates}


@pytest.fixture
def table() -> dict[str, Any]:
    text = resources.files("longroute.policies").joinpath("weights", "lara_prior.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


# Mean of full minus rag over the eleven models, in points, as the paper's table states it in its last row.
@pytest.mark.parametrize(
    ("length", "task", "gap"),
    [
        ("32k", "lookup", 0.08),
        ("32k", "reasoning", 4.66),
        ("32k", "comparison", 15.22),
        ("32k", "unanswerable", -10.38),
        ("128k", "lookup", -5.25),
        ("128k", "reasoning", -1.39),
        ("128k", "comparison", 14.30),
        ("128k", "unanswerable", -22.36),
    ],
)
def test_the_stored_table_has_the_published_gaps(table: dict[str, Any], length: str, task: str, gap: float) -> None:
    cells = [model[length][task] for model in table["models"]]
    assert len(cells) == 11
    assert mean(full - rag for full, rag in cells) == pytest.approx(gap, abs=0.01)


def test_an_unknown_model_is_expected_to_do_as_lara_s_models_on_average() -> None:
    for tokens, gap in ((32_000, 0.1522), (128_000, 0.1430)):
        f, p = features(tokens, comparison=1.0), profile(tier="unknown")
        assert quality(f, p, "full").mean - quality(f, p, "rag").mean == pytest.approx(gap, abs=1e-4)


# The rules of LaRA's conclusions, for the balanced setting.
@pytest.mark.parametrize(
    ("task", "tier", "tokens", "strategy"),
    [
        ("comparison", "large", 110_000, "full"),
        ("comparison", "small", 40_000, "full"),
        ("summary", "large", 110_000, "full"),
        ("aggregation", "medium", 110_000, "full"),
        ("unanswerable", "large", 110_000, "rag"),
        ("unanswerable", "small", 40_000, "rag"),
        ("lookup", "medium", 110_000, "rag"),
        ("reasoning", "small", 110_000, "rag"),
        ("comparison", "weak_long_context", 110_000, "rag"),
        ("lookup", "extractive", 40_000, "rag"),
        ("comparison", "extractive", 40_000, "rag"),
    ],
)
def test_decisions_follow_from_the_published_findings(task: Task, tier: Tier, tokens: int, strategy: str) -> None:
    assert decide(features(tokens, **{task: 1.0}), profile(tier=tier)).strategy == strategy


def test_a_measured_model_keeps_most_of_its_own_row_under_any_spelling_of_its_name() -> None:
    f = features(128_000, lookup=1.0)
    own = {name: quality(f, profile(name), "full").mean for name in ("gpt-4o", "openai/gpt-4o-2024-08-06", "GPT-4o")}
    assert len(set(own.values())) == 1
    tier_mean = quality(f, profile(), "full").mean
    assert tier_mean < own["gpt-4o"] < 0.877  # published; drawn towards its tier
    assert quality(f, profile("gpt-4o-mini"), "full").mean < tier_mean  # another model, although the name begins alike


def test_a_measured_model_needs_no_tier() -> None:
    f = features(64_000, reasoning=1.0)
    assert quality(f, profile("gpt-4o", "unknown"), "rag") == quality(f, profile("gpt-4o", "large"), "rag")


def test_length_is_interpolated_between_the_measured_ones_and_held_outside() -> None:
    at = {n: quality(features(n, reasoning=1.0), profile(), "full").mean for n in (1_000, 32_000, 64_000, 128_000)}
    assert at[1_000] == at[32_000]
    assert at[64_000] == pytest.approx((at[32_000] + at[128_000]) / 2)
    far = [quality(features(n, reasoning=1.0), profile(), "full").mean for n in (256_000, 1_000_000)]
    assert far[0] == far[1] == pytest.approx(at[128_000] + (at[128_000] - at[32_000]) / 2)


def test_the_gap_closes_as_rag_comes_to_show_the_whole_text() -> None:
    gaps = []
    for tokens in (3_000, 6_000, 15_000, 32_000):
        found = by_name(decide(features(tokens, comparison=1.0), profile()))
        gaps.append((found["full"].quality or 0) - (found["rag"].quality or 0))
    assert gaps[0] == pytest.approx(0)
    assert all(less < more for less, more in pairwise(gaps))


def test_what_was_not_measured_says_so_and_is_less_certain() -> None:
    for task, row in (("summary", "comparison"), ("aggregation", "comparison"), ("code", "reasoning")):
        borrowed = by_name(decide(features(64_000, **{task: 1.0}), profile()))["full"]
        measured = by_name(decide(features(64_000, **{row: 1.0}), profile()))["full"]
        assert f"{task} was not measured" in borrowed.basis
        assert width(borrowed) > width(measured)


def test_less_knowledge_widens_the_interval() -> None:
    models: list[tuple[str, Tier]] = [
        ("gpt-4o", "large"),
        ("new", "large"),
        ("new", "unknown"),
        ("new", "extractive"),
    ]
    own, tier, unknown, extractive = (
        by_name(decide(features(64_000, lookup=1.0), profile(name, kind)))["rag"] for name, kind in models
    )
    assert width(own) < width(tier) < width(unknown) < width(extractive)
    unsure = by_name(decide(features(64_000, lookup=0.5, comparison=0.5), profile("gpt-4o")))["rag"]
    assert width(unsure) > width(own)


def test_unmeasured_strategies_have_no_quality_and_are_taken_only_alone() -> None:
    decision = decide(features(110_000), profile(), "cheap")
    assert by_name(decision)["compressed"].quality is None
    only = [option for option in options(110_000) if option.strategy == "compressed"]
    assert Lara().decide(features(110_000), profile(), only, Goal()).strategy == "compressed"


def test_the_first_reason_names_the_type_the_length_and_both_qualities() -> None:
    reason = decide(features(110_000, lookup=0.5, reasoning=0.3, comparison=0.2), profile("gpt-4o")).reasons[0]
    for part in ("lookup (0.50) or reasoning (0.30)", "110,000 tokens", "GPT-4o", "full 0.", "rag 0."):
        assert part in reason


def test_results_do_not_depend_on_the_order_of_options() -> None:
    f = features(50_000, lookup=0.5, comparison=0.5)
    forwards = Lara().decide(f, profile(), options(50_000), Goal())
    backwards = Lara().decide(f, profile(), options(50_000)[::-1], Goal())
    assert by_name(forwards) == by_name(backwards)
    assert forwards.strategy == backwards.strategy


@given(
    tokens=st.integers(1, 3_000_000),
    shares=st.lists(st.floats(0.01, 1), min_size=len(TASKS), max_size=len(TASKS)),
    tier=st.sampled_from(TIERS),
    name=st.sampled_from(["some-model", "gpt-4o", "llama-3.2-3b", "mistral-nemo"]),
)
def test_qualities_are_probabilities_inside_their_intervals(
    tokens: int, shares: list[float], tier: Tier, name: str
) -> None:
    task = {kind: share / sum(shares) for kind, share in zip(TASKS, shares, strict=True)}
    decision = decide(replace(features(tokens), task=task), profile(name, tier))
    for estimate in decision.estimates:
        if estimate.quality is not None and estimate.quality_interval is not None:
            low, high = estimate.quality_interval
            assert 0 <= low <= estimate.quality <= high <= 1
    assert decision.estimate.quality is not None


def width(estimate: Estimate) -> float:
    low, high = estimate.quality_interval or (0.0, 0.0)
    return high - low
