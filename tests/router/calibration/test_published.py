from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from longroute.router.assemble import Router
from longroute.router.calibration.outcomes import to_line
from longroute.router.calibration.published import read_published
from longroute.router.core import Document
from longroute.router.errors import CalibrationError
from longroute.router.settings import load_settings

SETTINGS = load_settings(embedding_model="none", cache=False)
TEXT = "Ada wrote the first program. Brage kept the light. " * 20


def write(folder: Path, name: str, *rows: dict[str, Any], packed: bool = True) -> None:
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if packed:
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / f"{name}.jsonl").write_text(text)


@pytest.fixture
def lara(tmp_path: Path) -> Path:
    case = {"doc_id": "d", "doc_group": "g", "task": "hallu", "question": "Who wrote the program?"}
    write(tmp_path, "cases", {"case_id": "c", **case}, {"case_id": "no-text", **case, "doc_id": "e"})
    write(tmp_path, "documents", {"doc_id": "d", "text": TEXT}, {"doc_id": "e", "text": None})
    keys = [("c", "lc"), ("c", "rag"), ("no-text", "lc")]
    status = {("c", "rag"): {"status": "failed", "note": "window_overflow"}}
    made = [{"case_id": c, "model": "gpt-4o", "method": m, "prediction": "Ada", "status": "ok"} for c, m in keys]
    write(tmp_path, "predictions", *(row | status.get((row["case_id"], row["method"]), {}) for row in made))
    judged = {"model": "gpt-4o", "p_correct": 0.8, "p_strict": 0.6, "read_label": None}
    write(tmp_path, "judgments", *({"case_id": c, "method": m, **judged} for c, m in keys))
    return tmp_path


@pytest.fixture
def common(tmp_path: Path) -> Path:
    question = {"question_id": "q", "doc_ids": ["d"], "question": "Who kept the light?", "task": "single-hop"}
    write(tmp_path, "questions", question, packed=False)
    write(tmp_path, "documents", {"doc_id": "d", "text": TEXT}, packed=False)
    names = "long_context", "rag_a", "rag_b", "agentic"
    made = [{"question_id": "q", "model": "gpt-4o-mini", "strategy": s, "prediction": "B", "score": 0.5} for s in names]
    write(tmp_path, "predictions", *(row | {"latency_ms": 1500, "tokens_used": 321} for row in made), packed=False)
    return tmp_path


def test_lara_becomes_outcomes_with_the_features_the_router_sees(lara: Path) -> None:
    imported = read_published(lara, SETTINGS)
    full, rag = imported.outcomes
    assert (full.strategy, full.score, full.group, full.task, full.status) == ("full", 0.6, "g", "hallu", "ok")
    assert (rag.strategy, rag.score, rag.status, rag.error) == ("rag", 0.0, "failed", "window_overflow")
    decision = Router(SETTINGS).decide("Who wrote the program?", [Document(TEXT, "d")], model="gpt-4o")
    assert full.features == decision.features
    assert full.prompt_tokens == next(e for e in decision.estimates if e.strategy == "full").prompt_tokens
    assert imported.left_out == {"the text of a document is missing": 1}


def test_the_standard_can_be_chosen_and_readers_go_before_the_judge(lara: Path) -> None:
    assert read_published(lara, SETTINGS, score="p_correct").outcomes[0].score == 0.8
    judged = {"case_id": "c", "method": "lc", "model": "gpt-4o", "p_strict": 0.6, "read_label": 0}
    write(lara, "judgments", judged)
    assert read_published(lara, SETTINGS).outcomes[0].score == 0.0


def test_the_common_layout_needs_to_know_which_strategies_to_read(common: Path) -> None:
    with pytest.raises(CalibrationError, match="'rag_a' and 'rag_b' of the source would both be 'rag'"):
        read_published(common, SETTINGS)
    imported = read_published(common, SETTINGS, strategies={"long_context": "full", "rag_b": "rag"})
    assert [outcome.strategy for outcome in imported.outcomes] == ["full", "rag"]
    assert {(o.prompt_tokens, o.latency_s, o.score, o.task) for o in imported.outcomes} == {
        (321, 1.5, 0.5, "single-hop")
    }
    assert sum(imported.left_out.values()) == 2


def test_scores_that_are_none_are_refused(common: Path) -> None:
    with pytest.raises(CalibrationError, match="'latency_ms' holds 1500"):
        read_published(common, SETTINGS, score="latency_ms", strategies={"rag_a": "rag"})
    with pytest.raises(CalibrationError, match="1 because it has no score"):
        read_published(common, SETTINGS, score="llm_score", strategies={"rag_a": "rag"})


def test_an_outcome_file_of_our_own_is_read_back(lara: Path) -> None:
    outcomes = read_published(lara, SETTINGS).outcomes
    path = lara / "outcomes.jsonl"
    path.write_text("".join(f"{to_line(outcome)}\n" for outcome in outcomes))
    assert read_published(path, SETTINGS).outcomes == outcomes
    path.write_text(f"{to_line(outcomes[0])}\n" * 2)
    with pytest.raises(CalibrationError, match="Two outcomes"):
        read_published(path, SETTINGS)


def test_a_folder_without_outcomes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="holds no outcomes"):
        read_published(tmp_path, SETTINGS)


def test_published_long_context_outcomes_are_all_read(repository: Path) -> None:
    data = Path(os.environ.get("LONGROUTE_DATA") or repository / "../shared/data") / "locomo"
    if not data.is_dir():
        pytest.skip("the locomo outcomes are not here; set LONGROUTE_DATA to the folder that holds them")
    names = {"long_context": "full", "rag_observation_pgvector": "rag"}
    outcomes = read_published(data, SETTINGS, strategies=names).outcomes
    assert len(outcomes) == 2 * 1347
    assert len({outcome.group for outcome in outcomes}) <= 10
    full = [outcome.score for outcome in outcomes if outcome.strategy == "full"]
    assert sum(full) / len(full) == pytest.approx(0.476, abs=0.001)
