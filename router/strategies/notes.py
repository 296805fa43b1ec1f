"""Notes that readers of a long text pass on: what is known after what each of them has reported.

A reader returns additions and corrections; what others have found is kept here, so no reader can lose it by rewriting.
Every item has a number, and a place in the source where its quotation stands there. Nothing is removed: an item that a
reader dropped or corrected is marked so. How notes are shown is left to `view.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..core import Passage
from .quotes import Source, find
from .reports import Line, cleaned

_LEAD = re.compile(r"[^:：\n]{1,80}(?::\d\d[^:：\n]{0,40})?[:：]\s*")  # "Ada (10:30): " before the words of a turn


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is known, or was taken to be.

    number: names it, from 1. part: number of the portion it was found in, from 1; at: where in it, for the order.
    quote: the source's own words where `place` is known; else the reader's. place: where they stand in the source.
    label: of what is counted, one item for each occurrence; empty for evidence.
    replaced_by: number of the item that took its place, or 0. dropped: why a reader dropped it; empty where none did.
    """

    number: int
    part: int
    at: int
    quote: str
    remark: str
    place: Passage | None = None
    counted: bool = False
    label: str = ""
    replaced_by: int = 0
    dropped: str = ""

    @property
    def stands(self) -> bool:
        return not self.replaced_by and not self.dropped


@dataclass(frozen=True, slots=True)
class Notes:
    """Everything that readers have reported, in the order in which they did; item n has the number n of its place."""

    items: tuple[Item, ...] = ()

    def after(self, lines: Iterable[Line], part: int, portion: Sequence[Passage]) -> Notes:
        """The notes with a reader's report added. portion: what the reader was shown."""
        merging = _Merging(self.items, part, portion)
        for line in lines:
            merging.add(line)
        return Notes(tuple(merging.items))

    def with_passages(self, passages: Iterable[Passage], part: int) -> Notes:
        """The notes with stretches of the source added that a backend itself has pointed out."""
        items = list(self.items)
        known = {(item.place.document_id, item.place.start, item.place.end) for item in items if item.place}
        for passage in passages:
            if (key := (passage.document_id, passage.start, passage.end)) not in known:
                known.add(key)
                items.append(Item(len(items) + 1, part, passage.start, passage.text, "", passage))
        return Notes(tuple(items))

    def numbered_from(self, first: int) -> Notes:
        """The same notes with other numbers, for when notes of several readers are shown together."""
        by = first - 1
        return Notes(
            tuple(
                replace(item, number=item.number + by, replaced_by=item.replaced_by + by if item.replaced_by else 0)
                for item in self.items
            )
        )

    @property
    def standing(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.stands)

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Where the standing items are in the source, by document and place; what lies within another is left out."""
        places = [item.place for item in self.items if item.stands and item.place]
        found: list[Passage] = []
        for place in sorted(places, key=lambda place: (place.document_id, place.start, -place.end)):
            if not found or not _within(place, found[-1]):
                found.append(place)
        return tuple(found)


class _Merging:
    """The items while a report is being added."""

    def __init__(self, items: Sequence[Item], part: int, portion: Sequence[Passage]) -> None:
        self.items = list(items)
        self._part = part
        self._portion = portion
        self._shown = "\n".join(passage.text for passage in portion)
        self._source = Source(self._shown)
        self._starts = [0, *accumulate(len(passage.text) + 1 for passage in portion)]
        self._after: dict[tuple[str, str], int] = {}  # label and words counted → where they were found last
        self._by_words: dict[tuple[bool, str, str], int] = {}
        self._by_document: dict[str, list[int]] = defaultdict(list)
        for item in self.items:
            self._know(item)

    def add(self, line: Line) -> None:
        if line.form == "drop":
            for target in line.targets:
                if (old := self._standing(target)) and line.remark:
                    self.items[target - 1] = replace(old, dropped=cleaned(line.remark))
        elif line.form == "correct":
            self._correct(line)
        else:
            for item in self._items(line):
                self._merge(item)

    def _correct(self, line: Line) -> None:
        """A new item in place of those that it corrects.

        Words that stand nowhere do not take the place of words that do: then both are kept.
        """
        olds = [old for target in line.targets if (old := self._standing(target))]
        if not line.quote and not line.remark:
            return
        new, *beyond = self._items(line)
        if new.place is None and olds and olds[0].place and (not new.quote or find(new.quote, olds[0].quote)):
            new = replace(olds[0], remark=new.remark or olds[0].remark)  # another remark on the same words
        if olds:
            new = replace(new, counted=olds[0].counted, label=olds[0].label)
        replaced = [old for old in olds if new.place is not None or old.place is None]
        if len(replaced) < len(olds):
            kept = ", ".join(f"[{old.number}]" for old in olds if old not in replaced)
            new = replace(new, remark=f"against {kept}: {new.remark}".strip(": "))
        for old in replaced:
            self.items[old.number - 1] = replace(old, replaced_by=-1)  # so that it is not merged with itself
        number = self._merge(new)
        for old in replaced:
            self.items[old.number - 1] = replace(old, replaced_by=number)
        for item in beyond:
            self._merge(item)

    def _standing(self, number: int) -> Item | None:
        item = self.items[number - 1] if 1 <= number <= len(self.items) else None
        return item if item and item.stands else None

    def _items(self, line: Line) -> list[Item]:
        """What a line says; of a quotation that goes on in the next document an item for each, the longest first."""
        quote, remark = cleaned(line.quote), cleaned(line.remark)
        counted = line.form == "count"
        found = self._locate(line.quote, line.label) if counted else self._locate(line.quote)
        if found is None:
            if not line.marked:
                quote, remark = "", " | ".join(filter(None, (quote, remark)))
            return [Item(0, self._part, len(self._shown), quote, remark, None, counted, line.label)]
        places = self._passages(*found)
        return [
            Item(0, self._part, found[0], place.text, remark, place, counted, line.label)
            for place in (places[:1] if counted else places)
        ]

    def _locate(self, quote: str, label: str | None = None) -> tuple[int, int] | None:
        """Where a quotation stands in the portion.

        label: of an occurrence that is counted; the same words again are then the next occurrence.
        """
        if not quote:
            return None
        key = (label or "", quote)
        after = self._after.get(key, 0) if label is not None else 0
        for words in (quote.strip(), _LEAD.sub("", quote, count=1).strip()):
            place = _exact(self._shown, words, after) if words else None
            if place is None and after:  # said again of words that do not stand there again
                place = _exact(self._shown, words, 0) if words else None
            if place is None and (found := self._source.find(words)):
                place = found.start, found.end
            if place is not None:
                if label is not None:
                    self._after[key] = place[1]
                return place
        return None

    def _passages(self, start: int, end: int) -> list[Passage]:
        """A stretch of the portion as stretches of its documents, the longest first."""
        found = []
        for passage, first in zip(self._portion, self._starts, strict=False):
            low, high = max(start - first, 0), min(end - first, len(passage.text))
            if low < high and passage.text[low:high].strip():
                text = passage.text[low:high]
                found.append(Passage(passage.document_id, passage.start + low, passage.start + high, text))
        return sorted(found, key=lambda passage: passage.start - passage.end)

    def _merge(self, item: Item) -> int:
        """Add an item, or add what it says to the one that says the same. Returns the number of either."""
        if not item.quote and not item.remark:
            return 0
        if (number := self._twin(item)) is not None:
            twin = self.items[number - 1]
            remark = twin.remark
            if _plain(item.remark) not in _plain(remark):
                remark = f"{remark}; {item.remark}".strip("; ")
            if item.place and twin.place and _within(twin.place, item.place):
                twin = replace(twin, place=item.place, quote=item.quote, at=item.at, part=item.part)
            self.items[number - 1] = replace(twin, remark=remark)
            return number
        item = replace(item, number=len(self.items) + 1, replaced_by=0, dropped="")
        self.items.append(item)
        self._know(item)
        return item.number

    def _know(self, item: Item) -> None:
        before = self._by_words.get(_key(item))
        if before is None or not self.items[before - 1].stands:
            self._by_words[_key(item)] = item.number
        if item.place:
            self._by_document[item.place.document_id].append(item.number)

    def _twin(self, item: Item) -> int | None:
        """The standing item that says the same: the same place in the source, or the same words of unknown place."""
        if item.place:
            for number in self._by_document[item.place.document_id]:
                other = self.items[number - 1]
                assert other.place
                if (
                    other.stands
                    and (other.counted, other.label) == (item.counted, item.label)
                    and (_within(item.place, other.place) or _within(other.place, item.place))
                    and (not item.counted or item.place == other.place)
                ):
                    return number
            return None
        number = self._by_words.get(_key(item), 0)
        return number if number and self.items[number - 1].stands else None


def _exact(text: str, words: str, after: int) -> tuple[int, int] | None:
    """The first place of the words behind `after`, not inside other words; white space may differ."""
    first, last = words[0], words[-1]
    pattern = r"\s+".join(map(re.escape, words.split()))
    before = r"(?<![^\W_])" if first.isascii() and first.isalnum() else ""
    behind = r"(?![^\W_])" if last.isascii() and last.isalnum() else ""
    match = re.compile(f"{before}{pattern}{behind}").search(text, after)
    return match.span() if match else None


def _key(item: Item) -> tuple[bool, str, str]:
    return item.counted, item.label, _plain(item.quote or item.remark)


def _within(inner: Passage, outer: Passage) -> bool:
    return inner.document_id == outer.document_id and outer.start <= inner.start and inner.end <= outer.end


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
