"""The public data sets that the benchmarks read, as questions on long inputs with the evidence that answers them.

The sets are not part of longroute and are not downloaded: set LONGROUTE_DATA to a folder that holds one folder per set,
each with `documents.jsonl.gz` and `questions.jsonl.gz`. What is measured on them is left to the programs beside this.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longroute.router.core import Document

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a document that is needed to answer: `document.text[start:end]`."""

    document_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    text: str
    evidence: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """A long input and the questions asked of it."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]


def data_directory() -> Path | None:
    """Where the data sets are, or None where they are not."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    directory = Path(os.environ.get("LONGROUTE_DATA", beside))
    return directory if directory.is_dir() else None


def records(path: Path) -> Iterator[Record]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def retrieval_pools(data: Path, name: str, n_questions: int, seed: int = 0) -> list[Pool]:
    """About n_questions questions of one of RETRIEVAL_SETS, with the long inputs they are asked of."""
    folder, _, variant = name.partition("-")
    shuffle = random.Random(seed)
    documents = {record["doc_id"]: record for record in records(data / folder / "documents.jsonl.gz")}
    questions = [record for record in records(data / folder / "questions.jsonl.gz") if evidence_of(record)]
    shuffle.shuffle(questions)
    return list(RETRIEVAL_SETS[name](documents, questions, n_questions, variant))


def evidence_of(record: Record) -> tuple[Span, ...]:
    spans = (Span(item["doc_id"], item["start"], item["end"]) for item in record["evidence"] if item["end"] is not None)
    return tuple(dict.fromkeys(spans))


def _pool(documents: Iterable[Record], questions: Iterable[Record]) -> Pool:
    return Pool(
        tuple(Document(d["text"], d["doc_id"], "code" if d["doc_id"].endswith(".py") else "text") for d in documents),
        tuple(Question(q["question_id"], q["question"], evidence_of(q)) for q in questions),
    )


def _paragraphs(documents: dict[str, Record], questions: list[Record], n: int, _: str) -> Iterator[Pool]:
    """The paragraphs of 100 questions make one input of some 110,000 tokens."""
    for first in range(0, n, 100):
        group = questions[first : min(first + 100, n)]
        yield _pool((documents[i] for i in sorted({i for q in group for i in q["doc_ids"]})), group)


def _groups(key: Callable[[Record], str]) -> Callable[..., Iterator[Pool]]:
    """All documents with the same key make one input."""

    def pools(documents: dict[str, Record], questions: list[Record], n: int, variant: str) -> Iterator[Pool]:
        pooled: dict[str, list[Record]] = defaultdict(list)
        for document in documents.values():
            if variant in ("", document["meta"].get("language"), document["meta"].get("lang")):
                pooled[key(document)].append(document)
        for group in pooled.values():
            ids = {document["doc_id"] for document in group}
            asked = [q for q in questions if ids.issuperset(q["doc_ids"])]
            yield _pool(group, asked[: max(1, round(n / len(pooled)))])

    return pools


def _single(documents: dict[str, Record], questions: list[Record], n: int, _: str) -> Iterator[Pool]:
    """Each long document is an input of its own: its questions speak of `this contract` or `the author`."""
    asked: dict[str, list[Record]] = defaultdict(list)
    for question in questions[:n]:
        asked[question["doc_ids"][0]].append(question)
    for doc_id in sorted(asked):
        yield _pool([documents[doc_id]], asked[doc_id])


def _answerable(documents: dict[str, Record], questions: list[Record], n: int, variant: str) -> Iterator[Pool]:
    kept = [question for question in questions if not question["meta"]["unanswerable"]]
    return _single(documents, kept, n, variant)


def _long_contracts(documents: dict[str, Record], questions: list[Record], n: int, variant: str) -> Iterator[Pool]:
    longest = set(sorted(documents, key=lambda doc_id: -len(documents[doc_id]["text"]))[:20])
    return _single(documents, [q for q in questions if q["doc_ids"][0] in longest], n, variant)


RETRIEVAL_SETS: dict[str, Callable[[dict[str, Record], list[Record], int, str], Iterator[Pool]]] = {
    "multihop": _paragraphs,
    "dragonball-en": _groups(lambda document: str(document["meta"]["domain"])),
    "dragonball-zh": _groups(lambda document: str(document["meta"]["domain"])),
    "contractnli": _long_contracts,
    "locomo": _answerable,
    "loogle": _single,
    "swe_qa_flask": _groups(lambda document: "repository"),
    **{f"xquad-{code}": _groups(lambda document: "articles") for code in ("ar", "de", "en", "es", "ru", "zh")},
}
