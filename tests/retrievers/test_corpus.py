from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.retrievers.corpus import BM25Retriever, Corpus, RecentCorpora, corpus_of, passages
from longroute.router.core import Document, EvidenceSource, Passage, Retriever

FILLER = [
    f"Sentence {number} of the filler speaks of nothing that anyone would ask about.\n\n" for number in range(200)
]


def document_with(fact: str, at: int = 100, name: str = "report") -> Document:
    return Document("".join([*FILLER[:at], fact + "\n\n", *FILLER[at:]]), name)


def texts_by_id(documents: list[Document]) -> dict[str, str]:
    return {document.id: document.text for document in documents}


def covers(found: list[Passage], text: str) -> bool:
    return any(text in passage.text for passage in found)


def test_the_answer_is_found_and_is_a_slice_of_its_document() -> None:
    document = document_with("Ada Lovelace signed the lease in Turin.")
    best = BM25Retriever().retrieve("Who signed the lease?", [document], budget_tokens=500)[0]
    assert "Ada Lovelace signed the lease" in best.text
    assert best.text == document.text[best.start : best.end]
    assert best.document_id == "report"


def test_the_retriever_fits_the_protocols() -> None:
    retriever: Retriever = BM25Retriever()
    source: EvidenceSource = BM25Retriever()
    assert retriever.retrieve("lease", [], budget_tokens=100) == []
    assert source.evidence("lease", []) is None


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["red ", "blue ", "green. ", "\n\n", "税"]), max_size=80), min_size=1, max_size=4
    ),
    st.integers(1, 120),
    st.integers(0, 3),
)
def test_passages_keep_to_the_budget_and_do_not_overlap(pieces: list[list[str]], budget: int, neighbours: int) -> None:
    documents = [Document("".join(words), f"d{number}") for number, words in enumerate(pieces)]
    corpus = Corpus.build(documents, chunk_tokens=10)
    found = passages(corpus, corpus.ranked("red 税", k=100), budget, neighbours)
    tokens = 0
    seen = set()
    for passage in found:
        assert passage.text == texts_by_id(documents)[passage.document_id][passage.start : passage.end]
        for number, chunk in enumerate(corpus.chunks):
            same = documents[chunk.document].id == passage.document_id
            if same and passage.start <= chunk.start and chunk.end <= passage.end:
                assert number not in seen
                seen.add(number)
                tokens += int(corpus.tokens[number])
    assert tokens <= budget
    assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)


def test_neighbours_of_a_hit_come_along_and_join_it() -> None:
    corpus = Corpus.build([document_with("Ada signed the lease.")], chunk_tokens=30)
    hit = corpus.ranked("Who signed the lease?", k=1)[0]
    alone, joined = (passages(corpus, [hit], 1000, neighbours) for neighbours in (0, 2))
    assert [(p.start, p.end) for p in alone] == [(corpus.chunks[hit[0]].start, corpus.chunks[hit[0]].end)]
    assert [(p.start, p.end) for p in joined] == [(corpus.chunks[hit[0] - 2].start, corpus.chunks[hit[0] + 2].end)]
    assert joined[0].score == hit[1]


def test_passages_never_join_two_documents() -> None:
    corpus = Corpus.build([Document("The first lease.", "a"), Document("The second lease.", "b")])
    assert [p.document_id for p in passages(corpus, [(1, 2.0), (0, 1.0)], 1000)] == ["b", "a"]


def test_hits_that_do_not_fit_are_not_replaced_by_worse_ones() -> None:
    corpus = Corpus.build([Document("Long words on the lease. " * 30, "a"), Document("x", "b")], chunk_tokens=60)
    first, second = (chunk for chunk in range(2))
    budget = int(corpus.tokens[first]) + 5
    assert [
        p.document_id for p in passages(corpus, [(first, 3.0), (second, 2.0), (len(corpus.chunks) - 1, 1.0)], budget, 0)
    ] == ["a"]


def test_a_budget_below_a_chunk_still_shows_something() -> None:
    document = document_with("Ada signed the lease.")
    found = BM25Retriever().retrieve("Who signed the lease?", [document], budget_tokens=20)
    assert covers(found, "Ada signed the lease.")


def test_what_matches_nothing_is_not_retrieved() -> None:
    assert BM25Retriever().retrieve("zebra?", [document_with("Ada signed.")], budget_tokens=500) == []


def test_among_documents_a_chunk_is_found_by_its_title_and_id() -> None:
    reports = [
        Document(f"{name} Ltd. annual report.\n\n" + "".join(FILLER[:20]) + "Profit doubled.", f"{city}.txt")
        for name, city in (("Oak", "Turin"), ("Elm", "Paris"), ("Ash", "Delhi"))
    ]
    for question, wanted in (("Profit of Elm?", "Paris.txt"), ("How did profit change in Delhi?", "Delhi.txt")):
        best = BM25Retriever().retrieve(question, reports, budget_tokens=300)[0]
        assert (best.document_id, "Profit doubled" in best.text) == (wanted, True)


def test_ties_are_broken_by_the_order_of_the_documents() -> None:
    documents = [Document("The lease.", name) for name in "zyx"]
    found = BM25Retriever().retrieve("lease", documents, budget_tokens=100)
    assert [passage.document_id for passage in found] == ["z", "y", "x"]


def test_evidence_is_strong_where_one_place_answers() -> None:
    evidence = BM25Retriever().evidence(
        "Who signed the lease in Turin?", [document_with("Ada signed the lease in Turin.")]
    )
    assert evidence is not None
    assert evidence.coverage == evidence.top_coverage == 1
    assert evidence.margin == 1
    assert evidence.top_score > 0
    assert evidence.entropy < 0.1


def test_evidence_is_absent_where_no_word_of_the_question_occurs() -> None:
    evidence = BM25Retriever().evidence("Zebra?", [document_with("Ada signed.")])
    assert evidence is not None
    assert (evidence.coverage, evidence.top_coverage, evidence.top_score, evidence.margin) == (0, 0, 0, 0)
    assert evidence.entropy == pytest.approx(1)
    assert evidence.spread == 0


def test_evidence_spreads_where_the_words_are_everywhere() -> None:
    near = document_with("The lease. " * 100)
    far = Document("The lease. " + "".join(FILLER) + "The lease.", "far")
    spreads = [evidence.spread for d in (near, far) if (evidence := BM25Retriever().evidence("lease", [d]))]
    assert spreads[0] < 0.1 < spreads[1] <= 0.5


@pytest.mark.parametrize("question", ["", "???", "what is it"])
def test_a_question_without_terms_has_no_evidence(question: str) -> None:
    assert BM25Retriever().evidence(question, [document_with("Ada signed.")]) is None


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab \n.", max_size=40), min_size=1, max_size=5), st.text(alphabet="abc ", max_size=10))
def test_evidence_stays_in_its_bounds(texts: list[str], question: str) -> None:
    evidence = Corpus.build([Document(text, str(number)) for number, text in enumerate(texts)], 3).evidence(question)
    if evidence is not None:
        assert 0 <= evidence.top_coverage <= evidence.coverage <= 1
        assert 0 <= evidence.margin <= 1
        assert 0 <= evidence.entropy <= 1
        assert 0 <= evidence.spread <= 0.5


def test_equal_documents_share_a_corpus_and_different_kinds_do_not() -> None:
    text = "def f():\n    return 1\n"
    corpus = corpus_of([Document(text, "a")])
    assert corpus_of((Document("".join([text[:3], text[3:]]), "a"),)) is corpus
    assert corpus_of([Document(text, "a", kind="code")]) is not corpus
    assert corpus_of([Document(text, "a")], chunk_tokens=50) is not corpus


def test_recent_corpora_forget_the_least_recent_and_keep_the_last() -> None:
    recent = RecentCorpora(max_characters=20)
    first, second, third = ([Document(letter * 10)] for letter in "abc")
    kept = recent.get(first, 200)
    lost = recent.get(second, 200)
    assert recent.get(first, 200) is kept
    recent.get(third, 200)
    assert recent.get(first, 200) is kept
    assert recent.get(second, 200) is not lost
    huge = recent.get([Document("d" * 100)], 200)
    assert recent.get([Document("d" * 100)], 200) is huge


def test_threads_may_share_recent_corpora() -> None:
    recent = RecentCorpora(max_characters=50)

    def text_back(number: int) -> str:
        return recent.get([Document(f"text {number % 7}")], 200).text_of(0)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text_back, range(200))) == [f"text {number % 7}" for number in range(200)]


def test_lone_surrogates_and_other_oddities_are_indexed() -> None:
    documents = [Document("\ud800 odd\x00text\u2028 e\u0301", "\udfff"), Document("", "empty")]
    assert BM25Retriever().retrieve("odd text", documents, budget_tokens=100)[0].text == documents[0].text
