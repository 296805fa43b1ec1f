"""The wire suite against the proxy as it is run, and the suite's own sanity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longroute.benchmarks.recording import Recorder
from longroute.benchmarks.spoiling_proxy import Fault, SpoilingProxy
from longroute.benchmarks.targets import running
from longroute.benchmarks.wire import CHECKS, KNOWN, outcome
from longroute.benchmarks.wire_target import Target

# What each check is there to notice; the longest beginning of its name counts.
NOTICES: dict[str, Fault] = {
    "abort_": "ignores_aborts",
    "abort_of_an_upload": "buffers_requests",
    "answer_204": "own_status",
    "answer_304": "own_status",
    "answer_": "rewrites_answers",
    "answer_after_interim": "takes_interim_for_final",
    "answer_content_length": "always_chunks",
    "answer_gzip": "decodes_gzip",
    "answer_header_": "drops_headers",
    "answer_headers_gain": "adds_headers",
    "answer_headers_of_one_connection": "passes_hop_by_hop",
    "connection_": "closes_after_each",
    "connection_of_http_1_0": "keeps_http_1_0",
    "connection_of_http_1_0_gets_no_chunks": "always_chunks",
    "connection_slow": "impatient",
    "connection_to_the_upstream": "connects_each_time",
    "cut_": "hides_cuts",
    "error_body_": "own_error_bodies",
    "failure_": "drops_the_client",
    "failure_after_work": "sends_again",
    "failure_of_": "trusts_idle_connections",
    "method_": "own_methods",
    "path_": "normalises_paths",
    "path_long": "doubles_the_prefix",
    "path_models": "doubles_the_prefix",
    "path_root": "doubles_the_prefix",
    "path_semicolons": "doubles_the_prefix",
    "path_unknown": "doubles_the_prefix",
    "redirect_": "own_status",
    "request_answered": "buffers_requests",
    "request_body_": "rewrites_requests",
    "request_content_length": "unframes_requests",
    "request_expecting": "never_continues",
    "request_framed_twice": "passes_both_framings",
    "request_header": "drops_headers",
    "request_headers_gain": "adds_headers",
    "request_headers_keep": "sorts_headers",
    "request_headers_of_one_connection": "passes_hop_by_hop",
    "request_host": "keeps_host",
    "request_upload": "buffers_requests",
    "request_without_body": "always_says_a_length",
    "status_": "own_status",
    "stream_": "tidies_streams",
    "stream_200": "one_at_a_time",
    "stream_first": "buffers_answers",
    "stream_head": "buffers_answers",
    "stream_is_held": "buffers_answers",
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def longroute_target(upstream: Recorder) -> Iterator[Target]:
    with running("longroute", upstream.url, settings={"EMBEDDING_MODEL": "none"}) as started:
        yield Target("longroute", started.port, upstream)


@pytest.mark.parametrize("name", CHECKS)
def test_longroute_holds(name: str, longroute_target: Target) -> None:
    why = outcome(name, longroute_target)
    if name in KNOWN:
        assert why, f"{name} holds now; take it out of KNOWN"
    else:
        assert not why, why


def test_every_check_holds_without_a_proxy(upstream: Recorder) -> None:
    target = Target("direct", upstream.port, upstream)
    failed = {name: why for name in CHECKS if (why := outcome(name, target))}
    assert not failed


def test_every_check_holds_for_a_proxy_without_fault(upstream: Recorder) -> None:
    proxy = SpoilingProxy(upstream.port)
    target = Target("spoiled", proxy.port, upstream)
    # Twice: this simple proxy does not ask again where an idle connection closes under its hands.
    failed = {name: why for name in CHECKS if outcome(name, target) and (why := outcome(name, target))}
    proxy.close()
    assert not failed


@pytest.mark.parametrize("fault", sorted(set(NOTICES.values())))
def test_a_fault_is_noticed_by_the_checks_for_it(fault: Fault, upstream: Recorder) -> None:
    proxy = SpoilingProxy(upstream.port, fault)
    target = Target("spoiled", proxy.port, upstream, patience_s=0.4)
    meant = [name for name in CHECKS if NOTICES[max((n for n in NOTICES if name.startswith(n)), key=len)] == fault]
    passed = [name for name in meant if not outcome(name, target)]
    proxy.close()
    assert meant
    assert not passed, f"a proxy that {fault} passes {passed}"
