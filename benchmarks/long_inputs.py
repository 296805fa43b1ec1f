"""Long inputs of a chosen length around questions whose evidence is known: what multi-call strategies are tried on.

An input is the documents of some questions, and other documents of the same set between them up to the length; where a
set is too small for that, documents of the other sets. A document is a meeting (qmsum), a paragraph (multihop), a
session of a conversation (locomo; the sessions of one conversation keep their order, others come between) or an article
(loogle). Where a question's own documents are longer than the input, they are cut to a stretch that holds the evidence;
a question whose evidence does not fit is left out. What the data has as evidence is taken as it is: sentences in
multihop and loogle, turns in locomo, ranges of turns in qmsum (only questions on a part of a meeting have one).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from longroute.router.core import Document

from .data import Pool, Question, Span, evidence_of, records

SETS = ("qmsum", "multihop", "locomo", "loogle")
CHARACTERS_PER_TOKEN = 4.2
PLACE = 2000
"""Characters within which pieces of evidence stand at one place: about what one retrieved chunk covers."""
SPREAD = 3
"""Evidence at so many places is spread, at fewer concentrated."""
_FEWEST_WORDS = 6  # a shorter sentence may stand anywhere
_SESSION = re.compile(r"^DATE: ", re.MULTILINE)
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|\n|$|[.!?]+)")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its own documents, which stand in this order wherever they stand."""

    question: Question
    documents: tuple[Document, ...]


def long_inputs(data: Path, name: str, tokens: int, n_questions: int, seed: int = 0) -> list[Pool]:
    """Inputs of about so many tokens with n_questions in all, half of them with spread evidence as far as there are."""
    draw = random.Random(f"{seed} {name} {tokens}")
    room = round(tokens * CHARACTERS_PER_TOKEN)
    sources = {other: _documents(data, other) for other in SETS}
    chosen = _balanced(_asked(data, name, sources[name], room, draw), n_questions)
    others = [_shuffled(sources[other], draw) for other in (name, *(o for o in SETS if o != name))]
    fillers = [document for documents in others for document in documents]
    return [_pool(group, fillers, room, draw) for group in _groups(chosen, room)]


def places(question: Question) -> int:
    """At how many places the evidence stands."""
    count, last = 0, None
    for span in sorted(question.evidence, key=lambda span: (span.document_id, span.start)):
        for start in range(span.start, span.end, PLACE):
            if last is None or span.document_id != last[0] or start - last[1] >= PLACE:
                count, last = count + 1, (span.document_id, start)
    return count


def facts(question: Question, documents: Sequence[Document]) -> list[str]:
    """The sentences of the evidence with at least six words; a piece of evidence without any is a fact as a whole."""
    texts = {document.id: document.text for document in documents}
    found: list[str] = []
    for span in question.evidence:
        piece = texts[span.document_id][span.start : span.end]
        sentences = [match[0].strip() for match in _SENTENCE.finditer(piece)]
        found += [s for s in sentences if len(s.split()) >= _FEWEST_WORDS] or [" ".join(piece.split())]
    return list(dict.fromkeys(found))


def _documents(data: Path, name: str) -> dict[str, Document]:
    """By id; a session's id is the conversation's, a `#` and the offset that it begins at."""
    texts = {record["doc_id"]: record["text"] for record in records(data / name / "documents.jsonl.gz")}
    starts = {doc_id: [m.start() for m in _SESSION.finditer(text)] or [0] for doc_id, text in texts.items()}
    return {
        f"{doc_id}#{start}": Document(texts[doc_id][start:end], f"{doc_id}#{start}")
        for doc_id in texts
        for start, end in pairwise([*starts[doc_id], len(texts[doc_id])])
    }


def _asked(data: Path, name: str, documents: dict[str, Document], room: int, draw: random.Random) -> Iterator[_Asked]:
    sessions: dict[str, list[Document]] = {}
    for document in documents.values():
        sessions.setdefault(document.id.partition("#")[0], []).append(document)
    questions = [record for record in records(data / name / "questions.jsonl.gz") if evidence_of(record)]
    draw.shuffle(questions)
    for record in questions:
        if record.get("meta", {}).get("unanswerable"):
            continue
        own = tuple(document for doc_id in record["doc_ids"] for document in sessions[doc_id])
        evidence = tuple(span for old in evidence_of(record) for span in _moved(old, sessions[old.document_id]))
        asked = _fitted(_Asked(Question(record["question_id"], record["question"], evidence), own), room, draw)
        if asked is not None:
            yield asked


def _moved(span: Span, sessions: Sequence[Document]) -> Iterator[Span]:
    """A span of a whole conversation as one of its session."""
    for session in sessions:
        start = span.start - int(session.id.partition("#")[2])
        if 0 <= start < len(session.text):
            yield Span(session.id, start, min(len(session.text), start + span.end - span.start))


def _fitted(asked: _Asked, room: int, draw: random.Random) -> _Asked | None:
    """Where the documents are too long, with those between the pieces of evidence, or a stretch of the only one."""
    if sum(len(document.text) for document in asked.documents) <= room:
        return asked
    evidence = asked.question.evidence
    ids = {span.document_id for span in evidence}
    needed = [index for index, document in enumerate(asked.documents) if document.id in ids]
    kept = asked.documents[needed[0] : needed[-1] + 1]
    if sum(len(document.text) for document in kept) <= room:
        return replace(asked, documents=kept)
    first, last = min(span.start for span in evidence), max(span.end for span in evidence)
    if len(kept) > 1 or last - first > room:
        return None
    start = draw.randint(max(0, last - room), min(first, len(kept[0].text) - room))
    cut = replace(kept[0], text=kept[0].text[start : start + room])
    moved = tuple(Span(span.document_id, span.start - start, span.end - start) for span in evidence)
    return _Asked(replace(asked.question, evidence=moved), (cut,))


def _balanced(asked: Iterator[_Asked], n: int) -> list[_Asked]:
    taken: dict[bool, list[_Asked]] = {True: [], False: []}
    for one in asked:
        taken[places(one.question) >= SPREAD].append(one)
        if min(len(both) for both in taken.values()) >= n:
            break
    spread = taken[True][: n // 2]
    return [*spread, *taken[False][: n - len(spread)]]


def _groups(chosen: Sequence[_Asked], room: int) -> list[list[_Asked]]:
    """Questions that share an input: as many as have room for their own documents in a third of it."""
    groups: list[list[_Asked]] = []
    size = room
    for asked in chosen:
        own = sum(len(document.text) for document in asked.documents)
        if not groups or size + own > room / 3:
            groups.append([])
            size = 0
        groups[-1].append(asked)
        size += own
    return groups


def _pool(group: Sequence[_Asked], fillers: Sequence[Document], room: int, draw: random.Random) -> Pool:
    """The documents of the questions and others at random places; those of one conversation keep their order."""
    own = list({document.id: document for asked in group for document in asked.documents}.values())
    ids = {document.id for document in own}
    left = room - sum(len(document.text) for document in own)
    added = []
    for document in fillers:
        if left <= 0:
            break
        if document.id not in ids:
            added.append(replace(document, text=document.text[:left]))
            left -= len(document.text)
    documents = draw.sample([*own, *added], len(own) + len(added))
    return Pool(tuple(_in_order(documents)), tuple(asked.question for asked in group))


def _in_order(documents: Sequence[Document]) -> list[Document]:
    """The sessions of a conversation in their order, at the places where some of them stood."""
    source = {document.id: document.id.partition("#") for document in documents}
    waiting: dict[str, list[Document]] = {}
    for document in sorted(documents, key=lambda document: -int(source[document.id][2])):
        waiting.setdefault(source[document.id][0], []).append(document)
    return [waiting[source[document.id][0]].pop() for document in documents]


def _shuffled(documents: dict[str, Document], draw: random.Random) -> list[Document]:
    return draw.sample(list(documents.values()), len(documents))
