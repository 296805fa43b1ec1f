"""What is remembered of a request that the proxy routed or considered: numbers, names and places, never a text.

A Record is made when the decision falls and completed when the upstream has answered. What the records amount to is
worked out in `saving.py`; who may read them is decided by the app.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core import Prefer, Task, Usage
from ..outputs import EstimateOutput, UsageOutput
from .texts import Api, JsonPath

Step = Literal["queue", "parse", "locate", "decide", "prepare", "plan", "upstream_first_byte", "relay"]
"""What happens to a request, one after the other: waiting for a worker comes first, handing on the answer last."""
Stage = Step | Literal["refused"]
"""What can fail so that the original is sent; `refused`: the upstream did not take the shorter request."""
Phase = Step | Literal["total"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A passage that was sent: characters `start` to `end` of the located document, which stood at `path`."""

    document: str
    path: JsonPath
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Record:
    """One request and what became of it. None means unknown.

    id: hex digits of a UUID. at: unix seconds of its arrival. client: name of the client's key in the settings, ""
    where none is asked for. upstream: its name in the settings.
    shape: how the text was located; "" where none was. strategy: what was sent ("off": the request as it came).
    eligible: a long text was located and the router was free to choose, so the holdout drew from it.
    holdout: drawn, and therefore sent as it came.
    tokens_before, tokens_after: estimated prompt tokens of the original and of what was sent, over all its calls;
    token_error: their relative error. cost_before_usd, cost_after_usd: estimated likewise.
    quality, quality_full: estimated for what was sent and for the whole text, with 90 % intervals.
    fail_open: the stage that failed, so the original was sent; "" where none did.
    status: of the answer; None where the client left before. calls: sent to the upstream, those of a strategy's own
    among them. usage: as the upstream reports it, over all calls, with its cost where the prices are known (see
    `costs.charge`).
    timings_s: seconds from the start of each phase to its end.
    unread, notes: what a strategy of several calls says of its way: what no call has seen, and what went otherwise.
    """

    id: str
    at: float
    upstream: str
    api: Api
    model: str
    strategy: str
    client: str = ""
    shape: str = ""
    eligible: bool = False
    holdout: bool = False
    prefer: Prefer | None = None
    policy: str = ""
    reasons: tuple[str, ...] = ()
    task: Task | None = None
    task_probability: float | None = None
    estimates: Mapping[str, EstimateOutput] = field(default_factory=dict)
    tokens_before: int | None = None
    tokens_after: int | None = None
    token_error: float = 0.0
    cost_before_usd: Decimal | None = None
    cost_after_usd: Decimal | None = None
    quality: float | None = None
    quality_interval: tuple[float, float] | None = None
    quality_full: float | None = None
    quality_full_interval: tuple[float, float] | None = None
    fail_open: Stage | Literal[""] = ""
    status: int | None = None
    calls: int = 0
    usage: Usage | None = None
    timings_s: Mapping[Phase, float] = field(default_factory=dict)
    citations: tuple[Shown, ...] = ()
    unread: tuple[Shown, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """There was no answer, or an error; that saves nothing, and is tried again."""
        return self.status is None or self.status >= 400


class DecisionLog:
    """The last records, in memory, the oldest forgotten first. Safe to share between threads.

    In `get` and `recent`, client None is the admin, who sees all; a client sees only its own.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        with self._lock:
            self._records[record.id] = record
            if len(self._records) > self.limit:
                self._records.popitem(last=False)

    def complete(self, record: Record) -> None:
        """The record as it turned out, in its place; one that has been forgotten meanwhile stays so."""
        with self._lock:
            if record.id in self._records:
                self._records[record.id] = record

    def get(self, id: str, client: str | None) -> Record | None:
        with self._lock:
            record = self._records.get(id)
        return record if record is not None and client in (None, record.client) else None

    def recent(self, n: int, client: str | None) -> list[Record]:
        """At most n records, newest first."""
        with self._lock:
            newest_first = reversed(self._records.values())
            return list(islice((r for r in newest_first if client in (None, r.client)), n))


# ---- what leaves -----------------------------------------------------------------------------------------------------


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShownOutput(_Output):
    document: str
    path: list[str | int] = Field(description="Where the document stood in the request's JSON body.")
    start: int = Field(description="First character within the document, counted from 0.")
    end: int = Field(description="One past the last character.")
    score: float


class DecisionRow(_Output):
    """One line of `GET /v1/longroute/decisions`."""

    id: str
    at: float = Field(description="Arrival, in seconds since 1970.")
    upstream: str
    api: str
    model: str
    shape: str = Field(description="How the long text was located; empty where none was.")
    strategy: str = Field(description="What was sent; off: the request as it came.")
    eligible: bool
    holdout: bool = Field(description="Sent as it came, by chance, to measure the saving against.")
    task: str | None
    reason: str
    tokens_before: int | None
    tokens_after: int | None
    fail_open: str = Field(description="The stage that failed, so the original was sent; else empty.")
    status: int | None
    total_s: float | None


class RecordOutput(_Output):
    """`GET /v1/longroute/decisions/{id}`. Fields are added within a version, never renamed or removed."""

    version: Literal[1] = 1
    id: str
    at: float = Field(description="Arrival, in seconds since 1970.")
    client: str = Field(description="Name of the client's key in the settings; empty where none is asked for.")
    upstream: str
    api: str
    model: str
    shape: str = Field(description="How the long text was located; empty where none was.")
    strategy: str = Field(description="What was sent; off: the request as it came.")
    eligible: bool = Field(description="A long text was located and the router was free to choose.")
    holdout: bool = Field(description="Sent as it came, by chance, to measure the saving against.")
    prefer: str | None
    policy: str
    reasons: list[str]
    task: str | None = Field(description="Most likely question type.")
    task_probability: float | None
    estimates: dict[str, EstimateOutput]
    tokens_before: int | None = Field(description="Estimated prompt tokens of the original request.")
    tokens_after: int | None = Field(description="Estimated prompt tokens of what was sent.")
    token_error: float = Field(description="Relative error of the two; 0 with an exact tokenizer.")
    cost_before_usd: float | None
    cost_after_usd: float | None
    quality: float | None
    quality_interval: tuple[float, float] | None = Field(description="90 % interval.")
    quality_full: float | None = Field(description="The same had the whole text been sent.")
    quality_full_interval: tuple[float, float] | None
    fail_open: str = Field(description="The stage that failed, so the original was sent; else empty.")
    status: int | None
    calls: int = Field(description="Calls sent to the upstream, those of a strategy's own among them.")
    usage: UsageOutput | None = Field(description="As reported by the upstream, over all calls.")
    timings_s: dict[str, float]
    citations: list[ShownOutput] = Field(description="The passages sent; empty where that was the whole text.")
    unread: list[ShownOutput] = Field(description="What no call has seen, where the strategy was to read everything.")
    notes: list[str] = Field(description="What went differently from the decision, as the strategy says.")


def decision_row(record: Record) -> DecisionRow:
    return DecisionRow(
        id=record.id,
        at=record.at,
        upstream=record.upstream,
        api=record.api,
        model=record.model,
        shape=record.shape,
        strategy=record.strategy,
        eligible=record.eligible,
        holdout=record.holdout,
        task=record.task,
        reason=record.reasons[0] if record.reasons else "",
        tokens_before=record.tokens_before,
        tokens_after=record.tokens_after,
        fail_open=record.fail_open,
        status=record.status,
        total_s=record.timings_s.get("total"),
    )


def record_output(record: Record) -> RecordOutput:
    return RecordOutput.model_validate(record, from_attributes=True)
