from __future__ import annotations

from longroute.router.core import Document, Passage
from longroute.router.strategies.citations import named_passages, verbatim_quotes

PASSAGES = [Passage("d", n * 10, n * 10 + 5, f"text{n}", float(n)) for n in range(4)]


def test_numbers_in_brackets_become_citations_in_order_of_mention() -> None:
    cited = named_passages("It rose [3], then fell [1, 3].", PASSAGES)
    assert [citation.start for citation in cited] == [20, 0]
    assert cited[0].text == "text2"


def test_ranges_are_expanded_and_unknown_numbers_ignored() -> None:
    assert [c.start for c in named_passages("See [2-4] and [9] and [0].", PASSAGES)] == [10, 20, 30]


def test_more_than_a_thousand_passages_have_numbers_too() -> None:
    many = [Passage("d", number, number + 1, "x") for number in range(1_500)]
    assert [citation.start for citation in named_passages("As said [1234-1236].", many)] == [1233, 1234, 1235]


def test_years_and_footnotes_without_a_passage_do_not_cite() -> None:
    assert named_passages("In [2021] nothing [x].", PASSAGES) == ()


def test_quotes_are_found_across_line_breaks_with_exact_offsets() -> None:
    document = Document("Preface. The tenant\n  shall pay rent monthly. End.", id="lease")
    (found,) = verbatim_quotes('It says "the tenant" and "The tenant shall pay rent monthly."', [document])
    assert document.text[found.start : found.end] == found.text == "The tenant\n  shall pay rent monthly"


def test_invented_quotes_are_not_cited() -> None:
    assert verbatim_quotes('"The landlord shall pay rent"', [Document("The tenant shall pay rent", id="x")]) == ()
