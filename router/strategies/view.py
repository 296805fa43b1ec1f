"""How notes are shown in a prompt: one line for each item, in whatever room there is, and nothing left out unnamed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .notes import Item, Notes

_SHORTEST_CLIP = 40  # characters left of a quotation, where room is short
_WITHDRAWS = re.compile(r"^(dropped:|replaced by\b)", re.IGNORECASE)  # what only we may say of an item


@dataclass(frozen=True, slots=True)
class View:
    """Notes as shown in a prompt, one line each.

    lines: id of the document an item stands in, empty where none or several; and the text.
    left_out: numbers of the items that had no room. shortened: not everything is shown as it is.
    """

    lines: tuple[tuple[str, str], ...] = ()
    left_out: tuple[int, ...] = ()
    shortened: bool = False

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@dataclass(frozen=True, slots=True)
class _Style:
    """remarks: whether shown. withdrawn: whether quotations that were dropped or corrected are. clip: longest
    quotation, in characters. left_out: items that are only named.
    """

    remarks: bool = True
    withdrawn: bool = True
    clip: int | None = None
    left_out: frozenset[int] = field(default_factory=frozenset)


def view(
    notes: Notes,
    room_tokens: int,
    count: Callable[[str], int],
    *,
    order: Mapping[str, int] | None = None,
    withdrawn: bool = True,
) -> View:
    """Notes in the room there is: as they are; else without remarks; else with the longest quotations clipped, marked
    by an ellipsis; else with the least important items, the oldest first, only named. Sums of what is counted take no
    more than half of a room that does not hold everything; the smallest are then added up.

    order: place of each document; the items are then in the source's order and say which document they are from,
    where there are several. None: in the order of their numbers, for those who go on with them.
    withdrawn: whether items that were dropped or corrected are listed too.
    """
    items = [item for item in notes.items if withdrawn or item.stands]
    if order is not None:
        items.sort(key=lambda item: _in_source(item, order))
    rows = [_row(item, names=order is not None and len(order) > 1) for item in items]
    totals = _totals(items)
    if count(_rendered(rows, totals, _Style()).text) > room_tokens:
        totals = _most_frequent(totals, room_tokens // 2, count)

    def shown(style: _Style) -> View:
        return _rendered(rows, totals, style)

    def fits(style: _Style) -> bool:
        return count(shown(style).text) <= room_tokens

    for style in (_Style(), _Style(withdrawn=False), _Style(remarks=False, withdrawn=False)):
        if fits(style):
            return shown(style)
    longest = max((len(row.quote or row.remark) for row in rows), default=0)
    clip = _largest(_SHORTEST_CLIP, longest, lambda clip: fits(_Style(False, False, clip)))
    if clip is not None:
        return shown(_Style(False, False, clip))
    ranked = [item.number for item in sorted(items, key=_importance)]

    def without(number: int) -> _Style:
        return _Style(False, False, _SHORTEST_CLIP, frozenset(ranked[:number]))

    kept = _largest(0, len(ranked), lambda kept: fits(without(len(ranked) - kept)))
    return shown(without(len(ranked) - (kept or 0)))


def _largest(low: int, high: int, good: Callable[[int], bool]) -> int | None:
    """A number from low to high that is good while higher ones are not, taking it that there is one limit; or None."""
    best = None
    while low <= high:
        middle = (low + high) // 2
        if good(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def _in_source(item: Item, order: Mapping[str, int]) -> tuple[int, int, int, int]:
    if item.place:
        return item.part, order.get(item.place.document_id, 0), item.place.start, item.number
    return item.part, len(order), item.at, item.number


def _importance(item: Item) -> tuple[int, int]:
    """Least important first. Of what is counted the sum is shown anyway."""
    if not item.stands:
        return 0, item.number
    if item.counted:
        return 1, item.number
    return (3 if item.place else 2), item.number


@dataclass(frozen=True, slots=True)
class _Row:
    """One item, ready to be shown in any style. head: number, document, and what became of it."""

    number: int
    document_id: str
    stands: bool
    head: str
    quote: str
    remark: str
    unsure: str


def _row(item: Item, *, names: bool) -> _Row:
    head = f"[{item.number}]"
    if names and item.place:
        head += f" ({_remark(item.place.document_id)[:60]})"
    if item.counted:
        head += f" COUNT {_remark(item.label)}".rstrip()
    if not item.stands:
        head += f" replaced by [{item.replaced_by}]" if item.replaced_by else f" dropped: {_remark(item.dropped)[:200]}"
    return _Row(
        item.number,
        item.place.document_id if item.place else "",
        item.stands,
        head,
        _one_line(item.quote),
        _WITHDRAWS.sub(r"noted: \1", _remark(item.remark)),
        "" if item.place else " | not found word for word",
    )


def _rendered(rows: Sequence[_Row], totals: _Totals, style: _Style) -> View:
    lines = [("", line) for line in totals.lines]
    lines += ((row.document_id, _shown(row, style)) for row in rows if row.number not in style.left_out)
    if style.left_out:
        lines.append(("", f"Left out for want of room: notes {ranges(style.left_out)}."))
    return View(tuple(lines), tuple(sorted(style.left_out)), totals.shortened or style != _Style())


@dataclass(frozen=True, slots=True)
class _Totals:
    """How often each thing was counted, a line each.

    counts: of each line. shortened: some things have no line of their own.
    """

    lines: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    shortened: bool = False


def _totals(items: Sequence[Item]) -> _Totals:
    """All of them. Occurrences that stand nowhere in the text are told apart."""
    counted = [item for item in items if item.counted and item.stands]
    found = Counter(item.label for item in counted if item.place)
    totals = Counter(item.label for item in counted)
    lines = []
    for label, total in totals.items():
        unsure = total - found[label]
        besides = f", and {unsure} not found word for word in the text" if unsure else ""
        lines.append(f"COUNT {_remark(label) or 'occurrences'}: {found[label]}{besides}")
    return _Totals(tuple(lines), tuple(totals.values()))


def _most_frequent(totals: _Totals, room_tokens: int, count: Callable[[str], int]) -> _Totals:
    """The largest totals that there is room for, and what the others come to together."""
    ranked = sorted(range(len(totals.lines)), key=lambda place: -totals.counts[place])

    def cut(kept: int) -> _Totals:
        left = ranked[kept:]
        if not left:
            return totals
        rest = f"COUNT {len(left)} other things: {sum(totals.counts[place] for place in left)} together"
        return _Totals((*(totals.lines[place] for place in sorted(ranked[:kept])), rest), shortened=True)

    return cut(_largest(0, len(ranked), lambda kept: count("\n".join(cut(kept).lines)) <= room_tokens) or 0)


def _shown(row: _Row, style: _Style) -> str:
    """One item. Its quotation comes last and ends the line, so nothing in it can be taken for a remark of ours."""
    if not row.stands:
        return f'{row.head} | "{row.quote}"' if style.withdrawn and row.quote else row.head
    if not row.quote:
        return f"{row.head} {_clipped(row.remark, style.clip)}"
    remark = f" {row.remark}" if style.remarks and row.remark else ""
    besides = f"{remark}{row.unsure}"
    return f'{row.head}{besides}{" |" if besides else ""} "{_clipped(row.quote, style.clip)}"'


def ranges(numbers: Iterable[int]) -> str:
    """`1, 3-5`: numbers in order, neighbours joined; of very many, how many and from where to where."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(runs) > 30:
        return f"{runs[0][0]}-{runs[-1][1]}, {sum(last - first + 1 for first, last in runs)} of them"
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def without_oldest(text: str, fits: Callable[[str], bool]) -> str:
    """The text without as many sentences at its beginning as it takes to fit, marked; of the last one its end."""
    cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    for start in dict.fromkeys(cuts[:-1]):
        rest = text[start:] if not start else f"[…] {text[start:]}"
        if text[start:].strip() and fits(rest):
            return rest
    length = len(text) - cuts[-2]
    while length and not fits(f"[…] {text[len(text) - length :]}"):
        length //= 2
    return f"[…] {text[len(text) - length :]}" if length else ""


_SENTENCE_END = re.compile(r"[.!?…]+[\"”'’)\]]*\s+|[。！？]|\n+")


def _clipped(text: str, length: int | None) -> str:
    return text if length is None or len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _remark(text: str) -> str:
    return _one_line(text).replace('"', "'").replace("|", "/")


def _one_line(text: str) -> str:
    return " ".join(text.split())
