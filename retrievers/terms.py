"""Search terms: the words of a text in the form in which a question and a document can meet.

A bag: counts are kept, order is not. Every rule is here because it raised recall on public retrieval sets in English,
Arabic, Chinese, German, Russian, Spanish and code, or, for scripts without such a set, by likeness to one of them.
What the terms weigh is left to the index.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain
from operator import add

# Marks that `\w` leaves out although they stand inside words: Latin, Cyrillic, Hebrew, Arabic, Indic.
_INNER = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0900-\u0963\u0970-\u0dff"
)
# Words end after 64 characters, so that remembering them costs little whatever a document holds.
_WORD = re.compile(rf"[0-9]+(?:[.,][0-9]+)+|[\w{_INNER}]{{1,64}}")
_SEAM = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # get_name, getName, HTTPServer

# Scripts written without spaces, or, as Korean, with endings joined to the word. A unit is a character; in Thai, Lao,
# Burmese and Khmer, a letter with the marks above, below and after it.
_UNSPACED = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]+"
    "|[\u0e01-\u0e4e\u0e81-\u0ecd\u1000-\u103f\u1050-\u108f\u1780-\u17d3]+"
)
_UNIT = re.compile(
    ".[\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb3-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u1056-\u1059\u17b4-\u17d3]*"
)

_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05c7\u0640\u064b-\u065f\u0670]")  # and vowel points, and the Arabic dash
_ARABIC_VARIANTS = str.maketrans("ىةکی", "يهكي")
_ARABIC_ARTICLE = re.compile(r"^(?:[وفبك]?ال|لل)(?=\w{2})")
_VOWEL = re.compile("[aeiouy]")

# Cutting words short is a crude stemmer that needs no dictionary: endings go, and most of what tells words apart stays.
_STEM_LENGTH, _SHORT_STEM_LENGTH = 8, 5

_FUNCTION_WORDS = (
    "a an and are as at be been but by can could d did do does for from had has have he her him his how i if in into is"
    " it its ll me my no not of on or our re s she should so t than that the their them then there these they this"
    " those to us ve was we were what when where which who whom whose why will with would you your"
)
_ASKING_WORDS = (
    "according answer article context describe document explain following give given information list many mention"
    " much name passage please provide question state summarize tell text"
)
_STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


def terms(text: str) -> list[str]:
    """The search terms of a text, repeated as often as they occur; English stop words are left out.

    Words lose case, accents and endings; `getName` gives its parts as well as the whole; writing without spaces gives
    single characters and pairs of neighbours.
    """
    unspaced: list[str] = []
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        for run in _UNSPACED.findall(text):
            units = _UNIT.findall(run) if run[0] < "\u3000" else run
            unspaced += units
            unspaced += map(add, units, units[1:])
        if unspaced:
            text = _UNSPACED.sub(" ", text)
    return [*chain.from_iterable(map(_terms_of_word, _WORD.findall(text))), *unspaced]


def content_terms(question: str) -> list[str]:
    """The distinct terms of a question that a text should hold to answer it, in the order they are asked."""
    return [term for term in dict.fromkeys(terms(question)) if term not in _ASKING_TERMS]


@lru_cache(maxsize=1 << 16)  # about the vocabulary of ten books
def _terms_of_word(word: str) -> tuple[str, ...]:
    if word[0].isdigit() and "," in word:
        return (word.replace(",", ""),)  # 1,234.5 is 1234.5
    folded = _folded(word.strip("_"))
    # What is written in capitals is a name: US, IT, WHO.
    if folded in _STOP_WORDS and (len(word) == 1 or not word.isupper()):
        return ()
    parts = [part for part in map(_folded, _SEAM.split(word)) if len(part) > 1]
    if len(parts) > 1:
        return (folded, *(_stem(part) for part in parts if part not in _STOP_WORDS))
    return (_stem(folded),) if folded else ()


def _folded(word: str) -> str:
    word = word.casefold()
    if word.isascii():
        return word
    word = _ACCENTS.sub("", unicodedata.normalize("NFKD", word))
    return unicodedata.normalize("NFC", word).translate(_ARABIC_VARIANTS)


def _stem(word: str) -> str:
    """The word without its likely endings; not a word any more.

    ASCII words lose -s, -ed, -ing, a last -e and a doubled consonant, which recalls as much as the full Porter stemmer.
    """
    if not word.isalpha() and word.isascii():
        return word
    if "\u0370" < word < "\u0900":  # Greek, Cyrillic, Armenian, Hebrew, Arabic: languages of many endings
        return _ARABIC_ARTICLE.sub("", word)[:_SHORT_STEM_LENGTH]
    word = _without_plural(word)
    if len(word) > 4 and word.endswith("ed") and word[-3] != "e" and _VOWEL.search(word[:-2]):
        word = _undoubled(word[:-2])
    elif len(word) > 5 and word.endswith("ing") and _VOWEL.search(word[:-3]):
        word = _undoubled(word[:-3])
    if len(word) > 4 and word[-1] == "e":
        word = word[:-1]
    if len(word) > 4 and word[-1] == "y":
        word = word[:-1] + "i"
    return word[:_STEM_LENGTH]


def _without_plural(word: str) -> str:
    """Harman (1991), "How effective is suffixing?": the S-stemmer, and -es after a hiss."""
    if len(word) < 4 or word.endswith(("ss", "us", "is")) or word[-1] != "s":
        return word
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def _undoubled(word: str) -> str:
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz" else word


_ASKING_TERMS = frozenset(terms(_ASKING_WORDS))
