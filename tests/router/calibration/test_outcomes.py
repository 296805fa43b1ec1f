from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute import Router
from longroute.router.calibration.outcomes import Outcome, append, from_line, read_outcomes, to_line
from longroute.router.core import Features
from longroute.router.errors import CalibrationError

FEATURES = Features(900, 5, 0, 100, 0.02, 1, 0.1, {"lookup": 1.0}, None, "text")


@given(st.text(), st.text(), st.floats(0, 1))
def test_a_line_comes_back_as_it_was(case_id: str, group: str, score: float) -> None:
    outcome = Outcome(case_id, group, "m", "rag", score, FEATURES)
    assert from_line(to_line(outcome)) == outcome


@pytest.mark.parametrize("name", ["a\nb", "\u2028", "Ω", "\udc80"])
def test_any_name_survives_the_file(name: str) -> None:
    outcome = Outcome(name, name, "m", "rag", 1.0, FEATURES)
    append(Path("o.jsonl"), outcome)
    append(Path("o.jsonl"), outcome)
    assert list(read_outcomes(["o.jsonl"])) == [outcome, outcome]


def test_a_file_that_cannot_be_written_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"missing/o\.jsonl.*outcomes_file"):
        append(Path("missing/o.jsonl"), Outcome("a", "a", "m", "rag", 1.0, FEATURES))


def test_processes_that_append_at_once_lose_no_line() -> None:
    program = (
        "import sys; from pathlib import Path; from longroute.router.core import Features; "
        "from longroute.router.calibration.outcomes import Outcome, append; "
        "f = Features(900, 5, 0, 100, 0.02, 1, 0.1, {'lookup': 1.0}, None, 'text'); "
        "[append(Path('o.jsonl'), Outcome(f'{sys.argv[1]}-{k}', 'g' * 5000, 'm', 'rag', 1.0, f)) for k in range(200)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert {o.case_id for o in read_outcomes(["o.jsonl"])} == {f"{n}-{k}" for n in range(3) for k in range(200)}


def test_a_router_records_what_it_answered_but_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_OUTCOMES_FILE", "o.jsonl")
    router = Router(embedding_model="none")
    answer = router.answer("Who wrote the program?", "Lovelace wrote the program. " * 30, allowed=["rag"])
    router.record(answer, 0.5, case_id="q1", task="lookup", group="d1")
    router.record(answer, 1)
    first, second = read_outcomes(["o.jsonl"])
    assert answer.decision is not None
    assert (first.case_id, first.group, first.task, first.score) == ("q1", "d1", "lookup", 0.5)
    assert (first.model, first.strategy, first.status) == ("extractive", "rag", "ok")
    assert first.features == answer.decision.features
    assert first.prompt_tokens == answer.usage.prompt_tokens
    assert second.case_id == second.group != ""
    assert "Lovelace" in answer.text
    assert "ovelace" not in Path("o.jsonl").read_text()
    assert "program" not in Path("o.jsonl").read_text()
