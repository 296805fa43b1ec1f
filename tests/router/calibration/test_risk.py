from __future__ import annotations

import math
import sys
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.policies.decision_rule import choose
from longroute.policies.risk_controlled import FULL, RiskControlled
from longroute.router.calibration.risk import (
    THRESHOLDS,
    Floats,
    betting_p_value,
    binomial_p_value,
    choose_threshold,
    conformal_risk_control,
    hoeffding_bentkus_p_value,
    hoeffding_p_value,
    learn_then_test,
    requests_needed,
)
from longroute.router.core import Decision, Estimate, Features, Goal, ModelProfile
from longroute.router.errors import CalibrationError, MissingExtra

pytest.importorskip("scipy", reason="guarantees need the extra `calibrate`")

ARRAYS = np.array([[0.8, 0.7]]), np.array([[1.0, 1.0]]), np.array([[10.0, 1.0]])  # predicted, quality, cost


def calibrated(n: int, lost: float, gained: float, *, predicted_gap: float = 0.0, **options: Any) -> Any:
    """On n requests rag is wrong where full is right on the share `lost` of them, and the reverse on `gained`."""
    quality = np.full((n, 2), 1.0)
    quality[: round(n * lost), 1] = 0
    quality[n - round(n * gained) :, 0] = 0
    predicted = np.tile([0.8, 0.8 - predicted_gap], (n, 1))
    cost = np.tile([100.0, 5.0], (n, 1))
    options = {"strategies": ("full", "rag"), "models": ("some-model",), **options}
    return choose_threshold(predicted, quality, cost, **options)


# ---- p-values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "mean_loss", "epsilon", "hoeffding", "hoeffding_bentkus", "binomial"),
    [
        (200, 0.02, 0.05, 0.6977, 0.0719, 0.0264),
        (500, 0.05, 0.1, 0.0821, 9.6e-5, 3.5e-5),
        (1000, 0.08, 0.1, 0.4493, 0.0479, 0.0176),
    ],
)
def test_p_values_match_published_ones(
    n: int, mean_loss: float, epsilon: float, hoeffding: float, hoeffding_bentkus: float, binomial: float
) -> None:
    assert float(hoeffding_p_value(mean_loss, n, epsilon)) == pytest.approx(hoeffding, abs=5e-5)
    assert float(hoeffding_bentkus_p_value(mean_loss, n, epsilon)) == pytest.approx(hoeffding_bentkus, rel=0.01)
    assert float(binomial_p_value(mean_loss, n, epsilon)) == pytest.approx(binomial, rel=0.02)


def test_betting_multiplies_the_wealth_of_each_bet() -> None:
    losses, epsilon, delta = [0.0, 1.0, 0.0, 0.0], 0.5, 0.1
    total, squares, wealth, most, variance = 0.5, 0.25, 1.0, 1.0, 0.25
    for seen, loss in enumerate(losses, start=1):
        wealth *= 1 + min(math.sqrt(2 * math.log(1 / delta) / (4 * variance)), 0.9 / (1 - epsilon)) * (epsilon - loss)
        most = max(most, wealth)
        total += loss
        squares += (loss - total / (seen + 1)) ** 2
        variance = squares / (seen + 1)
    assert float(betting_p_value(np.array(losses), epsilon, delta)) == pytest.approx(1 / most)


def test_betting_sees_a_difference_of_means_that_bentkus_does_not() -> None:
    """Of 1,000 requests 4 % lose and 4 % gain: at most 2 points are given up, as losses in [0, 1] with 0.5 for none."""
    losses = np.random.default_rng(0).permutation(np.repeat([1.0, 0.0, 0.5], [40, 40, 920]))
    assert betting_p_value(losses, 0.51, 0.1) < 0.1
    assert hoeffding_bentkus_p_value(0.5, 1000, 0.51) > 0.5


@pytest.mark.parametrize("losses", [(0.0, 1.0), (0.0, 0.5, 1.0), (0.3, 0.7)])
def test_wrong_rejections_are_no_more_frequent_than_promised(losses: tuple[float, ...]) -> None:
    """2,000 sets of 300 whose true mean is exactly epsilon: at most delta of them look safe."""
    delta, sets = 0.1, 2000
    drawn = np.random.default_rng(1).choice(losses, size=(sets, 300))
    epsilon = sum(losses) / len(losses)
    wrong = int((betting_p_value(drawn, epsilon, delta) <= delta).sum())
    from scipy.stats import binom

    assert 0 < wrong <= binom.ppf(0.999, sets, delta)


# ---- choosing among thresholds ---------------------------------------------------------------------------------------


def columns(*shares: float, n: int = 1000) -> Floats:
    """Losses of n requests, 1 for these shares of them."""
    return np.stack([np.arange(n) < round(n * share) for share in shares], axis=1).astype(float)


def test_the_last_threshold_before_the_first_failure_is_chosen() -> None:
    losses = columns(0.01, 0.03, 0.09, 0.0)
    passed, p_values = learn_then_test(losses, 0.05, 0.1)
    assert passed == 1  # the fourth would pass by itself, but the third stops the sequence
    assert [p <= 0.1 for p in p_values] == [True, True, False, True]
    assert learn_then_test(columns(0.01, 0.02), 0.05, 0.1)[0] == 1
    assert learn_then_test(columns(0.09, 0.01), 0.05, 0.1)[0] is None


@pytest.mark.parametrize(("epsilon", "n"), [(0.02, 149), (0.05, 59), (0.1, 29)])
def test_a_rule_without_a_loss_needs_the_published_number_of_requests(epsilon: float, n: int) -> None:
    assert learn_then_test(np.zeros((n, 1)), epsilon, 0.05)[0] == 0
    assert learn_then_test(np.zeros((n - 1, 1)), epsilon, 0.05)[0] is None


def test_conformal_risk_control_matches_the_published_example() -> None:
    losses = np.zeros((99, 1))
    losses[:, 0] = 0.04
    assert conformal_risk_control(losses, 0.05) == (0, None)
    losses[:, 0] = 0.05
    assert conformal_risk_control(losses, 0.05) == (None, None)


def test_conformal_risk_control_says_how_many_requests_would_do() -> None:
    assert conformal_risk_control(np.full((5, 1), 0.1), 0.2) == (None, 8)
    assert conformal_risk_control(np.full((8, 1), 0.1), 0.2)[0] == 0
    assert conformal_risk_control(np.full((7, 1), 0.1), 0.2)[0] is None


def test_conformal_risk_control_refuses_a_loss_that_falls() -> None:
    with pytest.raises(CalibrationError, match="Learn then Test"):
        conformal_risk_control(np.array([[1.0, 0.0]]), 0.5)


@given(st.integers(20, 200), st.integers(0, 10), st.sampled_from([0.5, 1.0]))
@settings(max_examples=25, deadline=None)
def test_the_requests_asked_for_would_do(n: int, lost: int, loss: float) -> None:
    losses = np.where(np.arange(n) < lost, loss, 0.0)
    needed = requests_needed(losses, 0.1, 0.1)
    if needed is None:
        assert losses.mean() > 0.08  # hopeless, or nearly
    else:
        assert learn_then_test(np.tile(losses, needed // n)[:, None], 0.1, 0.1)[0] == 0


# ---- the guarantee of a routing rule ---------------------------------------------------------------------------------


def test_gains_pay_for_losses_in_the_difference_but_not_in_the_shortfall() -> None:
    guarantee, _ = calibrated(1000, lost=0.06, gained=0.06, epsilon=0.03)
    assert (guarantee.threshold, guarantee.mean_loss) == (0.30, 0.0)
    guarantee, _ = calibrated(1000, lost=0.06, gained=0.06, epsilon=0.03, loss="shortfall")
    assert guarantee.threshold == -0.02  # where nothing goes to rag yet: both are predicted to be equally good
    guarantee, _ = calibrated(1000, lost=0.06, gained=0.06, epsilon=0.09, loss="shortfall")
    assert (guarantee.threshold, guarantee.mean_loss) == (0.30, pytest.approx(0.06))


def test_the_curve_tells_what_each_threshold_brings() -> None:
    _, curve = calibrated(100, lost=0.2, gained=0.1, predicted_gap=0.05, epsilon=0.02)
    assert tuple(point.threshold for point in curve) == THRESHOLDS
    before, after = (next(p for p in curve if p.threshold == threshold) for threshold in (0.04, 0.06))
    assert (before.mean_loss, before.quality, before.cost_share, before.full_share) == (0.0, 0.9, 1.0, 1.0)
    assert (after.mean_loss, after.quality, after.cost_share, after.full_share) == pytest.approx((0.1, 0.8, 0.05, 0.0))
    assert before.p_value is not None and after.p_value is not None and before.p_value < after.p_value


def test_too_few_requests_are_a_result_that_says_how_many_would_do() -> None:
    guarantee, curve = calibrated(10, lost=0.0, gained=0.0, epsilon=0.02)
    assert guarantee.threshold is None
    assert len(curve) == len(THRESHOLDS)
    assert guarantee.needed == 140  # 114 without a loss are the least for any test
    assert "collect about" in guarantee.statement
    assert calibrated(guarantee.needed, lost=0.0, gained=0.0, epsilon=0.02)[0].threshold is not None


def test_a_rule_that_loses_too_much_already_at_the_safest_threshold_is_hopeless() -> None:
    guarantee, _ = calibrated(200, lost=0.3, gained=0.0, predicted_gap=-0.5, epsilon=0.1)
    assert (guarantee.threshold, guarantee.needed, guarantee.mean_loss) == (None, None, pytest.approx(0.3))
    assert "more of the same will not do" in guarantee.statement


def test_requests_that_share_documents_count_as_so_many_documents() -> None:
    groups = [f"document {i % 40}" for i in range(1000)]
    guarantee, _ = calibrated(1000, lost=0.0, gained=0.0, epsilon=0.05, groups=groups)
    assert (guarantee.unit, guarantee.n, guarantee.threshold) == ("document", 40, None)
    assert guarantee.needed == 80
    requests, _ = calibrated(1000, lost=0.0, gained=0.0, epsilon=0.05)
    assert (requests.unit, requests.n) == ("request", 1000)
    assert requests.threshold is not None


def test_conformal_risk_control_guarantees_a_shortfall_on_average() -> None:
    guarantee, curve = calibrated(1000, lost=0.04, gained=0.0, epsilon=0.05, delta=None, loss="shortfall")
    assert (guarantee.threshold, guarantee.delta) == (0.30, None)
    assert {point.p_value for point in curve} == {None}
    with pytest.raises(CalibrationError, match="shortfall"):
        calibrated(1000, lost=0.04, gained=0.0, epsilon=0.05, delta=None)


def test_the_order_of_requests_does_not_matter() -> None:
    random = np.random.default_rng(2)
    predicted, quality, cost = random.random((3, 300, 3))
    shuffled = random.permutation(300)
    options: dict[str, Any] = {"strategies": ("rag", "full", "compressed"), "models": ("m",), "epsilon": 0.1}
    expected = choose_threshold(predicted, quality, cost + 0.1, **options)
    again = choose_threshold(predicted[shuffled], quality[shuffled], cost[shuffled] + 0.1, **options)
    assert again[0].threshold == expected[0].threshold
    assert [p.p_value for p in again[1]] == pytest.approx([p.p_value for p in expected[1]])


class Expecting:
    def __init__(self, qualities: dict[str, float]) -> None:
        self.qualities = qualities

    def decide(self, features: Features, profile: ModelProfile, options: Any, goal: Goal) -> Decision:
        return choose("t", features, profile, [replace(o, quality=self.qualities[o.strategy]) for o in options], goal)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_rule_that_is_calibrated_is_the_rule_of_the_policy(data: st.DataObject) -> None:
    names = data.draw(st.permutations([FULL, "rag", "compressed"]))
    predicted = data.draw(st.lists(st.sampled_from([0.5, 0.55, 0.6, 0.7]), min_size=3, max_size=3))
    costs = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    threshold = data.draw(st.sampled_from([-0.2, -0.03, 0.0, 0.03, 0.12]))
    identity = np.array([[0.0, 0.5, 1.0]])  # so that the quality reached tells which strategy was taken
    guarantee, (point,) = choose_threshold(
        np.array([predicted]),
        identity,
        np.array([costs], dtype=float),
        strategies=names,
        models=("some-model",),
        epsilon=0.5,
        thresholds=[threshold],
    )
    shown = replace(guarantee, threshold=threshold)
    features = Features(1000, 20, 0, 1024, 0.0, 1, 0.01, {"lookup": 1.0}, None, "text")
    options = [Estimate(name, 1000, 100, cost_usd=Decimal(cost)) for name, cost in zip(names, costs, strict=True)]
    policy = RiskControlled(Expecting(dict(zip(names, predicted, strict=True))), shown)
    profile = ModelProfile("some-model", 128_000, input_usd_per_mtok=Decimal(1))
    assert policy.decide(features, profile, options, Goal()).strategy == names[int(point.quality * 2)]


def test_a_strategy_that_cannot_be_used_or_predicted_is_never_taken() -> None:
    n = 400
    quality = np.tile([1.0, 0.0], (n, 1))
    for predicted, cost in (((0.5, 0.9), (10.0, np.inf)), ((0.5, np.nan), (10.0, 1.0)), ((np.nan, 0.9), (10.0, 1.0))):
        _, curve = choose_threshold(
            np.tile(predicted, (n, 1)),
            quality,
            np.tile(cost, (n, 1)),
            strategies=("full", "rag"),
            models=("m",),
            epsilon=0.1,
        )
        assert {point.full_share for point in curve} == {1.0}


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"quality": np.array([[1.0]])}, r"quality has shape \(1, 1\)|predicted has shape"),
        ({"quality": np.array([[1.0, np.nan]])}, "run the missing ones"),
        ({"quality": np.array([[1.0, 1.1]])}, r"\[0, 1\]"),
        ({"cost": np.array([[np.inf, 1.0]])}, "positive and finite"),
        ({"cost": np.array([[10.0, -1.0]])}, "at least 0"),
        ({"cost": np.array([[0.0, 0.0]])}, "give tokens"),
        ({"predicted": np.zeros((0, 2)), "quality": np.zeros((0, 2)), "cost": np.zeros((0, 2))}, "no request"),
        ({"strategies": ("rag", "compressed")}, "give full and at least one other"),
        ({"epsilon": 0.0}, "epsilon = 0"),
        ({"delta": 1.0}, r"delta = 1\.0"),
        ({"thresholds": (0.1, 0.0)}, "must increase"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], complaint: str) -> None:
    arrays = dict(zip(("predicted", "quality", "cost"), ARRAYS, strict=True))
    options = {"strategies": ("full", "rag"), "models": ("m",), "epsilon": 0.1, **arrays, **changed}
    with pytest.raises(CalibrationError, match=complaint):
        choose_threshold(**options)


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtra, match=r"longroute\[calibrate\]"):
        binomial_p_value(0.1, 100, 0.2)
