from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from prometheus_client.parser import text_string_to_metric_families

from longroute.router.core import Usage
from longroute.router.proxy import telemetry
from longroute.router.proxy.records import Record
from longroute.router.proxy.saving import Comparison, Saving
from longroute.router.proxy.telemetry import (
    JsonFormatter,
    Metrics,
    log_as_json,
    log_fail_open,
    log_request,
    log_upstream_error,
    span_writer,
)

SECRET = "sk-the-secret-text"


def record() -> Record:
    return Record(
        id="0a",
        at=1000.0,
        upstream="openai",
        api="chat",
        model="gpt-4o",
        strategy="rag",
        shape="pasted text",
        reasons=("cheapest",),
        tokens_before=9000,
        tokens_after=1000,
        cost_before_usd=Decimal("0.9"),
        cost_after_usd=Decimal("0.1"),
        status=200,
        usage=Usage(1010, 10, 50),
        timings_s={"decide": 0.02, "total": 2.5},
    )


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    """What Prometheus would read; None where there is no such sample."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return next((s.value for family in families for s in family.samples if (s.name, s.labels) == (name, labels)), None)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_a_request_is_counted_by_what_was_sent_and_its_status_class() -> None:
    metrics = Metrics()
    metrics.passed("openai", "embeddings", 200)
    metrics.passed("openai", "embeddings", 201)
    metrics.passed("openai", "embeddings", None)
    metrics.completed(replace(record(), status=429))

    def requests(api: str, strategy: str, status: str) -> float | None:
        labels = {"upstream": "openai", "api": api, "strategy": strategy, "status": status}
        return sample(metrics, "longroute_requests_total", **labels)

    assert requests("embeddings", "off", "2xx") == 2
    assert requests("embeddings", "off", "none") == 1
    assert requests("chat", "rag", "4xx") == 1
    assert metrics.totals().requests == 4


def test_tokens_money_phases_and_failures_of_considered_requests_are_counted() -> None:
    metrics = Metrics()
    metrics.completed(record())
    metrics.completed(replace(record(), fail_open="decide", cost_before_usd=None))
    assert sample(metrics, "longroute_tokens_total", side="before") == 18_000
    assert sample(metrics, "longroute_tokens_total", side="after") == 2_000
    # An unknown price is on neither side.
    assert sample(metrics, "longroute_cost_usd_total", side="before") == pytest.approx(0.9)
    assert sample(metrics, "longroute_cost_usd_total", side="after") == pytest.approx(0.1)
    assert sample(metrics, "longroute_phase_seconds_sum", phase="total") == 5.0
    assert sample(metrics, "longroute_fail_open_total", stage="decide") == 1


def test_refusals_and_upstream_errors_are_counted_by_cause() -> None:
    metrics = Metrics()
    metrics.rejected("rate_limit")
    metrics.upstream_error("a", "reset")
    metrics.upstream_error("b", "reset")
    assert sample(metrics, "longroute_upstream_errors_total", upstream="a", kind="reset") == 1
    assert metrics.totals().rejected == {"rate_limit": 1}
    assert metrics.totals().upstream_errors == {"reset": 2}


def test_requests_in_flight_are_read_when_scraped() -> None:
    metrics = Metrics()
    metrics.in_flight += 3
    assert sample(metrics, "longroute_in_flight") == 3
    metrics.in_flight -= 1
    assert sample(metrics, "longroute_in_flight") == metrics.totals().in_flight == 2


def test_the_saved_share_is_told_with_its_interval_and_basis() -> None:
    tokens = Comparison("measured", 0.8, (0.7, 0.9), 10.0, 2.0, 90, 30, 0)
    metrics = Metrics(lambda: Saving(120, tokens, None, None, ""))
    for bound, value in (("low", 0.7), ("value", 0.8), ("high", 0.9)):
        assert sample(metrics, "longroute_saved_share", of="tokens", basis="measured", bound=bound) == value
        assert sample(metrics, "longroute_saved_share", of="cost_usd", basis="measured", bound=bound) is None


def test_model_names_never_become_labels() -> None:
    metrics = Metrics()
    before = len(metrics.exposition().splitlines())
    metrics.completed(record())
    once = len(metrics.exposition().splitlines())
    for number in range(50):
        metrics.completed(replace(record(), model=f"{SECRET}-{number}", client=str(number), id=str(number)))
    assert once > before
    assert len(metrics.exposition().splitlines()) == once
    assert SECRET.encode() not in metrics.exposition()


def test_two_proxies_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.passed("u", "chat", 200)
    assert (first.totals().requests, second.totals().requests) == (1, 0)


# ---- spans -----------------------------------------------------------------------------------------------------------


class KeptSpan(trace.NonRecordingSpan):
    """A span that remembers what it is told."""

    def __init__(self, name: str, start_time: int | None, parent: trace.SpanContext) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name, self.start_time, self.parent = name, start_time, parent
        self.attributes: dict[str, object] = {}
        self.end_time: int | None = None
        self.status: object = None

    def is_recording(self) -> bool:
        return True

    def set_attributes(self, attributes: object) -> None:
        assert isinstance(attributes, dict)
        self.attributes.update(attributes)

    def set_status(self, status: object, description: str | None = None) -> None:
        self.status = status

    def end(self, end_time: int | None = None) -> None:
        self.end_time = end_time


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[KeptSpan]:
    """The spans that are written; a tracer of our own stands for the SDK, which can be set up only once a process."""
    kept: list[KeptSpan] = []

    class KeepingTracer:
        def start_span(self, name: str, *, context: Context, kind: trace.SpanKind, start_time: int) -> trace.Span:
            kept.append(KeptSpan(name, start_time, trace.get_current_span(context).get_span_context()))
            return kept[-1]

    monkeypatch.setattr(trace, "get_tracer", lambda name: KeepingTracer())
    return kept


def test_a_considered_request_is_one_span_below_the_caller_s(spans: list[KeptSpan]) -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    span_writer()(record(), {"traceparent": caller})
    (span,) = spans
    assert span.name == "chat gpt-4o"
    assert (span.start_time, span.end_time) == (1000 * 10**9, 1002_500_000_000)
    assert f"{span.parent.trace_id:032x}" in caller
    assert span.attributes["gen_ai.request.model"] == "gpt-4o"
    assert span.attributes["gen_ai.usage.input_tokens"] == 1010
    assert span.attributes["longroute.strategy"] == "rag"
    assert span.attributes["longroute.tokens_before"] == 9000
    assert span.status is None


def test_an_answer_that_failed_marks_the_span_and_unknowns_are_left_out(spans: list[KeptSpan]) -> None:
    span_writer()(replace(record(), status=503, usage=None), {})
    (span,) = spans
    assert span.status is trace.StatusCode.ERROR
    assert span.attributes["error.type"] == "503"
    assert "gen_ai.usage.input_tokens" not in span.attributes
    assert None not in span.attributes.values()


def test_without_opentelemetry_nothing_is_written_and_nothing_fails() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from longroute.router.proxy.telemetry import span_writer\n"
        "assert span_writer()(None, {}) is None; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == "fine\n"


# ---- logs ------------------------------------------------------------------------------------------------------------


@contextmanager
def kept_lines() -> Iterator[list[dict[str, object]]]:
    """What the proxy's logger writes meanwhile, parsed."""
    lines: list[dict[str, object]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(self.format(record)))

    logger = telemetry.logger
    before = (logger.handlers, logger.level, logger.propagate)
    log_as_json("INFO")
    handler = Keep()
    handler.setFormatter(JsonFormatter())
    logger.handlers = [handler]
    try:
        yield lines
    finally:
        logger.handlers, logger.level, logger.propagate = before


def test_a_considered_request_is_one_line_of_json() -> None:
    with kept_lines() as lines:
        log_request(replace(record(), model="line\nbreak"))
    (line,) = lines
    assert line["event"] == "request"
    assert line["level"] == "info"
    assert line["model"] == "line\nbreak"
    assert line["tokens_after"] == 1000
    assert line["cost_before_usd"] == 0.9
    assert line["reasons"] == ["cheapest"]
    assert "fail_open" not in line


def test_a_failure_names_the_error_and_the_place_but_not_its_message() -> None:
    def decide(text: str) -> None:
        raise ValueError(f"cannot handle {text}")

    with kept_lines() as lines:
        try:
            decide(SECRET)
        except ValueError as error:
            log_fail_open("0a", "decide", error)
            log_upstream_error("0a", "openai", "reset", error)
    assert [line["event"] for line in lines] == ["fail_open", "upstream_error"]
    assert lines[0]["error"] == "ValueError"
    assert "decide" in str(lines[0]["at_code"])
    assert SECRET not in json.dumps(lines)


def test_the_log_goes_to_standard_error_as_json_lines() -> None:
    program = (
        "from longroute.router.proxy.telemetry import log_as_json, log_fail_open\n"
        "log_as_json('INFO'); log_as_json('INFO'); log_fail_open('0a', 'locate', OSError('disk full'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["stage"] == "locate"
