import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from longroute.retrievers.fusion import convex, reciprocal_rank

SCORES = arrays(np.float64, 6, elements=st.floats(0, 10).map(lambda x: round(x, 1)))
COSINES = arrays(np.float64, 6, elements=st.floats(-1, 1))
ORDERS = st.permutations(range(6)).map(np.array)


@given(st.lists(SCORES, min_size=1, max_size=4), st.randoms(use_true_random=False), ORDERS)
def test_reciprocal_rank_ignores_the_order_of_rankings_and_of_chunks(scores, random, order) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(scores, len(scores))
    np.testing.assert_array_equal(reciprocal_rank([array[order] for array in shuffled]), reciprocal_rank(scores)[order])


@given(SCORES, SCORES, st.floats(0.1, 10))
def test_reciprocal_rank_ignores_the_scale_of_scores(one: np.ndarray, other: np.ndarray, factor: float) -> None:
    np.testing.assert_array_equal(reciprocal_rank([factor * one, other]), reciprocal_rank([one, other]))


def test_reciprocal_rank_adds_up_the_published_formula() -> None:
    fused = reciprocal_rank([np.array([3.0, 2.0, 1.0]), np.array([0.0, 5.0, 0.0])], k=60)
    np.testing.assert_allclose(fused, [1 / 61 + 1 / 62, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])


@given(SCORES, COSINES, st.floats(0, 1), ORDERS)
def test_convex_fusion_ignores_the_order_of_chunks(
    lexical: np.ndarray, semantic: np.ndarray, weight: float, order: np.ndarray
) -> None:
    np.testing.assert_array_equal(
        convex(lexical[order], semantic[order], weight), convex(lexical, semantic, weight)[order]
    )


@given(SCORES, COSINES, st.floats(0, 1), st.integers(0, 5))
def test_convex_fusion_never_ranks_a_chunk_lower_for_a_better_cosine(
    lexical: np.ndarray, semantic: np.ndarray, weight: float, chunk: int
) -> None:
    better = semantic.copy()
    better[chunk] = 1
    gain = convex(lexical, better, weight) - convex(lexical, semantic, weight)
    assert gain[chunk] >= 0
    assert np.all(np.delete(gain, chunk) == 0)


def test_convex_fusion_adds_normalised_scores_by_weight() -> None:
    np.testing.assert_allclose(convex(np.array([8.0, 4.0]), np.array([0.1, 0.9]), 0.25), [0.775, 0.6])


def test_without_a_matching_word_the_cosines_decide() -> None:
    np.testing.assert_allclose(convex(np.zeros(2), np.array([0.2, 0.4]), 0.5), [0.1, 0.2])


def test_no_chunks_fuse_to_no_scores() -> None:
    assert convex(np.zeros(0), np.zeros(0), 0.5).shape == (0,)
