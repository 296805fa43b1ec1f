"""Metrics against the worked examples of their papers and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from longroute.router.calibration.metrics import (
    Bootstrap,
    aiq,
    apgr,
    apgr_of_points,
    brier,
    cpt,
    ece,
    equal_mass_bins,
    equal_width_bins,
    log_loss,
    mcnemar,
    non_decreasing_hull,
    oracle,
    oracle_gap_share,
    pgr,
    regret,
    share_curve,
)

SHARES = np.array([0, 0.2, 0.5, 0.8, 1])
QUALITIES = np.array([0.50, 0.62, 0.74, 0.78, 0.80])

units = st.floats(0, 1, width=32)
pairs = st.integers(1, 60).flatmap(lambda n: arrays(float, (2, n), elements=units))
tables = st.integers(1, 30).flatmap(lambda n: arrays(float, (2, n, 3), elements=units))


# ---- a weak and a strong route ---------------------------------------------------------------------------------------


def test_the_worked_example_of_the_specification_comes_out() -> None:
    assert apgr(SHARES, QUALITIES).value == pytest.approx(0.67333, abs=5e-6)
    assert cpt(SHARES, QUALITIES, 0.5).value == pytest.approx(0.275)
    assert pgr(0.74, 0.5, 0.8).value == pytest.approx(0.8)


def test_calls_are_counted_up_to_the_whole_gap() -> None:
    assert cpt(SHARES, QUALITIES, 1.0).value == pytest.approx(1.0)


@pytest.mark.parametrize("strong", [0.5, 0.4])
def test_nothing_is_recovered_from_a_route_that_is_not_stronger(strong: float) -> None:
    flat = np.array([0.5, strong])
    for figure in (pgr(0.5, 0.5, strong), apgr(SHARES[[0, -1]], flat), cpt(SHARES[[0, -1]], flat, 0.5)):
        assert figure.value is None
        assert "not stronger" in figure.why


def test_a_router_that_cannot_tell_recovers_half_in_both_forms() -> None:
    rng = np.random.default_rng(0)
    weak, strong = (rng.random(50) < 0.4).astype(float), (rng.random(50) < 0.8).astype(float)
    curve = share_curve(np.zeros(50), weak, strong)
    assert apgr(*curve).value == pytest.approx(0.5)
    assert apgr_of_points(*curve).value == pytest.approx(0.5)


def test_a_router_that_knows_sends_the_gains_first() -> None:
    weak, strong = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    shares, qualities = share_curve(strong - weak, weak, strong)
    assert shares.tolist() == [0, 0.5, 0.75, 1]
    assert qualities.tolist() == [0.5, 1.0, 1.0, 0.75]


@given(tables)
def test_the_order_of_the_rows_does_not_change_the_curve(table: np.ndarray) -> None:
    advantage, weak, strong = np.round(table[0].T, 1)
    for there, back in zip(
        share_curve(advantage, weak, strong),
        share_curve(advantage[::-1], weak[::-1], strong[::-1]),
        strict=True,
    ):
        assert there == pytest.approx(back)


# ---- cost and quality ------------------------------------------------------------------------------------------------


def test_the_hull_leaves_out_what_mixing_others_beats() -> None:
    points = np.array([[0, 0.5], [1, 0.55], [2, 0.8], [3, 0.7], [1, 0.4]])
    assert non_decreasing_hull(points).tolist() == [[0, 0.5], [2, 0.8]]


def test_a_dearer_and_worse_strategy_leaves_the_hull_flat() -> None:
    hull = non_decreasing_hull(np.array([[3, 0.68], [60, 0.66]]))
    assert hull.tolist() == [[3, 0.68]]
    assert aiq(hull, 3, 60).value == pytest.approx(0.68)


def test_aiq_is_the_mean_height_of_the_hull() -> None:
    assert aiq(np.array([[0.0, 0.5], [2.0, 0.9]]), 0, 4).value == pytest.approx((0.7 * 2 + 0.9 * 2) / 4)
    assert aiq(np.array([[0.0, 0.5], [2.0, 0.9]]), 1, 2).value == pytest.approx(0.8)


def test_aiq_is_undefined_without_a_range_of_costs_or_a_cheap_enough_point() -> None:
    assert "cost the same" in aiq(np.array([[1.0, 0.5]]), 1, 1).why
    assert "as cheap as" in aiq(np.array([[2.0, 0.5]]), 1, 3).why


@given(st.lists(st.tuples(units, units), min_size=1, max_size=20))
def test_the_hull_is_concave_rising_and_above_every_point(points: list[tuple[float, float]]) -> None:
    hull = non_decreasing_hull(np.array(points))
    steps = np.diff(hull, axis=0)
    assert (steps > 0).all()
    slopes = steps[:, 1] / steps[:, 0]
    assert (slopes[1:] <= slopes[:-1] * (1 + 1e-9)).all()
    for cost, quality in points:
        assert quality <= np.interp(cost, hull[:, 0], hull[:, 1]) + 1e-9


def test_the_oracle_takes_the_cheapest_of_the_best() -> None:
    score = np.array([[1.0, 1.0, 0.0], [0.0, 0.2, 1.0], [0.0, 0.0, 0.0]])
    cost = np.array([[3.0, 2.0, 1.0]] * 3)
    assert oracle(score, cost).tolist() == [1, 2, 2]
    assert regret(score, np.array([2, 1, 0])).tolist() == [1.0, 0.8, 0.0]


@given(tables)
def test_the_oracle_regrets_nothing_and_nobody_gains_on_it(table: np.ndarray) -> None:
    score, cost = table
    assert (regret(score, oracle(score, cost)) == 0).all()
    assert (regret(score, np.zeros(len(score), dtype=np.int64)) >= 0).all()


def test_the_share_of_the_oracle_gap_is_undefined_where_there_is_no_gap() -> None:
    assert oracle_gap_share(0.72, 0.7, 0.8).value == pytest.approx(0.2)
    assert oracle_gap_share(0.7, 0.7, 0.7).value is None


# ---- predictions -----------------------------------------------------------------------------------------------------


def test_calibration_error_brier_and_log_loss_of_a_small_case() -> None:
    predicted, score = np.array([0.9, 0.9, 0.1, 0.1]), np.array([1.0, 0.0, 0.0, 0.0])
    assert ece(equal_width_bins(predicted, score)) == pytest.approx(0.25)
    assert ece(equal_mass_bins(predicted, score)) == pytest.approx(0.25)
    assert brier(predicted, score) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)
    assert log_loss(predicted, score) == pytest.approx(-(3 * np.log(0.9) + np.log(0.1)) / 4)


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert log_loss(np.array([0.0]), np.array([1.0])) == pytest.approx(-np.log(1e-6))


@given(pairs)
def test_every_row_falls_into_one_bin_whose_predictions_are_neighbours(pair: np.ndarray) -> None:
    predicted, score = pair
    for bins in (equal_width_bins(predicted, score), equal_mass_bins(predicted, score)):
        rows = np.concatenate([b.rows for b in bins])
        assert sorted(rows) == list(range(len(predicted)))
        assert (np.diff([b.predicted for b in bins]) > 0).all()
        assert 0 <= ece(bins) <= 1


def test_equal_mass_bins_share_the_rows_out_evenly() -> None:
    predicted = np.linspace(0, 1, 150) ** 4
    assert {len(b.rows) for b in equal_mass_bins(predicted, predicted)} == {10}
    assert len({len(b.rows) for b in equal_width_bins(predicted, predicted)}) > 1


@given(arrays(float, 40, elements=units))
def test_a_prediction_that_comes_true_has_no_calibration_error(score: np.ndarray) -> None:
    assert ece(equal_width_bins(score, score)) == pytest.approx(0)
    assert brier(score, score) == 0


# ---- how sure --------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_matches_the_normal_one_where_groups_are_many() -> None:
    values = np.random.default_rng(1).random(2_000)
    interval = Bootstrap([str(k) for k in range(2_000)]).ratio(values, span=(0, 1))
    assert interval is not None
    half = 1.96 * values.std() / np.sqrt(2_000)
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_rows_of_one_document_count_as_one() -> None:
    values = np.repeat(np.random.default_rng(1).random(20), 50)
    together = Bootstrap(np.repeat(np.arange(20).astype(str), 50).tolist()).ratio(values)
    apart = Bootstrap([str(k) for k in range(1_000)]).ratio(values)
    assert together is not None and apart is not None
    assert together[1] - together[0] > 5 * (apart[1] - apart[0])


def test_ten_right_answers_in_ten_leave_room_for_doubt() -> None:
    interval = Bootstrap([str(k) for k in range(10)]).ratio(np.ones(10), span=(0, 1))
    assert interval == pytest.approx((0.025**0.1, 1.0))  # Clopper and Pearson's bound


def test_one_group_says_nothing_about_others() -> None:
    assert Bootstrap(["a"] * 5).ratio(np.arange(5.0)) is None
    assert Bootstrap(["a", "b"]).ratio(np.ones(2), np.array([1.0, 0.0])) is None


def test_intervals_repeat_with_the_seed() -> None:
    values, groups = np.random.default_rng(2).random(30), [str(k) for k in range(30)]
    first, again, other = (Bootstrap(groups, seed=seed).ratio(values) for seed in (0, 0, 1))
    assert first == again != other


def test_intervals_of_few_groups_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    groups = [str(k) for k in range(8)]
    bootstrap = Bootstrap(groups, resamples=500)
    held = 0
    for _ in range(400):
        low, high = bootstrap.ratio(rng.normal(size=8)) or (0.0, 0.0)
        held += low <= 0 <= high
    assert held >= 0.92 * 400  # plain percentiles reach 0.88


@given(pairs)
def test_an_interval_holds_its_own_estimate_and_stays_in_its_span(pair: np.ndarray) -> None:
    values = pair[0]
    interval = Bootstrap([str(k // 2) for k in range(len(values))], resamples=50).ratio(values, span=(0, 1))
    if interval is not None:
        assert 0 <= interval[0] <= values.mean() + 1e-9
        assert values.mean() - 1e-9 <= interval[1] <= 1


def test_mcnemar_is_the_exact_binomial_test_of_the_rows_that_differ() -> None:
    first = np.array([1.0] * 9 + [0.0] * 2 + [1.0] * 30)
    second = np.array([0.0] * 9 + [1.0] * 2 + [1.0] * 30)
    test = mcnemar(first, second)
    assert (test.won, test.lost) == (9, 2)
    assert test.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert mcnemar(first, first).p == 1.0
    assert mcnemar(np.ones(5_000), np.zeros(5_000)).p == 0.0
