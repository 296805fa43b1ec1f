"""What every compressor shares: the contract, the result with its offsets, and choosing words under a budget.

A compressor scores stretches of a text (units: words, or blocks that must not be cut); `keep_best` keeps the best of
them that fit a budget of tokens, `render` writes them down, and the result says for every kept character where in the
source it stands. How units are found and scored is left to the compressors, what must survive to `protect.py`.
Offsets count characters (Unicode code points), `end` exclusive.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..router.errors import ConfigError

Span = tuple[int, int]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Count = Callable[[str], int]

_CLOSING = frozenset(".,;:!?)]}%…»”’。，、；：！？）】」』》")  # marks that stand close behind a word

# A budget counts as used when no more than this share of it is left. Looking for the very last word of a long text
# would take a dozen more counts of all of it.
_SLACK = 0.002


@dataclass(frozen=True, slots=True)
class Compressed:
    """A shortened text, and where everything in it comes from.

    kept: stretches of the source, ascending and apart; the result holds each of them unchanged.
    placed: where each of them begins in `text`; between two stands at most one blank that is not from the source.
    broken: protected stretches that were not kept whole, because the budget is too small for them.
    """

    text: str
    kept: tuple[Span, ...]
    placed: tuple[int, ...]
    tokens_before: int
    tokens_after: int
    broken: tuple[Span, ...] = ()

    @property
    def keep_rate(self) -> float:
        """Tokens after / tokens before, in [0, 1]; 1 for a text without tokens."""
        return self.tokens_after / self.tokens_before if self.tokens_before else 1.0

    def source_offset(self, place: int) -> int:
        """The offset in the source of the character at `text[place]`.

        A blank put between two kept stretches belongs to the end of the first, so that the source span of any part of
        the text is `source_offset(start)` to `source_offset(end - 1) + 1`, and a little more where it ends in one.
        What stands before the first stretch belongs to its beginning.
        """
        if not 0 <= place < len(self.text):
            raise IndexError(f"There is no character {place} in a text of {len(self.text)}.")
        index = max(bisect_right(self.placed, place) - 1, 0)
        start, end = self.kept[index]
        return min(max(start + place - self.placed[index], start), end)


class Compressor(Protocol):
    """Shortens texts. What it keeps stands in the source in the same order and the same letters (extractive), unless
    its documentation says otherwise."""

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """One result per text, in their order; a result may be empty.

        question: what the texts are wanted for; a compressor may ignore it.
        budget_tokens: for all texts together, counted text by text. Never exceeded.
        keep_rate: tokens after / tokens before of every text, in [0, 1]. Never exceeded. Give one of the two.
        No result is longer than its source, in characters or in tokens. Protected stretches are kept whole while the
        budget allows; those it does not allow are named in `Compressed.broken`.
        Raises ConfigError where none or both limits are given, or one is out of range.
        """


def shares(tokens: Sequence[int], *, budget_tokens: int | None = None, keep_rate: float | None = None) -> list[int]:
    """The budget of each text, from the limits of `Compressor.compress` and the tokens of each text.

    A total is shared in proportion to the lengths; no share exceeds the length of its text.
    """
    if (budget_tokens is None) == (keep_rate is None):
        raise ConfigError(
            f"Give either budget_tokens or keep_rate; they are {budget_tokens!r} and {keep_rate!r}. "
            "For example keep_rate=0.33 for a third of every text."
        )
    if keep_rate is not None:
        if not 0 <= keep_rate <= 1:
            raise ConfigError(f"keep_rate is {keep_rate}; it is tokens after / tokens before, in [0, 1].")
        return [int(count * keep_rate + 1e-9) for count in tokens]
    assert budget_tokens is not None
    if budget_tokens < 0:
        raise ConfigError(f"budget_tokens is {budget_tokens}; it must be 0 or more.")
    total = sum(tokens)
    if total <= budget_tokens:
        return list(tokens)
    # Rounded along the running total, so that no token of the budget is lost to rounding down every share.
    ends = [budget_tokens * done // total for done in np.cumsum([0, *tokens]).tolist()]
    return [min(end - start, count) for start, end, count in zip(ends, ends[1:], tokens, strict=False)]


# ---- writing down what is kept ---------------------------------------------------------------------------------------


def render(text: str, spans: Sequence[Span]) -> tuple[str, tuple[Span, ...], tuple[int, ...]]:
    """The kept stretches as one text.

    spans: ascending, not overlapping.
    Returns the text, the stretches (neighbours with only white space between them joined, with that space), and where
    each begins in the text. In place of what is left out stands a line break where a paragraph ended in it, a space
    where it held white space or where two words would grow together, else nothing; and nothing before a full stop.
    """
    kept: list[Span] = []
    placed: list[int] = []
    pieces: list[str] = []
    length = 0
    start = end = -1
    for a, b in spans:
        if end >= 0:
            gap = text[end:a]
            if not gap or gap.isspace():
                end = b
                continue
            kept.append((start, end))
            placed.append(length)
            pieces.append(text[start:end])
            blank = _blank(text, gap, end, a)
            pieces.append(blank)
            length += end - start + len(blank)
        start, end = a, b
    if end >= 0:
        kept.append((start, end))
        placed.append(length)
        pieces.append(text[start:end])
    return "".join(pieces), tuple(kept), tuple(placed)


def _blank(text: str, gap: str, end: int, start: int) -> str:
    """What stands between text[:end] and text[start:] in place of the gap, which is not empty: one character or none,
    so that the result is never longer than the source."""
    before, after = text[end - 1], text[start]
    if before.isspace() or after.isspace() or after in _CLOSING:
        return ""
    if "\n" in gap and gap.replace(" ", "").replace("\r", "").find("\n\n") >= 0:
        return "\n"
    if any(map(str.isspace, gap)):
        return " "
    return " " if before.isalnum() and after.isalnum() and not (unspaced(before) and unspaced(after)) else ""


def unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces between words."""
    return (
        "\u3040" <= character <= "\u30ff"  # kana
        or "\u3400" <= character <= "\u4dbf"
        or "\u4e00" <= character <= "\u9fff"  # Han
        or "\uf900" <= character <= "\ufaff"
        or "\uff66" <= character <= "\uff9d"
        or "\u0e00" <= character <= "\u0eff"  # Thai, Lao
        or "\u1000" <= character <= "\u109f"  # Myanmar
        or "\u1780" <= character <= "\u17ff"  # Khmer
        or "\U00020000" <= character <= "\U0003ffff"
    )


def whole(text: str, tokens: int) -> Compressed:
    """The result that keeps everything."""
    return Compressed(text, ((0, len(text)),) if text else (), (0,) if text else (), tokens, tokens)


# ---- choosing under a budget -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Units:
    """What a compressor chooses from: stretches of one text, ascending and not overlapping; all arrays of length n.

    starts, ends: int64 offsets.
    scores: float64, higher is kept first.
    ranks: int64; a unit of a higher rank is kept before all of lower ranks, whatever the scores. 0 is free choice.
    groups: int64; units of one group >= 0 follow one another and are kept together (a table, a quotation); -1 alone.
    echoes: int64; of units that carry the same number >= 0, one that directly follows another among the kept ones is
    left out (runs of forced full stops); -1 never is.
    """

    starts: Ints
    ends: Ints
    scores: Floats
    ranks: Ints
    groups: Ints
    echoes: Ints

    @classmethod
    def of(
        cls,
        spans: Sequence[Span],
        scores: Sequence[float] | Floats,
        ranks: Sequence[int] | Ints | None = None,
        groups: Sequence[int] | Ints | None = None,
        echoes: Sequence[int] | Ints | None = None,
    ) -> Units:
        n = len(spans)
        edges = np.array(spans, np.int64).reshape(n, 2)
        return cls(
            edges[:, 0].copy(),
            edges[:, 1].copy(),
            np.asarray(scores, np.float64),
            np.zeros(n, np.int64) if ranks is None else np.asarray(ranks, np.int64),
            np.full(n, -1, np.int64) if groups is None else np.asarray(groups, np.int64),
            np.full(n, -1, np.int64) if echoes is None else np.asarray(echoes, np.int64),
        )

    def __len__(self) -> int:
        return len(self.starts)


def keep_best(text: str, units: Units, *, budget_tokens: int, tokens_before: int, count: Count) -> Compressed:
    """The best units of a text that fit a budget.

    By rank, then score, then place; so what a small budget keeps, a larger one keeps too, as long as no group is at
    stake and `count` does not fall when a text grows. A group that does not fit beside what is kept before it loses its
    protection: its units compete by their own scores.
    Never above budget_tokens by `count`, and never longer than the text. Time is linear in the text, with two to a
    dozen counts of the result.
    """
    if budget_tokens >= tokens_before:
        return whole(text, tokens_before)
    search = _Search(text, units, _items(text, units, budget_tokens, count), budget_tokens, count)
    fit = search.longest()
    return Compressed(fit.text, fit.kept, fit.placed, tokens_before, fit.tokens, _broken(units, search.units_in(fit)))


@dataclass(frozen=True, slots=True)
class _Items:
    """Units in the order in which they are kept, those of a group as one item.

    order: the numbers of all units; ends: item i is order[ends[i - 1] : ends[i]]; costs: about its tokens.
    """

    order: Ints
    ends: Ints
    costs: Floats


def _items(text: str, units: Units, budget: int, count: Count) -> _Items:
    costs = _costs(text, units, count)
    groups, scores, ranks = units.groups.copy(), units.scores.copy(), units.ranks.copy()
    grouped = np.flatnonzero(groups >= 0)
    if len(grouped):
        numbers, first, place = np.unique(groups[grouped], return_index=True, return_inverse=True)
        sizes = np.bincount(place)
        last = len(place) - 1 - np.unique(groups[grouped][::-1], return_index=True)[1]
        means = np.bincount(place, scores[grouped]) / sizes
        highest = np.zeros(len(numbers), np.int64)
        np.maximum.at(highest, place, ranks[grouped])
        starts, ends = units.starts[grouped[first]].tolist(), units.ends[grouped[last]].tolist()
        counted: dict[str, int] = {}
        prices = np.array([_counted(text[a:b], counted, count) for a, b in zip(starts, ends, strict=True)], np.float64)
        costs[grouped] = prices[place] / sizes[place]
        scores[grouped], ranks[grouped] = means[place], highest[place]
        order = np.lexsort((units.starts, groups, -scores, -ranks))
        used = np.concatenate([[0.0], np.cumsum(costs[order])])
        before = np.empty(len(units))
        before[order] = used[:-1]
        freed = 0.0  # by groups that do not fit, which then are not in the way of the next
        for g in np.lexsort((starts, -means, -highest)).tolist():
            if before[grouped[first[g]]] - freed + prices[g] > budget:
                members = grouped[place == g]
                groups[members], ranks[members], scores[members] = -1, 0, units.scores[members]
                freed += prices[g]
    order = np.lexsort((units.starts, groups, -scores, -ranks)).astype(np.int64)
    ordered = groups[order]
    last_of_item = np.ones(len(order), np.bool_)
    last_of_item[:-1] = (ordered[1:] != ordered[:-1]) | (ordered[:-1] < 0)
    ends_of_items = np.flatnonzero(last_of_item) + 1
    sums = np.concatenate([[0.0], np.cumsum(costs[order])])
    return _Items(order, ends_of_items, np.diff(sums[np.concatenate([[0], ends_of_items])]))


def _costs(text: str, units: Units, count: Count) -> Floats:
    """About how many tokens each unit adds. Equal units are counted once: long texts repeat most of their words."""
    counted: dict[str, int] = {}
    # With a space before them, as most will stand: tokenizers price the first word of a text differently.
    spans = zip(units.starts.tolist(), units.ends.tolist(), strict=True)
    return np.array([_counted(" " + text[a:b], counted, count) for a, b in spans], np.float64)


def _counted(text: str, counted: dict[str, int], count: Count) -> int:
    tokens = counted.get(text)
    if tokens is None:
        tokens = counted[text] = count(text)
    return tokens


def _broken(units: Units, chosen: Bools) -> tuple[Span, ...]:
    """The protected stretches of which something is not among the chosen units."""
    missing = ~chosen & ((units.ranks > 0) | (units.groups >= 0))
    groups = np.unique(units.groups[missing])
    found = list(zip(units.starts[missing].tolist(), units.ends[missing].tolist(), strict=True))
    if len(groups) and groups[-1] >= 0:
        found = [span for span, group in zip(found, units.groups[missing].tolist(), strict=True) if group < 0]
        at_stake = np.flatnonzero(np.isin(units.groups, groups[groups >= 0]))
        _, first, size = np.unique(units.groups[at_stake], return_index=True, return_counts=True)
        last = at_stake[first + size - 1]  # the units of a group follow one another
        found += zip(units.starts[at_stake[first]].tolist(), units.ends[last].tolist(), strict=True)
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class _Fit:
    text: str
    kept: tuple[Span, ...]
    placed: tuple[int, ...]
    tokens: int
    items: int


class _Search:
    """Looks for how many items a budget allows."""

    def __init__(self, text: str, units: Units, items: _Items, budget: int, count: Count) -> None:
        self._text, self._units, self._items, self._budget, self._count = text, units, items, budget, count

    def longest(self) -> _Fit:
        """The longest beginning of the items whose rendering fits, or one that leaves next to nothing of the budget.

        The tokens of further items are predicted from their costs and corrected by what was counted before; where
        four predictions were not good enough, halving takes over.
        """
        sums = np.concatenate([[0.0], np.cumsum(self._items.costs)])
        fits, too_many = _Fit("", (), (), 0, 0), len(self._items.ends) + 1
        scale, tries = 1.0, 0  # tokens per unit of cost
        while too_many - fits.items > 1 and self._budget - fits.tokens > _SLACK * self._budget:
            reach = sums[fits.items] + (self._budget - fits.tokens) / scale
            guess = int(np.searchsorted(sums, reach, side="right")) - 1 if tries < 4 else (fits.items + too_many) // 2
            guess = min(max(guess, fits.items + 1), too_many - 1)
            fit = self._rendered(guess)
            more, cost = fit.tokens - fits.tokens, sums[guess] - sums[fits.items]
            if more > 0 and cost > 0:
                scale = more / cost
            if fit.tokens <= self._budget:
                fits = fit
            else:
                too_many = guess
            tries += 1
        return fits

    def units_in(self, fit: _Fit) -> Bools:
        chosen = np.zeros(len(self._units), np.bool_)
        chosen[self._first(fit.items)] = True
        return chosen

    def _first(self, items: int) -> Ints:
        return self._items.order[: self._items.ends[items - 1] if items else 0]

    def _rendered(self, items: int) -> _Fit:
        units, chosen = self._units, np.sort(self._first(items))
        echoes = units.echoes[chosen]
        repeated = np.zeros(len(chosen), np.bool_)
        repeated[1:] = (echoes[1:] == echoes[:-1]) & (echoes[1:] >= 0)
        chosen = chosen[~repeated]
        spans = list(zip(units.starts[chosen].tolist(), units.ends[chosen].tolist(), strict=True))
        text, kept, placed = render(self._text, spans)
        return _Fit(text, kept, placed, self._count(text) if text else 0, items)
