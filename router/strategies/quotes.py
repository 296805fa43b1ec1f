"""Where a quotation stands in a text, and whether it stands there at all.

Models that copy change small things: white space, case, quotation marks and dashes, Markdown, a hyphen at a line end, a
word or two. What matters is whether the text says it. A quotation is found where its words stand in the text one after
another, or else where nearly all of them do in their order; a number or date that differs, or a negation that only one
of the two has, makes it another statement, which is never found. Callers show the text's own words, `text[start:end]`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

MIN_ALIGNMENT = 0.9  # words that must agree, as a share; below it a copy is taken for an invention

# Scripts written without spaces, of which every character is a word here.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "\u00ad\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0900-\u0dff\u200b-\u200d"  # inside words
_ANY, _LETTER = rf"[^\W_{_UNSPACED}]", rf"[^\W\d_{_UNSPACED}]"
_WORD = re.compile(
    rf"[{_UNSPACED}]"
    rf"|(?:(?<![^\s(\[])[-−](?=\d))?"  # the sign of a number
    rf"{_ANY}+(?:(?:[{_MARKS}]+"
    rf"|(?<={_LETTER})['’ʼ](?={_LETTER})"
    rf"|(?<={_LETTER})[-‐‑\u00ad][ \t]*\r?\n[ \t]*(?={_LETTER})(?![A-Z])"  # hyphen-↵ation; not Smith-↵Jones
    rf"|(?<={_LETTER})\*{{1,3}}(?={_LETTER})"  # **B**old
    rf"|(?<=\d)[.,:](?=\d)){_ANY}*)*"  # 3.5, 1,000, 10:30
)
_ELISION = re.compile(r"\s*(?:\[\s*(?:\.{2,}|…)\s*\]|\(\s*(?:\.{2,}|…)\s*\)|\.{3,}|(?:\. ){2,}\.|…)\s*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_WITHIN_WORD = re.compile("(?<=.)[-‐‑]|['’ʼ*\u00ad\u200b-\u200d\\s]", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?。！？;\n]")

_NEGATIONS = """
    not no never none nor neither nobody nothing nowhere without cannot can't don't doesn't didn't isn't aren't wasn't
    weren't won't wouldn't shouldn't couldn't mustn't mightn't needn't hasn't haven't hadn't shan't ain't
    nicht kein keine keinen keinem keiner keines nie niemals nichts niemand weder ohne
    ne pas jamais aucun aucune sans ni rien nunca jamás sin ningún ninguno ninguna nadie nada non mai senza nessun
    nessuno nessuna niente não sem nenhum nenhuma nem niet geen nooit zonder niets bez inte aldrig utan ikke
    не нет ни без никогда ні değil yok لا لم لن ليس नहीं 不 没 沒 未 无 無 非 別
"""
_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion
    half twice double triple first second third fourth fifth sixth seventh eighth ninth tenth
    zwei drei vier fünf sechs sieben acht neun zehn elf zwölf hundert tausend deux trois quatre cinq sept huit neuf
    dix cent mille dos tres cuatro cinco seis siete ocho nueve diez cien mil два три четыре пять шесть семь восемь
    девять десять сто тысяча january february march april may june july august september october november december
    monday tuesday wednesday thursday friday saturday sunday 一 二 三 四 五 六 七 八 九 十 百 千 万 亿 億
"""

_MOST_ELIDED = 120  # words that one "..." may stand for
_FEW_ELIDED = 3  # words whose elision may turn the meaning around
_MOST_VOTES = 2000  # places of words looked at for one quotation, and of each of its rarest words
_MOST_WINDOWS = 12  # looked at closely for one quotation


@dataclass(frozen=True, slots=True)
class Found:
    """A quotation in a text: `text[start:end]`.

    alignment: words that both have in common order, as a share of the longer of the two, (0, 1]; 1 where they differ
    in nothing but white space, case, punctuation and the like.
    """

    start: int
    end: int
    alignment: float


def find(quote: str, text: str, *, min_alignment: float = MIN_ALIGNMENT) -> Found | None:
    """Where the quotation stands in the text, or None. For several quotations of one text, `Source(text).find`.

    Found are: words one after another, whatever white space, case, punctuation, Unicode form (NFKC), Markdown emphasis
    and hyphens at line ends they are written with; else words of which a share of min_alignment is common to both, in
    order. Parts joined by an ellipsis ("…", "...", "[…]") are found in their order, not far from each other.
    Not found, even so: quotations with a number that the place in the text does not have, or where only one of the two
    negates; and those too short to be of anything in particular (under three words and 20 characters).
    A negation right beside the words, in their sentence, is taken in.
    """
    return Source(text).find(quote, min_alignment=min_alignment)


class Source:
    """A text in which quotations are looked up. Indexed on the first one that does not stand there letter by letter."""

    def __init__(self, text: str) -> None:
        self.text = text

    def find(self, quote: str, *, min_alignment: float = MIN_ALIGNMENT) -> Found | None:
        """As `find`."""
        parts = [part for part in map(compared_words, _ELISION.split(quote)) if part]
        if not _telling([key for part in parts for key in part]):
            return None
        found = self._letter_by_letter(quote) if len(parts) == 1 else None
        found = found or self._by_words(parts, min_alignment)
        return self._with_its_edges(quote, found) if found else None

    def _letter_by_letter(self, quote: str) -> Found | None:
        words = list(_WORD.finditer(quote))
        bare = quote[words[0].start() : words[-1].end()]
        start = self.text.find(bare)
        end = start + len(bare)
        if start < 0 or self._inside_a_word(start) or self._inside_a_word(end):
            return None
        return Found(start, end, 1.0)

    def _inside_a_word(self, place: int) -> bool:
        base = max(0, place - 40)
        near = _WORD.finditer(self.text, base, place + 40)
        return any(word.start() < place < word.end() for word in near)

    def _by_words(self, parts: Sequence[Sequence[str]], min_alignment: float) -> Found | None:
        """The longest part anywhere, the others from it outwards."""
        index = self._index
        anchor = max(range(len(parts)), key=lambda number: len(parts[number]))
        here = index.locate(parts[anchor], 0, len(index.keys), min_alignment)
        if here is None:
            return None
        stretches = [here]
        for part in parts[anchor + 1 :]:
            after = stretches[-1].last + 1
            there = index.locate(part, after, after + _MOST_ELIDED + len(part), min_alignment)
            if there is None:
                return None
            stretches.append(there)
        for part in reversed(parts[:anchor]):
            before = stretches[0].first
            there = index.locate(
                part, max(0, before - _MOST_ELIDED - len(part)), before, min_alignment, from_right=True
            )
            if there is None:
                return None
            stretches.insert(0, there)
        for left, right in pairwise(stretches):
            elided = index.keys[left.last + 1 : right.first]
            if len(elided) <= _FEW_ELIDED and _NEGATION_KEYS.intersection(elided):
                return None
        alignment = sum(stretch.common for stretch in stretches) / sum(stretch.longer for stretch in stretches)
        return Found(index.starts[stretches[0].first], index.ends[stretches[-1].last], alignment)

    def _with_its_edges(self, quote: str, found: Found) -> Found:
        """With a negation beside it, and with the punctuation around it that the quotation has too."""
        start, end = found.start, found.end
        before = self.text[max(0, start - 20) : start]
        after = self.text[end : end + 20]
        words = list(_WORD.finditer(before))
        if words and _key(words[-1][0]) in _NEGATION_KEYS and not _SENTENCE_END.search(before, words[-1].end()):
            return Found(start - len(before) + words[-1].start(), end, found.alignment)
        word = _WORD.search(after)
        if word and _key(word[0]) in _NEGATION_KEYS and not _SENTENCE_END.search(after, 0, word.start()):
            return Found(start, end + word.end(), found.alignment)
        inner = list(_WORD.finditer(quote))
        for character in reversed(quote[: inner[0].start()]):
            if character.isspace() or self.text[start - 1 : start] != character:
                break
            start -= 1
        for character in quote[inner[-1].end() :]:
            if character.isspace() or self.text[end : end + 1] != character:
                break
            end += 1
        return Found(start, end, found.alignment)

    @cached_property
    def _index(self) -> _Index:
        return _Index(self.text)


# ---- words -----------------------------------------------------------------------------------------------------------


def _key(word: str) -> str:
    """What two spellings of a word have in common."""
    if word.isascii() and word.isalnum():
        return word.lower()
    plain = unicodedata.normalize("NFKC", word).casefold().replace("−", "-")
    return _THOUSANDS.sub("", _WITHIN_WORD.sub("", plain))


def compared_words(text: str) -> list[str]:
    """The words of a text, spelled in the one way in which they are compared."""
    return [_key(word) for word in _WORD.findall(text)]


_NEGATION_KEYS = frozenset(compared_words(_NEGATIONS))
_NUMBER_KEYS = frozenset(compared_words(_NUMBERS))


def _telling(keys: Sequence[str]) -> bool:
    """Whether there is enough of a quotation for it to be of one place rather than of any."""
    characters = sum(map(len, keys))
    if characters == len(keys):  # a script without spaces
        return characters >= 5
    return len(keys) >= 3 or characters + len(keys) > 20


def _counts(key: str) -> bool:
    """Whether another word in place of this one makes another statement."""
    return key in _NEGATION_KEYS or key in _NUMBER_KEYS or any(character.isdigit() for character in key)


# ---- places of words -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Words `first` to `last`, inclusive, of a text.

    common, longer: words shared with what was looked for, and the length of the longer of the two.
    """

    first: int
    last: int
    common: int
    longer: int


class _Index:
    """The words of a text, in order.

    keys: as compared; starts, ends: their offsets in the text.
    """

    def __init__(self, text: str) -> None:
        raw: list[str] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        for match in _WORD.finditer(text):
            raw.append(match[0])
            self.starts.append(match.start())
            self.ends.append(match.end())
        key_of = {word: _key(word) for word in set(raw)}
        self.keys = [key_of[word] for word in raw]
        # One string with a space around every word: finding words in a row is then one search at the speed of C.
        self._joined = f" {' '.join(self.keys)} "

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(self.keys):
            places[key].append(place)
        return dict(places)

    def locate(
        self, wanted: Sequence[str], low: int, high: int, min_alignment: float, *, from_right: bool = False
    ) -> _Stretch | None:
        """The words among `keys[low:high]`: in a row, else aligned. The first such place, or the last."""
        whole = low == 0 and high >= len(self.keys)
        joined = self._joined if whole else f" {' '.join(self.keys[low:high])} "
        row = f" {' '.join(wanted)} "
        place = joined.rfind(row) if from_right else joined.find(row)
        if place >= 0:
            first = low + joined.count(" ", 0, place)
            return _Stretch(first, first + len(wanted) - 1, len(wanted), len(wanted))
        aligned = (
            self._aligned(wanted, window, min_alignment)
            for window in self._windows(wanted, low, min(high, len(self.keys)), min_alignment)
        )
        return max(
            (stretch for stretch in aligned if stretch is not None),
            key=lambda stretch: (stretch.common / stretch.longer, -stretch.first),
            default=None,
        )

    def _windows(self, wanted: Sequence[str], low: int, high: int, min_alignment: float) -> Iterator[range]:
        """Where the words may be aligned: stretches with many of the rarer ones at about the right distances.

        No more than `missing` words may be missing, so one of the missing + 1 rarest is there, and one is enough.
        """
        missing = int(len(wanted) * (1 - min_alignment) + 1e-9)
        if not missing:
            return
        by_rarity = sorted((len(self._places.get(key, ())), at) for at, key in enumerate(wanted))
        if sum(not count for count, _ in by_rarity) > missing:
            return
        # Aligned words are off the diagonal by as many as are missing in the text, or in the quotation.
        slack = missing + 2
        votes: Counter[int] = Counter()
        looked_at = 0
        for rank, (count, at) in enumerate(by_rarity):
            if looked_at + count > _MOST_VOTES and rank > missing:
                break
            looked_at += count
            for place in self._places.get(wanted[at], ())[:_MOST_VOTES]:
                if low <= place < high:
                    votes[(place - at) // slack] += 1
        shared = {bucket: count + votes.get(bucket + 1, 0) for bucket, count in votes.items()}
        for bucket in sorted(shared, key=lambda bucket: (-shared[bucket], bucket))[:_MOST_WINDOWS]:
            first = bucket * slack
            yield range(max(low, first - slack), min(high, first + 2 * slack + len(wanted) + slack))

    def _aligned(self, wanted: Sequence[str], window: range, min_alignment: float) -> _Stretch | None:
        """The best alignment in a window, or None where too little is common or the two say different things."""
        keys = self.keys[window.start : window.stop]
        pairs = _common_subsequence(wanted, keys)
        if len(pairs) < min_alignment * len(wanted):
            return None
        # Of equal words the last were taken, so the beginning is where it should be and the end may be too far off.
        begin = pairs[0][1]
        backwards = _common_subsequence(wanted[::-1], keys[begin:][::-1])
        pairs = [(len(wanted) - 1 - at, len(keys) - 1 - place) for at, place in reversed(backwards)]
        pairs = _tight(pairs, len(wanted))
        stretch = _Stretch(
            window.start + pairs[0][1],
            window.start + pairs[-1][1],
            len(pairs),
            max(len(wanted), pairs[-1][1] - pairs[0][1] + 1),
        )
        if stretch.common < min_alignment * stretch.longer:
            return None
        own = {at for at, _ in pairs}
        theirs = {place for _, place in pairs}
        if any(_counts(key) for at, key in enumerate(wanted) if at not in own):
            return None
        between = range(pairs[0][1], pairs[-1][1])
        if any(keys[place] in _NEGATION_KEYS for place in between if place not in theirs):
            return None
        return stretch


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """A longest common subsequence, as pairs of places (in left, in right), in order.

    A zero at bit i of row j says that the subsequence of left[:i + 1] and right[:j + 1] is longer by one than that of
    left[:i] and right[:j + 1]. One row is a few operations on one long integer. Of several subsequences it is the one
    whose pairs lie furthest to the end.
    Source: Hyyrö (2004), Bit-parallel LCS-length computation revisited.
    """
    masks: dict[str, int] = {}
    for at, key in enumerate(left):
        masks[key] = masks.get(key, 0) | 1 << at
    all_ones = (1 << len(left)) - 1
    row, rows = all_ones, []
    for key in right:
        both = row & masks.get(key, 0)
        row = ((row + both) | (row - both)) & all_ones
        rows.append(row)
    pairs = []
    i, j = len(left) - 1, len(right) - 1
    while i >= 0 and j >= 0:
        if left[i] == right[j]:
            pairs.append((i, j))
            i, j = i - 1, j - 1
        elif rows[j] >> i & 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _tight(pairs: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Without pairs at either end that lie so far off that the rest is better aligned without them."""

    def alignment(some: Sequence[tuple[int, int]]) -> float:
        return len(some) / max(length, some[-1][1] - some[0][1] + 1)

    while len(pairs) > 2:
        best = max((pairs[1:], pairs[:-1]), key=alignment)
        if alignment(best) <= alignment(pairs):
            break
        pairs = best
    return pairs
