from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.training.distil import Example, distil, pieces, quality_controlled
from longroute.router.backends.scripted import Scripted
from longroute.router.core import Call
from longroute.router.errors import BackendTimeout
from longroute.router.tokens import estimate_tokens


@given(st.text())
def test_pieces_lose_nothing(text: str) -> None:
    assert "".join(pieces(text, 5)) == text


def test_pieces_end_with_sentences() -> None:
    text = "One short sentence stands here. " * 60
    cut = pieces(text, 100)
    assert len(cut) > 2
    assert all(piece.endswith("here. ") and estimate_tokens(piece) <= 101 for piece in cut)


def test_each_piece_is_one_call_and_keeps_its_place() -> None:
    def shorter(call: Call) -> str:
        return " ".join(call.messages[1].content.split("Text:\n")[1].split()[:2]) + "\n"

    backend = Scripted(shorter)
    texts = ["Alpha beta gamma delta.", "", "Epsilon zeta eta theta."]
    found = asyncio.run(distil(texts, backend, "gpt-test", source="greek"))
    assert found == [Example(texts[0], "Alpha beta", "greek"), Example(texts[2], "Epsilon zeta", "greek")]
    assert {call.model for call in backend.calls} == {"gpt-test"}
    assert all("Only remove words" in call.messages[1].content and call.temperature == 0.3 for call in backend.calls)


def test_a_call_that_fails_is_not_hidden() -> None:
    with pytest.raises(BackendTimeout):
        asyncio.run(distil(["A text."], Scripted([BackendTimeout("late")]), "gpt-test"))


def test_made_up_and_misplaced_compressions_are_dropped() -> None:
    good = [Example(f"the number {i} is what we keep here today", f"number {i} keep") for i in range(18)]
    invented = Example("the number is what we keep here", "figures remain preserved number")
    # The same word thrice: three hits, one label.
    misplaced = Example("the number is what we keep here", "number number number")
    kept = [pair.example for pair in quality_controlled([*good, invented, misplaced])]
    assert kept == good


def test_what_teaches_nothing_is_dropped() -> None:
    assert quality_controlled([Example("all of it", "all of it"), Example("all of it", "x"), Example("", "")]) == []
