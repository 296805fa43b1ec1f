from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.compressors import embedded
from longroute.compressors.compression import Compressed, Ints
from longroute.compressors.embedded import Embedded
from longroute.compressors.keep_head import shipped
from longroute.compressors.lexical_features import F32, split_words
from longroute.router.errors import ConfigError
from longroute.router.tokens import estimate_tokens

STORY = (
    "The harbour of Ulm was opened in 1843 by Ada Weber. It is generally said to be a very nice place to visit. "
    "Ships longer than 25 metres must not enter unless the pilot, who lives nearby, agrees. "
    "There are of course also many other things that one could say about it. "
    "The harbour master records every ship in a green book that is kept in the tower.\n\n"
    "Some people like to walk along the quay in the evening and look at the water for quite a while. "
)
HOSTILE = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            ["not", "12 million", "Ada", '"so it is"', "```\nx = 1\n```\n", "漢字のテスト。", "a" * 300, "\u200d🏽"]
        ),
        max_size=20,
    ).map(" ".join),
)


def letters(result: Compressed) -> set[int]:
    return {place for a, b in result.kept for place in range(a, b)}


@settings(max_examples=150, deadline=None)
@given(HOSTILE, st.floats(0, 1), st.sampled_from(["", "Who is Ada?", "漢字", "\ud800"]))
def test_the_contract_holds_for_any_text(text: str, rate: float, question: str) -> None:
    (result,) = Embedded().compress([text], question=question, keep_rate=rate)
    before = estimate_tokens(text)
    assert result.tokens_after == estimate_tokens(result.text)
    assert result.tokens_after <= before * rate + 1e-6 or result.text == text
    assert len(result.text) <= len(text)
    assert all(a < b <= c for (a, b), (c, _) in zip(result.kept, result.kept[1:], strict=False))
    for (a, b), place in zip(result.kept, result.placed, strict=True):
        assert result.text[place : place + b - a] == text[a:b]


@settings(max_examples=60, deadline=None)
@given(st.lists(HOSTILE, max_size=4), st.integers(0, 60))
def test_a_budget_is_for_all_texts_together(texts: list[str], budget: int) -> None:
    results = Embedded().compress(texts, budget_tokens=budget)
    assert len(results) == len(texts)
    assert sum(result.tokens_after for result in results) <= budget


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_more_room_keeps_all_that_less_room_kept(one: float, other: float) -> None:
    # Counted by words, so that a longer text never has fewer tokens.
    compressor = Embedded(count=lambda text: len(text.split()))
    small, large = (compressor.compress([STORY], keep_rate=rate)[0] for rate in sorted((one, other)))
    assert letters(small) - {i for i in range(len(STORY)) if STORY[i].isspace()} <= letters(large)


def test_what_is_worth_keeping_is_kept() -> None:
    (result,) = Embedded().compress([STORY], keep_rate=0.5)
    for word in ("harbour", "Ulm", "1843", "Ada Weber", "not", "unless", "longer than", "25 metres"):
        assert word in result.text
    assert "generally" not in result.text


def test_negations_and_conditions_survive_a_severe_shortening() -> None:
    (result,) = Embedded().compress([STORY], keep_rate=0.2)
    assert "not" in result.text.split() and "unless" in result.text.split()


def test_protected_stretches_that_are_lost_are_named() -> None:
    (result,) = Embedded().compress([STORY], keep_rate=0.05)
    lost = {STORY[a:b] for a, b in result.broken}
    assert "25 metres" in lost
    (result,) = Embedded(kinds=()).compress([STORY], keep_rate=0.05)
    assert result.broken == ()


def test_a_question_draws_the_words_around_its_own() -> None:
    (without,) = Embedded().compress([STORY], keep_rate=0.35)
    (aimed,) = Embedded().compress([STORY], question="What do people look at in the evening?", keep_rate=0.35)
    assert "walk along the quay in the evening" not in without.text
    assert "walk along the quay in the evening" in aimed.text


def test_a_question_without_words_changes_nothing() -> None:
    plain, asked = (Embedded().compress([STORY], question=q, keep_rate=0.4) for q in ("", "?!"))
    assert plain == asked


def test_signs_alone_follow_their_neighbours() -> None:
    text = "Ada Weber , the well known one , of the of the of the , was there again and again and so on . " * 3
    (result,) = Embedded(kinds=()).compress([text], keep_rate=0.4)
    kept = letters(result)
    for place in (i for i, letter in enumerate(text) if letter in ",." and i in kept):
        assert place - 2 in kept and (place + 2 in kept or place + 2 >= len(text))


class FakeEncoder:
    """States that depend on nothing but the word; remembers how much it was given at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, texts: Sequence[str], words: Sequence[Ints]) -> list[F32]:
        self.sizes.append(sum(map(len, words)))
        return [
            np.array([np.full(384, len(text[a:b]) % 7 - 3) for a, b in spans.tolist()], np.float32).reshape(-1, 384)
            for text, spans in zip(texts, words, strict=True)
        ]


def test_an_encoder_is_given_many_short_texts_at_once_and_long_ones_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_BLOCK", 200)
    encoder = FakeEncoder()
    Embedded(encoder).compress([STORY[:100]] * 8, keep_rate=0.5)
    assert len(encoder.sizes) == 1
    Embedded(encoder).compress([STORY * 20], keep_rate=0.5)
    assert max(encoder.sizes[1:]) <= 208 and len(encoder.sizes) > 5


def test_parts_of_a_long_text_score_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = Embedded(FakeEncoder()).scored([STORY * 10])
    monkeypatch.setattr(embedded, "_BLOCK", 50)
    (parts,) = Embedded(FakeEncoder()).scored([STORY * 10])
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-4)


def test_only_texts_over_their_share_are_scored() -> None:
    encoder = FakeEncoder()
    assert Embedded(encoder).compress([STORY, ""], budget_tokens=10_000)[0].text == STORY
    assert encoder.sizes == []


def test_weights_of_ones_own_are_used() -> None:
    trained = shipped("lexical")
    mirrored = replace(trained, head=replace(trained.head, out=-trained.head.out))
    (ours,) = Embedded(kinds=(), rarity_weight=0).compress([STORY], keep_rate=0.4)
    (theirs,) = Embedded(kinds=(), rarity_weight=0, trained=mirrored).compress([STORY], keep_rate=0.4)
    assert len(letters(ours) & letters(theirs)) < len(letters(ours)) / 2


def test_scores_are_of_the_words_of_the_text() -> None:
    (scored,) = Embedded().scored([STORY])
    np.testing.assert_array_equal(scored.words, split_words(STORY))
    assert np.isfinite(scored.scores).all()


@pytest.mark.parametrize(
    "limits", [{}, {"keep_rate": 0.5, "budget_tokens": 3}, {"keep_rate": 1.5}, {"budget_tokens": -1}]
)
def test_limits_are_checked(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Embedded().compress([STORY], **limits)  # type: ignore[arg-type]


def test_the_lexical_tier_loads_no_model_library() -> None:
    program = (
        "import sys; from longroute.compressors.embedded import Embedded; "
        "Embedded().compress(['Ada wrote it, not Bob. ' * 9], keep_rate=0.5); "
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
