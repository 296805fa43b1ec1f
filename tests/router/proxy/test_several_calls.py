"""Strategies of several calls behind the proxy: which calls go out, what comes back, what is said of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from longroute.router.core import Answer, Call, Features, Footprint, Message, ModelProfile, Plan, Reply, Request
from longroute.router.proxy import long_texts
from longroute.router.proxy.wire import Headers, Response
from longroute.tests.router.fakes import Chain
from longroute.tests.router.proxy.fakes import (
    COMPLETION,
    FACT,
    QUESTION,
    MakeProxy,
    Proxy,
    Sent,
    Told,
    chat,
    completion,
    long_text,
)


class Vote:
    """The caller's own question about three parts, side by side; the answer given most often is handed on."""

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        return Footprint(900, 30, 300, calls=3)

    def plan(self, request: Request, features: Features) -> Plan:
        outcomes = yield tuple(
            Call((), request.model, purpose=f"manager {n} of 3", final=False, context=(f"PART {n}",)) for n in (1, 2, 3)
        )
        assert isinstance(outcomes, tuple)
        said = [outcome.text for outcome in outcomes if isinstance(outcome, Reply)]
        return Answer(max(said, key=said.count), notes=("decided by vote",))


class Hired(Chain):
    """Its one worker is another model than the caller's."""

    def plan(self, request: Request, features: Features) -> Plan:
        reply = yield Call((Message("user", "WORKER"),), "gpt-4o-mini", purpose="worker 1 of 1", final=False)
        assert isinstance(reply, Reply)
        last = yield Call((), request.model, context=(f"NOTES: {reply.text}",))
        assert isinstance(last, Reply)
        return Answer(last.text)


@pytest.fixture
def proxy(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    from longroute.router import assemble

    ready = {"chain": lambda parts: Chain(), "vote": lambda parts: Vote(), "hired": lambda parts: Hired()}
    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, **ready})
    return make_proxy(settings={"allowed": ()})


def by(strategy: str) -> dict[str, str]:
    return {"x-longroute-strategy": strategy}


def said(text: str, **usage: int) -> bytes:
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    counts = {"prompt_tokens": 120, "completion_tokens": 4, "total_tokens": 124} | usage
    return json.dumps(COMPLETION | {"choices": [message], "usage": counts}).encode()


def streamed(text: str) -> list[bytes]:
    pieces = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in (text[:3], text[3:])]
    return [b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces] + [b"data: [DONE]\n\n"]


# ---- answers that the upstream has given already ---------------------------------------------------------------------

VOTES = {"PART 1": "Ada", "PART 2": "Mara Okafor.", "PART 3": "Mara Okafor."}


def vote(sent: Sent) -> str:
    assert sent.prompt.endswith(QUESTION)
    return VOTES[sent.prompt[:6]]


def test_the_answer_that_was_chosen_is_handed_on_byte_for_byte(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: Told(body=said(vote(sent)) + b"  \n", headers=[(b"x-request-id", b"7")])
    answer = proxy.ask(chat(), headers=by("vote"))
    assert answer.content == said("Mara Okafor.") + b"  \n" and answer.headers["x-request-id"] == "7"
    assert len(proxy.upstream.sent) == 3 and answer.headers["x-longroute-notes"] == "decided by vote"
    record = proxy.decision(answer)
    assert (record["calls"], record["usage"]["prompt_tokens"], record["tokens_after"]) == (3, 360, 360)
    assert proxy.metric('longroute_calls_total{strategy="vote",upstream="upstream"}') == 3


def test_the_answer_that_was_chosen_is_replayed_as_a_stream(proxy: Proxy) -> None:
    kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
    proxy.upstream.answer = lambda sent: Told(body=streamed(vote(sent)), headers=kind)
    answer = proxy.ask(chat(stream=True), headers=by("vote"))
    assert answer.content == b"".join(streamed("Mara Okafor."))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_the_answer_that_was_chosen_stays_compressed(proxy: Proxy) -> None:
    def answer(sent: Sent) -> Told:
        assert (b"accept-encoding", b"gzip") in sent.headers, "what is asked for must be readable here"
        kinds = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
        return Told(body=gzip.compress(said(vote(sent)), mtime=0), headers=kinds)

    proxy.upstream.answer = answer
    response = proxy.ask(chat(), headers=by("vote") | {"accept-encoding": "gzip, br, zstd", "idempotency-key": "1"})
    assert response.headers["content-encoding"] == "gzip" and response.json() == json.loads(said("Mara Okafor."))
    assert all(b"idempotency-key" not in dict(sent.headers) for sent in proxy.upstream.sent)


# ---- who is kept waiting ---------------------------------------------------------------------------------------------


class Sure(Chain):
    """Costs nothing, so that the policy takes it where it may; in the place of a strategy that was measured."""

    calls = 4

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        return Footprint(10, 10, 10, calls=self.calls, sequential_calls=self.calls)


class Quick(Sure):
    calls = 2


def test_a_stream_is_not_kept_waiting_unless_it_asks_for_it(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longroute.router import assemble

    strategies = {"rag": assemble._STRATEGIES["rag"], "self_route": lambda parts: Sure()}
    monkeypatch.setattr(assemble, "_STRATEGIES", strategies)
    proxy = make_proxy(settings={"allowed": ()})
    cheap = {"x-longroute-prefer": "cheap"}
    assert proxy.ask(chat(), headers=cheap).headers["x-longroute-strategy"] == "self_route"
    streamed_one = proxy.ask(chat(stream=True), headers=cheap)
    assert streamed_one.headers["x-longroute-strategy"] == "rag"
    assert any("streamed" in reason for reason in proxy.decision(streamed_one)["reasons"])
    quick = {"rag": assemble._STRATEGIES["rag"], "self_route": lambda parts: Quick()}
    monkeypatch.setattr(assemble, "_STRATEGIES", quick)
    for stream_calls, strategy in ((2, "self_route"), (1, "rag")):
        one = make_proxy(settings={"allowed": ()}, stream_calls=stream_calls)
        assert one.ask(chat(stream=True), headers=cheap).headers["x-longroute-strategy"] == strategy
    monkeypatch.setattr(assemble, "_STRATEGIES", strategies)
    bolder = make_proxy(settings={"allowed": ()}, stream_calls=4)
    assert bolder.ask(chat(stream=True), headers=cheap).headers["x-longroute-strategy"] == "self_route"
    asked = proxy.ask(chat(stream=True), headers=by("self_route"))
    assert asked.headers["x-longroute-strategy"] == "self_route"
    only = make_proxy(settings={"policy": "fixed:self_route", "allowed": ("self_route",)})
    assert only.ask(chat(stream=True)).headers["x-longroute-strategy"] == "self_route"


def test_an_answer_that_is_fetched_later_is_asked_for_once(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(settings={"allowed": ("rag", "self_route")}, stored_responses=True)
    queued = json.dumps({"id": "r", "object": "response", "status": "queued", "output": []}).encode()
    proxy.upstream.answer = lambda sent: Told(body=queued)
    body = json.dumps({"model": "gpt-4o", "background": True, "input": f"{long_text()}\n\n{QUESTION}"}).encode()
    answer = proxy.ask(body, path="/v1/responses", headers={"x-longroute-prefer": "cheap"})
    assert answer.content == queued and len(proxy.upstream.sent) == 1
    assert answer.headers["x-longroute-strategy"] == "rag"


@pytest.mark.parametrize(
    ("path", "fields", "strategy"),
    [
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "self_route"),
        ("messages", {"tools": [{"name": "f", "input_schema": {}}], "max_tokens": 50}, "self_route"),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}], "max_tokens": 50}, "rag"),
        ("messages", {"mcp_servers": [{"type": "url", "url": "https://x.test"}], "max_tokens": 50}, "rag"),
        ("responses", {"tools": [{"type": "mcp", "server_url": "https://x.test"}], "store": False}, "rag"),
    ],
)
def test_tools_that_the_server_runs_are_not_run_twice(
    path: str, fields: dict[str, Any], strategy: str, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(settings={"allowed": ("rag", "self_route")})
    content = f"{long_text()}\n\n{QUESTION}"
    asked = {"input": content} if path == "responses" else {"messages": [{"role": "user", "content": content}]}
    body = json.dumps({"model": "gpt-4o", **asked, **fields}).encode()
    told = {"content": [{"type": "text", "text": f"{FACT} [1]"}]}
    proxy.upstream.answer = lambda sent: Told(body=json.dumps(told).encode()) if path == "messages" else completion()
    answer = proxy.ask(body, path=f"/v1/{path}", headers={"x-longroute-prefer": "cheap"})
    assert answer.headers["x-longroute-strategy"] == strategy


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_worker_of_another_model_is_asked_for_by_name_and_paid_at_its_price(proxy: Proxy) -> None:
    large = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
    proxy.upstream.answer = lambda sent: Told(body=said("notes", **large))
    answer = proxy.ask(chat(), headers=by("hired"))
    worker, last = proxy.upstream.sent
    assert (worker.json["model"], last.json["model"]) == ("gpt-4o-mini", "gpt-4o")
    assert proxy.decision(answer)["usage"]["cost_usd"] == pytest.approx(0.15 + 2.5)


def test_workers_are_of_the_model_that_the_settings_name(
    make_proxy: MakeProxy,
) -> None:
    proxy = make_proxy(settings={"allowed": (), "agents": {"worker_model": "gpt-4o-mini"}})
    proxy.upstream.answer = diligent
    proxy.ask(chat(temperature=0.125), headers=by("chain_of_agents"))
    *workers, last = [sent.json["model"] for sent in proxy.upstream.sent]
    assert set(workers) == {"gpt-4o-mini"} and last == "gpt-4o"


def test_the_callers_model_is_named_as_the_caller_names_it(proxy: Proxy) -> None:
    body = chat().replace(b'"gpt-4o"', b'"OpenAI/GPT-4o "')
    proxy.ask(body, headers=by("chain"))
    assert {sent.json["model"] for sent in proxy.upstream.sent} == {"OpenAI/GPT-4o "}


# ---- what is said of it ----------------------------------------------------------------------------------------------


def second_fails(proxy: Proxy) -> Callable[[Sent], Told]:
    return lambda sent: Told(503, b"{}") if len(proxy.upstream.sent) == 2 else Told(body=said("SECRET notes"))


def test_what_no_call_has_read_is_named_in_headers_and_record_without_its_text(proxy: Proxy) -> None:
    proxy.upstream.answer = second_fails(proxy)
    answer = proxy.ask(chat(), headers=by("chain"))
    assert answer.status_code == 200 and proxy.sent.prompt.startswith("NOTES: SECRET notes / SECRET notes")
    [unread] = proxy.decision(answer)["unread"]
    assert answer.headers["x-longroute-unread"] == f"document-1 {unread['start']}-{unread['end']}"
    assert abs(3 * (unread["end"] - unread["start"]) - len(long_text())) < 9 and unread["path"][0] == "messages"
    assert answer.headers["x-longroute-notes"] == "worker 2 of 3 failed, so its part is unread"
    assert "x-longroute-fail-open" not in answer.headers
    assert "calls=4" in answer.headers["x-longroute-estimate"]
    record = json.dumps(proxy.decision(answer))
    assert "worker 2 of 3" in record and "SECRET" not in record and FACT not in record


def test_tokens_of_all_calls_count_as_sent(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: Told(body=said("notes", prompt_tokens=9_000))
    told = proxy.decision(proxy.ask(chat(), headers=by("chain")))
    assert 27_000 < told["tokens_after"] < 27_100 and told["usage"]["prompt_tokens"] == 36_000
    bare = json.dumps({"choices": [{"message": {"content": "notes"}}]}).encode()  # an upstream that counts nothing
    proxy.upstream.answer = lambda sent: Told(body=bare)
    estimated = proxy.decision(proxy.ask(chat(), headers=by("chain")))["tokens_after"]
    assert estimated == pytest.approx(told["tokens_before"], rel=0.02)


# ---- the strategies that there are -----------------------------------------------------------------------------------

SEVERAL = ("chain_of_agents", "retrieve_then_reason", "self_route")


def diligent(sent: Sent) -> Told:
    """A model that finds the fact where it is shown, copies it out and answers; streams where it is asked to."""
    prompt = "\n".join(message["content"] for message in sent.json["messages"])
    found = f'EVIDENCE: "{FACT}" | names the warden' if "EVIDENCE" in prompt else f"[1] {FACT}"
    text = found if FACT in prompt else "NOTHING"
    if not sent.prompt.endswith(QUESTION) or sent.json.get("temperature") != 0.125:  # no question of the caller's own
        return Told(body=said(text, prompt_tokens=len(prompt) // 4))
    if sent.json.get("stream"):
        return Told(body=streamed("Mara Okafor."), headers=[(b"content-type", b"text/event-stream")])
    return Told(body=said("Mara Okafor.", prompt_tokens=len(prompt) // 4))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strategy", SEVERAL)
def test_every_strategy_of_several_calls_ends_in_the_upstreams_own_answer(
    strategy: str, stream: bool, proxy: Proxy
) -> None:
    proxy.upstream.answer = diligent
    answer = proxy.ask(chat(stream=stream, temperature=0.125), headers=by(strategy))
    assert answer.content == (b"".join(streamed("Mara Okafor.")) if stream else proxy_answer(proxy))
    assert answer.headers["x-longroute-strategy"] == strategy and "x-longroute-fail-open" not in answer.headers
    assert proxy.sent.prompt.endswith(QUESTION) and FACT in proxy.sent.prompt
    assert len(proxy.sent.body) < len(chat())
    told = proxy.decision(answer)
    assert told["calls"] == len(proxy.upstream.sent)
    if not stream:
        assert told["tokens_after"] == pytest.approx(told["usage"]["prompt_tokens"], rel=0.15)
    for words in (json.dumps(told), str(answer.headers)):
        assert "Mara" not in words and "Okafor" not in words, "neither record nor headers hold texts"


def proxy_answer(proxy: Proxy) -> bytes:
    return said("Mara Okafor.", prompt_tokens=len(proxy.sent.prompt) // 4)


@pytest.mark.parametrize("strategy", SEVERAL)
def test_every_strategy_of_several_calls_goes_on_after_a_failure_or_sends_the_original(
    strategy: str, proxy: Proxy
) -> None:
    broken = 400 if strategy == "self_route" else 503
    proxy.upstream.answer = lambda sent: Told(broken, b"{}") if len(proxy.upstream.sent) == 1 else diligent(sent)
    answer = proxy.ask(chat(temperature=0.125), headers=by(strategy))
    assert answer.status_code == 200
    if answer.headers["x-longroute-strategy"] == "off":
        assert answer.headers["x-longroute-fail-open"] == "plan" and proxy.sent.body == chat(temperature=0.125)
    proxy.upstream.sent.clear()
    proxy.upstream.answer = lambda sent: completion() if sent.body == chat() else Told(400, b"{}")
    answer = proxy.ask(chat(), headers=by(strategy))
    assert (answer.status_code, answer.json()) == (200, COMPLETION)
    assert answer.headers["x-longroute-fail-open"] == "plan"


# ---- what fails ------------------------------------------------------------------------------------------------------


def test_what_the_upstream_repeats_of_a_request_is_noted_nowhere(proxy: Proxy) -> None:
    """Servers quote bodies in their complaints; of ours they know the question and the application's own words, too."""
    echo = json.dumps({"error": {"message": f"cannot answer: {FACT}"}}).encode()
    proxy.upstream.answer = lambda sent: Told(500, echo) if FACT in sent.prompt else Told(body=said("notes"))
    answer = proxy.ask(chat(), headers=by("chain_of_agents"))
    assert answer.headers["x-longroute-unread"] and "failed" in answer.headers["x-longroute-notes"]
    assert "Okafor" not in str(answer.headers) + json.dumps(proxy.decision(answer))


def test_where_every_worker_fails_the_original_goes_out(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: completion() if sent.body == chat() else Told(500, b"{}")
    answer = proxy.ask(chat(), headers=by("chain"))
    assert (answer.status_code, answer.json(), len(proxy.upstream.sent)) == (200, COMPLETION, 4)
    assert answer.headers["x-longroute-fail-open"] == "plan" and "x-longroute-unread" not in answer.headers


def test_a_chain_under_way_is_not_turned_away_however_much_is_waiting(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(sent: Sent) -> Told:
        monkeypatch.setattr(long_texts, "_BACKLOG", 0)  # from now on there is room for nothing new
        return Told(body=said("notes"))

    proxy.upstream.answer = answer
    assert "x-longroute-fail-open" not in proxy.ask(chat(), headers=by("chain")).headers
    assert proxy.ask(chat(), headers=by("chain")).headers["x-longroute-fail-open"] == "queue"


class Silent:
    """An upstream that never answers from its second call on; it hears of calls that are given up."""

    def __init__(self) -> None:
        self.calls = self.given_up = 0
        self.asked = asyncio.Event()

    async def send(
        self, method: bytes, target: bytes, headers: Headers, body: Any, *, timeouts: object = None
    ) -> Response:
        self.calls += 1
        if self.calls < 2:
            return Told(body=said("notes"))
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        raise AssertionError("nobody wakes it")


class Paths(Chain):
    """One call, then three side by side."""

    def plan(self, request: Request, features: Features) -> Plan:
        yield Call((Message("user", "WORKER"),), request.model, final=False)
        yield tuple(Call((Message("user", f"PATH {n}"),), request.model, final=False) for n in (1, 2, 3))
        raise AssertionError("nobody wants the answer any more")


def test_a_client_that_leaves_in_the_middle_ends_every_outstanding_call(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longroute.router import assemble

    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, "paths": lambda parts: Paths()})
    proxy, silent = make_proxy(settings={"allowed": ()}), Silent()
    monkeypatch.setattr(proxy.upstream, "send", silent.send)

    async def main() -> list[Mapping[str, Any]]:
        body, answers = iter([chat()]), []

        async def receive() -> Mapping[str, Any]:
            if (piece := next(body, None)) is not None:
                return {"type": "http.request", "body": piece, "more_body": False}
            await silent.asked.wait()
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            answers.append(message)

        headers = [(b"content-type", b"application/json"), (b"x-longroute-strategy", b"paths")]
        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "http_version": "1.1"}
        async with asyncio.timeout(10):
            await proxy.app(scope | {"scheme": "http"}, receive, send)  # type: ignore[arg-type]
        return answers

    assert asyncio.run(main()) == []
    assert (silent.calls, silent.given_up) == (4, 3)
    assert proxy.metric('longroute_calls_total{strategy="paths",upstream="upstream"}') == 4
    [told] = proxy.ask(path="/v1/longroute/decisions", method="GET").json()["decisions"]
    usage = proxy.ask(path=f"/v1/longroute/decisions/{told['id']}", method="GET").json()["usage"]
    assert told["status"] is None and usage["prompt_tokens"] == 120, "what was paid for, though nobody waited for it"


# ---- a last call that fails ------------------------------------------------------------------------------------------

TOO_LONG = b'{"error": {"message": "maximum context length is 8192 tokens", "code": "context_length_exceeded"}}'


REFUSAL = "The documents do not contain the answer."


def refused_by_passages(proxy: Proxy, then: Callable[[], Told | Exception]) -> None:
    """An upstream that finds nothing in passages, so that the whole text is asked, which becomes of `then`."""
    refusal = said(REFUSAL)
    proxy.upstream.answer = lambda sent: then() if len(sent.body) > len(chat()) / 2 else Told(body=refusal)


def test_a_refusal_by_passages_stands_where_the_whole_text_is_too_long(proxy: Proxy) -> None:
    refused_by_passages(proxy, lambda: Told(400, TOO_LONG))
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert answer.status_code == 200 and answer.content == said(REFUSAL)
    assert len(proxy.upstream.sent) == 2 and answer.headers["x-longroute-strategy"] == "self_route"
    assert "an earlier answer stands" in answer.headers["x-longroute-notes"]
    record = proxy.decision(answer)
    assert (record["calls"], record["usage"]["prompt_tokens"], record["status"]) == (2, 120, 200)
    assert record["citations"], "the passages that the answer rests on"


@pytest.mark.parametrize(
    ("then", "calls", "status"),
    [
        (lambda: Told(429, b"{}"), 3, 429),
        (lambda: Told(500, b"{}"), 3, 500),
        (lambda: httpx.ReadTimeout(""), 2, 504),
    ],
)
def test_a_refusal_by_passages_is_no_answer_where_the_client_may_try_again(
    then: Callable[[], Told | Exception], calls: int, status: int, proxy: Proxy
) -> None:
    refused_by_passages(proxy, then)
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert (answer.status_code, len(proxy.upstream.sent)) == (status, calls)
    [told] = proxy.ask(path="/v1/longroute/decisions", method="GET").json()["decisions"]
    record = proxy.ask(path=f"/v1/longroute/decisions/{told['id']}", method="GET").json()
    assert record["usage"]["prompt_tokens"] == 120, "the passages' call was paid for"


def test_the_whole_text_is_asked_once_more_before_an_answer_that_is_not_relied_on_stands(proxy: Proxy) -> None:
    whole = said("Mara Okafor.")
    refused_by_passages(proxy, lambda: Told(429, b"{}") if len(proxy.upstream.sent) == 2 else Told(body=whole))
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert answer.content == whole and "x-longroute-fail-open" not in answer.headers


def test_a_rescue_ends_with_the_passages_answer_where_the_whole_text_is_too_long_again(
    make_proxy: MakeProxy,
) -> None:
    proxy = make_proxy(settings={"allowed": ("full", "self_route")})
    refused_by_passages(proxy, lambda: Told(400, TOO_LONG))
    answer = proxy.ask(chat(), headers=by("full"))
    assert answer.status_code == 200 and "an earlier answer stands" in answer.headers["x-longroute-notes"]


def test_what_calls_took_is_counted_where_the_last_one_fails_or_says_nothing_readable(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: Told(501, b"{}") if len(proxy.upstream.sent) == 4 else Told(body=said("notes"))
    answer = proxy.ask(chat(), headers=by("chain"))
    assert answer.status_code == 501 and proxy.decision(answer)["usage"]["prompt_tokens"] == 360
    proxy.upstream.sent.clear()
    blank = json.dumps({"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 0}}).encode()
    proxy.upstream.answer = lambda sent: Told(body=said("notes") if len(proxy.upstream.sent) != 2 else blank)
    answer = proxy.ask(chat(), headers=by("chain"))
    assert "x-longroute-unread" in answer.headers and proxy.decision(answer)["usage"]["prompt_tokens"] == 3 * 120 + 50


def test_tokens_of_an_original_that_is_sent_after_all_are_told(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: (
        Told(400, b"{}") if sent.prompt.startswith("NOTES") else Told(body=said("notes", prompt_tokens=1000))
    )
    answer = proxy.ask(chat(), headers=by("chain"))
    assert answer.status_code == 200 and answer.headers["x-longroute-fail-open"] == "refused"
    told = proxy.decision(answer)
    assert told["tokens_after"] == told["tokens_before"] + 3000


def test_a_tool_that_must_be_asked_for_is_handed_on_at_once(proxy: Proxy) -> None:
    tool = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [tool]}
    body = json.dumps(COMPLETION | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    proxy.upstream.answer = lambda sent: Told(body=body)
    answer = proxy.ask(chat(), headers=by("self_route"))
    assert answer.content == body and len(proxy.upstream.sent) == 1 and "x-longroute-fail-open" not in answer.headers
