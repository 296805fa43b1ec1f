"""Every prompt longroute writes, as pure functions from values to messages.

Two rules hold for all of them. The text comes first and the question last: models answer better so, and the part that
repeats from question to question is a byte-stable prefix that provider prompt caches can serve. And a document is
fenced by a key made from its own content, so no text inside it can close its own fence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from .core import Document, Message, Passage

REFUSAL = "The documents do not contain the answer."
"""What a model is asked to say when the text does not answer the question; `refuses` recognises it."""

_FULL_TASK = (
    "Answer the question at the end from the documents. Be concise. Quote the words of the document where they decide "
    f"the answer. If the documents do not contain the answer, reply exactly: {REFUSAL}"
)

_RAG_TASK = (
    "Answer the question at the end from the numbered passages, which are excerpts. Be concise, and name the passages "
    f"that support the answer by their numbers, like [2]. If the passages do not answer it, reply exactly: {REFUSAL}"
)

_COMPRESSED_TASK = (
    "Answer the question at the end from the documents, which were shortened: words and parts that matter less were "
    "left out. Be concise. Quote the words of the document where they decide the answer. If the documents do not "
    f"contain the answer, reply exactly: {REFUSAL}"
)

# Tokens of everything around the text and the question: task, fences, roles. Rounded up; tests compare with the real
# messages. The second number is per document or passage.
FULL_OVERHEAD_TOKENS = (90, 40)
RAG_OVERHEAD_TOKENS = (100, 30)
COMPRESSED_OVERHEAD_TOKENS = (110, 40)


def full_messages(documents: Sequence[Document], question: str, instructions: str = "") -> tuple[Message, ...]:
    """Whole documents, then the question. Everything before the question depends on the documents alone."""
    fenced = "\n\n".join(_fence("document", document.id, document.text) for document in documents)
    return _messages(_FULL_TASK, fenced, question, instructions)


def rag_messages(passages: Sequence[Passage], question: str, instructions: str = "") -> tuple[Message, ...]:
    """Numbered passages in the order given, then the question."""
    fenced = "\n\n".join(
        _fence(f"passage [{number}]", passage.document_id, passage.text)
        for number, passage in enumerate(passages, start=1)
    )
    return _messages(_RAG_TASK, fenced, question, instructions)


def compressed_messages(documents: Sequence[Document], question: str, instructions: str = "") -> tuple[Message, ...]:
    """Shortened documents, then the question."""
    fenced = "\n\n".join(_fence("document", document.id, document.text) for document in documents)
    return _messages(_COMPRESSED_TASK, fenced, question, instructions)


def shortened(text: str) -> str:
    """A shortened text to show in place of the whole, inside a prompt that is not ours."""
    return f"[Shortened: words and parts that matter less were left out.]\n\n{text}"


def excerpts(passages: Sequence[Passage], documents: Sequence[Document]) -> tuple[str, ...]:
    """For each document a text to show in its place, inside a prompt that is not ours: its passages, in order.

    What was left out is marked, so that nobody takes the excerpts for the whole.
    """
    return tuple(_excerpt([p for p in passages if p.document_id == document.id], document) for document in documents)


def refuses(text: str) -> bool:
    """Whether a reply says that the text does not hold the answer, in the words it was asked to use."""
    return _plain(REFUSAL) in _plain(text)


def _excerpt(passages: Sequence[Passage], document: Document) -> str:
    if not passages:
        return "[This text was searched for the question; no part of it was chosen.]"
    pieces, shown_until = ["[Excerpts chosen for the question. […] marks what was left out.]"], 0
    for passage in sorted(passages, key=lambda passage: passage.start):
        if passage.start > shown_until:
            pieces.append("[…]")
        pieces.append(passage.text.strip("\n"))
        shown_until = passage.end
    if shown_until < len(document.text):
        pieces.append("[…]")
    return "\n\n".join(pieces)


def _messages(task: str, text: str, question: str, instructions: str) -> tuple[Message, ...]:
    """The task goes into the system message, unless the application has one of its own, which is left as it is."""
    if not instructions:
        return Message("system", task), Message("user", f"{text}\n\nQuestion: {question}")
    return Message("system", instructions), Message("user", f"{task}\n\n{text}\n\nQuestion: {question}")


def _fence(label: str, name: str, text: str) -> str:
    key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"<{label} {key} name={_one_line(name)!r}>\n{text}\n</{label} {key}>"


def _one_line(name: str) -> str:
    return re.sub(r"\s+", " ", name)[:200]


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()
