from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.retrievers.terms import content_terms, terms


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Contract", "contracts"),
        ("companies", "company"),
        ("boxes", "box"),
        ("signed", "signing"),
        ("stopped", "stop"),
        ("café", "CAFE"),
        ("cafe\u0301", "café"),
        ("ﬁnance", "finance"),
        ("１２３", "123"),
        ("1,234.5", "1234.5"),
        ("Straße", "STRASSE"),
        ("договора", "договоров"),
        ("Ёлка", "елка"),
        ("الكتاب", "كِتاب"),
        ("مدرسة", "مدرسه"),
        ("νόμος", "νομος"),
        ("ガス", "ｶﾞｽ"),
    ],
)
def test_forms_of_a_word_meet(one: str, other: str) -> None:
    assert set(terms(one)) & set(terms(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("bus", "bu"), ("bed", "b"), ("king", "k"), ("this1", "this2"), ("3.5", "35"), ("हिन्दी", "हिन्दु")],
)
def test_different_words_stay_apart(one: str, other: str) -> None:
    assert not set(terms(one)) & set(terms(other))


@pytest.mark.parametrize("word", ["get_user_name", "getUserName", "GetUserName", "GET_USER_NAME"])
def test_an_identifier_is_found_whole_and_by_its_parts(word: str) -> None:
    assert {word.lower(), *terms("user"), *terms("name")} <= set(terms(word))


def test_outer_underscores_do_not_count() -> None:
    assert terms("__init__ ____") == ["init"]


def test_an_acronym_is_told_from_the_word_that_follows_it() -> None:
    assert {"http", "server"} <= set(terms("HTTPServer"))


def test_function_words_say_nothing_unless_they_are_names() -> None:
    assert terms("what is it to us") == []
    assert terms("US") == ["us"]


def test_occurrences_are_counted() -> None:
    assert terms("tax and tax") == ["tax", "tax"]


def test_numbers_are_kept_whole() -> None:
    assert terms("rose 12.5% to 1,200,000") == ["rose", "12.5", "1200000"]


@pytest.mark.parametrize("text", ["合同生效", "契約です", "계약서", "สัญญา", "စာချုပ်", "កិច្ចសន្យា"])
def test_writing_without_spaces_is_found_by_any_two_neighbours(text: str) -> None:
    whole = set(terms(f"abc{text}def"))
    assert {"abc", "def"} <= whole
    for end in range(2, len(text) + 1):
        assert set(terms(text[:2])) & whole
        assert set(terms(text[:end])) & whole


def test_a_single_chinese_character_is_found() -> None:
    assert terms("税") == ["税"]
    assert "税" in terms("纳税人")


def test_hindi_words_are_not_torn_at_their_vowel_signs() -> None:
    assert len(terms("हिन्दी में")) == 2


def test_content_terms_leave_out_what_only_asks() -> None:
    assert content_terms("According to the passage, how many taxes does the tax office list?") == ["tax", "offic"]


@given(st.text())
def test_any_text_has_terms_without_spaces_or_capitals(text: str) -> None:
    for term in terms(text):
        assert term
        assert not any(character.isspace() for character in term)
        assert term.casefold() == term or not term.isascii()


@given(st.text(alphabet="abcdefghij ing.", max_size=80))
def test_case_changes_no_long_word(text: str) -> None:
    long = " ".join(word for word in text.split() if len(word) > 5)
    assert terms(long) == terms(long.capitalize())
