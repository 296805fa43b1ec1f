"""Outcomes: what happened when a case was answered by one model with one strategy. The raw material of calibration.

Stored as JSON lines, one outcome each, appended and never rewritten. A line holds the features that the router saw, so
that fitting a policy needs neither the documents nor the questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..core import Answer, Evidence, Features
from ..errors import CalibrationError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case × model × strategy.

    group: cases that share documents share it; splits keep groups whole.
    score: how right the answer was, in [0, 1]; a failed call scores 0.
    task: the true question type where it is known, else empty.
    features: as the policy would see them, for this model.
    """

    case_id: str
    group: str
    model: str
    strategy: str
    score: float
    features: Features
    task: str = ""
    status: Literal["ok", "failed"] = "ok"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    latency_s: float | None = None
    prediction: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case_id, self.model, self.strategy


def to_line(outcome: Outcome) -> str:
    """One line of JSON, without the line break."""
    return json.dumps({"version": VERSION, **asdict(outcome)}, ensure_ascii=False)


def from_line(line: str) -> Outcome:
    """Raises ValueError, KeyError or TypeError for anything that `to_line` did not write."""
    row: dict[str, Any] = json.loads(line)
    if row.pop("version") != VERSION:
        raise ValueError(f"an outcome of another version than {VERSION}")
    return Outcome(**{**row, "features": features_from(row["features"])})


def features_from(row: Mapping[str, Any]) -> Features:
    """Features from their JSON form."""
    evidence = row["evidence"]
    return Features(**{**row, "evidence": Evidence(**evidence) if evidence else None})


def of_answer(answer: Answer, score: float, *, case_id: str, task: str, group: str) -> Outcome:
    """What an answer with a decision was worth, without its text.

    latency_s: of the model calls one after another; the answer does not tell which of them ran side by side.
    """
    assert answer.decision is not None
    usage = answer.usage
    return Outcome(
        case_id=case_id,
        group=group,
        model=answer.decision.model,
        strategy=answer.strategy,
        score=score,
        features=answer.decision.features,
        task=task,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        cost_usd=None if usage.cost_usd is None else float(usage.cost_usd),
        latency_s=sum(call.latency_s for call in answer.calls),
    )


def append(path: Path, outcome: Outcome) -> None:
    """Add a line to an outcome file, which need not exist. Raises CalibrationError where it cannot be written.

    One unbuffered write in append mode, so that lines of several processes do not mix on a local disk.
    """
    line = f"{to_line(outcome)}\n".encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape
    try:
        with path.open("ab", buffering=0) as file:
            file.write(line)
    except OSError as error:
        raise CalibrationError(f"Cannot write {path}: {error.strerror}. Check the setting outcomes_file.") from error


def read_outcomes(paths: Iterable[str | Path]) -> Iterator[Outcome]:
    """Outcomes of files, in order. Raises CalibrationError naming file and line for a line that is not one."""
    for path in map(Path, paths):
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 inside a prediction
        except OSError as error:
            raise CalibrationError(f"Cannot read {path}: {error.strerror}.") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield from_line(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CalibrationError(f"{path}, line {number}: not an outcome ({error}).") from error
