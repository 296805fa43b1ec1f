"""Real filings, papers and books: what is cited stands where the citation says, word for word."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from longroute import Router
from longroute.router.core import Document
from longroute.router.outputs import DecideOutput, decide_output

DATA = Path(os.environ.get("LONGROUTE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "lara"
KINDS = [(length, kind) for length in ("32k", "128k") for kind in ("financial", "paper", "book")]

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the LaRA documents, which are not part of longroute: set LONGROUTE_DATA"
)


def records(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str], tuple[Document, list[str]]]:
    """One document of each length and kind, with questions about it."""
    texts = {record["doc_id"]: record["text"] for record in records("documents") if record["text"]}
    chosen: dict[tuple[str, str], tuple[Document, list[str]]] = {}
    for case in records("cases"):
        key = (case["length_bucket"], case["context_type"])
        if case["doc_id"] not in texts:
            continue
        document, questions = chosen.setdefault(key, (Document(texts[case["doc_id"]], id=case["doc_id"]), []))
        if document.id == case["doc_id"] and len(questions) < 4:
            questions.append(case["question"])
    return chosen


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_citations_stand_where_they_say(
    kind: tuple[str, str], cases: dict[tuple[str, str], tuple[Document, list[str]]]
) -> None:
    document, questions = cases[kind]
    router = Router(cache=False, embedding_model="none")
    answers = [router.answer(question, [document], allowed=[s]) for question in questions for s in ("full", "rag")]
    for answer in answers:
        for source in (*answer.citations, *answer.passages):
            assert document.text[source.start : source.end] == source.text
        assert bool(answer.citations) == answer.answered
    assert any(answer.answered for answer in answers)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_decisions_fit_the_published_schema(
    kind: tuple[str, str], cases: dict[tuple[str, str], tuple[Document, list[str]]]
) -> None:
    document, questions = cases[kind]
    schema = DecideOutput.model_json_schema(mode="serialization")
    for question in questions:
        decision = Router(cache=False).decide(question, [document], model="gpt-4o")
        jsonschema.validate(json.loads(decide_output(decision).model_dump_json()), schema)
