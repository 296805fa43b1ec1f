"""What RAPID does to answers: how often they are right and drafts are kept, by mode and eta, retrieval right or wrong.

    python -m benchmarks.rapid_quality [FOLDER]

FOLDER is the model of `small_model.py`, made where it is not there yet. It is target and drafter at once: the target
reads the prompt of strategy `full`, the drafter that of `rag` with one passage of 20 sentences. Right retrieval: the
passage holds the answer; wrong: it does not, so that the drafter by itself would say that there is none. An answer is
right if it has the numbers that the text has. `exact` is what both rapid modes are at eta 0.
Drafts of 4 tokens, as in requests that must be reproducible. Writes results/rapid_quality.md. Some minutes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longroute.router.core import Document, Message, Passage
from longroute.router.prompts import full_messages, rag_messages
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.laws import Law
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.speculative import Side, Speculation, SpeculativeDecoding
from longroute.router.runner.tokenizer import Tokenizer

from .key_values import Fact, Page
from .machine import measured_on
from .small_model import FOLDER, make, page_of

RESULTS = Path(__file__).parent / "results" / "rapid_quality.md"
LENGTHS = (1000, 4000, 8000)
QUESTIONS = 16
ETAS = (2.0, 5.0, 10.0, 20.0, 50.0)
TEMPERATURES = (0.0, 1.0)
DRAFT_TOKENS, MOST_TOKENS = 4, 24
PASSAGE_SENTENCES = 20


@dataclass(frozen=True, slots=True)
class Case:
    """A question with what the target reads and what the drafter reads, as token ids.

    held: for each of the three, a cache with all of it but the last token.
    """

    fact: Fact
    full: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    held: Mapping[tuple[int, ...], Any]

    def retrieved(self, retrieval: str) -> tuple[int, ...]:
        return self.right if retrieval == "right" else self.wrong

    def cache(self, prompt: tuple[int, ...]) -> Any:
        """A copy of the cache for a prompt, with room for an answer."""
        return self.held[prompt].copy_first(len(prompt) - 1, len(prompt) + MOST_TOKENS)


@dataclass
class Score:
    asked: int = 0
    right: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    emitted: int = 0

    @property
    def accuracy(self) -> str:
        return f"{self.right / self.asked:.2f}"

    @property
    def acceptance(self) -> str:
        return f"{self.accepted / self.drafted:.2f}" if self.drafted else "-"

    @property
    def a_pass(self) -> str:
        return f"{self.emitted / self.passes:.2f}" if self.drafted else "-"


def passage_with(page: Page, rng: random.Random, fact: Fact | None) -> str:
    """Sentences that follow one another in the text; with the fact, or without it where `fact` is None."""
    n = PASSAGE_SENTENCES
    at = rng.randrange(max(1, len(page.sentences) - n))
    if fact is not None:
        place = page.sentences.index(fact.sentence)
        at = min(max(0, place - rng.randrange(n)), max(0, len(page.sentences) - n))
    return " ".join(page.sentences[at : at + n])


def cases(model: LanguageModel, tokenizer: Tokenizer, n_tokens: int) -> Iterator[Case]:
    for number in range(QUESTIONS):
        rng = random.Random(f"quality {n_tokens} {number}")
        page = page_of(rng, n_tokens)
        fact = rng.choice(page.facts)
        wrong = passage_with(page, rng, None)
        while fact.sentence in wrong:
            wrong = passage_with(page, rng, None)
        full = _ids(tokenizer, full_messages([Document(page.text, "document-1")], fact.question))
        right = _ids(tokenizer, _rag(passage_with(page, rng, fact), fact))
        other = _ids(tokenizer, _rag(wrong, fact))
        yield Case(fact, full, right, other, {prompt: _read(model, prompt) for prompt in (full, right, other)})


def _read(model: LanguageModel, prompt: tuple[int, ...]) -> Any:
    """A cache with all of the prompt but its last token."""
    cache, end = model.new_cache(len(prompt)), len(prompt) - 1
    for start in range(0, end, 2048):
        model.forward(model.tokens(prompt[start : min(start + 2048, end)]), cache)
    return cache


def _rag(passage: str, fact: Fact) -> Sequence[Message]:
    return rag_messages([Passage("document-1", 0, 0, passage)], fact.question)


def _ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[int, ...]:
    return tokenizer.chat_ids([{"role": message.role, "content": message.content} for message in messages])


def laws() -> Iterator[tuple[str, Law]]:
    yield "exact", Law("exact")
    for eta in ETAS:
        yield f"rapid, eta {eta:g}", Law("rapid", eta)
    for eta in ETAS:
        yield f"rapid_consistent, eta {eta:g}", Law("rapid_consistent", eta)


def alone(model: LanguageModel, tokenizer: Tokenizer, case: Case, prompt: tuple[int, ...], temperature: float) -> bool:
    """Whether plain decoding on this prompt answers. Drawn as speculation draws, so with seeds of its own."""
    chance = random.Random(f"{case.fact.name} {temperature}")
    cache, ids = case.cache(prompt), list(prompt)
    for _ in range(MOST_TOKENS):
        logits = model.forward(model.tokens(ids[cache.n_tokens :]), cache)[0, -1]
        if temperature:
            weights = (logits / temperature).softmax(-1).tolist()
            ids.append(chance.choices(range(len(weights)), weights)[0])
        else:
            ids.append(int(logits.argmax()))
        if ids[-1] in model.eos_ids:
            break
    return case.fact.value in tokenizer.decode(ids[len(prompt) :])


def speculate(
    model: LanguageModel, tokenizer: Tokenizer, case: Case, retrieval: str, law: Law, temperature: float, score: Score
) -> None:
    part = case.retrieved(retrieval)
    decoding = SpeculativeDecoding(
        Side(model, case.full, case.cache(case.full)),
        Side(model, part, case.cache(part)),
        max_tokens=MOST_TOKENS,
        speculation=Speculation(law, DRAFT_TOKENS),
        sampling=SamplingOptions(temperature=temperature, seed=score.asked),
    )
    while decoding.prefill():
        pass
    while decoding.step().reason is None:
        pass
    tally = decoding.tally
    score.asked += 1
    score.right += case.fact.value in tokenizer.decode(list(decoding.tokens))
    score.drafted += tally.drafted
    score.accepted += tally.accepted
    score.passes += tally.rounds + tally.plain_steps
    score.emitted += tally.emitted


def table(model: LanguageModel, tokenizer: Tokenizer, n_tokens: int) -> Iterator[str]:
    yield f"\n## Texts of about {n_tokens:,} tokens\n"
    yield (
        "| decoding | retrieval | "
        + " | ".join(f"right, T = {t:g} | kept, T = {t:g} | tokens a pass, T = {t:g}" for t in TEMPERATURES)
        + " |"
    )
    yield "|---|---|" + "---:|" * 3 * len(TEMPERATURES)
    scores: dict[tuple[str, str], dict[float, Score]] = {}

    def score(decoding: str, retrieval: str, temperature: float) -> Score:
        row = scores.setdefault((decoding, retrieval), {t: Score() for t in TEMPERATURES})
        return row[temperature]

    for case in cases(model, tokenizer, n_tokens):
        for temperature in TEMPERATURES:
            for name, retrieval, prompt in (
                ("target alone", "", case.full),
                ("drafter alone", "right", case.right),
                ("drafter alone", "wrong", case.wrong),
            ):
                plain = score(name, retrieval, temperature)
                plain.asked += 1
                plain.right += alone(model, tokenizer, case, prompt, temperature)
            for retrieval in ("right", "wrong"):
                for name, law in laws():
                    mine = score(name, retrieval, temperature)
                    speculate(model, tokenizer, case, retrieval, law, temperature, mine)
    for (name, retrieval), row in scores.items():
        cells = [f"{row[t].accuracy} | {row[t].acceptance} | {row[t].a_pass}" for t in TEMPERATURES]
        yield f"| {name} | {retrieval} | {' | '.join(cells)} |"


def main() -> None:
    torch.set_num_threads(1)
    folder = make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    model, tokenizer = LanguageModel.load(folder, device="cpu"), Tokenizer.load(folder)
    lines = [
        "# What RAPID does to answers\n",
        f"{QUESTIONS} questions for each length, each on a text of its own. Right: share of answers with the numbers "
        "of the text. Kept: share of drafted tokens that were kept, of drafts of "
        f"{DRAFT_TOKENS}. Tokens a pass: emitted for each pass of the target. What is retrieved is set by construction "
        "(see the program's head).",
    ]
    for n_tokens in LENGTHS:
        for line in table(model, tokenizer, n_tokens):
            print(line, flush=True)
            lines.append(line)
    lines.append(f"\n{'; '.join(measured_on('torch', 'transformers').values())}")
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
