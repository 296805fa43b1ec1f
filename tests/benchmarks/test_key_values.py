from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from longroute.benchmarks.key_values import LAST, Fact, invented_facts, invented_page, words


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(0, 40), st.integers(0, 8))
def test_a_page_holds_its_facts_and_none_that_it_misses(seed: int, facts: int, fillers: int, missing: int) -> None:
    page = invented_page(random.Random(seed), facts, fillers, missing)
    assert len(page.sentences) == facts + fillers
    assert all(fact.sentence in page.sentences for fact in page.facts)
    assert len(page.missing) == missing
    assert not any(fact.name in page.text for fact in page.missing)


def test_the_same_seed_gives_the_same_page() -> None:
    assert invented_page(random.Random(3), 4, 9) == invented_page(random.Random(3), 4, 9)
    assert invented_page(random.Random(3), 4, 9) != invented_page(random.Random(4), 4, 9)


def test_no_two_facts_share_a_last_name() -> None:
    facts = invented_facts(random.Random(0), len(LAST))
    assert {fact.name.split()[1] for fact in facts} == set(LAST)


def test_question_and_sentence() -> None:
    fact = Fact("code", "Ada Birchley", "47 19 82 63")
    assert fact.question == "What is the code of Ada Birchley?"
    assert fact.sentence == "The code of Ada Birchley is 47 19 82 63."


@given(st.integers(0, 1000))
def test_words_are_all_that_a_page_is_made_of(seed: int) -> None:
    page = invented_page(random.Random(seed), 3, 5)
    text = f"{page.text} {page.facts[0].question}"
    assert set(text.replace(".", "").replace("?", "").split()) <= set(words())
