from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from longroute.benchmarks.key_values import invented_page
from longroute.benchmarks.rapid_quality import PASSAGE_SENTENCES, Score, laws, passage_with
from longroute.benchmarks.rapid_speed_trained import Fixed
from longroute.router.runner.draft_length import Round


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 60))
def test_a_passage_is_a_stretch_of_the_text_that_holds_the_fact(seed: int, facts: int, fillers: int) -> None:
    rng = random.Random(seed)
    page = invented_page(rng, facts, fillers)
    fact = rng.choice(page.facts)
    passage = passage_with(page, rng, fact)
    assert fact.sentence in passage
    assert passage in page.text
    assert passage.count(".") == min(PASSAGE_SENTENCES, facts + fillers)
    assert passage_with(page, rng, None) in page.text


def test_every_law_has_a_name_of_its_own() -> None:
    assert len({name for name, _ in laws()}) == len([*laws()]) == 11


def test_a_score_without_drafts_shows_none() -> None:
    assert (Score(4, 3).accuracy, Score(4, 3).acceptance, Score(4, 3).a_pass) == ("0.75", "-", "-")
    assert Score(2, 2, drafted=8, accepted=6, passes=4, emitted=10).acceptance == "0.75"


def test_a_fixed_length_predicts_from_what_it_was_told() -> None:
    length = Fixed(4)
    assert (length.choose(10), length.choose(3)) == (4, 2)
    length.saw_round(Round(4, 4, refused=False, emitted=5, draft_s=0.4, verify_s=1.0))
    # All drafts kept: five tokens for four draft steps of 0.1 and a pass of 1, where a plain step takes 1.
    assert length.predicted(1.0) == pytest.approx(5 / 1.4)
