from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.training.evaluate import agreement, auc


def test_auc_of_perfect_reversed_and_equal_scores() -> None:
    keep = np.array([True, True, False, False])
    assert auc(np.array([4.0, 3, 2, 1]), keep) == 1
    assert auc(np.array([1.0, 2, 3, 4]), keep) == 0
    assert auc(np.zeros(4), keep) == 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, keep = np.array([float(score) for score, _ in rows]), np.array([flag for _, flag in rows])
    if keep.all() or not keep.any():
        with pytest.raises(ValueError, match="positives and negatives"):
            auc(scores, keep)
        return
    pairs = np.sign(scores[keep][:, None] - scores[~keep][None, :])
    assert auc(scores, keep) == pytest.approx((pairs.mean() + 1) / 2)


def test_texts_are_judged_at_their_own_rates() -> None:
    scores = [np.array([3.0, 2, 1]), np.array([30.0, 20, 10]), np.array([1.0, 2])]
    keeps = [np.array([True, False, False]), np.array([True, False, True]), np.array([True, True])]
    found = agreement(scores, keeps)
    assert (found.n_texts, found.n_words) == (2, 6)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.text_auc == pytest.approx((1 + 0.5) / 2)


def test_labels_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="kept and dropped"):
        agreement([np.array([1.0])], [np.array([True])])
