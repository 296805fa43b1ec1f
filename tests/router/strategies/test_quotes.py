from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from longroute.router.strategies.quotes import Source, find

LEASE = (
    "Preface. The tenant\n  shall **not** keep a dog, or any other an-\nimal, in the well-known flat before "
    "1 May 2019. The fee is 1,000.50 euros — “payable” at once to the landlord’s agent. Café ﬁne. It "
    "is not permitted to smoke anywhere in the house or the garden. Jonna Eide "
    "came from Skerra with her two brothers and an old red boat."
)


def words_at(quote: str, text: str = LEASE) -> str | None:
    found = find(quote, text)
    return text[found.start : found.end] if found else None


@pytest.mark.parametrize(
    "quote",
    [
        "the TENANT shall not keep a dog",
        "The tenant shall *not* keep a dog",
        "any other animal in the well-known flat",
        "any other an-\nimal, in the well‑known flat",
        'The fee is 1000.50 euros - "payable" at once',
        "payable at once to the landlord's agent",
        "at once to the landlord's agent. Cafe\u0301 fine.",
        "Café ﬁne. It",
        "１ May ２０１９. The fee",
    ],
)
def test_a_quotation_is_found_however_it_is_written(quote: str) -> None:
    found = find(quote, LEASE)
    assert found is not None and found.alignment == 1.0
    assert find(LEASE[found.start : found.end], LEASE) == found


def test_the_offsets_are_of_the_texts_own_words_and_take_the_quoted_punctuation_in() -> None:
    assert words_at("the tenant shall not keep a dog,") == "The tenant\n  shall **not** keep a dog,"
    assert words_at("payable” at once") == "payable” at once"


def test_a_few_wrong_words_are_repaired() -> None:
    copied = "Jonna Eide came from Skerra with her two brothers and an red boat."
    found = find(copied, LEASE)
    assert found is not None and 0.9 <= found.alignment < 1.0
    assert LEASE[found.start : found.end] == "Jonna Eide came from Skerra with her two brothers and an old red boat."
    assert find(copied, LEASE, min_alignment=1.0) is None


@pytest.mark.parametrize("before", range(12))
def test_words_that_come_again_right_before_or_after_do_not_shift_a_repaired_quotation(before: int) -> None:
    said = "family friends recall that Stephanie was a princess and a member of the princely Hohenlohe family"
    text = f"{'word ' * before}of a family. {said}. She came of a family"
    found = find(said.replace("princely ", ""), text)
    assert found is not None and text[found.start : found.end] == said


@pytest.mark.parametrize(
    "quote",
    [
        "The tenant shall keep a dog, or any other animal, in the well-known flat before 1 May 2019",
        "The tenant shall not keep a dog, or any other animal, in the well-known flat before 1 May 2018",
        "The tenant shall not keep a dog, or any other animal, in the well-known flat before 1 June 2019",
        "It is permitted to smoke anywhere in the house or the garden",
        "Jonna Eide came from Skerra with her three brothers and an old red boat",
        "Jonna Eide never came from Skerra with her two brothers and an old red boat",
        "It is … permitted to smoke anywhere",
        "The fee is 1",
        "The fee is 1,000.5",
    ],
)
def test_another_number_or_a_negation_more_or_less_is_another_statement(quote: str) -> None:
    assert words_at(quote) is None


def test_a_negation_right_beside_the_words_belongs_to_them() -> None:
    assert words_at("permitted to smoke anywhere") == "not permitted to smoke anywhere"
    assert words_at("I said so", "He told them: I said so never. Not now.") == "I said so never"
    assert words_at("The rent is due", "Say no. The rent is due. Not today") == "The rent is due"


def test_parts_joined_by_an_ellipsis_are_found_in_their_order() -> None:
    assert words_at("The tenant shall ... in the well-known flat […] May 2019.") == LEASE[9:112]
    assert words_at("before 1 May 2019 ... The tenant shall not keep") is None
    assert words_at("any other animal [...] the flat of the king") is None
    far = "It began with rain. " + "Nothing of note was said. " * 60 + "It ended with snow."
    assert words_at("It began with rain ... It ended with snow", far) is None


@pytest.mark.parametrize("quote", ["", " \n", "...", "the", "a dog", "“”", "[…]", "日本", "****"])
def test_what_is_too_short_is_of_no_place(quote: str) -> None:
    assert find(quote, LEASE + " a dog 日本") is None


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "この条約は一九一九年に署名された。会議はパリで開かれ、多くの国が参加した。"
    assert words_at("会議はパリで開かれ、多くの国が参加した。", text) == "会議はパリで開かれ、多くの国が参加した。"
    assert words_at("この条約は一九一八年に署名された", text) is None
    assert words_at("会議がパリで開かれ、多くの国が参加した", text) is not None


def test_words_are_not_found_inside_other_words() -> None:
    assert words_at("art is long and", "The chart is long and wide.") is None
    assert words_at("is not able to", "It is notable to all.") is None
    assert words_at("costs about 3 euros", "It costs about 3.5 euros.") is None


def test_the_first_of_equal_places_is_taken_and_repeated_words_do_not_matter() -> None:
    text = "the cat sat down. " * 500
    found = find("the cat sat down", text)
    assert found is not None and found.start == 0
    assert find("the cat the cat sat down the sat down sat the cat the", text) is None


def test_a_long_text_of_one_word_is_no_trap() -> None:
    text = "a " * 100_000
    assert find("a a a a a a a a a a a a a a a a a a a b", text) is not None
    assert find("a b a c a d a e a f a g a h a i a j a k", text) is None


sentences = st.lists(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=8),
    min_size=5,
    max_size=60,
)


@given(sentences, st.data())
def test_any_stretch_of_words_is_found_with_its_words(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    start = data.draw(st.integers(0, len(words) - 1))
    quote = " ".join(words[start : start + data.draw(st.integers(3, 20))])
    found = Source(text).find(quote)
    assume(found is not None)  # too short, cut inside a number, an ellipsis in it
    assert found is not None and 0 <= found.start < found.end <= len(text)
    again = Source(text).find(text[found.start : found.end])
    assert again is None or again.alignment >= 0.9


@given(st.text(max_size=200), st.text(max_size=400))
def test_nothing_raises_and_offsets_lie_in_the_text(quote: str, text: str) -> None:
    found = find(quote, text)
    assert found is None or (0 <= found.start < found.end <= len(text) and 0.9 <= found.alignment <= 1.0)


@given(st.integers(0, 10_000))
def test_dropped_words_are_put_back_and_changed_numbers_never_found(seed: int) -> None:
    draw = random.Random(seed)
    names = ["".join(letters) for letters in product("bdgk", "aeiou", "nrst")]
    draw.shuffle(names)
    at = draw.randrange(10, 25)
    words = [*names[:at], str(draw.randrange(1000, 9999)), *names[at:]]
    text = " ".join(words)
    quote = words[at - 8 : at + 10]
    dropped = quote[:3] + quote[4:]
    found = find(" ".join(dropped), text)
    assert found is not None and text[found.start : found.end] == " ".join(quote)
    changed = [*quote[:8], str(int(quote[8]) + 1), *quote[9:]]
    assert find(" ".join(changed), text) is None
