"""Questions about invented texts that differ in what they ask of a strategy, for the calibration of a small model.

Each text is a page of `key_values.py`. Three things vary, and features can see all of them: the length of the text (a
small model reads worse beyond what it was trained on, where passages are to be preferred), decoys (sentences that
repeat a question's words without its answer, in blocks, so that a search by words spends its budget on them), and
whether the text holds an answer at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .key_values import FIRST, KINDS, Fact, Page, filler, invented_facts

FACTS = 100  # on a page, at most: no two people have the same last name, and there are 120
DECOYS = 36  # sentences in the block of a decoyed question: longer than two retrieved chunks
_DEEDS = ("crosses", "follows", "leaves", "reaches", "needs", "watches")
_PLACES = ("behind", "near", "beside", "beyond")


@dataclass(frozen=True, slots=True)
class Row:
    """One question. kind: `plain`, `decoyed` or `missing`. answer: empty where the text does not say."""

    id: str
    page: str
    kind: str
    question: str
    answer: str
    text: str

    def line(self) -> dict[str, Any]:
        """As `longroute calibrate run` reads it."""
        return {
            "id": self.id,
            "group": self.page,
            "question": self.question,
            "answers": [self.answer] if self.answer else [],
            "documents": [{"id": self.page, "text": self.text}],
            "task": "lookup" if self.answer else "unanswerable",
            "scorer": "contains",
        }


def mixed_questions(seed: int, lengths: Sequence[int], pages_each: int) -> Iterator[Row]:
    """lengths: of texts, in sentences. pages_each: pages of each length, every second of them with decoys.

    Four questions a page: two whose answer is there, decoyed on a page with decoys, one more that is there, one that
    is not.
    """
    rng = random.Random(seed)
    for length in lengths:
        for number in range(pages_each):
            decoyed = number % 2 == 1
            page = _page(rng, length, decoyed=decoyed)
            name = f"page-{length}-{number}"
            asked = [(f, "decoyed" if decoyed else "plain") for f in page.facts[:2]]
            asked += [(page.facts[2], "plain"), (page.missing[0], "missing")]
            for place, (fact, kind) in enumerate(asked):
                answer = "" if kind == "missing" else fact.value
                yield Row(f"{name}-{place}", name, kind, fact.question, answer, page.text)


def _page(rng: random.Random, length: int, *, decoyed: bool) -> Page:
    """A page of about so many sentences; its first two facts have a block of decoys each, where there are decoys."""
    blocks = 2 if decoyed else 0
    n_facts = min(FACTS, max(4, length // 8))
    facts = invented_facts(rng, n_facts + 1)
    fillers = max(0, length - n_facts - blocks * DECOYS)
    sentences = [fact.sentence for fact in facts[:n_facts]] + [filler(rng) for _ in range(fillers)]
    rng.shuffle(sentences)
    for fact in facts[:blocks]:
        at = rng.randrange(len(sentences) + 1)
        sentences[at:at] = [decoy(rng, fact) for _ in range(DECOYS)]
    return Page(tuple(sentences), tuple(facts[:n_facts]), (facts[n_facts],))


def decoy(rng: random.Random, fact: Fact) -> str:
    """A sentence with every word of the question about a fact that tells one page from another, and no answer.

    First and last name stand apart, so that a reader who looks for the name as asked is not misled.
    """
    first, last = fact.name.split()
    other = rng.choice([name for name in FIRST if name != first])
    return (
        f"The {fact.kind} {rng.choice(_PLACES)} {first} {rng.choice(_DEEDS)} the {rng.choice(KINDS)} "
        f"{rng.choice(_PLACES)} {last} {other}."
    )
