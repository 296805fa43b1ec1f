import logging
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.retrievers.corpus import Corpus
from longroute.retrievers.hybrid import HybridRetriever, _candidates
from longroute.router.core import Document

TOPICS = {"cat": 0, "feline": 0, "kater": 0, "storm": 1, "tempest": 1, "bank": 2}


class TopicEmbedder:
    """Knows which words mean the same; remembers what it read."""

    name = "topics"
    max_tokens = 256

    def __init__(self, trust: float = 1.0) -> None:
        self.trust = trust
        self.read: list[str] = []

    def understands(self, text: str) -> float:
        return self.trust

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        vectors = np.full((len(texts), 4), 0.01, np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            vector[3] = 0.1
            for word in re.findall(r"\w+", text.lower()):
                if word in TOPICS:
                    vector[TOPICS[word]] += 1
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def document(n_paragraphs: int, **at: str) -> Document:
    """Paragraphs of filler that each make a chunk, with a sentence added to paragraphs by number (`_7="..."`)."""
    filler = "Plain words follow one another here without any meaning at all. " * 14
    paragraphs = [f"{filler}{at.get(f'_{i}', '')}" for i in range(n_paragraphs)]
    return Document("\n\n".join(paragraphs), "document")


def holding(text: str, corpus: Corpus) -> int:
    return next(chunk for chunk in range(len(corpus.chunks)) if text in corpus.text_of(chunk))


def test_words_and_meaning_both_bring_a_chunk_to_the_top() -> None:
    corpus = Corpus.build([document(9, _2="The feline sat.", _6="Nothing on Mondays.")])
    ranked = [chunk for chunk, _ in HybridRetriever(TopicEmbedder()).rank("Which cat, on Mondays?", corpus)]
    assert {holding("feline", corpus), holding("Mondays", corpus)} == set(ranked[:2])


def test_only_the_candidates_are_embedded() -> None:
    corpus = Corpus.build([document(30, _4="A storm of words.", _20="The storm passed.")])
    embedder = TopicEmbedder()
    ranked = HybridRetriever(embedder, candidates=5).rank("When was the storm?", corpus)
    assert len(embedder.read) == 6  # and the question
    assert sum("storm" in text for text in embedder.read) == 3
    assert len(ranked) >= 5


def test_a_short_corpus_is_embedded_whole_so_that_both_ways_agree() -> None:
    corpus = Corpus.build([document(12, _3="A tempest came.", _8="Storm of the century.")])
    two_stage, full = HybridRetriever(TopicEmbedder()), HybridRetriever(TopicEmbedder(), full=True)
    one, other = two_stage.rank("Was there a storm?", corpus), full.rank("Was there a storm?", corpus)
    assert [chunk for chunk, _ in one] == [chunk for chunk, _ in other]
    np.testing.assert_allclose([score for _, score in one], [score for _, score in other], atol=1e-6)


def test_full_finds_by_meaning_what_no_candidate_holds() -> None:
    corpus = Corpus.build([document(40, **{f"_{i}": "Of the storm." for i in range(5)}, _33="A tempest, a tempest.")])
    ranked = HybridRetriever(TopicEmbedder(), candidates=5, full=True).rank("tempest storm", corpus)
    assert holding("tempest", corpus) in [chunk for chunk, _ in ranked[:6]]


def test_a_question_that_shares_no_word_is_answered_by_meaning() -> None:
    corpus = Corpus.build([document(10, _7="A feline sleeps.")])
    (best, _), *_ = HybridRetriever(TopicEmbedder()).rank("Kater?", corpus)
    assert best == holding("feline", corpus)


def test_candidates_that_no_word_brings_are_spread_over_the_document() -> None:
    chosen = _candidates(np.zeros(100, np.float32), 5)
    np.testing.assert_array_equal(chosen, [0, 25, 50, 74, 99])


@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.5]), max_size=40), st.integers(1, 50))
def test_candidates_are_the_best_matches_and_fill_up_to_their_number(scores: list[float], n: int) -> None:
    lexical = np.array(scores, np.float32)
    chosen = _candidates(lexical, n)
    assert len(set(chosen.tolist())) == len(chosen) == min(n, len(scores))
    left_out = np.delete(lexical, chosen)
    assert left_out.max(initial=0) <= lexical[chosen].min(initial=np.inf) or left_out.max(initial=0) == 0


@pytest.mark.parametrize("embedder", [None, TopicEmbedder(trust=0.0)])
def test_without_a_model_that_understands_the_question_words_decide(embedder: TopicEmbedder | None) -> None:
    corpus = Corpus.build([document(10, _1="The feline.", _7="Cat.")])
    ranked = [chunk for chunk, _ in HybridRetriever(embedder).rank("cat", corpus)]
    assert ranked[0] == holding("Cat.", corpus)
    assert ranked == [chunk for chunk, _ in corpus.ranked("cat", 10)]
    assert embedder is None or embedder.read == []


def test_a_missing_model_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        retriever = HybridRetriever(None)
        for _ in range(2):
            retriever.retrieve("feline", [document(3, _1="The feline.")], budget_tokens=300)
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("full", [True, False])
def test_passages_are_cut_from_the_document_within_the_budget(full: bool) -> None:
    text = document(10, _5="The cat is blue.")
    passages = HybridRetriever(TopicEmbedder(), full=full).retrieve("What is a cat?", [text], budget_tokens=500)
    assert "The cat is blue." in passages[0].text
    assert all(passage.text == text.text[passage.start : passage.end] for passage in passages)
    assert sum(len(passage.text) for passage in passages) < len(text.text) / 2


@pytest.mark.parametrize("documents", [[], [Document("", "empty")]])
@pytest.mark.parametrize("full", [True, False])
def test_no_text_has_no_passages(documents: list[Document], full: bool) -> None:
    assert HybridRetriever(TopicEmbedder(), full=full).retrieve("cat", documents, budget_tokens=100) == []
