from __future__ import annotations

import numpy as np

from longroute.compressors.compression import Compressed, Units, keep_best
from longroute.compressors.lexical_features import split_words
from longroute.compressors.precedence import in_order, missing
from longroute.compressors.protect import Protected, protected_spans


def units(text: str, emphasis: float = 3.0) -> Units:
    words = split_words(text)
    return in_order(words, np.arange(len(words), dtype=np.float64), protected_spans(text), emphasis)


def first_kept(text: str, n_words: int, emphasis: float = 3.0) -> str:
    def count(part: str) -> int:
        return len(part.split())

    return keep_best(text, units(text, emphasis), budget_tokens=n_words, tokens_before=count(text), count=count).text


def test_words_that_turn_the_meaning_come_before_everything() -> None:
    assert first_kept("this is not good in any way", 1) == "not"


def test_without_protection_the_order_is_that_of_scores() -> None:
    text = "one stone and then some grass"
    words = split_words(text)
    found = in_order(words, np.array([3.0, 1, 2, 6, 5, 4]), [], 3.0)
    assert np.argsort(-found.scores).tolist() == [3, 4, 5, 0, 2, 1] and not found.ranks.any()


def test_numbers_come_forward_the_further_the_more_emphasis() -> None:
    text = "it cost 250 to go there with all of them again and again and so on"
    assert "250" not in first_kept(text, 2, 1e-6)
    assert "250" in first_kept(text, 4, 1e6)


def test_stretches_that_belong_together_have_one_place() -> None:
    text = "it went up by 12.5 million euros in a year or so they say"
    found = units(text)
    members = found.groups >= 0
    assert members.sum() == 3 and len(set(found.scores[members].tolist())) == 1


def test_negations_in_code_are_left_to_the_code() -> None:
    text = "Run this:\n```\nif not x:\n    pass\n```\nand wait until it is not done."
    found = units(text)
    forced = [text[a:b] for a, b, rank in zip(found.starts, found.ends, found.ranks, strict=True) if rank]
    assert forced == ["until", "not"]


def test_what_is_not_held_whole_is_missing() -> None:
    protected = [Protected(0, 3, "number"), Protected(4, 9, "name"), Protected(20, 22, "number")]
    kept = Compressed("abc d", ((0, 6),), (0,), 9, 3)
    assert missing(protected, kept) == ((4, 9), (20, 22))
    assert missing(protected, Compressed("", (), (), 9, 0)) == ((0, 3), (4, 9), (20, 22))
    assert missing([], kept) == ()
