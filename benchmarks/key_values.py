"""An invented reading task: texts full of people and their numbers, and questions that one sentence of a text answers.

`The code of Ada Birchley is 47 19 82 63.` stands somewhere among sentences about nothing; `What is the code of Ada
Birchley?` asks for it. Everything follows from the generator of chance that is passed in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_WORDS = {
    "first": "Ada Ben Clara Daniel Edith Felix Greta Henry Ines Jonas Karla Leo Mina Nils Olga Paul Rosa Simon Tilda "
    "Victor Wanda Anton Bella Cyrus Dora Emil Flora Gustav Hanna Igor Julia Kasper Lena Moritz Nora Oscar Petra Ralph "
    "Sonja Thomas",
    "start": "Ash Birch Black Bright Cold Elm Fair Green Hart Marsh North Oak Red Stone West",
    "end": "brook field ford ham ley mann ton wood",
    "kind": "code badge locker ticket account permit parcel key",
    "thing": "harbour garden bridge station library river market tower meadow lantern kitchen window valley orchard "
    "bakery museum ferry cellar village forest chapel engine letter carpet mirror basket island corridor fountain "
    "workshop",
    "quality": "quiet narrow empty golden distant wooden broken early heavy gentle crowded pale sudden rusty northern "
    "warm hidden careful modern ancient",
    "deed": "crosses follows leaves faces reaches borders meets keeps outlives shelters needs watches hides repairs "
    "replaces",
    "place": "behind above beside near under beyond before against",
}
FIRST, _STARTS, _ENDS, KINDS, _THINGS, _QUALITIES, _DEEDS, _PLACES = (text.split() for text in _WORDS.values())
LAST = [start + end for start in _STARTS for end in _ENDS]
NUMBERS = [f"{number:02d}" for number in range(100)]


@dataclass(frozen=True, slots=True)
class Fact:
    """kind: what the numbers are. name: whose; first and last name. value: two-digit numbers, like `47 19 82 63`."""

    kind: str
    name: str
    value: str

    @property
    def sentence(self) -> str:
        return f"The {self.kind} of {self.name} is {self.value}."

    @property
    def question(self) -> str:
        return f"What is the {self.kind} of {self.name}?"


@dataclass(frozen=True, slots=True)
class Page:
    """sentences: in the order of the text, one for each fact among them. missing: facts that the text does not have."""

    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]
    missing: tuple[Fact, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def invented_facts(rng: random.Random, n: int, n_numbers: int = 4) -> list[Fact]:
    """Facts about n different people, no two with the same last name. n: at most the number of last names."""
    return [
        Fact(rng.choice(KINDS), f"{rng.choice(FIRST)} {last}", " ".join(rng.choices(NUMBERS, k=n_numbers)))
        for last in rng.sample(LAST, n)
    ]


def filler(rng: random.Random) -> str:
    """A sentence that answers nothing."""
    return (
        f"The {rng.choice(_QUALITIES)} {rng.choice(_THINGS)} {rng.choice(_DEEDS)} the {rng.choice(_QUALITIES)} "
        f"{rng.choice(_THINGS)} {rng.choice(_PLACES)} the {rng.choice(_THINGS)}."
    )


def invented_page(rng: random.Random, n_facts: int, n_fillers: int, n_missing: int = 0) -> Page:
    """A text of n_facts + n_fillers sentences in random order."""
    facts = invented_facts(rng, n_facts + n_missing)
    sentences = [fact.sentence for fact in facts[:n_facts]] + [filler(rng) for _ in range(n_fillers)]
    rng.shuffle(sentences)
    return Page(tuple(sentences), tuple(facts[:n_facts]), tuple(facts[n_facts:]))


def words() -> Sequence[str]:
    """Every word that a page or a question may hold."""
    sample = Fact("code", "Ada", "00")
    rest = f"{sample.sentence} {sample.question}".replace("?", "").replace(".", "").split()
    return [*FIRST, *LAST, *KINDS, *NUMBERS, *_THINGS, *_QUALITIES, *_DEEDS, *_PLACES, *rest]
