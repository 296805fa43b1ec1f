"""What the dashboard shows at a glance, worked out from records and totals. How it looks is `page.html`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..records import Record
from ..saving import Saving, measured
from ..telemetry import Totals

_MOST_PERIODS = 32
_LEAST_IN_A_PERIOD = 10  # on average; the share of a few requests says nothing


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Period(_Output):
    """Sums over the routed requests that arrived from `start` on, until the next period."""

    start: float
    requests: int
    tokens_before: int
    tokens_after: int


class PhaseOutput(_Output):
    p50_s: float
    p95_s: float
    requests: int


class SummaryOutput(_Output):
    """`GET /v1/longroute/summary`: over the remembered decisions that the caller may see."""

    version: Literal[1] = 1
    decisions: int
    limit: int = Field(description="How many decisions are remembered.")
    since: float | None = Field(description="Arrival of the oldest remembered one.")
    saving: Saving
    fail_open: dict[str, int] = Field(description="Requests sent as they came because a stage failed, by stage.")
    routes: dict[str, dict[str, int]] = Field(description="Question type, strategy sent, requests.")
    periods: list[Period]
    phases: dict[str, PhaseOutput]
    totals: Totals | None = Field(description="Of all clients, since the proxy started; only for the admin.")


def summary(records: Sequence[Record], limit: int, totals: Totals | None) -> SummaryOutput:
    """records: newest first. totals: None for those who may not see them."""
    return SummaryOutput(
        decisions=len(records),
        limit=limit,
        since=records[-1].at if records else None,
        saving=measured(records),
        fail_open=dict(Counter(r.fail_open for r in records if r.fail_open)),
        routes=_routes(records),
        periods=_periods(records),
        phases=_phases(records),
        totals=totals,
    )


def _routes(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    routes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.eligible and not record.holdout and record.task is not None:
            routes[record.task][record.strategy] += 1
    return {task: dict(strategies) for task, strategies in routes.items()}


def _periods(records: Sequence[Record]) -> list[Period]:
    """Equal stretches of time from the first routed request to the last; those without any are left out."""
    routed = [
        (r.at, r.tokens_before, r.tokens_after)
        for r in records
        if r.eligible and not r.holdout and r.tokens_before is not None and r.tokens_after is not None
    ]
    if not routed:
        return []
    first = min(at for at, _, _ in routed)
    periods = max(1, min(_MOST_PERIODS, len(routed) // _LEAST_IN_A_PERIOD))
    length = (max(at for at, _, _ in routed) - first) / periods or 1.0
    sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for at, before, after in routed:
        period = sums[min(int((at - first) / length), periods - 1)]
        period[0] += 1
        period[1] += before
        period[2] += after
    return [
        Period(start=first + number * length, requests=n, tokens_before=before, tokens_after=after)
        for number, (n, before, after) in sorted(sums.items())
    ]


def _phases(records: Sequence[Record]) -> dict[str, PhaseOutput]:
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for record in records:
        for phase, took_s in record.timings_s.items():
            seconds[phase].append(took_s)
    phases = {}
    for name, all_s in seconds.items():
        p50, p95 = np.percentile(all_s, (50, 95))
        phases[name] = PhaseOutput(p50_s=float(p50), p95_s=float(p95), requests=len(all_s))
    return phases
