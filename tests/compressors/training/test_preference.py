from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.compressors.training.preference import (
    Candidate,
    Pair,
    Query,
    Summarised,
    Verdict,
    build_pairs,
    divided,
    judge,
    main,
    paired,
    read_pairs,
    read_passages,
    succeeded,
    write_pairs,
)
from longroute.router.errors import ConfigError

SHORT, MIDDLE, LONG = "s", "mm", "lll"


def candidates(*correct: bool) -> list[Candidate]:
    return [Candidate(text, right) for text, right in zip((SHORT, MIDDLE, LONG), correct, strict=True)]


@pytest.mark.parametrize(
    ("correct", "hard", "expected"),
    [
        # some correct, some wrong: the shortest correct one against the longest wrong one
        ((True, True, False), True, (SHORT, LONG)),
        ((True, False, True), True, (SHORT, MIDDLE)),
        ((True, False, False), True, (SHORT, LONG)),
        ((False, True, True), True, (MIDDLE, SHORT)),  # the chosen one may be the longer
        ((False, True, False), True, (MIDDLE, LONG)),
        ((False, False, True), True, (LONG, MIDDLE)),
        ((False, False, True), False, (LONG, MIDDLE)),
        # all correct: the shortest against the longest
        ((True, True, True), True, (SHORT, LONG)),
        ((True, True, True), False, (SHORT, LONG)),
        # all wrong: the same, or nothing
        ((False, False, False), True, None),
        ((False, False, False), False, (SHORT, LONG)),
    ],
)
def test_truth_table(correct: tuple[bool, bool, bool], hard: bool, expected: tuple[str, str] | None) -> None:
    for order in (candidates(*correct), candidates(*correct)[::-1]):
        found = paired(order, hard=hard)
        assert (found and (found[0].text, found[1].text)) == expected


def test_nothing_to_compare_is_no_pair() -> None:
    assert paired([]) is None
    assert paired([Candidate("one", True)]) is None
    assert paired([Candidate("same", True), Candidate("same", False)]) is None


@given(st.lists(st.builds(Candidate, st.text(max_size=6), st.booleans()), max_size=6), st.booleans())
def test_a_pair_is_ordered_by_success_and_then_by_length(given_: list[Candidate], hard: bool) -> None:
    found = paired(given_, hard=hard)
    if found is None:
        return
    chosen, rejected = found
    assert chosen in given_
    assert rejected in given_
    assert chosen.correct >= rejected.correct
    assert chosen.correct or not hard
    if chosen.correct == rejected.correct:
        assert len(chosen.text) <= len(rejected.text)


# ---- from verdicts to pairs ------------------------------------------------------------------------------------------

PASSAGES = [
    Summarised("p1", "passage one", {"a": "one", "b": "the first"}),
    Summarised("p2", "passage two", {"a": "two", "b": "the second"}),
    Summarised("p3", "passage three", {"a": "three", "b": "  "}),
]
QUERIES = [Query("q1", "first?", ("p1",)), Query("q2", "both?", ("p1", "p2"))]


def verdicts(**correct: bool) -> list[Verdict]:
    return [Verdict(name[1:], name[0], right) for name, right in correct.items()]


def test_a_verdict_speaks_for_all_passages_of_its_query() -> None:
    pairs = build_pairs(PASSAGES, QUERIES, verdicts(aq1=True, bq1=True, aq2=False, bq2=True))
    assert [(pair.passage_id, pair.chosen, pair.rejected, pair.weak) for pair in pairs] == [
        ("p1", "the first", "one", False),
        ("p2", "the second", "two", False),
    ]
    assert (pairs[0].passage, pairs[0].chosen_by, pairs[0].rejected_by) == ("passage one", "b", "a")


def test_every_summariser_counts_not_only_the_last() -> None:
    """The released script looked up the success of the last one for all of them."""
    one, *_ = build_pairs(PASSAGES, QUERIES, verdicts(aq1=True, bq1=False))
    assert (one.chosen, one.rejected) == ("one", "the first")


def test_what_was_not_judged_is_left_out() -> None:
    assert build_pairs(PASSAGES, QUERIES, verdicts(aq1=True)) == []
    assert build_pairs(PASSAGES, [], verdicts(aq1=True, bq1=False)) == []


def test_pairs_that_tell_lengths_only_are_marked() -> None:
    (pair,) = build_pairs(PASSAGES[:1], QUERIES, verdicts(aq1=False, bq1=False), hard=False)
    assert pair.weak
    assert build_pairs(PASSAGES[:1], QUERIES, verdicts(aq1=False, bq1=False)) == []


def test_no_passage_is_on_both_sides() -> None:
    pairs = [Pair(f"passage {n % 40}", str(n), str(n) * 2) for n in range(100)]
    training, validation = divided(pairs, seed=3)
    assert len(training) + len(validation) == 100
    assert {pair.passage for pair in training}.isdisjoint(pair.passage for pair in validation)
    assert len({pair.passage for pair in validation}) == 4
    assert divided(pairs, seed=3) == (training, validation)
    assert divided(pairs, seed=4) != (training, validation)


# ---- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "exactly", "partly"), [("ab", True, True), ("ba", True, True), ("a", False, True), ("abc", False, True),
                                     ("c", False, False), ("", False, False)],
)  # fmt: skip
def test_success_is_the_exact_set_unless_relaxed(found: str, exactly: bool, partly: bool) -> None:
    assert succeeded(list(found), ("a", "b")) == exactly
    assert succeeded(list(found), ("a", "b"), relaxed=True) == partly


class ByWord:
    """Finds the passages that have a word of the query; stops after so many searches, like a killed process."""

    def __init__(self, searches: int = 1000) -> None:
        self.left = searches
        self.asked: list[str] = []

    def __call__(self, query: str, corpus: Mapping[str, str]) -> Collection[str]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked.append(query)
        return [key for key, text in corpus.items() if set(text.split()) & set(query.split())]


CORPUS = [
    Summarised("p1", "ada wrote it", {"a": "ada", "b": "a person"}),
    Summarised("p2", "bob read it", {"a": "bob", "b": "bob"}),
]
ASKED = [Query("q1", "ada", ("p1",)), Query("q2", "bob", ("p2",)), Query("q3", "ada bob", ("p1", "p2"))]


def test_each_summarisers_corpus_is_searched_with_each_query(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    found = judge(CORPUS, ASKED, ByWord(), path)
    assert [(v.summariser, v.query, v.correct) for v in found] == [
        *(("a", query.id, True) for query in ASKED),
        ("b", "q1", False),
        ("b", "q2", True),
        ("b", "q3", False),
    ]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(verdict) for verdict in found]


@pytest.mark.parametrize("stop_after", range(7))
@pytest.mark.parametrize("torn", ["", '{"query": "q', '{"query": "q3", "summariser": "b", "correct": true}'])
def test_judging_goes_on_where_it_was_stopped(tmp_path: Path, stop_after: int, torn: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    first, second = ByWord(stop_after), ByWord()
    if stop_after < 6:
        with pytest.raises(KeyboardInterrupt):
            judge(CORPUS, ASKED, first, path)
    else:
        judge(CORPUS, ASKED, first, path)
    with path.open("a") as lines:
        lines.write(torn)  # the process died in the middle of a line
    again = judge(CORPUS, ASKED, second, path)
    assert len(first.asked) + len(second.asked) == 6
    assert again == judge(CORPUS, ASKED, ByWord(0), path) == judge(CORPUS, ASKED, ByWord(), tmp_path / "whole.jsonl")


def test_a_missing_summary_stands_in_the_corpus_as_the_passage_itself(tmp_path: Path) -> None:
    seen: list[Mapping[str, str]] = []

    def search(query: str, corpus: Mapping[str, str]) -> Collection[str]:
        seen.append(corpus)
        return ()

    judge([*CORPUS, Summarised("p3", "whole", {"a": " "})], ASKED[:1], search, tmp_path / "verdicts.jsonl")
    assert [corpus["p3"] for corpus in seen] == ["whole", "whole"]


# ---- files -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.builds(Pair, st.text(), st.text(), st.text(), st.booleans(), st.text()), max_size=4))
def test_pairs_survive_the_file(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("line", "said"), [("{", "Line 1"), ('{"id": "x"}', "'text'"), ("[]", "'id'")])
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=said):
        read_passages(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.jsonl"):
        read_pairs(tmp_path / "nothing.jsonl")


def written(path: Path, records: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_command_reads_three_files_and_writes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        written(tmp_path / "passages.jsonl", [asdict(passage) for passage in PASSAGES]),
        written(tmp_path / "queries.jsonl", [asdict(query) for query in QUERIES]),
        written(tmp_path / "verdicts.jsonl", [asdict(v) for v in verdicts(aq1=True, bq1=False)]),
    ]
    out = tmp_path / "pairs.jsonl"
    main([*files, "--out", str(out)])
    assert [pair.chosen for pair in read_pairs(out)] == ["one"]
    assert "1 pairs" in capsys.readouterr().out
