"""A scripted model that loses, garbles and invents evidence at stated rates: what multi-call strategies are tried on.

It is a simulation. What it shows is what becomes of evidence on its way through prompts and notes when readers err in
the stated ways; it says nothing on whether a model can reason. The rules below were written down before the first run.

It is told which sentences of the source are evidence (`facts`), and apart from that it sees only its prompt: a fact
is there where its words stand in the prompt in a row (or the first or the last 70 % of them, at least five: passages
are cut somewhere; or its condensed form, which is how free text carries it). T counts the tokens of all fenced text of
the prompt. All draws come from the prompt's content and the seed, so equal prompts get equal replies.

Reading, whatever the task
 1. A fact at position p in [0, 1] of the prompt is noticed with probability 0.98 ** ((1 + T / 4000) (0.4 + 3.6 p (1 -
    p))): 0.97 for notes of 2,000 tokens, 0.90 for a portion of 16,000, 0.83 for 32,000, 0.51 for 128,000, a little more
    at both ends and less in the middle. The sources: quality falls with what is read at once (one model's best was
    16,000 tokens an agent, Chain-of-Agents; RULER calls a length effective where the score is at least 85.6, and few
    models reach more than 32,000 to 64,000), position matters (Chain-of-Agents measured a spread of 6 points). The
    formula and its constants are our choice.
 2. 0.3 sentences per 1,000 tokens read that are no evidence are taken for evidence (Poisson). Our choice.
 3. At most 20 sentences are reported in one reply, chosen at random among those noticed, in the text's order: the
    limit on what it holds. Our choice.
 4. With probability 0.02 a sentence that is written down is garbled: every other word is wrong, so it is lost. The same
    for quotes and for free text. Our choice.

Structured notes, where the prompt asks for lines like `EVIDENCE: "quote" | what it shows`
 5. The reply has one line per reported sentence, copied word for word. With probability 0.05 one word of it is missing.
 6. With probability 0.05 a line breaks the format: no keyword, no quotes, or prose with the condensed sentence only.
 7. With probability 0.02 the whole reply ignores the format: prose with the condensed sentences.
 8. For every item among the notes it is shown: wrongly dropped with probability 0.003, wrongly corrected (it says that
    some sentence of its part takes the item's place) with probability 0.003. Our choice: models asked for additions
    still meddle. What the notes say was dropped or replaced is not there for anybody who reads them.
 9. With nothing to report it says NOTHING. It never says COMPLETE and never counts.

Free text, where the prompt asks for one updated summary
10. New sentences are condensed: without the words that carry no meaning, about 60 % of the length.
11. Every sentence of the previous notes survives the rewriting with probability 0.97. Chain-of-Agents' later version is
    recalled to report losses of 1 to 4 % (not checked); whether that is by rewriting or by sample is not known.
12. What does not fit into 90 % of the call's output limit is left out, sentences chosen at random: what a writer takes
    for evidence it takes for equally important. Asked for a shorter summary it does the same without new sentences.

Copying, where the prompt asks for sentences word for word (retrieve_then_reason)
13. One line per reported sentence, numbered as asked; rules 1 to 5 hold. Nothing noticed: the word that was asked for.

Answering, everywhere else
14. The two first facts noticed, condensed, at most 40 words together; none noticed: the refusal that was asked for.

Every reply ends at the call's output limit, in the middle of a line if need be, and says so (`length`).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from longroute.router.core import Backend, Call, Reply, TokenCounter, Usage
from longroute.router.prompts import NO_EVIDENCE, REFUSAL
from longroute.router.tokens import counter_for

_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by did do does for from had has have he her him his i in is it its just me "
        "my of on or our she so some such that the their them then there they this to um uh us was we were what when "
        "where which who will with would yeah you your",
    )
)
"""Words that free text can do without."""

Task = Literal["answer", "lines", "summary", "copy"]
_NOTES = ("notes", "previous summary", "summary")
"""What fences of notes are labelled; all others are of the source."""
_ITEM = re.compile(r"^\[(\d+)\] ", re.MULTILINE)
_WITHDRAWN = re.compile(r"^\[\d+\] (?:\([^)\n]*\) )?(?:COUNT [^\n]*)?(?:dropped:|replaced by) [^\n]*$", re.MULTILINE)

_PART = 0.7
_FEWEST_WORDS = 5
_ANSWER_WORDS = 40
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+|\n|$)")
_OPENING = re.compile(r"<(?P<label>[^<>\n]+?) (?P<key>[0-9a-f]{16})(?: name=(?P<name>[^\n]*))?>")


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what goes wrong; each the probability of one event. The numbers in brackets name the rules."""

    notice: float = 0.98  # (1) per 4,000 tokens
    notice_tokens: int = 4000
    invented_per_1000: float = 0.3  # (2)
    most_reported: int = 20  # (3)
    garbled: float = 0.02  # (4)
    slip: float = 0.05  # (5)
    broken_line: float = 0.05  # (6)
    broken_reply: float = 0.02  # (7)
    wrong_drop: float = 0.003  # (8)
    wrong_correction: float = 0.003  # (8)
    survival: float = 0.97  # (11)


@dataclass(frozen=True, slots=True)
class Fence:
    """A text between two lines of ours: `label` and `name` as the opening line has them."""

    label: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A fact in a text. place: where it stands, in [0, 1] of the text; words: what stands there of it."""

    fact: int
    place: float
    words: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One call as the reader saw it. shown, noticed: facts by their numbers."""

    call: Call
    tokens: int
    shown: frozenset[int]
    noticed: frozenset[int]


@dataclass(slots=True)
class SimulatedReader(Backend):
    """facts: the sentences of the source that are evidence. readings: every call so far.

    Tokens are counted by `counter`, the default one if None.
    """

    facts: Sequence[str]
    rates: Rates = Rates()
    seed: int = 0
    counter: TokenCounter | None = None
    readings: list[Reading] = field(default_factory=list)
    _forms: list[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.counter = self.counter or counter_for(None)
        self._forms = [_forms(fact) for fact in self.facts]

    async def generate(self, call: Call) -> Reply:
        prompt = "\n\n".join(message.content for message in call.messages)
        draw = random.Random(hashlib.blake2b(f"{self.seed} {prompt}".encode("utf-8", "surrogatepass")).digest())
        blocks, asked = fences(prompt)
        blocks = [standing(block) for block in blocks]
        tokens = self._count("\n".join(block.text for block in blocks))
        seen = [self.shown(block.text) for block in blocks]
        noticed = [
            [s for s in found if draw.random() < self._notices(tokens, before + share * s.place)]
            for found, (before, share) in zip(seen, _places(blocks), strict=True)
        ]
        said = self._reply(asked, blocks, noticed, call, draw)
        self.readings.append(Reading(call, tokens, _facts(seen), _facts(noticed)))
        limited = self._limited(said, call.max_output_tokens)
        usage = Usage(self._count(prompt), 0, self._count(limited))
        return Reply(limited, usage, "stop" if limited == said else "length", call.model)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        reply = await self.generate(call)
        for word in re.findall(r"\s*\S+|\s+$", reply.text):
            yield word
        yield reply

    async def aclose(self) -> None:
        pass

    def _count(self, text: str) -> int:
        assert self.counter is not None
        return self.counter.count(text)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def shown(self, text: str) -> list[Sighting]:
        """The facts that stand in a text, in its order."""
        plain = f" {_plain(text)} "
        found = []
        for fact, forms in enumerate(self._forms):
            for form in forms:
                if (at := plain.find(f" {form} ")) >= 0:
                    found.append(Sighting(fact, at / len(plain), self.facts[fact] if form == forms[0] else form))
                    break
        return sorted(found, key=lambda sighting: sighting.place)

    def _notices(self, tokens: int, place: float) -> float:
        length = 1 + tokens / self.rates.notice_tokens
        return float(self.rates.notice ** (length * (0.4 + 3.6 * place * (1 - place))))

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _reply(
        self, asked: str, blocks: Sequence[Fence], noticed: list[list[Sighting]], call: Call, draw: random.Random
    ) -> str:
        task = task_of(asked)
        if task == "answer":
            facts = [condensed(sighting.words) for block in noticed for sighting in block]
            said = " ".join(" ".join(facts[:2]).split()[:_ANSWER_WORDS])
            return f"From the text: {said}." if said else REFUSAL
        read = [index for index, block in enumerate(blocks) if block.label not in _NOTES]
        new = self._reported([(blocks[index], noticed[index]) for index in read], draw)
        notes = "\n".join(block.text for block in blocks if block.label in _NOTES)
        if task == "copy":
            return self._copies([blocks[index] for index in read], new, draw)
        if task == "summary":
            return self._rewritten(notes, [sentence for _, sentence in new], call.max_output_tokens, draw)
        others = [match[0] for index in read for match in _SENTENCE.finditer(blocks[index].text)]
        return self._lines(notes, [sentence for _, sentence in new], others, draw)

    def _reported(
        self, read: Sequence[tuple[Fence, Sequence[Sighting]]], draw: random.Random
    ) -> list[tuple[Fence, str]]:
        """The sentences that are taken for evidence, with their blocks, in order (rules 2, 3, 4)."""
        taken = []
        for block, noticed in read:
            places = [(sighting.place, sighting.words) for sighting in noticed]
            sentences = [m for m in _SENTENCE.finditer(block.text) if len(m[0].split()) > _FEWEST_WORDS]
            expected = self.rates.invented_per_1000 * self._count(block.text) / 1000
            invented = draw.sample(sentences, min(_poisson(expected, draw), len(sentences)))
            places += [(m.start() / len(block.text), m[0]) for m in invented]
            taken += [(block, words) for _, words in sorted(places)]
        kept = sorted(draw.sample(range(len(taken)), min(self.rates.most_reported, len(taken))))
        return [
            (taken[i][0], _garbled(taken[i][1]) if draw.random() < self.rates.garbled else taken[i][1]) for i in kept
        ]

    def _quoted(self, sentence: str, draw: random.Random) -> str:
        """One line, word for word but for slips (rule 5). The quotation marks around it are left to the caller."""
        words = sentence.split()
        if len(words) > 1 and draw.random() < self.rates.slip:
            del words[draw.randrange(len(words))]
        return " ".join(words).replace('"', "'")

    def _lines(self, notes: str, new: Sequence[str], others: Sequence[str], draw: random.Random) -> str:
        if new and draw.random() < self.rates.broken_reply:
            return "The text says the following. " + " ".join(f"{condensed(sentence)}." for sentence in new)
        lines = []
        for number in map(int, _ITEM.findall(notes)):
            if draw.random() < self.rates.wrong_drop:
                lines.append(f"DROP {number}: it does not matter to the question")
            elif others and draw.random() < self.rates.wrong_correction:
                lines.append(f'CORRECT {number}: "{self._quoted(draw.choice(others), draw)}" | what is right')
        for sentence in new:
            quote, short = self._quoted(sentence, draw), condensed(sentence)
            line = f'EVIDENCE: "{quote}" | {" ".join(short.split()[:8])}'
            if draw.random() < self.rates.broken_line:
                line = draw.choice([f'"{quote}"', f"EVIDENCE: {quote}", f"The text says: {short}."])
            lines.append(line)
        return "\n".join(lines) or "NOTHING"

    def _rewritten(self, notes: str, new: Sequence[str], max_tokens: int, draw: random.Random) -> str:
        old = [match[0].strip() for match in _SENTENCE.finditer(notes) if _WORD.search(match[0])]
        kept = [sentence for sentence in old if draw.random() < self.rates.survival]
        sentences = [*kept, *(f"{condensed(sentence)}." for sentence in new)]
        tokens = [self._count(f"{sentence} ") for sentence in sentences]
        left_out = set()
        for index in draw.sample(range(len(sentences)), len(sentences)):
            if sum(tokens) <= 0.9 * max_tokens:
                break
            left_out.add(index)
            tokens[index] = 0
        said = " ".join(sentence for index, sentence in enumerate(sentences) if index not in left_out)
        return said or "No evidence so far."

    def _copies(self, read: Sequence[Fence], new: Sequence[tuple[Fence, str]], draw: random.Random) -> str:
        lines = [f"[{read.index(block) + 1}] {self._quoted(sentence, draw)}" for block, sentence in new]
        return "\n".join(lines) or NO_EVIDENCE

    def _limited(self, text: str, max_tokens: int) -> str:
        if self._count(text) <= max_tokens:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._count(text[:middle]) <= max_tokens else (low, middle - 1)
        return text[:low]


# ---- prompts ---------------------------------------------------------------------------------------------------------


def fences(prompt: str) -> tuple[list[Fence], str]:
    """The fenced texts of a prompt, outermost only, and everything else."""
    blocks, others, at = [], [], 0
    while opening := _OPENING.search(prompt, at):
        closing = f"\n</{opening['label']} {opening['key']}>"
        end = prompt.find(closing, opening.end())
        if end < 0:
            break
        blocks.append(Fence(opening["label"], opening["name"] or "", prompt[opening.end() + 1 : end]))
        others.append(prompt[at : opening.start()])
        at = end + len(closing)
    return blocks, "".join(others) + prompt[at:]


def task_of(asked: str) -> Task:
    """What the words outside the fences ask for."""
    if "EVIDENCE:" in asked:
        return "lines"
    if "summary:" in asked.lower():
        return "summary"
    return "copy" if "word for word, in the order" in asked else "answer"


def standing(block: Fence) -> Fence:
    """Notes without the items that were dropped or replaced."""
    return replace(block, text=_WITHDRAWN.sub("", block.text)) if block.label in _NOTES else block


# ---- sentences -------------------------------------------------------------------------------------------------------


def condensed(sentence: str) -> str:
    """A sentence without the words that free text can do without, on one line."""
    words = _WORD.findall(sentence)
    kept = [word for word in words if word.casefold() not in _EMPTY]
    return " ".join(kept if len(kept) >= _FEWEST_WORDS - 1 else words)


def _forms(fact: str) -> tuple[str, ...]:
    """What counts as the fact, in plain words: all of it, its condensed form, its first or its last 70 %."""
    words = _plain(fact).split()
    part = max(_FEWEST_WORDS, math.ceil(_PART * len(words)))
    candidates = (words, _plain(condensed(fact)).split(), words[:part], words[-part:])
    return tuple(dict.fromkeys(" ".join(form) for form in candidates))


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _garbled(sentence: str) -> str:
    return " ".join("something" if index % 2 else word for index, word in enumerate(sentence.split()))


def _places(blocks: Sequence[Fence]) -> list[tuple[float, float]]:
    """Where each block begins and how much of the prompt it is, as shares of all fenced text."""
    lengths = [len(block.text) for block in blocks]
    total = max(1, sum(lengths))
    return [(before / total, own / total) for before, own in zip(accumulate([0, *lengths]), lengths, strict=False)]


def _facts(sightings: Sequence[Sequence[Sighting]]) -> frozenset[int]:
    return frozenset(sighting.fact for block in sightings for sighting in block)


def _poisson(mean: float, draw: random.Random) -> int:
    """Knuth's method: means here are far below 700, where exp underflows."""
    limit, product, count = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        count += 1
    return count
