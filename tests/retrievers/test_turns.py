from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.retrievers.bm25 import Floats
from longroute.retrievers.corpus import BM25Retriever, Corpus, passages
from longroute.retrievers.dense import DenseRetriever
from longroute.retrievers.hybrid import HybridRetriever
from longroute.router.conversations import joined
from longroute.router.core import Document, Passage
from longroute.router.prompts import numbered, rag_messages
from longroute.router.tokens import cumulative_tokens

SMALL_TALK = [
    Document(f"Nothing new on my side, and number {number} is no news.", f"talk#{number}", speaker=speaker)
    for number, speaker in zip(range(1, 81), ["Ada", "Ben"] * 40, strict=True)
]


def talk(at: int = 40, **said: str) -> list[Document]:
    """Small talk, with a question about a lease in the middle and an answer that names nothing."""
    documents = list(SMALL_TALK)
    documents[at] = replace(documents[at], text=said.get("question", "Have you signed the lease of the flat?"))
    documents[at + 1] = replace(documents[at + 1], text=said.get("answer", "Yes, on Friday."))
    return documents


def ids(found: list[Passage]) -> list[str]:
    return [passage.document_id for passage in found]


class Letters:
    """Vectors that count letters: alike where spelling is."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @property
    def name(self) -> str:
        return "letters"

    @property
    def max_tokens(self) -> int:
        return 256

    def encode(self, texts: Sequence[str]) -> Floats:
        self.seen += texts
        counts = np.array(
            [[text.lower().count(letter) + 0.1 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
        )
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)

    def understands(self, question: str) -> float:
        return 1.0


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_an_answer_is_found_by_the_words_of_its_question() -> None:
    found = BM25Retriever().retrieve("When was the lease signed?", talk(), budget_tokens=120)
    assert {"talk#41", "talk#42"} <= set(ids(found))


def test_a_turn_that_stands_alone_is_not_found_by_another_conversation() -> None:
    documents = talk()
    documents[41:] = [replace(document, id=f"other#{n}") for n, document in enumerate(documents[41:], start=1)]
    corpus = Corpus.build(documents)
    assert not corpus.same_text(40, 41)
    assert corpus.turns is not None
    assert corpus.turns.around[40][1] == 40
    assert corpus.turns.around[41][0] == 41


def test_turns_are_found_by_speaker_and_time() -> None:
    documents = list(SMALL_TALK)
    documents[10] = replace(documents[10], time="8 May, 2023")
    documents[20] = replace(documents[20], speaker="Cleo")
    retriever = BM25Retriever()
    assert ids(retriever.retrieve("What did Cleo say?", documents, budget_tokens=60))[0] == "talk#21"
    assert ids(retriever.retrieve("What happened in May 2023?", documents, budget_tokens=60))[0] == "talk#11"


def test_evidence_is_that_of_the_conversation_as_one_text() -> None:
    documents = talk()
    retriever = BM25Retriever()
    question = "Who signed the lease?"
    assert retriever.evidence(question, documents) == retriever.evidence(question, joined(documents))


def test_short_turns_are_embedded_together_and_long_texts_by_chunk() -> None:
    embedder = Letters()
    HybridRetriever(embedder).retrieve("lease", [*talk(), Document("A report. " * 20, "report")], budget_tokens=500)
    _, *texts = embedder.seen
    assert len(texts) < 20
    assert any("Ada: Have you signed the lease of the flat?\nBen: Yes, on Friday." in text for text in texts)
    assert "A report. " * 20 in texts


def test_dense_retrieval_gives_the_turns_of_what_it_finds() -> None:
    found = DenseRetriever(Letters()).retrieve("Have you signed the lease of the flat?", talk(), budget_tokens=300)
    assert ids(found)
    assert set(ids(found)) <= {document.id for document in SMALL_TALK}


def test_a_corpus_without_turns_knows_nothing_of_them() -> None:
    corpus = Corpus.build([Document("One. " * 300, "a"), Document("Two. " * 300, "b")])
    assert corpus.turns is None
    assert corpus.scenes.tolist() == list(range(len(corpus.chunks)))


# ---- what is shown ---------------------------------------------------------------------------------------------------

TURNS = st.lists(
    st.tuples(
        st.sampled_from(["the lease ", "yes ", "no\nand ", "flat 税 ", "Friday. "]),
        st.integers(1, 40),
        st.sampled_from(["Ada", "Ben", "Somebody with a long name", ""]),
        st.sampled_from(["", "Monday", "1:56 pm on 8 May, 2023"]),
    ),
    min_size=1,
    max_size=20,
)


def made(turns: list[tuple[str, int, str, str]]) -> list[Document]:
    return [Document(text * n, f"t#{i}", speaker=name, time=time) for i, (text, n, name, time) in enumerate(turns)]


@settings(deadline=None, max_examples=60)
@given(TURNS, st.integers(40, 400))
def test_what_a_prompt_shows_of_turns_keeps_to_the_budget(turns: list[tuple[str, int, str, str]], budget: int) -> None:
    documents = made(turns)
    order = {document.id: number for number, document in enumerate(documents)}
    found = BM25Retriever().retrieve("lease flat Friday 税", documents, budget_tokens=budget)
    found.sort(key=lambda passage: (order[passage.document_id], passage.start))
    for passage in found:
        assert passage.text == documents[order[passage.document_id]].text[passage.start : passage.end]
    content = rag_messages(found, "q", documents=documents)[-1].content
    lines = [line for line in content.splitlines() if not line.startswith(("<", "Question: "))]
    fences = 1 + len(numbered(found, documents))  # rounding, and the blank lines between fences
    assert float(cumulative_tokens("\n".join(lines))[-1]) <= budget + fences


@settings(deadline=None, max_examples=60)
@given(TURNS)
def test_chunks_tile_every_turn_and_scenes_every_chunk(turns: list[tuple[str, int, str, str]]) -> None:
    documents = made(turns)
    corpus = Corpus.build(documents, chunk_tokens=50)
    for number, document in enumerate(documents):
        assert "".join(corpus.text_of(i) for i, c in enumerate(corpus.chunks) if c.document == number) == document.text
    scenes = corpus.scenes.tolist()
    assert scenes == sorted(set(scenes))
    assert scenes[:1] == [0]
    if corpus.turns is not None:
        for chunk, (first, last) in enumerate(corpus.turns.around):
            assert first <= chunk <= last
            assert corpus.same_text(first, last)


def test_neighbours_of_a_hit_are_shown_with_it() -> None:
    documents = talk(question="Zanzibar?", answer="Indeed.")
    corpus = Corpus.build(documents)
    found = passages(corpus, [(40, 1.0)], 200)
    assert [passage.document_id for passage in found] == ["talk#41", "talk#40", "talk#42"]
    assert math.isclose(found[0].score, 1.0)
