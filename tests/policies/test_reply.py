from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.policies.reply import signs

QUESTION = "What is the name of the landlord's dog?"


@pytest.mark.parametrize(
    "reply",
    [
        "The provided chunks do not mention a dog.",
        "There is no specific information about a dog in the text.",
        "I apologize, but I cannot find any information about this.",
        "This question cannot be answered from the given text. It speaks of tenants.",
        "The name isn't specified.",
        "Based on the provided excerpts, the dog's name is not explicitly stated.",
        "unanswerable",
        "",
        "  \n",
    ],
)
def test_a_reply_that_begins_by_refusing_is_a_refusal(reply: str) -> None:
    assert signs(reply, QUESTION, ()).refused


@pytest.mark.parametrize(
    "reply",
    ["Rex.", "The dog is called Rex, after the landlord's uncle.", "$63,566", "No. 2704", "No, it was the tenant's."],
)
def test_an_answer_is_not_a_refusal(reply: str) -> None:
    seen = signs(reply, QUESTION, ())
    assert not seen.refused
    assert not seen.refused_late


def test_a_refusal_after_something_else_is_a_late_one() -> None:
    seen = signs("The landlord keeps a dog. Its name is not mentioned in the lease.", QUESTION, ())
    assert (seen.refused, seen.refused_late) == (False, True)


def test_what_is_known_to_be_a_refusal_is_one_whatever_its_words() -> None:
    assert signs("Nichts davon steht hier.", QUESTION, (), refused=True).refused


@pytest.mark.parametrize(
    "reply", ["Der Name wird im Vertrag nicht genannt. Er spricht von Katzen.", "文中未提及狗的名字。文中说到猫。"]
)
def test_a_refusal_in_another_language_is_one(reply: str) -> None:
    assert signs(reply, QUESTION, ()).refused


@pytest.mark.parametrize("reply", ["Der Hund heißt Rex. Das Alter ist nicht angegeben.", "狗叫小白。文中未提及年龄。"])
def test_a_late_refusal_in_another_language_is_a_late_one(reply: str) -> None:
    seen = signs(reply, QUESTION, ())
    assert (seen.refused, seen.refused_late) == (False, True)


def test_grounded_is_the_share_of_own_terms_that_the_passages_hold() -> None:
    passages = ("The landlord owns a spaniel.", "It answers to Bruno.")
    assert signs("Landlord's name: Bruno the spaniel", QUESTION, passages).grounded == 1.0
    assert signs("Bruno, a poodle", QUESTION, passages).grounded == 0.5
    assert signs("Hector, a poodle", QUESTION, passages).grounded == 0.0


def test_grounded_is_unknown_without_terms_of_its_own_or_without_passages() -> None:
    assert signs("the landlord's", QUESTION, ("The landlord owns a spaniel.",)).grounded is None
    assert signs("Bruno, a poodle", QUESTION, ()).grounded is None


def test_scripts_without_spaces_are_compared_by_pairs_of_characters() -> None:
    seen = signs("房东的狗叫小白", "狗叫什么名字", ("合同说房东的狗叫小白。",))
    assert seen.grounded == 1.0
    assert 0 < seen.overlap < 1


@given(st.text(max_size=300), st.text(max_size=100), st.lists(st.text(max_size=200), max_size=3))
def test_signs_are_shares_and_a_refusal_is_early_or_late(reply: str, question: str, passages: list[str]) -> None:
    seen = signs(reply, question, passages)
    assert 0 <= seen.overlap <= 1
    assert seen.grounded is None or 0 <= seen.grounded <= 1
    assert not (seen.refused and seen.refused_late)
    assert seen.words >= 0


def test_only_the_beginning_of_a_long_reply_is_read() -> None:
    assert signs("word " * 5_000, QUESTION, ()).words == 800
    signs("is not " * 100_000 + "no the " * 100_000, QUESTION, ())  # returns: no pattern backtracks without end
