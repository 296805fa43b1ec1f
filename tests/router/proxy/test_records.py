from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Usage
from longroute.router.outputs import EstimateOutput
from longroute.router.proxy.records import DecisionLog, Record, RecordOutput, Shown, decision_row, record_output


def record(id: str, client: str = "") -> Record:
    return Record(id=id, at=0.0, upstream="u", api="chat", model="m", strategy="rag", client=client)


def test_a_client_sees_only_its_own_and_the_admin_sees_all() -> None:
    log = DecisionLog()
    log.add(record("1", "ada"))
    log.add(record("2", "bob"))
    assert log.get("1", "ada") is not None
    assert log.get("1", "bob") is None
    assert log.get("1", None) is not None
    assert [r.id for r in log.recent(10, "bob")] == ["2"]
    assert [r.id for r in log.recent(10, None)] == ["2", "1"]


def test_a_client_without_a_key_does_not_see_those_with_one() -> None:
    log = DecisionLog()
    log.add(record("1", "ada"))
    assert log.get("1", "") is None
    assert log.recent(10, "") == []


def test_a_completed_record_takes_the_place_of_the_first() -> None:
    log = DecisionLog()
    log.add(record("1", "ada"))
    log.complete(replace(record("1", "ada"), status=200, usage=Usage(5, 0, 1)))
    found = log.get("1", None)
    assert found is not None
    assert (found.status, found.client, found.usage) == (200, "ada", Usage(5, 0, 1))


def test_completing_a_forgotten_record_does_not_bring_it_back() -> None:
    log = DecisionLog(limit=1)
    log.add(record("1"))
    log.add(record("2"))
    log.complete(replace(record("1"), status=200))
    assert [r.id for r in log.recent(10, None)] == ["2"]


@given(st.lists(st.sampled_from("abcdef")), st.integers(1, 4), st.integers(0, 6))
def test_the_log_holds_the_newest_and_tells_them_newest_first(ids: list[str], limit: int, n: int) -> None:
    log = DecisionLog(limit)
    order: list[str] = []
    for id in ids:
        log.add(record(id))
        order = order if id in order else [*order, id][-limit:]
    assert [r.id for r in log.recent(n, None)] == order[::-1][:n]


def test_the_output_says_everything_the_record_does() -> None:
    full = EstimateOutput(
        feasible=True,
        infeasible_reason=None,
        quality=0.7,
        quality_interval=(0.6, 0.8),
        basis="learned",
        prompt_tokens=9000,
        cached_tokens=0,
        completion_tokens=100,
        calls=1,
        cost_usd=0.1,
        latency_s=None,
        utility=0.3,
    )
    whole = Record(
        id="1",
        at=1.5,
        upstream="u",
        api="chat",
        model="m",
        strategy="rag",
        reasons=("cheap", "sure"),
        estimates={"full": full},
        cost_before_usd=Decimal("0.25"),
        quality_interval=(0.1, 0.2),
        usage=Usage(100, 20, 3, Decimal("0.5")),
        timings_s={"total": 1.0},
        citations=(Shown("d", ("messages", 0, "content"), 3, 9, 0.5),),
    )
    told = json.loads(record_output(whole).model_dump_json())
    assert told["estimates"]["full"]["quality_interval"] == [0.6, 0.8]
    counts = {"prompt_tokens": 100, "cached_tokens": 20, "written_tokens": 0, "completion_tokens": 3}
    assert told["usage"] == counts | {"cost_usd": 0.5}
    assert told["cost_before_usd"] == 0.25
    assert told["cost_after_usd"] is None
    assert told["citations"] == [
        {"document": "d", "path": ["messages", 0, "content"], "start": 3, "end": 9, "score": 0.5}
    ]
    assert told["version"] == 1
    assert set(Record.__dataclass_fields__) == set(RecordOutput.model_fields) - {"version"}


def test_a_row_tells_the_first_reason() -> None:
    row = decision_row(Record("1", 0.0, "u", "chat", "m", "off", reasons=("too short", "no question")))
    assert row.reason == "too short"
    assert decision_row(record("1")).reason == ""
