"""Calibration questions from a JSON-lines file: what to ask, about which documents, and what would be right.

One object a line: `question`; `documents` (texts, or objects with `id` and `text`) or `paths` (files, relative to the
JSONL); `answers` (an empty list: the text does not say); optionally `id`, `task`, `choices`, `scorer`, `group`.
Reading files is left to `router/documents.py`, comparing answers to `score.py`, outcomes that others have published to
`published.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..core import Document
from ..documents import load
from ..errors import CalibrationError, DocumentError, MissingExtra
from .score import ScorerName, scorer_for

_SHOWN_PROBLEMS = 20
_MOST_CHOICES = 8  # the letters that `score.choice` looks for

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


@dataclass(frozen=True, slots=True)
class Case:
    """One question with its documents and right answers.

    question: as asked; where there are choices, they are part of it.
    answers: any of them is right; empty: the documents do not say.
    group: cases that share a document share it, so that splits keep documents whole.
    """

    id: str
    question: str
    documents: tuple[Document, ...]
    answers: tuple[str, ...]
    task: str
    scorer: ScorerName
    group: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Cases in the order of their file. fingerprint: changes with anything that could change an outcome."""

    cases: tuple[Case, ...]
    fingerprint: str


def read_dataset(path: str | Path, scorer: ScorerName | None = None) -> Dataset:
    """The questions of a file. scorer: for every row that names none; else its task and choices decide.

    Raises CalibrationError that lists the problems of the whole file, each with its line and field.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CalibrationError(f"Cannot read the questions of {path}: {reason}.") from error

    @cache
    def loaded(names: tuple[str, ...]) -> tuple[Document, ...]:
        documents = load([path.parent / name for name in names]).documents
        return tuple(replace(d, id=_relative(d.id, path.parent)) for d in documents)

    cases: list[Case] = []
    problems: list[str] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _Row.model_validate_json(line)
            documents = loaded(tuple(row.paths)) if row.paths else tuple(d.document() for d in row.documents or ())
        except ValidationError as error:
            problems += [f"line {number}: {_explained(problem)}" for problem in error.errors(include_input=False)]
            continue
        except (DocumentError, MissingExtra) as error:
            problems.append(f"line {number}: paths: {error}")
            continue
        case = row.case(f"row-{number}", documents, scorer)
        if (first := line_of.setdefault(case.id, number)) != number:
            problems.append(f"line {number}: id: {case.id!r} is also the id of line {first}")
        cases.append(case)
    if problems:
        more = [f"... and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        listed = "\n  ".join(problems[:_SHOWN_PROBLEMS] + more)
        raise CalibrationError(f"{path} has {len(problems)} problem(s); nothing was run:\n  {listed}")
    if not cases:
        raise CalibrationError(f"{path} holds no question. Write one JSON object a line; see docs/calibration.md.")
    return dataset(cases)


def dataset(cases: Sequence[Case]) -> Dataset:
    """A dataset of ready cases. Those without a group get one from the documents that they share."""
    groups = shared_groups([[_digest(document.text) for document in case.documents] for case in cases])
    grouped = tuple(replace(case, group=case.group or group) for case, group in zip(cases, groups, strict=True))
    return Dataset(grouped, _digest("".join(_digest(repr(case)) for case in grouped)))


def shared_groups(members: Sequence[Collection[str]]) -> list[str]:
    """A name for each row, the same for rows that share a member, directly or through other rows."""
    parent: dict[str, str] = {}

    def root(member: str) -> str:
        while (above := parent.setdefault(member, member)) != member:
            parent[member] = member = parent[above]
        return member

    for row in members:
        roots = sorted({root(member) for member in row})
        for other in roots[1:]:
            parent[other] = roots[0]
    return [root(next(iter(row))) for row in members]


# ---- rows ------------------------------------------------------------------------------------------------------------


class _DocumentRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: _Text
    id: str = ""

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    def document(self) -> Document:
        return Document(self.text, self.id)


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    question: _Text
    answers: list[_Text]
    documents: Annotated[list[_DocumentRow], Field(min_length=1)] | None = None
    paths: Annotated[list[_Text], Field(min_length=1)] | None = None
    id: _Text | None = None
    task: str = ""
    choices: Annotated[list[_Text], Field(min_length=2, max_length=_MOST_CHOICES)] | None = None
    scorer: ScorerName | None = None
    group: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.documents is None) == (self.paths is None):
            raise PydanticCustomError("documents", "give either documents or paths")
        names = [row.id for row in self.documents or () if row.id]
        if len(names) != len(set(names)):
            raise PydanticCustomError("documents", "two documents have the same id")
        if self.choices:
            known = {*self.choices, *ascii_uppercase[: len(self.choices)]}
            if not known.issuperset(self.answers):
                raise PydanticCustomError("answers", "an answer is neither one of the choices nor its letter")
        return self

    def case(self, default_id: str, documents: tuple[Document, ...], scorer: ScorerName | None) -> Case:
        question, answers = self.question, tuple(self.answers)
        if self.choices:
            lettered = dict(zip(ascii_uppercase, self.choices, strict=False))
            options = "\n".join(f"{letter}. {text}" for letter, text in lettered.items())
            question = f"{question}\n{options}\nAnswer with the letter."
            # Letter and text, whichever was given: either is a right answer.
            answers = tuple(part for pair in lettered.items() if {*pair} & {*self.answers} for part in pair)
        return Case(
            id=self.id or default_id,
            question=question,
            documents=documents,
            answers=answers,
            task=self.task,
            scorer=self.scorer or scorer or scorer_for(self.task, choices=bool(self.choices)),
            group=self.group,
        )


def _explained(problem: Any) -> str:
    """Field and reason, never the value: it may be a document."""
    if problem["type"] == "json_invalid":
        return "not a JSON object"
    field = ".".join(str(part) for part in problem["loc"]) or "row"
    return f"{field}: {'may not be empty' if problem['type'] == 'string_pattern_mismatch' else problem['msg']}"


def _relative(name: str, folder: Path) -> str:
    """The same wherever the dataset lies, so that prompts and fingerprint are."""
    return name.removeprefix(f"{folder.as_posix()}/")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
