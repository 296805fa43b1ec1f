from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.dashboard.summary import summary
from longroute.router.proxy.records import Record
from longroute.router.proxy.telemetry import Totals


def routed(at: float = 0.0, strategy: str = "rag", before: int = 100, after: int = 10, holdout: bool = False) -> Record:
    return Record(
        id="1",
        at=at,
        upstream="u",
        api="chat",
        model="m",
        strategy=strategy,
        eligible=True,
        holdout=holdout,
        task="lookup",
        tokens_before=before,
        tokens_after=after,
        timings_s={"total": at},
    )


def test_nothing_yet_is_a_summary_too() -> None:
    found = summary([], 10, None)
    assert (found.decisions, found.since, found.periods, found.phases, found.routes) == (0, None, [], {}, {})
    assert found.saving.tokens is None


def test_routes_count_what_was_sent_for_each_question_type_without_the_holdout() -> None:
    found = summary([routed(), routed(strategy="full"), routed(), routed(strategy="full", holdout=True)], 10, None)
    assert found.routes == {"lookup": {"rag": 2, "full": 1}}


def test_phases_tell_the_median_and_the_slow_end() -> None:
    found = summary([routed(at=float(second)) for second in range(101)], 1000, None)
    assert (found.phases["total"].p50_s, found.phases["total"].p95_s) == (50.0, 95.0)


def test_totals_pass_through_to_those_who_may_see_them() -> None:
    assert summary([], 10, None).totals is None
    assert summary([], 10, Totals(7, 1, {"key": 2}, {})).model_dump()["totals"]["rejected"] == {"key": 2}


@given(
    st.lists(st.builds(routed, st.floats(0, 2e9), before=st.integers(1, 1000), after=st.integers(0, 1000)), min_size=1)
)
def test_the_periods_hold_every_routed_request_once_and_in_order(records: list[Record]) -> None:
    periods = summary(records, 100, None).periods
    assert sum(p.requests for p in periods) == len(records)
    assert sum(p.tokens_before for p in periods) == sum(r.tokens_before or 0 for r in records)
    starts = [p.start for p in periods]
    assert starts == sorted(set(starts))
    assert len(starts) <= 32
