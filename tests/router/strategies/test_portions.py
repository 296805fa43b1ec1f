from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.retrievers.chunks import split
from longroute.router.core import Document, Passage
from longroute.router.errors import ConfigError
from longroute.router.strategies.portions import Portion, portions


def pieces(document: Document, max_tokens: int) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.end) for chunk in split(document, max_tokens=max_tokens)]


def words(portion: Sequence[Passage]) -> int:
    return sum(len(passage.text.split()) for passage in portion)


def cut(documents: Sequence[Document], budget: int, *, balanced: bool = True) -> tuple[Portion, ...]:
    return portions(documents, budget, measure=words, weigh=words, split=pieces, balanced=balanced)


def sentences(n: int) -> str:
    return " ".join(f"Mule {i} carried salt over the pass that day." for i in range(n))


COUNTERS: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "characters": len,
    "bytes": lambda text: len(text.encode("utf-8", "surrogatepass")),
    "three a character": lambda text: 3 * len(text),
    "more when together": lambda text: int(len(text) ** 1.2),
    "steps": lambda text: -(-len(text) // 50) * 50,
}


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=400) | st.integers(1, 60).map(sentences), min_size=1, max_size=4),
    counter=st.sampled_from(sorted(COUNTERS)),
    budget=st.integers(60, 600),
    balanced=st.booleans(),
)
def test_portions_tile_the_documents_and_fit_whatever_the_tokenizer(
    texts: list[str], counter: str, budget: int, balanced: bool
) -> None:
    documents = [Document(text, f"d{i}") for i, text in enumerate(texts)]

    def measure(portion: Portion) -> int:
        return COUNTERS[counter]("".join(passage.text for passage in portion))

    found = portions(documents, budget, measure=measure, weigh=measure, split=pieces, balanced=balanced)
    assert all(measure(portion) <= budget for portion in found)
    joined = {document.id: "" for document in documents}
    for portion in found:
        for passage in portion:
            document = documents[int(passage.document_id[1:])]
            assert passage.start == len(joined[document.id])
            assert passage.text == document.text[passage.start : passage.end]
            joined[document.id] += passage.text
    assert list(joined.values()) == texts
    order = [int(passage.document_id[1:]) for portion in found for passage in portion]
    assert order == sorted(order)


def test_balanced_portions_are_about_equally_long_and_as_few_as_greedy_ones() -> None:
    document = Document(sentences(230), "d")
    greedy, balanced = cut([document], 500, balanced=False), cut([document], 500)
    assert len(balanced) == len(greedy)
    lengths = [words(portion) for portion in balanced]
    assert max(lengths) - min(lengths) < 500 / 8
    assert words(greedy[-1]) < 0.5 * words(greedy[0])


def test_small_documents_share_a_portion_and_pieces_of_one_are_one_passage() -> None:
    documents = [Document(sentences(3), f"d{i}") for i in range(40)]
    found = cut(documents, 300)
    assert len(found) <= 5
    assert [passage.document_id for portion in found for passage in portion] == [d.id for d in documents]


def test_an_oversize_sentence_is_cut_within() -> None:
    found = cut([Document("salt " * 2000, "d")], 300)
    assert len(found) >= 7 and all(words(portion) <= 300 for portion in found)


def test_cuts_fall_between_sentences() -> None:
    for portion in cut([Document(sentences(200), "d")], 300):
        assert portion[-1].text.rstrip().endswith(".")


def test_documents_without_text_have_no_portions() -> None:
    assert cut([Document("", "a")], 300) == ()


def test_a_character_that_fits_nowhere_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match=r"One character of document 'd' takes 1,000.*window_tokens"):
        portions([Document("x", "d")], 300, measure=lambda p: 1000 * len(p), weigh=words, split=pieces)
