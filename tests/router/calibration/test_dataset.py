from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.calibration.dataset import read_dataset, shared_groups
from longroute.router.errors import CalibrationError

SECRET = "the text of a document"


def row(**fields: Any) -> str:
    return json.dumps({"question": "Who?", "documents": ["Ada was here."], "answers": ["Ada"], **fields})


def write(folder: Path, *lines: str) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines))
    return path


def problem(folder: Path, *lines: str) -> str:
    with pytest.raises(CalibrationError) as caught:
        read_dataset(write(folder, *lines))
    return str(caught.value)


def test_the_example_is_read_as_its_documentation_says(repository: Path) -> None:
    cases = {case.id: case for case in read_dataset(repository / "examples/calibration/questions.jsonl").cases}
    assert len(cases) == 12
    assert cases["keeper"].documents[0].id == "lighthouse.md"
    assert cases["keeper-age"].answers == ()
    assert [cases[name].scorer for name in ("keeper", "notice", "log-summary", "repairs")] == [
        "f1",
        "contains",
        "rouge_l",
        "choice",
    ]
    assert cases["repairs"].answers == ("C", "the wiring")
    assert "\nC. the wiring\n" in cases["repairs"].question
    assert len({case.group for case in cases.values()}) == 3


def test_ids_are_lines_where_rows_have_none(tmp_path: Path) -> None:
    cases = read_dataset(write(tmp_path, row(), "", row(id=7))).cases
    assert [case.id for case in cases] == ["row-1", "7"]


def test_documents_may_have_ids(tmp_path: Path) -> None:
    (case,) = read_dataset(write(tmp_path, row(documents=[{"id": "a", "text": "x"}, "y"]))).cases
    assert [(document.id, document.text) for document in case.documents] == [("a", "x"), ("", "y")]


def test_an_own_scorer_goes_before_the_chosen_one_and_that_before_the_usual_one(tmp_path: Path) -> None:
    path = write(tmp_path, row(scorer="exact"), row())
    assert [case.scorer for case in read_dataset(path, "contains").cases] == ["exact", "contains"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("not json", "line 1: not a JSON object"),
        ("[]", "line 1: row: "),
        (row(question=" "), "line 1: question: may not be empty"),
        (row(answers="Ada"), "line 1: answers: Input should be a valid array"),
        (row(answers=None), "line 1: answers: "),
        (json.dumps({"question": "Who?", "documents": ["x"]}), "line 1: answers: Field required"),
        (row(documents=[]), "line 1: documents: "),
        (row(documents=[SECRET, ""]), "line 1: documents.1.text: may not be empty"),
        (row(documents=None), "line 1: row: give either documents or paths"),
        (row(paths=["a.txt"]), "line 1: row: give either documents or paths"),
        (row(documents=None, paths=["missing.txt"]), "line 1: paths: "),
        (row(documents=[{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]), "two documents have the same id"),
        (row(choices=["x", "y"], answers=["C"]), "an answer is neither one of the choices nor its letter"),
        (row(scorer="bleu"), "line 1: scorer: "),
        (row(contexts=[SECRET]), "line 1: contexts: "),
    ],
)
def test_problems_name_line_and_field_and_no_text(tmp_path: Path, line: str, expected: str) -> None:
    message = problem(tmp_path, line)
    assert expected in message
    assert SECRET not in message


def test_all_problems_are_listed_up_to_twenty(tmp_path: Path) -> None:
    message = problem(tmp_path, *["{"] * 25, row())
    assert "has 25 problem(s)" in message
    assert "line 20:" in message
    assert "line 21:" not in message
    assert "and 5 more" in message


def test_a_second_use_of_an_id_names_both_lines(tmp_path: Path) -> None:
    assert "line 3: id: 'a' is also the id of line 1" in problem(tmp_path, row(id="a"), row(id="b"), row(id="a"))


def test_an_empty_or_unreadable_file_is_an_error(tmp_path: Path) -> None:
    assert "holds no question" in problem(tmp_path, "", "  ")
    with pytest.raises(CalibrationError, match="No such file"):
        read_dataset(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xff\xff")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        read_dataset(tmp_path / "latin.jsonl")


def test_the_fingerprint_changes_with_anything_that_matters(tmp_path: Path) -> None:
    rows = row(), row(answers=["Eve"]), row(documents=["Eve was here."]), row(scorer="exact"), row(id="other")
    assert len({read_dataset(write(tmp_path, line)).fingerprint for line in rows}) == len(rows)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths = row(documents=None, paths=["a.txt"])
    fingerprints = set()
    for folder in (tmp_path, elsewhere):
        (folder / "a.txt").write_text("Ada.")
        fingerprints.add(read_dataset(write(folder, paths)).fingerprint)
    assert len(fingerprints) == 1  # but not with the place of the files


def test_cases_that_share_a_document_share_a_group(tmp_path: Path) -> None:
    lines = [row(documents=texts) for texts in (["x"], ["x", "y"], ["y", "z"], ["w"])] + [row(group="own")]
    groups = [case.group for case in read_dataset(write(tmp_path, *lines)).cases]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3
    assert groups[4] == "own"


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1)))
def test_no_member_is_in_two_groups(members: list[set[str]]) -> None:
    groups = shared_groups(members)
    for letter in "abcdefgh":
        assert len({group for row, group in zip(members, groups, strict=True) if letter in row}) <= 1
