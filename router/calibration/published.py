"""Outcomes that others have measured, read into ours: LaRA's layout, and questions with scored predictions.

Features are computed from the documents with the router's own code, so that fitting needs no documents any more.
Where the source does not say how many tokens a prompt had, the strategy's own footprint says what it would take here.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..assemble import make_parts, make_strategies
from ..core import Document, Features
from ..errors import CalibrationError
from ..settings import Settings
from .dataset import shared_groups
from .observe import Observer
from .outcomes import Outcome, read_outcomes

_FULL_NAMES = ("full", "long_context", "long-context", "lc")
_RAG_NAMES = ("rag", "hybrid", "bm25", "dense", "retrieval")


@dataclass(frozen=True, slots=True)
class Imported:
    """Outcomes in the order of their cases, and how many of the source's rows were left out for which reason."""

    outcomes: tuple[Outcome, ...]
    left_out: Mapping[str, int]


def read_published(
    source: str | Path, settings: Settings, *, score: str = "", strategies: Mapping[str, str] | None = None
) -> Imported:
    """Outcomes of a folder in LaRA's layout or the common one, or of an outcome file of our own.

    score: the field that holds the score; by default LaRA's p_strict, else `score`.
    strategies: the source's name → ours, for those to read; by default, names that begin like full or rag.
    Raises CalibrationError for what is none of these, and where two strategies of the source would become one.
    """
    source = Path(source)
    if source.is_file():
        return Imported(_unique(read_outcomes([source])), {})
    if _file(source, "cases"):
        return _joined(_lara(source, score or "p_strict"), settings, strategies)
    if _file(source, "questions"):
        return _joined(_common(source, score or "score"), settings, strategies)
    raise CalibrationError(
        f"{source} holds no outcomes. Name an outcome file, or a folder with documents.jsonl, predictions.jsonl and "
        "either questions.jsonl or LaRA's cases.jsonl and judgments.jsonl (each may end in .gz)."
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """A published question with what was measured on it. documents: None where one of their texts is missing."""

    id: str
    group: str
    task: str
    question: str
    documents: tuple[Document, ...] | None
    rows: tuple[_Row, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    model: str
    strategy: str
    score: float | None
    prediction: str
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None


def _joined(cases: Iterable[_Case], settings: Settings, strategies: Mapping[str, str] | None) -> Imported:
    observer = Observer(settings)
    ours = make_strategies(make_parts(settings))
    left_out: Counter[str] = Counter()
    outcomes = []
    read_as: dict[str, str] = {}
    for case in cases:
        if case.documents is None:
            left_out["the text of a document is missing"] += len(case.rows)
            continue
        features = observer.features(case.question, case.documents, {row.model: None for row in case.rows})
        for row in case.rows:
            name = strategies.get(row.strategy) if strategies is not None else _guessed(row.strategy)
            if name is None:
                left_out["its strategy was not asked for, or is none of ours"] += 1
                continue
            if read_as.setdefault(name, row.strategy) != row.strategy:
                raise CalibrationError(
                    f"{read_as[name]!r} and {row.strategy!r} of the source would both be {name!r}. Say which to read, "
                    f"like --strategy {row.strategy}={name}."
                )
            if row.score is None and not row.error:
                left_out["it has no score"] += 1
                continue
            strategy = ours.get(name)
            footprint = strategy.footprint(features[row.model], observer.profile(row.model)) if strategy else None
            outcomes.append(_outcome(case, row, name, features[row.model], footprint.prompt_tokens if footprint else 0))
    if not outcomes:
        reasons = "; ".join(f"{count} because {reason}" for reason, count in left_out.items()) or "it is empty"
        raise CalibrationError(f"No outcome could be read: {reasons}. Name strategies and score field, if need be.")
    return Imported(_unique(outcomes), left_out)


def _outcome(case: _Case, row: _Row, strategy: str, features: Features, estimated_tokens: int) -> Outcome:
    return Outcome(
        case_id=case.id,
        group=case.group,
        model=row.model,
        strategy=strategy,
        score=0.0 if row.error or row.score is None else row.score,
        features=features,
        task=case.task,
        status="failed" if row.error else "ok",
        prompt_tokens=estimated_tokens if row.prompt_tokens is None else row.prompt_tokens,
        completion_tokens=row.completion_tokens or 0,
        latency_s=row.latency_s,
        prediction=row.prediction,
        error=row.error,
    )


def _guessed(name: str) -> str | None:
    plain = name.lower()
    return "full" if plain.startswith(_FULL_NAMES) else "rag" if plain.startswith(_RAG_NAMES) else None


def _unique(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    seen: dict[tuple[str, str, str], Outcome] = {}
    for outcome in outcomes:
        if seen.setdefault(outcome.key, outcome) is not outcome:
            raise CalibrationError(f"Two outcomes of case, model and strategy {outcome.key}. Remove one of them.")
    return tuple(seen.values())


# ---- layouts ---------------------------------------------------------------------------------------------------------


def _lara(folder: Path, score: str) -> Iterator[_Case]:
    """LaRA (arXiv 2502.09977) with judgments. A label that a reader gave goes before the automatic judge's."""
    judged = {(r["case_id"], r["model"], r["method"]): r for r in _rows(folder, "judgments")}
    measured: dict[str, list[_Row]] = defaultdict(list)
    for row in _rows(folder, "predictions"):
        judgment = judged.get((row["case_id"], row["model"], row["method"]), {})
        label = judgment.get("read_label")
        failed = row["status"] != "ok"
        measured[row["case_id"]].append(
            _Row(
                model=row["model"],
                strategy=row["method"],
                score=_number(judgment, score) if label is None else float(label),
                prediction=row.get("prediction") or "",
                error=(row.get("note") or row["status"]) if failed else "",
            )
        )
    texts = {row["doc_id"]: row["text"] for row in _rows(folder, "documents")}
    for row in sorted(_rows(folder, "cases"), key=lambda row: str(row["doc_id"])):
        text = texts.get(row["doc_id"])
        documents = (Document(text, row["doc_id"]),) if text else None
        yield _Case(
            row["case_id"], row["doc_group"], row["task"], row["question"], documents, tuple(measured[row["case_id"]])
        )


def _common(folder: Path, score: str) -> Iterator[_Case]:
    """Questions (question_id, doc_ids, question, task), documents (doc_id, text) and scored predictions."""
    measured: dict[str, list[_Row]] = defaultdict(list)
    for row in _rows(folder, "predictions"):
        seconds = row.get("response_time") if row.get("latency_ms") is None else row["latency_ms"] / 1000
        measured[row["question_id"]].append(
            _Row(
                model=row["model"],
                strategy=row["strategy"],
                score=_number(row, score),
                prediction=row.get("prediction") or "",
                prompt_tokens=row.get("tokens_used") or row.get("context_tokens"),
                latency_s=seconds,
            )
        )
    texts = {row["doc_id"]: row["text"] for row in _rows(folder, "documents")}
    questions = sorted(
        (row for row in _rows(folder, "questions") if row["doc_ids"]), key=lambda row: list(row["doc_ids"])
    )
    for row, group in zip(questions, shared_groups([row["doc_ids"] for row in questions]), strict=True):
        known = [Document(texts[name], name) for name in row["doc_ids"] if texts.get(name)]
        documents = tuple(known) if len(known) == len(row["doc_ids"]) else None
        rows = tuple(measured[row["question_id"]])
        yield _Case(row["question_id"], group, row.get("task") or "", row["question"], documents, rows)


def _number(row: Mapping[str, Any], field: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise CalibrationError(f"The score field {field!r} holds {value!r}; scores must be numbers from 0 to 1.")
    return float(value)


def _file(folder: Path, name: str) -> Path | None:
    usual = folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"
    return next((path for path in usual if path.is_file()), None)


def _rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    path = _file(folder, name)
    if path is None:
        raise CalibrationError(f"{folder} has no {name}.jsonl or {name}.jsonl.gz.")
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CalibrationError(f"{path}, line {number}: not JSON.") from error
            yield row
