"""Requests with a long text: what is sent, what the answer's headers say, and what happens when anything fails."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from longroute.router.assemble import Router
from longroute.router.core import Answer, Call, Features, Footprint, Message, ModelProfile, Plan, Reply, Request
from longroute.router.errors import RouterError
from longroute.router.proxy import long_texts, routing
from longroute.router.router import BaseRouter
from longroute.router.settings import load_settings
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

RAG = {"x-longroute-strategy": "rag"}
TOO_LONG = json.dumps(
    {"error": {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}}
).encode()


def answer_by_length(sent: Sent) -> Told:
    """An upstream with a small window."""
    return Told(400, TOO_LONG) if len(sent.body) > 30_000 else completion()


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_only_the_document_is_made_shorter_and_the_fact_stays(proxy: Proxy) -> None:
    body = chat(temperature=0.5, tools=[{"type": "function", "function": {"name": "f"}}], odd={"a": [None]})
    answer = proxy.ask(body, headers=RAG)
    sent, original = proxy.sent.json, json.loads(body)
    assert len(proxy.sent.body) < len(body) / 4
    assert FACT in proxy.sent.prompt and proxy.sent.prompt.endswith(f"\n\n{QUESTION}")
    assert {k: v for k, v in sent.items() if k != "messages"} == {k: v for k, v in original.items() if k != "messages"}
    assert (b"content-length", b"%d" % len(proxy.sent.body)) in proxy.sent.headers
    assert answer.json() == COMPLETION


def test_a_text_may_be_compressed_in_its_place(proxy: Proxy) -> None:
    body = chat()
    answer = proxy.ask(body, headers={"x-longroute-strategy": "compressed"})
    assert answer.headers["x-longroute-strategy"] == "compressed"
    assert 0.2 * len(body) < len(proxy.sent.body) < 0.45 * len(body)
    assert proxy.sent.prompt.startswith("[Shortened") and proxy.sent.prompt.endswith(f"\n\n{QUESTION}")
    assert "warden of station 137 is Mara Okafor" in proxy.sent.prompt


def test_the_answer_says_what_was_decided_and_why(proxy: Proxy) -> None:
    answer = proxy.ask(chat(), headers={"x-longroute-prefer": "cheap"})
    headers = answer.headers
    assert headers["x-longroute-strategy"] == "rag"
    assert int(headers["x-longroute-tokens-before"]) > 5 * int(headers["x-longroute-tokens-after"])
    assert headers["x-longroute-estimate"].startswith("quality=0.")
    assert "full_cost_usd=" in headers["x-longroute-estimate"]
    assert headers["x-longroute-reason"]
    decision = proxy.decision(answer)
    assert decision["strategy"] == "rag" and decision["prefer"] == "cheap" and decision["status"] == 200
    assert decision["usage"]["prompt_tokens"] == 120
    assert {"full", "rag"} <= set(decision["estimates"])


def test_citations_lead_back_to_the_request(proxy: Proxy) -> None:
    body = chat()
    decision = proxy.decision(proxy.ask(body, headers=RAG))
    shown = []
    for citation in decision["citations"]:
        value: Any = json.loads(body)
        for step in citation["path"]:
            value = value[step]
        shown.append(value[citation["start"] : citation["end"]])
    assert any(FACT in text for text in shown)
    assert all(text.strip() in proxy.sent.prompt for text in shown)


def test_a_decision_for_the_whole_text_sends_the_very_same_bytes(proxy: Proxy) -> None:
    body = b"  " + chat().replace(b'", "', b'"  ,\n"')
    answer = proxy.ask(body, headers={"x-longroute-strategy": "full"})
    assert proxy.sent.body == body
    assert answer.headers["x-longroute-strategy"] == "full"


def test_off_leaves_the_request_unread(proxy: Proxy) -> None:
    body = chat()
    answer = proxy.ask(body, headers={"x-longroute-strategy": "off"})
    assert proxy.sent.body == body
    assert not any(name.startswith("x-longroute") for name in answer.headers)


def test_steering_fields_in_the_body_are_obeyed_and_taken_out(proxy: Proxy) -> None:
    proxy.ask(chat(longroute={"strategy": "rag"}))
    assert "longroute" not in proxy.sent.json and len(proxy.sent.body) < 30_000
    body = chat("short text", longroute={"strategy": "off"})
    proxy.ask(body)
    assert proxy.sent.json == {k: v for k, v in json.loads(body).items() if k != "longroute"}


@pytest.mark.parametrize(
    "field", [{"strategy": "nonsense"}, {"prefer": "nonsense"}, {"max_cost_usd": "x"}, {"nonsense": 1}]
)
def test_steering_we_cannot_follow_is_a_clear_error(field: dict[str, Any], proxy: Proxy) -> None:
    answer = proxy.ask(chat(longroute=field))
    assert answer.status_code == 400
    assert next(iter(field)) in answer.json()["error"]["message"] or "nonsense" in answer.json()["error"]["message"]
    assert not proxy.upstream.sent


def test_a_text_that_must_stay_whole_is_left_alone_and_the_reason_given(proxy: Proxy) -> None:
    body = chat(question="Translate the text above into French.")
    answer = proxy.ask(body)
    assert proxy.sent.body == body
    assert answer.headers["x-longroute-strategy"] == "off"
    assert answer.headers["x-longroute-reason"]


@pytest.mark.parametrize(
    ("header", "value"), [("content-md5", "x"), ("authorization", "AWS4-HMAC-SHA256 x"), ("content-encoding", "br")]
)
def test_a_body_that_is_signed_or_squeezed_is_not_touched(header: str, value: str, proxy: Proxy) -> None:
    proxy.ask(chat(), headers={**RAG, header: value})
    assert proxy.sent.body == chat()


def test_anthropic_and_responses_requests_are_made_shorter_too(proxy: Proxy) -> None:
    text = f"{long_text()}\n\n{QUESTION}"
    messages = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
    proxy.ask(json.dumps(messages).encode(), path="/v1/messages", headers=RAG)
    assert FACT in proxy.sent.prompt and len(proxy.sent.body) < 30_000
    proxy.ask(json.dumps({"model": "gpt-4o", "input": text}).encode(), path="/v1/responses", headers=RAG)
    assert FACT in proxy.sent.json["input"] and len(proxy.sent.body) < 30_000
    proxy.ask(json.dumps({"model": "gpt-4o", "prompt": text}).encode(), path="/v1/completions", headers=RAG)
    assert FACT in proxy.sent.json["prompt"] and len(proxy.sent.body) < 30_000


def test_a_response_that_is_stored_for_later_turns_stays_unless_asked_for(make_proxy: MakeProxy) -> None:
    body = json.dumps({"model": "gpt-4o", "input": f"{long_text()}\n\n{QUESTION}"}).encode()
    cheap = {"x-longroute-prefer": "cheap"}

    def strategy(proxy: Proxy, body: bytes, headers: dict[str, str]) -> str:
        return proxy.ask(body, path="/v1/responses", headers=headers).headers["x-longroute-strategy"]

    proxy = make_proxy()
    assert strategy(proxy, body, cheap) == "off" and proxy.sent.body == body
    assert strategy(proxy, body, cheap | {"x-longroute-strategy": "auto"}) == "rag"
    assert strategy(proxy, body.replace(b'{"model"', b'{"store": false, "model"'), cheap) == "rag"
    assert strategy(make_proxy(stored_responses=True), body, cheap) == "rag"


def test_our_fields_are_taken_out_of_requests_that_cannot_be_read(proxy: Proxy) -> None:
    proxy.ask(b'{"model": "gpt-4o", "messages": 7, "longroute": {"prefer": "cheap"}, "x": "' + b"a" * 20_000 + b'"}')
    assert set(proxy.sent.json) == {"model", "messages", "x"}


def test_names_of_models_that_fill_the_memory_are_noted_nowhere(proxy: Proxy) -> None:
    body = chat().replace(b"gpt-4o", b"m" * 5000)
    answer = proxy.ask(body)
    assert proxy.sent.body == body and "longer than any" in answer.headers["x-longroute-reason"]
    assert len(json.dumps(proxy.decision(answer))) < 2000
    unknown = proxy.ask(chat(longroute={"x" * 5000: 1}))
    assert unknown.status_code == 400 and len(unknown.content) < 500


def test_a_text_that_the_application_caches_itself_stays(proxy: Proxy) -> None:
    cached = {"type": "text", "text": long_text(), "cache_control": {"type": "ephemeral"}}
    content = [cached, {"type": "text", "text": QUESTION}]
    body = json.dumps(
        {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    ).encode()
    answer = proxy.ask(body, path="/v1/messages", headers={"x-longroute-prefer": "cheap"})
    assert proxy.sent.body == body
    assert "cache_control" in answer.headers["x-longroute-reason"]


def test_a_question_may_be_moved_behind_its_text(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(question_last=True)
    content = f"{QUESTION}\n\n<document>\n{long_text()}\n</document>"
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}).encode()
    proxy.ask(body, headers={"x-longroute-strategy": "full"})
    assert not proxy.sent.prompt.startswith(QUESTION)
    assert proxy.sent.prompt.index(QUESTION) > proxy.sent.prompt.index("Station 399")
    assert proxy.sent.prompt.count(QUESTION) == 1


# ---- prompt caches ---------------------------------------------------------------------------------------------------


def test_a_text_that_is_in_the_prompt_cache_is_sent_whole_where_that_is_cheaper(proxy: Proxy) -> None:
    """gpt-5's cached input costs a tenth, and 25,000 tokens at a tenth are less than 3,000 at full price."""

    def answer(sent: Sent) -> Told:
        usage = {"prompt_tokens": 25_000, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 24_900}}
        return completion(usage=usage)

    proxy.upstream.answer = answer
    question = "Who keeps two boats at station 12?"
    bodies = [chat(question=q).replace(b"gpt-4o", b"gpt-5") for q in (QUESTION, question, question)]
    proxy.ask(bodies[0], headers={"x-longroute-strategy": "full"})
    second = proxy.ask(bodies[1], headers={"x-longroute-prefer": "cheap"})
    assert second.headers["x-longroute-strategy"] == "full"
    assert proxy.sent.body == bodies[1]
    fresh = proxy.ask(bodies[2].replace(b"Station 0 ", b"Station zero "), headers={"x-longroute-prefer": "cheap"})
    assert fresh.headers["x-longroute-strategy"] == "rag"


# ---- the holdout -----------------------------------------------------------------------------------------------------


def test_a_share_is_sent_as_it_came_so_that_the_saving_can_be_measured(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(holdout=0.5)
    held, routed = 0, 0
    for number in range(24):
        body = chat(question=f"Who is the warden of station {number}?")
        answer = proxy.ask(body, headers={"x-longroute-prefer": "cheap"})
        again = proxy.ask(body, headers={"x-longroute-prefer": "cheap"})
        assert answer.headers["x-longroute-strategy"] == again.headers["x-longroute-strategy"]
        if answer.headers.get("x-longroute-holdout"):
            held += 1
            assert proxy.sent.body == body
        else:
            routed += answer.headers["x-longroute-strategy"] == "rag"
    assert held > 3 and routed > 3 and held + routed == 24


def test_the_holdout_is_drawn_from_all_that_could_have_been_routed(make_proxy: MakeProxy) -> None:
    """Were it drawn from the shortened ones alone, the two groups would differ by more than the routing."""
    proxy = make_proxy(holdout=0.5, settings={"allowed": ("full",)})
    drawn = [proxy.ask(chat(question=f"Who is the warden of station {number}?")).headers for number in range(16)]
    assert {headers["x-longroute-strategy"] for headers in drawn} == {"full"}
    assert 2 < sum("x-longroute-holdout" in headers for headers in drawn) < 14


# ---- what fails ------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> Any:
        raise error

    return fail


SECRET = "the document says: hunter2"


@pytest.mark.parametrize(
    ("place", "name", "stage"),
    [
        (routing, "splice", "prepare"),
        (routing, "locate", "locate"),
        (BaseRouter, "prepare", "decide"),
        (BaseRouter, "plan", "prepare"),
        (BaseRouter, "count_tokens", "prepare"),
        (routing, "prefix_end", "decide"),
        (routing, "orjson", "parse"),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError(SECRET), MemoryError(), OSError(28, "No space left on device")])
def test_whatever_fails_inside_the_original_goes_out(
    place: Any,
    name: str,
    stage: str,
    error: Exception,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = type("Broken", (), {"loads": staticmethod(raising(error))}) if name == "orjson" else raising(error)
    monkeypatch.setattr(place, name, broken)
    body = chat()
    answer = proxy.ask(body, headers=RAG)
    assert (answer.status_code, answer.json()) == (200, COMPLETION)
    assert proxy.sent.body == body
    assert answer.headers["x-longroute-strategy"] == "off"
    assert answer.headers["x-longroute-fail-open"] == stage
    assert proxy.metric(f'longroute_fail_open_total{{stage="{stage}"}}') == 1
    assert "hunter2" not in answer.headers["x-longroute-reason"] + caplog.text


def test_our_fields_do_not_reach_the_upstream_where_looking_at_them_fails(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "locate", raising(RuntimeError()))
    proxy.ask(chat(longroute={"prefer": "cheap"}))
    assert proxy.sent.json == json.loads(chat())


@pytest.mark.parametrize("name", ["_headers", "record_of"])
def test_even_a_failure_outside_of_every_stage_leaves_an_answer(
    name: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(f"longroute.router.proxy.long_texts.{name}", raising(RuntimeError(SECRET)))
    answer = proxy.ask(chat(), headers=RAG)
    assert (answer.status_code, answer.json()) == (200, COMPLETION)
    assert "hunter2" not in caplog.text


def test_past_the_time_budget_the_original_goes_out(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = make_proxy(budget_s=0.05)

    def slow(*args: object, **options: object) -> Any:
        time.sleep(0.3)
        raise RuntimeError

    monkeypatch.setattr(BaseRouter, "prepare", slow)
    answer = proxy.ask(chat(), headers=RAG)
    assert proxy.sent.body == chat()
    assert answer.headers["x-longroute-fail-open"] == "decide"
    assert "TimeoutError" in answer.headers["x-longroute-reason"]


def test_work_that_ends_too_late_does_not_count_as_what_came_after_it(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, prepare, late = make_proxy(budget_s=0.05), BaseRouter.prepare, threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        late.wait(5)
        return prepare(*args, **options)

    def answer(sent: Sent) -> Told:
        late.set()
        time.sleep(0.3)
        return completion()

    monkeypatch.setattr(BaseRouter, "prepare", slow)
    proxy.upstream.answer = answer
    timings_s = proxy.decision(proxy.ask(chat(), headers=RAG))["timings_s"]
    assert "prepare" not in timings_s and timings_s["upstream_first_byte"] > 0.25


def test_without_the_embedding_model_bm25_does_the_work(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longroute.retrievers.embed.installed", lambda: False)
    proxy = make_proxy(settings={"embedding_model": "default"})
    answer = proxy.ask(chat(), headers=RAG)
    assert answer.headers["x-longroute-strategy"] == "rag" and FACT in proxy.sent.prompt


def test_with_an_embedding_model_that_cannot_be_loaded_the_original_goes_out(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(settings={"embedding_model": "/no/such/model"}, budget_s=60)
    answer = proxy.ask(chat(), headers=RAG)
    assert answer.status_code == 200 and proxy.sent.body == chat()
    assert answer.headers["x-longroute-fail-open"] == "prepare"


def test_a_shorter_request_that_is_refused_is_followed_by_the_original(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: Told(422, b"{}") if len(sent.body) < 30_000 else completion()
    answer = proxy.ask(chat(), headers=RAG)
    assert answer.status_code == 200
    assert [sent.body == chat() for sent in proxy.upstream.sent] == [False, True]
    assert answer.headers["x-longroute-strategy"] == "off"
    assert answer.headers["x-longroute-fail-open"] == "refused"


def test_a_refusal_of_the_original_comes_back_as_it_is(proxy: Proxy) -> None:
    body = b'{"error":  {"message": "no"}}'
    proxy.upstream.answer = lambda sent: Told(400, body)
    answer = proxy.ask(chat(), headers={"x-longroute-strategy": "full"})
    assert (answer.status_code, answer.content, len(proxy.upstream.sent)) == (400, body, 1)


def test_a_refusal_longer_than_the_request_is_followed_by_the_original(proxy: Proxy) -> None:
    """FastAPI's repeat in it what they refuse."""
    repeated = b'{"detail": "%b"}' % (b"x" * (2 << 20))
    proxy.upstream.answer = lambda sent: completion() if sent.body == chat() else Told(422, repeated)
    assert proxy.ask(chat(), headers=RAG).json() == COMPLETION
    proxy.upstream.answer = lambda sent: Told(422, repeated)
    answer = proxy.ask(chat(), headers={"x-longroute-strategy": "full"})
    assert (answer.status_code, answer.content) == (422, repeated)


def test_a_refusal_that_cannot_be_unpacked_comes_back_as_it_is(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: Told(400, b"not gzip", [(b"content-encoding", b"gzip")])

    async def ask() -> tuple[int, bytes]:
        async with proxy.client() as client:
            sent = {"content-type": "application/json", "x-longroute-strategy": "full"}
            async with client.stream("POST", "/v1/chat/completions", content=chat(), headers=sent) as answer:
                return answer.status_code, b"".join([piece async for piece in answer.aiter_raw()])

    assert asyncio.run(ask()) == (400, b"not gzip")


def test_a_text_that_does_not_fit_after_all_is_rescued_by_a_shorter_strategy(proxy: Proxy) -> None:
    proxy.upstream.answer = answer_by_length
    answer = proxy.ask(chat().replace(b"gpt-4o", b"model-that-nobody-knows"), headers={"x-longroute-strategy": "full"})
    assert answer.status_code == 200
    assert answer.headers["x-longroute-strategy"] == "rag"
    assert "does not fit" in answer.headers["x-longroute-reason"]
    assert FACT in proxy.sent.prompt


def test_a_text_known_not_to_fit_is_never_sent_whole(proxy: Proxy) -> None:
    proxy.upstream.answer = answer_by_length
    body = chat(long_text(1200)).replace(b"gpt-4o", b"gpt-3.5-turbo")
    answer = proxy.ask(body, headers={"x-longroute-prefer": "quality"})
    assert answer.status_code == 200 and len(proxy.upstream.sent) == 1
    assert answer.headers["x-longroute-strategy"] == "rag"


@pytest.mark.parametrize("error", [httpx.ConnectError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x")])
def test_an_upstream_that_is_gone_is_said_to_be_gone(error: httpx.HTTPError, proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: error
    assert proxy.ask(chat(), headers=RAG).status_code in (502, 504)


def test_errors_of_the_upstream_pass_untouched(proxy: Proxy) -> None:
    for status in (401, 429, 500, 503):
        proxy.upstream.answer = lambda sent, s=status: Told(s, b"<html>", [(b"retry-after", b"7")])  # type: ignore[misc]
        answer = proxy.ask(chat(), headers=RAG)
        assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (status, b"<html>", "7")


# ---- strategies of several calls -------------------------------------------------------------------------------------


class Notes:
    """Two workers side by side read half each, then the caller's own question is asked about their notes."""

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        return Footprint(1000, 10, 1000, calls=3, sequential_calls=2)

    def plan(self, request: Request, features: Features) -> Plan:
        texts = [document.text[:200] for document in request.documents] * 2
        outcomes = yield tuple(
            Call((Message("user", f"NOTE {text}"),), request.model, 50, purpose="worker", final=False) for text in texts
        )
        assert isinstance(outcomes, tuple)
        if all(isinstance(outcome, RouterError) for outcome in outcomes):
            return Answer("", answered=False)
        notes = " / ".join("unread" if isinstance(outcome, RouterError) else outcome.text for outcome in outcomes)
        final = yield Call((), request.model, context=(f"NOTES: {notes}",))
        raise AssertionError(f"the last call is the caller's own, its reply is not ours: {final}")


class AskTwice:
    """The caller's own question about a part; about the whole where the part does not answer."""

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        return Footprint(1000, 10, 1000, calls=2, sequential_calls=2)

    def plan(self, request: Request, features: Features) -> Plan:
        reply = yield Call((), request.model, context=("PART",), final=False)
        assert isinstance(reply, Reply)
        if "unknown" not in reply.text:
            return Answer(reply.text)
        last = yield Call((), request.model, context=tuple(document.text for document in request.documents))
        raise AssertionError(f"the last call is the caller's own, its reply is not ours: {last}")


@pytest.fixture
def several(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    from longroute.router import assemble

    ready = {"notes": lambda *args: Notes(), "ask_twice": lambda *args: AskTwice()}
    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, **ready})
    return make_proxy(settings={"allowed": ()})


def test_calls_of_a_strategys_own_go_to_the_callers_model_with_its_credentials(several: Proxy) -> None:
    several.upstream.answer = lambda sent: completion(
        choices=[{"message": {"content": f"n{len(several.upstream.sent)}"}, "finish_reason": "stop"}]
    )
    body = chat(stream=False, tools=[{"type": "function", "function": {"name": "f"}}])
    answer = several.ask(body, headers={"x-longroute-strategy": "notes", "authorization": "Bearer sk-1"})
    *workers, last = several.upstream.sent
    assert len(workers) == 2 and answer.headers["x-longroute-strategy"] == "notes"
    for worker in workers:
        assert worker.prompt.startswith("NOTE ") and worker.json["model"] == "gpt-4o" and "tools" not in worker.json
        assert (b"authorization", b"Bearer sk-1") in worker.headers
    assert last.prompt.startswith("NOTES: n1 / n2\n\n") and last.prompt.endswith(QUESTION) and "tools" in last.json
    assert several.decision(answer)["usage"]["prompt_tokens"] == 3 * 120


def test_the_last_call_streams_and_the_others_do_not(several: Proxy) -> None:
    stream = [b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n', b"data: [DONE]\n\n"]

    def answer(sent: Sent) -> Told:
        return (
            Told(body=stream, headers=[(b"content-type", b"text/event-stream")])
            if sent.json.get("stream")
            else completion()
        )

    several.upstream.answer = answer
    assert several.ask(chat(stream=True), headers={"x-longroute-strategy": "notes"}).content == b"".join(stream)


def test_a_first_answer_that_serves_is_handed_on_as_it_came(several: Proxy) -> None:
    answer = several.ask(chat(), headers={"x-longroute-strategy": "ask_twice"})
    assert answer.json() == COMPLETION and len(several.upstream.sent) == 1
    assert several.sent.prompt == f"PART\n\n{QUESTION}"
    assert several.decision(answer)["usage"]["prompt_tokens"] == 120


def test_a_first_answer_that_does_not_serve_leads_to_the_whole_text(several: Proxy) -> None:
    def answer(sent: Sent) -> Told:
        text = "unknown" if sent.prompt.startswith("PART") else "Mara Okafor."
        return completion(choices=[{"index": 0, "message": {"role": "assistant", "content": text}}])

    several.upstream.answer = answer
    response = several.ask(chat(), headers={"x-longroute-strategy": "ask_twice"})
    assert response.json()["choices"][0]["message"]["content"] == "Mara Okafor."
    assert several.sent.body == chat()


def test_where_a_call_on_the_way_fails_the_original_goes_out(several: Proxy) -> None:
    several.upstream.answer = lambda sent: completion() if "station 137" in sent.prompt else Told(500)
    answer = several.ask(chat(), headers={"x-longroute-strategy": "notes"})
    assert (answer.status_code, answer.json(), several.sent.body) == (200, COMPLETION, chat())
    assert answer.headers["x-longroute-fail-open"] == "plan"


def test_warming_up_passes_over_what_only_other_models_can_be_asked() -> None:
    """`speculative` needs a local runner; every start of the proxy would report a failure."""
    long_texts._rehearse(Router(load_settings(embedding_model="none", cache=False)))
