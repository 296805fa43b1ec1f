"""Checks on what reaches the upstream: body, headers, request line."""

from __future__ import annotations

import gzip
from functools import partial

from .recording import Script, chunked
from .wire_target import (
    CHAT,
    COMPLETION,
    JSON_TYPE,
    LAST_CHUNK,
    MEGABYTE,
    OK,
    Check,
    Target,
    ask,
    end_to_end,
    reply,
    request,
    same,
)

# The request's body.

REQUEST_BODIES: dict[str, bytes] = {
    "plain": CHAT,
    "unknown_fields": b'{"model":"MODEL","messages":[{"role":"user","content":"hi","x":[null]}],"zz_new":{"a":1}}',
    "key_order": b'{"stream":false,"messages":[{"content":"hi","role":"user"}],"model":"MODEL"}',
    "duplicate_keys": b'{"model":"MODEL","temperature":0,"temperature":1,"messages":[{"role":"user","content":"hi"}]}',
    "odd_white_space": b'\t{ "model" :"MODEL",\r\n\n  "messages":[ {"role":"user" , "content":"hi"}\t] }\r\n ',
    "escapes": rb'{"model":"MODEL","messages":[{"role":"user","content":"\u0041\/\ud83d\ude00 \u00e9 '
    + "é😀".encode()
    + b'"}]}',
    "lone_surrogate": rb'{"model":"MODEL","messages":[{"role":"user","content":"\ud800"}]}',
    "numbers": b'{"model":"MODEL","temperature":1.0,"top_p":1e-1,"seed":12345678901234567890123,'
    b'"messages":[{"role":"user","content":"hi"}]}',
    "image_part": b'{"model":"MODEL","messages":[{"role":"user","content":[{"type":"text","text":"what?"},'
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]}]}',
    "tools": b'{"model":"MODEL","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],'
    b'"tool_choice":"auto","messages":[{"role":"user","content":"hi"}]}',
    "not_json": b"this is not JSON at all",
    "half_json": b'{"model":"MODEL","messages":[',
    "json_of_another_shape": b'[1,"two",{"messages":3}]',
    "nested_too_deep": b"[" * 100_000 + b"]" * 100_000,
    "invalid_utf8": b'{"model":"MODEL","messages":[{"role":"user","content":"\xff\xfe\x80"}]}',
    "byte_order_mark": b"\xef\xbb\xbf" + CHAT,
    "null_bytes": b'{"model":"MODEL"}\x00\x00',
    "empty": b"",
    "two_megabytes": b'{"model":"MODEL","metadata":{"blob":"' + b"0123456789abcdef" * (MEGABYTE // 8) + b'"}}',
}


def _body_arrives(target: Target, body: bytes) -> None:
    answer, exchange = ask(target, OK, body)
    expected = body.replace(b"MODEL", exchange.header(b"x-script") or b"")
    same("the body that reached the upstream", bytes(exchange.body), expected)
    same("the answer's body", answer.body, COMPLETION)


def check_request_body_gzip(target: Target) -> None:
    body = gzip.compress(CHAT, mtime=0)
    _, exchange = ask(target, OK, body, b"content-encoding: gzip")
    same("the gzip body", bytes(exchange.body), body)
    same("content-encoding", exchange.header(b"content-encoding") or b"", b"gzip")


def check_request_body_chunked(target: Target) -> None:
    name = target.upstream.add(OK)
    with target.connect() as connection:
        head = request(name, None, JSON_TYPE, b"transfer-encoding: chunked")
        connection.send(head + chunked(CHAT[:10], CHAT[10:11], CHAT[11:]) + LAST_CHUNK)
        same("the answer's body", connection.answer().body, COMPLETION)
    same("the chunked body", bytes(target.arrived(name).body), CHAT)


def check_request_body_of_get(target: Target) -> None:
    _, exchange = ask(target, OK, b'{"a":1}', method=b"GET", path=b"/v1/things")
    same("the body of a GET", bytes(exchange.body), b'{"a":1}')


def check_request_content_length_is_kept(target: Target) -> None:
    _, exchange = ask(target)
    same("content-length", exchange.header(b"content-length") or b"", b"%d" % len(exchange.body))


def check_request_without_body_gets_none(target: Target) -> None:
    _, exchange = ask(target, OK, None, method=b"GET", path=b"/v1/models")
    framing = [name for name, _ in exchange.headers if name in (b"content-length", b"transfer-encoding")]
    assert not framing, f"a GET without a body got {framing}"


def check_request_upload_is_passed_on_while_it_comes(target: Target) -> None:
    """20 MB of multipart to a path nobody knows: its start is upstream before its end was sent."""
    boundary = b"--wire\r\ncontent-disposition: form-data; name=file; filename=a.bin\r\n\r\n"
    body = boundary + bytes(range(256)) * (20 * MEGABYTE // 256) + b"\r\n--wire--\r\n"
    name = target.upstream.add(OK)
    with target.connect() as connection:
        message = request(
            name, body, b"content-type: multipart/form-data; boundary=wire", path=b"/v1/files?purpose=user_data"
        )
        connection.send(message[:MEGABYTE])
        exchange = target.arrived(name)
        target.wait(
            lambda: len(exchange.body) > MEGABYTE // 4, "the first megabyte is upstream before the rest is sent"
        )
        connection.send(message[MEGABYTE:])
        same("the answer's body", connection.answer().body, COMPLETION)
    same("the uploaded body", bytes(exchange.body), body)


def check_request_upload_is_held_back(target: Target) -> None:
    """An upstream that does not read stops the client's sending: at most 24 of 48 MB are taken."""
    size = 48 * MEGABYTE
    name = target.upstream.add(Script((reply(),), reads="late"))
    with target.connect() as connection:
        taken = MEGABYTE // 16
        connection.send(request(name, None, b"content-length: %d" % size, path=b"/v1/files") + bytes(taken))
        exchange = target.arrived(name)
        connection.socket.settimeout(min(0.5, target.patience_s))
        try:
            while taken < size:
                taken += connection.socket.send(bytes(MEGABYTE // 4))
        except TimeoutError:
            pass
    exchange.release()
    assert taken <= 24 * MEGABYTE, f"{taken >> 20} MB were taken of a client whose upstream reads nothing"


def check_request_answered_before_it_was_sent_whole(target: Target) -> None:
    """413 after the head alone: the client hears it while it still uploads."""
    refusal = reply(b'{"error":{"message":"too large"}}', status=b"413 Content Too Large")
    name = target.upstream.add(Script((refusal,), reads="head", end="hang"))
    with target.connect() as connection:
        connection.send(request(name, None, b"content-length: %d" % (20 * MEGABYTE), path=b"/v1/files"))
        connection.send(bytes(MEGABYTE // 16))
        answer = connection.answer()
    assert answer.status == 413, f"status {answer.status}"
    same("the refusal", answer.body, b'{"error":{"message":"too large"}}')


def check_request_expecting_100_continue(target: Target) -> None:
    name = target.upstream.add(OK)
    with target.connect() as connection:
        message = request(name, CHAT, b"expect: 100-continue")
        head, body = message.split(b"\r\n\r\n", 1)
        connection.send(head + b"\r\n\r\n")
        assert connection.head().status == 100, "the client was not told to go on"
        connection.send(body)
        same("the answer's body", connection.answer().body, COMPLETION)
    same("the body", bytes(target.arrived(name).body), body)


def check_request_framed_twice_is_not_passed_on_so(target: Target) -> None:
    """content-length and transfer-encoding together smuggle requests; a proxy refuses them or sends only one."""
    if not target.is_proxy:
        return
    name = target.upstream.add(OK)
    with target.connect() as connection:
        connection.send(request(name, None, b"content-length: 4", b"transfer-encoding: chunked") + LAST_CHUNK)
        answer = connection.answer()
    for exchange in target.upstream.exchanges(name):
        framing = [key for key, _ in exchange.headers if key in (b"content-length", b"transfer-encoding")]
        assert len(framing) < 2, "both framings reached the upstream"
    assert target.upstream.exchanges(name) or answer.status == 400, f"status {answer.status}"


# The request's headers.

REQUEST_HEADERS: dict[str, tuple[bytes, ...]] = {
    "authorization": (b"authorization: Bearer sk-wire-0123456789",),
    "x_api_key": (b"x-api-key: sk-ant-wire",),
    "openai_organization_and_project": (b"openai-organization: org-1", b"openai-project: proj-1"),
    "openai_beta": (b"openai-beta: assistants=v2",),
    "anthropic_version": (b"anthropic-version: 2023-06-01",),
    "anthropic_beta": (b"anthropic-beta: prompt-caching-2024-07-31,output-128k-2025-02-19",),
    "idempotency_key": (b"idempotency-key: 7f3c-1",),
    "traceparent": (
        b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"tracestate: a=1,b=2",
        b"baggage: user=1",
    ),
    "user_agent": (b"user-agent: OpenAI/Python 3.1.0",),
    "stainless": (b"x-stainless-retry-count: 0", b"x-stainless-read-timeout: 600"),
    "accept": (b"accept: application/json, text/event-stream;q=0.5",),
    "accept_encoding": (b"accept-encoding: gzip, deflate, br, zstd",),
    "cookie": (b"cookie: a=1; b=2",),
    "unknown": (b"x-nobody-knows: yes",),
    "twice": (b"x-twice: 1", b"x-twice: 2", b"x-twice: 1"),
    "empty_value": (b"x-empty:",),
    "bytes_above_127": (b"x-title: " + "Größe €".encode(), b"x-latin: \xe9"),
    "of_16_kB": (b"x-long: " + b"a" * 16_000,),
    "content_type_with_parameters": (b"content-type: application/json; charset=UTF-8; x=1",),
}


def _headers_arrive(target: Target, lines: tuple[bytes, ...]) -> None:
    _, exchange = ask(target, OK, CHAT, *lines)
    sent = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    names = {name for name, _ in sent}
    got = [header for header in exchange.headers if header[0] in names]
    assert got == sent, f"the upstream got {got}, expected {sent}"


def check_request_headers_keep_their_order(target: Target) -> None:
    lines = tuple(b"x-order-%d: %d" % (n, n) for n in (3, 1, 2, 9, 0))
    _, exchange = ask(target, OK, CHAT, *lines)
    got = [name for name, _ in exchange.headers if name.startswith(b"x-order-")]
    assert got == [line.partition(b":")[0] for line in lines], f"the order became {got}"


def check_request_headers_gain_nothing(target: Target) -> None:
    _, exchange = ask(target)
    got = sorted(name for name, _ in end_to_end(exchange.headers, b"host"))
    expected = [b"content-length", b"content-type", b"x-script"]
    assert got == expected, f"the upstream got {got}, expected {expected}"


def check_request_headers_of_one_connection_stay(target: Target) -> None:
    if not target.is_proxy:
        return
    lines = (
        b"connection: keep-alive, x-named",
        b"x-named: 1",
        b"keep-alive: timeout=77",
        b"te: trailers",
        b"proxy-connection: keep-alive",
    )
    _, exchange = ask(target, OK, CHAT, *lines)
    got = {name for name, _ in exchange.headers} & {b"keep-alive", b"te", b"proxy-connection", b"x-named"}
    assert not got, f"passed on: {got}"
    assert b"x-named" not in (exchange.header(b"connection") or b""), "connection was passed on"


def check_request_host_is_the_upstreams(target: Target) -> None:
    _, exchange = ask(target)
    expected = b"127.0.0.1:%d" % target.upstream.port if target.is_proxy else b"wire.test"
    same("host", exchange.header(b"host") or b"", expected)


# The request line.

PATHS: dict[str, bytes] = {
    "models": b"/v1/models",
    "root": b"/",
    "unknown": b"/v2/never/heard-of.it",
    "escapes": b"/v1/files/a%2Fb%20c%2e%C3%a9",
    "escaped_question_mark": b"/v1/files/a%3Fb%23c",
    "double_slash": b"/v1//models//x",
    "dots": b"/v1/a/../b/./c",
    "trailing_slash": b"/v1/models/",
    "query": b"/v1/files?purpose=a&limit=2&purpose=b",
    "query_escapes": b"/v1/files?q=a+b%20c%2B%26&e=%C3%A9&u=a/b?c",
    "query_empty_value": b"/v1/files?a=&b&=c&&",
    "query_empty": b"/v1/files?",
    "semicolons_and_commas": b"/v1/files/a;b=1,2:3@4!$'()*~",
    "long": b"/v1/files?cursor=" + b"a" * 4000,
}


def _path_arrives(target: Target, path: bytes) -> None:
    _, exchange = ask(target, OK, None, method=b"GET", path=path)
    same("the request line", exchange.request_line, b"GET %b HTTP/1.1" % path)


METHODS = (b"GET", b"POST", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH", b"PUT")


def _method_arrives(target: Target, method: bytes) -> None:
    body = None if method in (b"GET", b"DELETE", b"OPTIONS", b"HEAD") else b"{}"
    script = Script((reply().partition(b"\r\n\r\n")[0] + b"\r\n\r\n",)) if method == b"HEAD" else OK
    answer, exchange = ask(target, script, body, method=method, path=b"/v1/files/1")
    same("the request line", exchange.request_line, method + b" /v1/files/1 HTTP/1.1")
    same("the answer's body", answer.body, b"" if method == b"HEAD" else COMPLETION)
    same("content-length", answer.header(b"content-length") or b"", b"%d" % len(COMPLETION))


FAMILIES: dict[str, Check] = {
    **{f"request_body_{name}": partial(_body_arrives, body=body) for name, body in REQUEST_BODIES.items()},
    **{f"request_header_{name}": partial(_headers_arrive, lines=lines) for name, lines in REQUEST_HEADERS.items()},
    **{f"path_{name}": partial(_path_arrives, path=path) for name, path in PATHS.items()},
    **{f"method_{name.decode()}": partial(_method_arrives, method=name) for name in METHODS},
}
