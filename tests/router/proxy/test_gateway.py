"""Requests that are passed on, turned away, or sent to one of several upstreams. Real sockets are in test_wire.py."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from longroute.tests.router.proxy.fakes import MakeProxy, Proxy, Told, chat, completion

SHORT = b'{"messages": [{"content":"hi","role":"user"}],  "model":"gpt-4o","zz":[1,{"y":null}]}'


def test_a_short_request_goes_on_byte_for_byte_and_its_answer_comes_back_so(proxy: Proxy) -> None:
    body = b'{"odd":  "answer\\u00e9"}\n'
    proxy.upstream.answer = lambda sent: Told(418, body, [(b"X-Request-Id", b"r1"), (b"Connection", b"close")])
    answer = proxy.ask(SHORT, headers={"authorization": "Bearer sk-1"})
    assert (proxy.sent.method, proxy.sent.target, proxy.sent.body) == ("POST", "/v1/chat/completions", SHORT)
    assert (b"authorization", b"Bearer sk-1") in proxy.sent.headers
    assert (answer.status_code, answer.content) == (418, body)
    assert set(answer.headers) == {"x-request-id", "content-length"}


def test_a_stream_comes_back_piece_by_piece(proxy: Proxy) -> None:
    pieces = [b": hello\r\n\r\n", b'data: {"a":"\xc3', b'\xa9"}\r\n\r\n', b"data: [DONE]"]
    proxy.upstream.answer = lambda sent: Told(body=pieces, headers=[(b"content-type", b"text/event-stream")])
    assert proxy.ask(SHORT).content == b"".join(pieces)


@pytest.mark.parametrize(
    ("url", "path", "target"),
    [
        ("http://u.test", "/v1/chat/completions", "/v1/chat/completions"),
        ("http://u.test/v1", "/v1/chat/completions", "/v1/chat/completions"),
        ("http://u.test/v1/", "/other/path?x=1&y", "/other/path?x=1&y"),
        ("http://u.test/v1beta/openai", "/v1/models?x=%2F", "/v1beta/openai/models?x=%2F"),
        ("http://u.test/tenant/v1", "/v1", "/tenant/v1"),
        ("http://u.test/tenant/v1", "/files", "/tenant/files"),
    ],
)
def test_paths_are_those_of_the_upstream(url: str, path: str, target: str, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=[{"url": url}])
    proxy.ask(path=path, method="GET")
    assert proxy.sent.target == target


@pytest.mark.parametrize(
    "path", ["/../other", "/v1/../../other", "/%2e%2E/other", "/a/..%2f..%5cother", "/v1/..;/../x"]
)
@pytest.mark.parametrize("url", ["http://u.test/tenant/v1", "http://u.test/tenant/openai"])
def test_a_path_cannot_leave_the_address_of_the_upstream(url: str, path: str, make_proxy: MakeProxy) -> None:
    """What else is served there may trust whoever shows the upstream's key."""
    proxy = make_proxy(upstreams=[{"url": url, "api_key": "sk-upstream"}])
    answer = asyncio.run(raw_path(proxy, path))
    assert answer == 400 and not proxy.upstream.sent
    assert asyncio.run(raw_path(proxy, "/v1/a/../b?to=../..")) == 200


async def raw_path(proxy: Proxy, path: str) -> int:
    """httpx would resolve the dots itself."""
    target, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": target,
        "raw_path": target.encode(),
        "headers": [],
        "client": None,
    }
    statuses: list[int] = []

    async def receive() -> dict[str, object]:
        return (
            {"type": "http.request", "body": b"", "more_body": False} if not statuses else {"type": "http.disconnect"}
        )

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    await proxy.app(scope | {"query_string": query.encode()}, receive, send)
    return statuses[0]


def test_a_browser_may_ask_without_a_key_whether_it_may_show_one(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=[{"api_key": "sk-upstream"}], client_keys={"search": "key-1"})
    preflight = {"origin": "https://app.test", "access-control-request-method": "POST"}
    allowed = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-headers", b"authorization")]
    proxy.upstream.answer = lambda sent: Told(204, b"", allowed)
    answer = proxy.ask(method="OPTIONS", headers=preflight)
    assert answer.status_code == 204 and answer.headers["access-control-allow-headers"] == "authorization"
    assert not any(b"sk-upstream" in value for _, value in proxy.sent.headers), "our key is for those with one of ours"
    assert proxy.ask(method="OPTIONS").status_code == 401
    assert proxy.ask(SHORT, headers=preflight).status_code == 401


def test_what_a_proxy_behind_this_one_says_of_itself_passes_where_this_one_says_nothing(proxy: Proxy) -> None:
    said = [(b"content-type", b"application/json"), (b"X-Longroute-Strategy", b"theirs")]
    proxy.upstream.answer = lambda sent: Told(headers=said)
    assert proxy.ask(SHORT).headers.get_list("x-longroute-strategy") == ["theirs"]
    answer = proxy.ask(chat(), headers={"x-longroute-strategy": "rag"})
    assert answer.headers.get_list("x-longroute-strategy") == ["rag"]


def test_a_body_of_unknown_length_is_sent_with_its_length_where_it_is_short(proxy: Proxy) -> None:
    async def ask() -> None:
        async with proxy.client() as client:
            await client.post("/v1/embeddings", content=aiter_of(b'{"in', b'put": "x"}'))

    asyncio.run(ask())
    assert proxy.sent.body == b'{"input": "x"}'
    assert (b"content-length", b"14") in proxy.sent.headers


async def aiter_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_a_client_without_a_key_is_turned_away_in_the_words_of_its_api(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(client_keys={"search": "key-1"})
    openai = proxy.ask(SHORT)
    assert (openai.status_code, openai.json()["error"]["code"]) == (401, "longroute_key")
    anthropic = proxy.ask(SHORT, path="/v1/messages", headers={"x-api-key": "wrong"})
    assert anthropic.status_code == 401
    assert anthropic.json()["type"] == "error" and anthropic.json()["error"]["type"] == "authentication_error"
    assert not proxy.upstream.sent


def test_our_key_is_not_shown_to_the_upstream_and_the_upstreams_is_put_in_its_place(make_proxy: MakeProxy) -> None:
    upstreams = [{"api_key": "sk-upstream"}]
    proxy = make_proxy(upstreams=upstreams, client_keys={"search": "key-1"})
    proxy.ask(SHORT, headers={"authorization": "Bearer key-1"})
    assert (b"authorization", b"Bearer sk-upstream") in proxy.sent.headers
    proxy.ask(SHORT, path="/v1/messages", headers={"x-api-key": "key-1"})
    assert (b"x-api-key", b"sk-upstream") in proxy.sent.headers
    assert not any(b"key-1" in value for sent in proxy.upstream.sent for _, value in sent.headers)


def test_a_client_may_show_our_key_beside_its_own_for_the_upstream(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(client_keys={"search": "key-1"})
    proxy.ask(SHORT, headers={"authorization": "Bearer sk-mine", "x-longroute-key": "key-1"})
    assert (b"authorization", b"Bearer sk-mine") in proxy.sent.headers
    proxy.ask(SHORT, headers={"authorization": "Bearer key-1"})
    assert not any(name == b"authorization" for name, _ in proxy.sent.headers)


def test_a_key_comes_from_the_environment_where_the_settings_say_so(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-env\n")
    make = make_proxy(upstreams=[{"api_key_env": "UPSTREAM_KEY"}])
    make.ask(SHORT)
    assert (b"authorization", b"Bearer sk-env") in make.sent.headers


def test_too_many_requests_are_told_when_to_come_back(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(requests_per_minute=2)
    answers = [proxy.ask(SHORT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "30"
    assert proxy.metric('longroute_rejected_total{reason="rate_limit"}') == 1


def test_a_body_over_the_limit_is_refused_before_it_is_read(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(max_body_mb=1)
    answer = proxy.ask(b"x" * (1 << 20) + b"x", path="/v1/files")
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert not proxy.upstream.sent


def test_a_body_too_long_to_look_into_passes_unread(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(max_inspected_mb=1)
    body = chat("x" * (2 << 20))
    answer = proxy.ask(body)
    assert (answer.status_code, proxy.sent.body) == (200, body)
    assert "x-longroute-strategy" not in answer.headers


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.ConnectError("refused"), 502),
        (httpx.ConnectTimeout("late"), 502),
        (httpx.RemoteProtocolError("garbage"), 502),
        (httpx.ReadError("reset"), 502),
        (httpx.ReadTimeout("late"), 504),
    ],
)
def test_an_upstream_that_does_not_answer_is_named_and_counted(
    error: httpx.HTTPError, status: int, proxy: Proxy
) -> None:
    proxy.upstream.answer = lambda sent: error
    answer = proxy.ask(SHORT)
    assert answer.status_code == status
    assert "'upstream'" in answer.json()["error"]["message"]
    counted = [line for line in proxy.ask(path="/metrics", method="GET").text.splitlines() if "errors_total{" in line]
    assert len(counted) == 1 and counted[0].endswith(" 1.0")
    labels = 'api="chat",status="5xx",strategy="off",upstream="upstream"'
    assert proxy.metric(f"longroute_requests_total{{{labels}}}") == 1


@pytest.mark.parametrize(
    ("cause", "kind", "said"),
    [
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "tls", "certificate"),
        (ConnectionRefusedError(111, "Connection refused"), "connect", "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "connect", "Name or service not known"),
    ],
)
def test_why_an_upstream_cannot_be_reached_is_said(cause: OSError, kind: str, said: str, proxy: Proxy) -> None:
    error = httpx.ConnectError("unreachable")
    error.__cause__ = cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        cause.verify_message = "self-signed certificate"
    proxy.upstream.answer = lambda sent: error
    assert said in proxy.ask(SHORT).json()["error"]["message"]
    assert proxy.metric(f'longroute_upstream_errors_total{{kind="{kind}",upstream="upstream"}}') == 1


def test_a_stream_that_breaks_off_does_not_end_as_if_it_were_whole(proxy: Proxy) -> None:
    proxy.upstream.answer = lambda sent: Told(body=[b"data: 1\n\n", httpx.ReadError("reset")])
    sent: list[dict[str, object]] = []

    async def ask() -> None:
        arriving = iter([{"type": "http.request", "body": SHORT, "more_body": False}])

        async def receive() -> dict[str, object]:
            for message in arriving:
                return message
            return await asyncio.Future()  # the client stays and says nothing more

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
        }
        await proxy.app(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]


TWO = [
    {"name": "big", "url": "https://big.test/v1", "models": ["gpt-*", "o?"]},
    {"name": "own", "url": "http://own.test", "models": ["llama*"]},
]


def test_each_model_goes_to_the_upstream_that_serves_it(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO)
    big, own = proxy.upstreams
    proxy.ask(SHORT)
    proxy.ask(b'{"model": "llama-3", "input": "x"}', path="/v1/embeddings")
    proxy.ask(b'{"model": "unheard-of"}')
    proxy.ask(b"not json", path="/v1/files")
    proxy.ask(path="/v1/models/llama-3", method="GET")
    proxy.ask(SHORT, headers={"x-longroute-upstream": "own"})
    assert [sent.target for sent in big.sent] == ["/v1/chat/completions", "/v1/chat/completions", "/v1/files"]
    assert [sent.target for sent in own.sent] == ["/v1/embeddings", "/v1/models/llama-3", "/v1/chat/completions"]


def test_the_lists_of_models_are_put_together_and_a_silent_upstream_is_named(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO)
    big, own = proxy.upstreams
    big.answer = lambda sent: Told(body=b'{"object": "list", "data": [{"id": "gpt-4o", "object": "model"}]}')
    own.answer = lambda sent: httpx.ConnectError("refused")
    answer = proxy.ask(path="/v1/models", method="GET")
    assert [model["id"] for model in answer.json()["data"]] == ["gpt-4o"]
    assert answer.headers["x-longroute-missing-upstreams"] == "own"


def test_lists_of_models_are_asked_for_unpacked(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO)
    proxy.ask(path="/v1/models", method="GET", headers={"accept-encoding": "gzip", "if-none-match": "x"})
    for upstream in proxy.upstreams:
        assert not {b"accept-encoding", b"if-none-match"} & {name for name, _ in upstream.sent[0].headers}


def test_where_no_upstream_lists_its_models_the_first_says_why(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO)
    for upstream in proxy.upstreams:
        upstream.answer = lambda sent: Told(401, b'{"error": "wrong key"}')
    answer = proxy.ask(path="/v1/models", method="GET")
    assert (answer.status_code, answer.json()) == (401, {"error": "wrong key"})


def test_an_unknown_upstream_or_strategy_is_a_clear_error(proxy: Proxy) -> None:
    for header in ("x-longroute-upstream", "x-longroute-strategy"):
        answer = proxy.ask(SHORT, headers={header: "nonsense"})
        assert answer.status_code == 400
        assert "Known: " in answer.json()["error"]["message"]


def test_websockets_are_refused_with_a_reason(proxy: Proxy) -> None:
    answer = proxy.ask(path="/v1/realtime", method="GET", headers={"connection": "upgrade", "upgrade": "websocket"})
    assert answer.status_code == 501
    assert answer.json()["error"]["message"].endswith("Connect to the upstream directly, or use HTTP.")


def test_an_offer_to_speak_http_2_is_ignored(proxy: Proxy) -> None:
    """Java's client makes it with every first request."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAAB"}
    assert proxy.ask(SHORT, headers=offer).status_code == 200
    assert not {b"upgrade", b"http2-settings", b"connection"} & {name for name, _ in proxy.sent.headers}


def test_a_body_that_comes_in_pieces_goes_to_the_upstream_of_the_model_behind_them(make_proxy: MakeProxy) -> None:
    """The openai library names the model of embeddings after their input."""
    proxy = make_proxy(upstreams=TWO)
    pieces = b'{"input": ["', b"x" * 100_000, b'"], "model": "llama-3"}'

    async def ask(**headers: str) -> None:
        async with proxy.client() as client:
            typed = {"content-type": "application/json", **headers}
            await client.post("/v1/embeddings", content=aiter_of(*pieces), headers=typed)

    asyncio.run(ask())
    asyncio.run(ask(**{"content-length": str(sum(map(len, pieces)))}))
    assert [len(upstream.sent) for upstream in proxy.upstreams] == [0, 2]


def test_the_beginning_of_a_long_body_is_waited_for_where_it_names_the_model(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO, max_inspected_mb=1)
    pieces = b"{", b'"model": "llama-3", "messages": [{"role": "user", "content": "', b"x" * (2 << 20), b'"}]}'

    async def ask() -> None:
        async with proxy.client() as client:
            length = {"content-length": str(sum(map(len, pieces)))}
            await client.post("/v1/chat/completions", content=aiter_of(*pieces), headers=length)

    asyncio.run(ask())
    assert [upstream.sent[0].body for upstream in proxy.upstreams if upstream.sent] == [b"".join(pieces)]
    assert proxy.upstreams[1].sent


def test_a_form_goes_to_the_upstream_of_its_model(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO)
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    body = part % (b"model", b"llama-hears") + part % (b"file", b'{"model": "gpt-4o"}') + b"--b--\r\n"
    proxy.ask(body, path="/v1/audio/transcriptions", headers={"content-type": "multipart/form-data; boundary=b"})
    assert [len(upstream.sent) for upstream in proxy.upstreams] == [0, 1]


def test_our_fields_are_taken_out_of_a_long_request_that_is_to_be_left_alone(proxy: Proxy) -> None:
    body = chat(longroute={"prefer": "cheap"})

    async def ask() -> None:
        async with proxy.client() as client:
            headers = {"content-type": "application/json", "x-longroute-strategy": "off"}
            pieces = aiter_of(body[:10], body[10:70_000], body[70_000:])
            await client.post("/v1/chat/completions", content=pieces, headers=headers)

    asyncio.run(ask())
    assert proxy.sent.json == json.loads(chat())


def test_bodies_that_are_still_arriving_are_held_within_bounds(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, size, begun, rest = make_proxy(max_inspected_mb=1), 900 << 10, [], asyncio.Event()
    send = proxy.upstream.send

    async def sending(*args: Any, **options: Any) -> Any:
        begun.append(1)
        return await send(*args, **options)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x" * size
        await rest.wait()
        yield b"x"

    async def ask() -> None:
        async with proxy.client() as client:
            asking = [asyncio.ensure_future(client.post("/v1/chat/completions", content=slowly())) for _ in range(20)]
            await asyncio.sleep(0.2)
            assert 8 < len(begun) < 14  # these pass unread, the others are held
            rest.set()
            assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}

    monkeypatch.setattr(proxy.upstream, "send", sending)
    asyncio.run(ask())
    assert {len(sent.body) for sent in proxy.upstream.sent} == {size + 1}


def test_a_body_too_long_to_hold_goes_to_the_upstream_of_its_model(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstreams=TWO, max_inspected_mb=1)
    proxy.ask(b'{"model": "llama-3", "messages": [{"role": "user", "content": "' + b"x" * (2 << 20) + b'"}]}')
    assert [len(upstream.sent) for upstream in proxy.upstreams] == [0, 1]


def test_requests_are_counted_by_what_was_sent(proxy: Proxy) -> None:
    proxy.ask(SHORT)
    proxy.ask(path="/v1/files", method="GET")
    proxy.upstream.answer = lambda sent: completion() if sent.method == "GET" else Told(500)
    proxy.ask(SHORT)
    count = 'longroute_requests_total{{api="{}",status="{}",strategy="off",upstream="upstream"}}'
    assert proxy.metric(count.format("chat", "2xx")) == 1
    assert proxy.metric(count.format("other", "2xx")) == 1
    assert proxy.metric(count.format("chat", "5xx")) == 1
