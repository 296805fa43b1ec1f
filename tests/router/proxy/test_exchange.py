"""Streams that are kept open while their readers wait for calls that they do not see."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from longroute.router import assemble
from longroute.tests.router.fakes import Chain
from longroute.tests.router.proxy.fakes import FakeUpstream, MakeProxy, Proxy, Sent, Told, chat, completion, long_text

COMMENT = b": longroute\n\n"
SSE = [(b"content-type", b"text/event-stream")]
EVENTS = [
    b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "Mara"}}]}\n\n',
    b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": " Okafor."}}]}\n\n',
    b"data: [DONE]\n\n",
]
DOWN = b'{"error": {"message": "down for maintenance", "type": "server_error", "code": "down"}}'


@pytest.fixture
def proxy(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Its upstream takes a while over every call of a strategy's own, and streams the others."""
    monkeypatch.setattr(assemble, "_STRATEGIES", {**assemble._STRATEGIES, "chain": lambda parts: Chain()})
    send = FakeUpstream.send

    async def slow(self: FakeUpstream, method: bytes, target: bytes, headers: Any, body: Any) -> Any:
        await asyncio.sleep(0.03 if b"WORKER" in body else 0)
        return await send(self, method, target, headers, body)

    monkeypatch.setattr(FakeUpstream, "send", slow)
    proxy = make_proxy(settings={"allowed": ()}, keep_alive_s=0.02)
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else Told(body=EVENTS, headers=SSE)
    return proxy


def is_worker(sent: Sent) -> bool:
    return b"WORKER" in sent.body


CHAIN = {"x-longroute-strategy": "chain"}


def ask(proxy: Proxy, *, stream: bool = True, encoding: str = "identity") -> httpx.Response:
    return proxy.ask(chat(stream=stream), headers={**CHAIN, "accept-encoding": encoding})


def without_comments(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.startswith(COMMENT)
    return answer.content.replace(COMMENT, b"")


def test_comments_come_before_the_answer_which_is_the_upstreams(proxy: Proxy) -> None:
    answer = ask(proxy, encoding="gzip, br")
    assert without_comments(answer) == b"".join(EVENTS)
    assert answer.headers["x-longroute-strategy"] == "chain" and "x-longroute-tokens-after" not in answer.headers
    assert dict(proxy.sent.headers)[b"accept-encoding"] == b"identity", "the stream was opened without an encoding"
    told = proxy.decision(answer)
    assert (told["status"], told["calls"]) == (200, 4) and told["tokens_after"]


def test_an_answer_that_is_no_stream_is_not_kept_open(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: completion()
    answer = ask(proxy, stream=False)
    assert answer.headers["content-type"] == "application/json" and COMMENT not in answer.content


def test_a_stream_that_is_soon_there_is_passed_on_with_its_headers(make_proxy: MakeProxy, proxy: Proxy) -> None:
    patient = make_proxy(settings={"allowed": ()})
    patient.upstream.answer = lambda sent: (
        completion() if is_worker(sent) else Told(body=EVENTS, headers=[*SSE, (b"x-request-id", b"7")])
    )
    answer = ask(patient)
    assert answer.content == b"".join(EVENTS) and answer.headers["x-request-id"] == "7"


@pytest.mark.parametrize("failure", [Told(400, DOWN), Told(422, b"no")])
def test_where_the_strategy_fails_the_original_is_streamed_and_nothing_before_it(failure: Told, proxy: Proxy) -> None:
    original = chat(stream=True)
    proxy.upstream.answer = lambda sent: Told(body=EVENTS, headers=SSE) if sent.body == original else failure
    assert without_comments(ask(proxy)) == b"".join(EVENTS)


def test_an_earlier_answer_that_is_compressed_is_unpacked_into_the_stream(proxy: Proxy) -> None:
    packed = gzip.compress(b'data: {"choices": [{"delta": {"content": "NOTHING"}}]}\n\ndata: [DONE]\n\n')
    kind = [*SSE, (b"content-encoding", b"gzip")]
    body = chat(long_text().replace("Station", "WORKER"), stream=True)  # so that this upstream is slow about it, too
    proxy.upstream.answer = lambda sent: (
        Told(body=packed, headers=kind) if len(sent.body) < len(body) / 2 else Told(503, DOWN)
    )
    answered = proxy.ask(body, headers={"x-longroute-strategy": "self_route", "accept-encoding": "gzip"})
    assert without_comments(answered) == gzip.decompress(packed)


# ---- errors in a stream that has begun -------------------------------------------------------------------------------


def events(answer: bytes) -> list[Any]:
    return [json.loads(line[5:]) for line in answer.splitlines() if line.startswith(b"data:")]


@pytest.mark.parametrize(
    "failure", [lambda: Told(501, DOWN), lambda: Told(501, [DOWN[:9], DOWN[9:]]), lambda: Told(200, DOWN)]
)
def test_an_error_becomes_the_streams_only_event(failure: Callable[[], Told], proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else failure()
    answer = ask(proxy)
    assert events(without_comments(answer)) == [json.loads(DOWN)]


@pytest.mark.parametrize("failure", [httpx.ReadError("gone"), httpx.ReadTimeout("")])
def test_an_upstream_that_is_gone_is_told_in_the_stream(failure: httpx.HTTPError, proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else failure
    [told] = events(without_comments(ask(proxy)))
    assert told["error"]["message"].startswith("longroute: The upstream")


def test_a_page_of_a_gateway_is_not_quoted(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else Told(501, b"<html>SECRET</html>")
    [told] = events(without_comments(ask(proxy)))
    assert told["error"]["type"] == "server_error" and "501" in told["error"]["message"] and "SECRET" not in str(told)


def test_an_answer_that_breaks_off_is_not_followed_by_another(proxy: Proxy) -> None:
    broken: list[bytes | Exception] = [EVENTS[0], httpx.ReadError("gone")]
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else Told(body=broken, headers=SSE)
    sent = asyncio.run(raw(proxy, chat(stream=True)))
    assert b"".join(message.get("body", b"") for message in sent).replace(COMMENT, b"") == EVENTS[0]
    assert sent[-1]["more_body"], "without an end, the server cuts the connection"
    assert len(proxy.upstream.sent) == 4


async def raw(proxy: Proxy, body: bytes) -> list[Mapping[str, Any]]:
    """What the application sends; httpx's transport would hide that a stream has no end."""
    pieces, messages, gone = iter([body]), [], asyncio.Event()

    async def receive() -> Mapping[str, Any]:
        if (piece := next(pieces, None)) is not None:
            return {"type": "http.request", "body": piece, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        messages.append(message)

    headers = [(b"content-type", b"application/json"), (b"x-longroute-strategy", b"chain")]
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "http_version": "1.1"}
    await proxy.app(scope | {"scheme": "http"}, receive, send)  # type: ignore[arg-type]
    return messages


# ---- as clients read it ----------------------------------------------------------------------------------------------


def fails_late(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: completion() if is_worker(sent) else Told(501, DOWN)


def test_openais_client_reads_past_comments_and_raises_errors(proxy: Proxy) -> None:
    async def main() -> None:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=proxy.app), headers=CHAIN)  # what the SDKs take
        async with openai.AsyncOpenAI(
            base_url="http://127.0.0.1/v1", api_key="k", max_retries=0, http_client=http
        ) as client:
            asked: Any = {"model": "gpt-4o", "messages": json.loads(chat())["messages"], "stream": True}
            said = [chunk.choices[0].delta.content async for chunk in await client.chat.completions.create(**asked)]
            assert said == ["Mara", " Okafor."]
            fails_late(proxy)
            with pytest.raises(openai.APIError, match="down for maintenance"):
                async for _ in await client.chat.completions.create(**asked):
                    pass
            asked = {"model": "gpt-4o", "input": asked["messages"], "stream": True, "store": False}
            with pytest.raises(openai.APIError, match="down for maintenance"):
                async for _ in await client.responses.create(**asked):
                    pass

    asyncio.run(main())


def test_anthropics_client_raises_errors_in_a_stream(proxy: Proxy) -> None:
    reply = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "notes"}]}
    proxy.upstream.answer = lambda sent: Told(body=json.dumps(reply).encode()) if is_worker(sent) else Told(501, DOWN)

    async def main() -> None:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=proxy.app), headers=CHAIN)
        async with anthropic.AsyncAnthropic(
            base_url="http://127.0.0.1", api_key="k", max_retries=0, http_client=http
        ) as client:
            messages = json.loads(chat())["messages"]
            with pytest.raises(anthropic.APIStatusError, match="down for maintenance"):
                async for _ in await client.messages.create(
                    model="claude-x", max_tokens=99, messages=messages, stream=True
                ):
                    pass

    asyncio.run(main())
    assert proxy.upstream.sent[-1].target == "/v1/messages" and len(proxy.upstream.sent) == 4
