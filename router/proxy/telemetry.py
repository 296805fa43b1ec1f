"""What the proxy tells those who run it: Prometheus metrics, OpenTelemetry spans, structured log lines.

All three get numbers and names that the settings or this code chose: no text, question, key, header or query string,
and no message of an exception, which may quote any of them. Set-up of the OpenTelemetry SDK, scraping and shipping of
logs are the user's; what was saved is worked out in `saving.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from traceback import walk_tb
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .records import Record, Stage
from .saving import Saving

ErrorKind = Literal["connect", "timeout", "reset", "protocol", "tls"]
Reason = Literal["key", "rate_limit", "concurrency", "body_too_large", "header_too_large", "bad_request", "slow_client"]

# From a scan of a short text to the whole answer of a slow model.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


# ---- metrics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the start of the process."""

    requests: int
    in_flight: int
    rejected: Mapping[str, int]
    upstream_errors: Mapping[str, int]


class Metrics:
    """Counters on a registry of their own, so that several proxies can live in one process.

    A request is counted once: by `passed` where it was never considered, else by `completed`. Labels take few values:
    upstreams come from the settings, everything else from this code; models are no label, since clients make them up.

    saving, calls_waiting: asked at each scrape. in_flight: requests being served; the gateway, on its one event loop,
    counts it up and down, which costs a hundredth of a gauge that locks.
    """

    def __init__(
        self, saving: Callable[[], Saving] | None = None, calls_waiting: Callable[[], int] = lambda: 0
    ) -> None:
        self.in_flight = 0
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "longroute_requests",
            "Requests, by what was sent and the class of the answer's status",
            ("upstream", "api", "strategy", "status"),
            registry=registry,
        )
        self._tokens = Counter(
            "longroute_tokens",
            "Estimated prompt tokens of the requests with a long text, as they came and as sent",
            ("side",),
            registry=registry,
        )
        self._cost = Counter(
            "longroute_cost_usd",
            "Estimated dollars of the requests with a long text and a known price, as they came and as sent",
            ("side",),
            registry=registry,
        )
        self._calls = Counter(
            "longroute_calls",
            "Calls sent to upstreams for considered requests, those of strategies' own among them",
            ("upstream", "strategy"),
            registry=registry,
        )
        self._phases = Histogram(
            "longroute_phase_seconds",
            "Time of the phases of considered requests",
            ("phase",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._fail_open = Counter(
            "longroute_fail_open", "Requests sent as they came because a stage failed", ("stage",), registry=registry
        )
        self._upstream_errors = Counter(
            "longroute_upstream_errors", "Upstream calls without an answer", ("upstream", "kind"), registry=registry
        )
        self._rejected = Counter(
            "longroute_rejected", "Requests turned away by the proxy itself", ("reason",), registry=registry
        )
        self._bound: dict[tuple[str, str, str, int], Counter] = {}
        registry.register(_Live(self, saving, calls_waiting))

    def passed(self, upstream: str, api: str, status: int | None) -> None:
        """A request that was passed on without being considered has ended."""
        self._count(upstream, api, "off", status)

    def completed(self, record: Record) -> None:
        """A considered request has ended; the record is as complete as it gets."""
        self._count(record.upstream, record.api, record.strategy, record.status)
        self._calls.labels(record.upstream, record.strategy).inc(record.calls)
        for counter, before, after in (
            (self._tokens, record.tokens_before, record.tokens_after),
            (self._cost, record.cost_before_usd, record.cost_after_usd),
        ):
            if before is not None and after is not None and not record.failed:
                counter.labels("before").inc(float(before))
                counter.labels("after").inc(float(after))
        for phase, seconds in record.timings_s.items():
            self._phases.labels(phase).observe(seconds)
        if record.fail_open:
            self._fail_open.labels(record.fail_open).inc()

    def upstream_error(self, upstream: str, kind: ErrorKind) -> None:
        self._upstream_errors.labels(upstream, kind).inc()

    def rejected(self, reason: Reason) -> None:
        self._rejected.labels(reason).inc()

    def totals(self) -> Totals:
        return Totals(
            requests=sum(count for _, count in _counts(self._requests, "api")),
            in_flight=self.in_flight,
            rejected=_by(self._rejected, "reason"),
            upstream_errors=_by(self._upstream_errors, "kind"),
        )

    def exposition(self) -> bytes:
        """The text that Prometheus reads (content type `prometheus_client.CONTENT_TYPE_PLAIN_0_0_4`)."""
        return generate_latest(self.registry)

    def _count(self, upstream: str, api: str, strategy: str, status: int | None) -> None:
        key = (upstream, api, strategy, (status or 0) // 100)
        counter = self._bound.get(key)
        if counter is None:  # `labels` takes several times as long as the rest
            status_class = f"{key[3]}xx" if status else "none"
            counter = self._bound[key] = self._requests.labels(upstream, api, strategy, status_class)
        counter.inc()


class _Live(Collector):
    """What is looked up at each scrape instead of being counted."""

    def __init__(self, metrics: Metrics, saving: Callable[[], Saving] | None, calls_waiting: Callable[[], int]) -> None:
        self._metrics = metrics
        self._calls_waiting = calls_waiting
        self._saving = saving

    def describe(self) -> list[Metric]:
        return []  # so that registering does not collect

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("longroute_in_flight", "Requests being served", value=self._metrics.in_flight)
        waiting = "Calls of strategies' own that wait for their turn (max_calls)"
        yield GaugeMetricFamily("longroute_calls_waiting", waiting, value=self._calls_waiting())
        if self._saving is None:
            return
        saving = self._saving()
        shares = GaugeMetricFamily(
            "longroute_saved_share",
            "Saved part of what the requests with a long text would have taken, with the ends of its 95 % interval",
            labels=("of", "basis", "bound"),
        )
        for name, found in (("tokens", saving.tokens), ("cost_usd", saving.cost_usd)):
            if found is not None:
                low, high = found.interval
                for bound, value in (("low", low), ("value", found.share), ("high", high)):
                    shares.add_metric((name, found.basis, bound), value)
        yield shares


def _counts(counter: Counter, label: str) -> Iterator[tuple[str, int]]:
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels[label], int(sample.value)


def _by(counter: Counter, label: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, count in _counts(counter, label):
        sums[name] = sums.get(name, 0) + count
    return sums


# ---- spans -----------------------------------------------------------------------------------------------------------

_OPERATIONS = {"chat": "chat", "responses": "chat", "messages": "chat", "completions": "text_completion"}


def span_writer() -> Callable[[Record, Mapping[str, str]], None]:
    """Writes one finished span for a completed record, below the caller's own span where its headers name one.

    Does nothing where the OpenTelemetry API is not installed; costs little where its SDK is not set up.
    Attributes are OpenTelemetry's `gen_ai.*` where it has a name, else `longroute.*`.
    """
    try:
        from opentelemetry import propagate, trace
    except ImportError:  # an integration for those who have it, asked for by having it
        return lambda record, headers: None

    tracer = trace.get_tracer("longroute.proxy")

    def write(record: Record, headers: Mapping[str, str]) -> None:
        start_ns = int(record.at * 1e9)
        span = tracer.start_span(
            f"{_OPERATIONS[record.api]} {record.model}",
            context=propagate.extract(headers),
            kind=trace.SpanKind.CLIENT,
            start_time=start_ns,
        )
        if span.is_recording():
            span.set_attributes(_attributes(record))
            if record.status is None or record.status >= 400:
                span.set_status(trace.StatusCode.ERROR)
        span.end(start_ns + int(record.timings_s.get("total", 0.0) * 1e9))

    return write


def _attributes(record: Record) -> dict[str, str | bool | int | float]:
    usage = record.usage
    named: dict[str, str | bool | int | float | None] = {
        "gen_ai.operation.name": _OPERATIONS[record.api],
        "gen_ai.provider.name": "anthropic" if record.api == "messages" else "openai",  # whose API is spoken
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens if usage else None,
        "http.response.status_code": record.status,
        "error.type": None if record.status is None or record.status < 400 else str(record.status),
        "longroute.decision_id": record.id,
        **{f"longroute.{name}": value for name, value in _facts(record).items()},
        **{f"longroute.phase.{phase}_s": seconds for phase, seconds in record.timings_s.items()},
    }
    return {name: value for name, value in named.items() if value is not None}


def _facts(record: Record) -> dict[str, str | bool | int | float | None]:
    """What spans and log lines both tell."""
    return {
        "upstream": record.upstream,
        "strategy": record.strategy,
        "shape": record.shape or None,
        "task": record.task,
        "policy": record.policy or None,
        "holdout": record.holdout,
        "tokens_before": record.tokens_before,
        "tokens_after": record.tokens_after,
        "cost_before_usd": _dollars(record.cost_before_usd),
        "cost_after_usd": _dollars(record.cost_after_usd),
        "quality": record.quality,
        "calls": record.calls,
        "unread": len(record.unread),
        "fail_open": record.fail_open or None,
    }


def _dollars(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


# ---- logs ------------------------------------------------------------------------------------------------------------

logger = logging.getLogger("longroute.proxy")

_INNERMOST_FRAMES = 8


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and the fields given with it."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: Mapping[str, object] = getattr(record, "fields", {})
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        return json.dumps(line)  # ASCII: names that clients choose could steer a terminal


def log_as_json(level: int | str) -> None:
    """Send the proxy's log to standard error, one JSON object a line, and nowhere else."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def log_request(record: Record) -> None:
    """A considered request has ended."""
    if not logger.isEnabledFor(logging.INFO):
        return
    usage = record.usage
    fields = {
        "id": record.id,
        "client": record.client or None,
        "api": record.api,
        "model": record.model,
        **_facts(record),
        "reasons": record.reasons,
        "status": record.status,
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "timings_s": {phase: round(seconds, 6) for phase, seconds in record.timings_s.items()},
    }
    logger.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def log_fail_open(request_id: str, stage: Stage, error: BaseException) -> None:
    """A stage has failed. Says which error and where in the code, never its message: that may quote the request."""
    frames = [
        f"{Path(f.f_code.co_filename).name}:{line} {f.f_code.co_name}" for f, line in walk_tb(error.__traceback__)
    ]
    fields = {
        "id": request_id,
        "stage": stage,
        "error": type(error).__qualname__,
        "at_code": frames[-_INNERMOST_FRAMES:],
    }
    logger.error("fail_open", extra={"fields": fields})


def log_upstream_error(request_id: str, upstream: str, kind: ErrorKind, error: BaseException) -> None:
    fields = {"id": request_id, "upstream": upstream, "kind": kind, "error": type(error).__qualname__}
    logger.warning("upstream_error", extra={"fields": fields})
