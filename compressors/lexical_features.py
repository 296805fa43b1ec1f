"""What can be seen of a word without a model: its form, how rare it is, and where it stands.

`split_words` cuts a text into the units that the embedded compressor keeps or drops; `describe` turns them into numbers
and into rows of a vocabulary. What the numbers are worth is learned elsewhere (`keep_head.py`).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .compression import Bools, Floats, Ints, unspaced

F32 = npt.NDArray[np.float32]

SUFFIXES = 1024
"""Rows for the last letters of words that the vocabulary does not know."""

_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_MARKS = "\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3"
_SIGNS = "、，。！？；：…」』）】》"
# Without a dictionary the words of these scripts cannot be told apart, so they are cut at signs, and after eight
# characters at the latest: short enough to spend a small budget well, long enough to be read.
_UNSPACED = re.compile(
    rf"[{_SCRIPTS}\U00020000-\U0003ffff]{{1,8}}+[{_MARKS}]*+[{_SIGNS}]*+|[^{_SCRIPTS}\U00020000-\U0003ffff]++"
)
_WORD = re.compile(r"\S+")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’»)\]」』]*$")
_PROSE_BREAK = re.compile(r"\n[^\S\n]*\n")
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_LONG = 64  # letters of a form that are looked at: what is longer is no word

# The share of the known language that a text is believed to follow: as many words as these are mixed into the counts of
# the text itself. In a long text of another language its own counts win.
_PRIOR_WORDS = 1000.0
_UNKNOWN_SHARE = 1e-5


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that the head knows.

    rows: word in small letters → its row, 0 to len - 1.
    surprise: float32, shape (len,): -log of the share of texts of the training set that hold the word.
    shares: float32, shape (len,): the share of all words of the training set.
    """

    rows: Mapping[str, int]
    surprise: F32
    shares: F32

    @property
    def most_surprise(self) -> float:
        """Of a word that the vocabulary does not know."""
        return float(self.surprise.max()) + 0.5 if len(self.surprise) else 8.0


def split_words(text: str) -> Ints:
    """The units of a text: int64 of shape (n, 2), start and end of each, ascending.

    What stands between white space is one; in scripts without spaces, what stands between signs, up to 8 characters.
    """
    found: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        word = match.group()
        if word.isascii() or not any(map(unspaced, word)):
            found.append((start, end))
        else:
            found += [(start + a, start + b) for a, b in (part.span() for part in _UNSPACED.finditer(word))]
    return np.array(found, np.int64).reshape(-1, 2)


def form_of(word: str) -> str:
    """A word without the signs around it, in small letters; empty where it is nothing but signs."""
    return _EDGES.sub("", word).lower()[:_LONG]


@dataclass(frozen=True)
class Described:
    """The words of one text, described. n words.

    forms: by number of the distinct word; kinds: int64 (n,), the distinct word of each.
    rows: int64 (n,), row of the vocabulary, or its length + the number of the word's ending.
    numbers: float32 (n, len(NAMES)).
    surprise: float64 (n,), how rare the word is, in nats, 0 for signs: language and text together.
    signs: whether it is nothing but signs.
    sentences: int64 (n,), number of the sentence, ascending from 0.
    """

    forms: tuple[str, ...]
    kinds: Ints
    rows: Ints
    numbers: F32
    surprise: Floats
    signs: Bools
    sentences: Ints

    @cached_property
    def stems(self) -> list[frozenset[str]]:
        """Per distinct word, what it has in common with its other forms."""
        return [frozenset(stems_of(form)) for form in self.forms]


def stems_of(form: str) -> Iterator[str]:
    """The beginning of a word; of scripts without spaces, pairs of neighbours."""
    if any(map(unspaced, form)):
        yield from map("".join, pairwise(form))
    elif form:
        yield form.removesuffix("'s").removesuffix("’s")[: 6 if len(form) > 7 else 5 if len(form) > 5 else 4]


NAMES = (
    "known",
    "surprise",
    "text_surprise",
    "length",
    "digits",
    "capital",
    "capitals",
    "inner_sign",
    "comma",
    "stop",
    "opens",
    "closes",
    "foreign",
    "sign_only",
    "count",
    "first",
    "place",
    "start_distance",
    "sentence_place",
    "sentence_start",
    "sentence_length",
    "sentence_number",
    "text_length",
    "bracketed",
    "sentence_surprise",
    "since_last",
)
_OF_FORM = 14  # the first columns depend on nothing but the word and what the text says of it


def describe(text: str, words: Ints, vocabulary: Vocabulary) -> Described:
    """Describe words = split_words(text). About 4 µs a word; distinct words are looked at once."""
    n = len(words)
    surfaces = [text[a:b] for a, b in words.tolist()]
    number: dict[str, int] = {}
    kinds = np.fromiter((number.setdefault(surface, len(number)) for surface in surfaces), np.int64, n)
    forms = tuple(map(form_of, number))
    rows_of = np.array([_row(form, vocabulary) for form in forms], np.int64)
    form_number: dict[str, int] = {}
    form_of_kind = np.fromiter((form_number.setdefault(form, len(form_number)) for form in forms), np.int64, len(forms))
    same = form_of_kind[kinds] if n else kinds
    counts = np.bincount(same, minlength=len(form_number)).astype(np.float64)
    known = rows_of < len(vocabulary.rows)
    shares = np.full(len(forms), _UNKNOWN_SHARE)
    language = np.full(len(forms), vocabulary.most_surprise)
    shares[known], language[known] = vocabulary.shares[rows_of[known]], vocabulary.surprise[rows_of[known]]
    in_text = -np.log((counts[form_of_kind] + _PRIOR_WORDS * shares) / (n + _PRIOR_WORDS))
    signs = np.array([not form for form in forms], np.bool_)
    # A word that the language hardly knows may yet be a common one of another language: then the text knows it.
    rare = np.where(signs, 0.0, np.minimum(language, np.maximum(in_text - 1.5, 0.0)))
    by_kind = np.zeros((len(forms), _OF_FORM), np.float32)
    by_kind[:, 0], by_kind[:, 1], by_kind[:, 2] = known, rare, in_text
    by_kind[:, 3:] = np.array([_look(s, f) for s, f in zip(number, forms, strict=True)], np.float32).reshape(-1, 11)
    numbers = np.zeros((n, len(NAMES)), np.float32)
    sentences = _sentences(text, words, surfaces)
    surprise = rare[kinds] if n else np.zeros(0)
    if n:
        numbers[:, :_OF_FORM] = by_kind[kinds]
        numbers[:, _OF_FORM:] = _standing(same, counts, surprise, sentences, by_kind[kinds, 10] - by_kind[kinds, 11])
    return Described(forms, kinds, rows_of[kinds], numbers, surprise, signs[kinds], sentences)


def _row(form: str, vocabulary: Vocabulary) -> int:
    row = vocabulary.rows.get(form)
    if row is not None:
        return row
    ending = re.sub(r"\d", "0", form[-3:])
    return len(vocabulary.rows) + zlib.crc32(ending.encode("utf-8", "surrogatepass")) % SUFFIXES


def _look(surface: str, form: str) -> tuple[float, ...]:
    """The columns from `length` to `sign_only`."""
    letters = surface.strip("\"'“”‘’«»([{")
    size = max(len(form), 1)
    last = surface.rstrip("\"'”’»")[-1:]
    return (
        math.log(size),
        sum(map(str.isdigit, form)) / size,
        float(letters[:1].isupper()),
        float(len(form) > 1 and surface.isupper()),
        float(not form.isalnum()) if form else 0.0,
        float(last in ",;:、，；："),
        float(last in ".!?。！？"),
        float(not _OPENING.isdisjoint(surface)),
        float(not _CLOSING.isdisjoint(surface)),
        sum(character > "\u024f" for character in form) / size,
        float(not form),
    )


def _standing(same: Ints, counts: Floats, surprise: Floats, sentences: Ints, brackets: F32) -> F32:
    """The columns from `count` on: where in the text and in its sentence a word stands."""
    n = len(same)
    places = np.arange(n)
    order = np.lexsort((places, same))
    since = np.full(n, n, np.float64)
    again = same[order][1:] == same[order][:-1]
    since[order[1:][again]] = np.diff(order)[again]
    n_sentences = int(sentences[-1]) + 1
    sizes = np.bincount(sentences, minlength=n_sentences)
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    inside = places - begins[sentences]
    means = np.bincount(sentences, surprise, n_sentences) / sizes
    # Open brackets are counted within the sentence, so that one without a partner does no harm further on.
    depth = np.cumsum(brackets)
    depth = depth - np.where(begins > 0, depth[begins - 1], 0.0)[sentences]
    return np.column_stack(
        [
            np.log(counts[same]),
            since == n,
            places / n,
            np.log1p(places),
            inside / sizes[sentences],
            np.log1p(inside),
            np.log(sizes[sentences]),
            np.log1p(sentences),
            np.full(n, math.log(n)),
            np.clip(depth, 0, 1),
            means[sentences],
            np.log1p(np.minimum(since, 1000)),
        ]
    ).astype(np.float32)


def _sentences(text: str, words: Ints, surfaces: Iterable[str]) -> Ints:
    """A sentence ends at its sign, unless the next word begins small, and at a blank line or the end of a list item."""
    breaks = np.zeros(len(words), np.int64)
    before_end, ended = 0, False
    for i, ((start, end), surface) in enumerate(zip(words.tolist(), surfaces, strict=True)):
        gap = text[before_end:start]
        if i and ((ended and not surface[0].islower()) or ("\n" in gap and _new_block(gap, surface))):
            breaks[i] = 1
        before_end = end
        ended = surface[-1] in ".!?。！？…\"'”’»)]」』" and _SENTENCE_END.search(surface) is not None
    return np.cumsum(breaks)


def _new_block(gap: str, surface: str) -> bool:
    # Lines broken for width go on in small letters as often as not; nothing better is known without a layout.
    return _PROSE_BREAK.search(gap) is not None or not surface[0].islower()
