from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.policies.escalation import (
    ALL_INPUTS,
    REPLY_INPUTS,
    Escalation,
    EscalationWeights,
    Verdict,
    gap_left,
    reply_inputs,
    shipped,
)
from longroute.policies.learned import INPUTS, TASKS
from longroute.policies.reply import Signs
from longroute.router.core import Estimate, Evidence, Features, Goal, ModelProfile, Prefer, Task, Tier

EVIDENCE = Evidence(coverage=0.9, top_coverage=0.6, top_score=8.0, margin=0.2, entropy=0.7, spread=0.1)
REFUSED = Signs(refused=True, refused_late=False, words=15, overlap=0.5, grounded=None)
ANSWERED = Signs(refused=False, refused_late=False, words=30, overlap=0.5, grounded=0.9)
INVENTED = replace(ANSWERED, grounded=0.0)
PRICE = Decimal("2.5")
PROFILE = ModelProfile("gpt-4o", 128_000, tier="large", input_usd_per_mtok=PRICE)
SHOWN = 0.05
BALANCED = Goal()

any_signs = st.builds(
    lambda begins, late, words, overlap, grounded: Signs(begins, late and not begins, words, overlap, grounded),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2_000),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
)


def features(task: Task = "lookup", tokens: int = 64_000) -> Features:
    return read_as({task: 1.0}, tokens)


def read_as(shares: Mapping[Task, float], tokens: int = 64_000) -> Features:
    return Features(tokens, 20, 0, 1024, 0.0, 1, tokens / 128_000, shares, EVIDENCE, "text", lara_task=shares)


def estimate(strategy: str, tokens: int, *, latency_s: float | None = None) -> Estimate:
    return Estimate(strategy, tokens, 100, cost_usd=PRICE * tokens / 1_000_000, latency_s=latency_s)


def judge(
    f: Features,
    signs: Signs,
    goal: Goal = BALANCED,
    *,
    shown: float = SHOWN,
    full: Estimate | None = None,
    profile: ModelProfile = PROFILE,
) -> Verdict:
    full = full or estimate("full", f.document_tokens)
    return Escalation().judge(f, profile, signs, shown, spent=estimate("rag", 3_000), full=full, goal=goal)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_each_reply_input_stands_under_its_name() -> None:
    shares = np.array([0.25, 0.75, 0.0, 0.0])
    read = dict(zip(REPLY_INPUTS, reply_inputs(shares, REFUSED), strict=True))
    assert (read["refused"], read["refused late × reasoning"], read["answered × lookup"]) == (1, 0, 0)
    assert read["overlap"] == 0.5
    assert read["grounded"] == 0  # unknown counts as average
    late = dict(
        zip(REPLY_INPUTS, reply_inputs(shares, replace(REFUSED, refused=False, refused_late=True)), strict=True)
    )
    assert (late["refused"], late["refused late × reasoning"], late["answered × lookup"]) == (0, 0.75, 0)


def test_a_refusal_counts_by_the_odds_that_there_is_nothing_to_find() -> None:
    def read(share: float) -> float:
        shares = np.array([1 - share, 0.0, 0.0, share])
        return float(reply_inputs(shares, REFUSED)[REPLY_INPUTS.index("refused × odds")])

    assert read(0.5) == pytest.approx(0)
    assert read(0.1) - read(0.01) == pytest.approx(1.2, abs=0.01)  # half of log 11
    assert read(0.0) == read(0.001)


def test_grounding_counts_for_answers_only() -> None:
    shares = np.array([1.0, 0.0, 0.0, 0.0])
    assert reply_inputs(shares, INVENTED)[-1] < 0 < reply_inputs(shares, ANSWERED)[-1]
    assert reply_inputs(shares, replace(REFUSED, grounded=0.0))[-1] == 0


@given(any_signs, st.sampled_from(get_args(Tier)), st.integers(100, 2_000_000), st.sampled_from(TASKS), st.floats(0, 1))
def test_both_chances_are_probabilities_for_any_reply_and_model(
    signs: Signs, tier: Tier, tokens: int, task: Task, shown: float
) -> None:
    profile = ModelProfile("new", 128_000, tier=tier)
    chances = Escalation().chances(features(task, tokens), profile, signs, shown)
    assert all(0 <= chance <= 1 for chance in chances)
    assert 0 <= Escalation().expected_share(features(tokens=tokens), profile, shown) <= 1


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", get_args(Prefer))
def test_a_right_refusal_is_not_undone(prefer: Prefer) -> None:
    verdict = judge(features("unanswerable"), REFUSED, Goal(prefer))
    assert not verdict.escalate
    assert verdict.kept > 0.9


@pytest.mark.parametrize("task", ["lookup", "reasoning", "comparison"])
def test_a_refusal_to_a_question_that_has_an_answer_is_escalated(task: Task) -> None:
    verdict = judge(features(task), REFUSED)
    assert verdict.escalate
    assert verdict.kept < 0.4 < verdict.whole


def test_a_grounded_answer_to_a_lookup_is_kept() -> None:
    assert not judge(features("lookup"), ANSWERED).escalate


def test_an_answer_from_nowhere_is_trusted_less() -> None:
    for task in TASKS:
        f = features(task)
        assert judge(f, INVENTED).kept < judge(f, ANSWERED).kept


def test_an_answer_to_a_question_without_one_is_trusted_less_than_a_refusal() -> None:
    f = features("unanswerable")
    assert judge(f, ANSWERED).kept < 0.5 < judge(f, REFUSED).kept


@given(any_signs, st.sampled_from(TASKS))
def test_who_prefers_quality_escalates_wherever_others_do(signs: Signs, task: Task) -> None:
    escalated = [judge(features(task), signs, Goal(prefer)).escalate for prefer in ("cheap", "balanced")]
    escalated.append(judge(features(task), signs, Goal("quality")).escalate)
    assert escalated == sorted(escalated)


@given(any_signs, st.sampled_from(TASKS), st.integers(100, 64_000), st.integers(100, 64_000))
def test_a_dearer_second_call_is_never_taken_where_a_cheaper_one_is_not(
    signs: Signs, task: Task, one: int, other: int
) -> None:
    f = features(task)
    cheaper, dearer = (judge(f, signs, full=estimate("full", t)).escalate for t in sorted((one, other)))
    assert cheaper or not dearer


@given(any_signs)
def test_nothing_is_escalated_where_the_passages_are_the_whole_text(signs: Signs) -> None:
    verdict = judge(features(tokens=2_000), signs, Goal("quality"), shown=1.0)
    assert not verdict.escalate
    assert verdict.whole == pytest.approx(verdict.kept)
    assert Escalation().expected_share(features(tokens=2_000), PROFILE, 1.0) == 0


def test_the_gap_closes_as_the_passages_grow() -> None:
    assert [gap_left(shown) for shown in (0.0, 3_000 / 32_000, 1.0)] == pytest.approx([1, 1, 0])
    assert gap_left(0.8) < gap_left(0.5) < 1


def test_the_verdict_says_why_with_both_probabilities() -> None:
    kept, escalated = judge(features("unanswerable"), REFUSED), judge(features("comparison"), REFUSED)
    for verdict in (kept, escalated):
        assert f"{verdict.kept:.2f}" in verdict.reason
        assert f"{verdict.whole:.2f}" in verdict.reason
    assert kept.reason.startswith("kept the passages' answer")
    assert escalated.reason.startswith("escalated to the whole text")


# ---- hard limits -----------------------------------------------------------------------------------------------------


def test_a_text_beyond_the_window_is_not_asked_for() -> None:
    full = replace(estimate("full", 500_000), infeasible="its largest prompt has 500,000 tokens")
    verdict = judge(features("comparison", 500_000), REFUSED, full=full)
    assert not verdict.escalate
    assert "500,000 tokens" in verdict.reason


def test_both_calls_together_keep_the_limits_on_cost_and_latency() -> None:
    f = features("comparison")
    both = PRICE * 67_000 / 1_000_000
    assert judge(f, REFUSED, Goal(max_cost_usd=both)).escalate
    dear = judge(f, REFUSED, Goal(max_cost_usd=both - Decimal("0.001")))
    assert not dear.escalate
    assert "max_cost_usd" in dear.reason
    slow = judge(f, REFUSED, Goal(max_latency_s=5.0))  # no speed is known
    assert not slow.escalate
    assert "max_latency_s" in slow.reason
    unpriced = replace(estimate("full", 64_000), cost_usd=None)
    assert "unknown" in judge(f, REFUSED, Goal(max_cost_usd=Decimal(1)), full=unpriced).reason


def test_latency_limits_count_both_calls() -> None:
    f, escalation = features("comparison"), Escalation()
    spent, full = estimate("rag", 3_000, latency_s=2.0), estimate("full", 64_000, latency_s=4.0)
    for limit, escalate in ((6.0, True), (5.9, False)):
        goal = Goal(max_latency_s=limit)
        assert escalation.judge(f, PROFILE, REFUSED, SHOWN, spent=spent, full=full, goal=goal).escalate is escalate


def test_a_quality_that_must_be_reached_is_worth_any_price() -> None:
    f = read_as({"lookup": 0.5, "unanswerable": 0.5})
    verdict = judge(f, INVENTED, Goal("cheap"))
    assert not verdict.escalate
    assert verdict.kept < verdict.whole
    needed = judge(f, INVENTED, Goal("cheap", min_quality=(verdict.kept + verdict.whole) / 2))
    assert needed.escalate
    assert "min_quality" in needed.reason


# ---- stored ----------------------------------------------------------------------------------------------------------


def weights() -> EscalationWeights:
    rng = np.random.default_rng(0)
    wide = {"common": rng.normal(size=len(ALL_INPUTS))}
    narrow = {"common": rng.normal(size=len(INPUTS))}
    return EscalationWeights(np.zeros(len(INPUTS)), np.ones(len(INPUTS)), wide, wide, narrow, {"source": "a test"})


def test_weights_survive_json_but_for_rounding() -> None:
    back = EscalationWeights.from_json(weights().to_json())
    one, other = (Escalation(w).chances(features(), PROFILE, ANSWERED, SHOWN) for w in (weights(), back))
    assert one == pytest.approx(other, rel=1e-2)
    assert back.to_json() == weights().to_json()


@pytest.mark.parametrize(("key", "value"), [("kind", "learned"), ("version", 0), ("inputs", ["refused"])])
def test_weights_of_another_kind_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match="another version"):
        EscalationWeights.from_json({**weights().to_json(), key: value})


def test_shipped_weights_are_small_complete_and_say_where_they_come_from() -> None:
    file = resources.files("longroute.policies").joinpath("weights", "escalation.json")
    assert len(file.read_bytes()) < 100_000
    assert {"source", "command", "data", "metrics"} <= set(shipped().trained)
    assert shipped().full.keys() == shipped().rag.keys() == shipped().escalated.keys()
    assert {"common", "tier:large", "gpt-4o"} <= shipped().full.keys()


def test_more_is_escalated_of_comparisons_by_a_strong_model_than_of_lookups() -> None:
    share = {task: Escalation().expected_share(features(task), PROFILE, SHOWN) for task in TASKS}
    assert share["lookup"] < 0.3 < share["comparison"]
