"""Checks on what comes back to the client: status, body, headers, streams."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from .recording import HOLD, Script, chunked
from .wire_target import (
    CHAT,
    COMPLETION,
    JSON_TYPE,
    LAST_CHUNK,
    MEGABYTE,
    STREAM_BODY,
    STREAM_HEAD,
    Check,
    Target,
    ask,
    end_to_end,
    event,
    open_stream,
    reply,
    same,
    stream_script,
)

# The answer's status and body.

ERROR = b'{ "error": {"message":"na\xc3\xafve", "type":"x", "param":null,\n"code":"c"}}\n'
STATUSES = (200, 201, 202, 400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504, 529)


def _status_returns(target: Target, status: int) -> None:
    body = COMPLETION if status < 300 else ERROR
    answer, exchange = ask(target, Script((reply(body, status=b"%d Whatever" % status),)))
    assert answer.status == status, f"status {answer.status}, expected {status}"
    same("the answer's body", answer.body, body)
    count = len(target.upstream.exchanges(exchange.header(b"x-script") or b""))
    assert count <= 1, f"the upstream was asked {count} times"


def check_answer_204(target: Target) -> None:
    script = Script((b"HTTP/1.1 204 No Content\r\nx-request-id: r\r\n\r\n",))
    answer, _ = ask(target, script, None, method=b"DELETE", path=b"/v1/files/1")
    assert (answer.status, answer.body) == (204, b""), f"{answer.status} {answer.body!r}"
    framing = [name for name, _ in answer.headers if name in (b"content-length", b"transfer-encoding")]
    assert not framing, f"204 got {framing}"


def check_answer_304(target: Target) -> None:
    script = Script((b'HTTP/1.1 304 Not Modified\r\netag: "e"\r\n\r\n',))
    answer, _ = ask(target, script, None, b'if-none-match: "e"', method=b"GET", path=b"/v1/models")
    assert (answer.status, answer.header(b"etag"), answer.body) == (304, b'"e"', b""), f"{answer}"


def _redirect_returns(target: Target, status: int) -> None:
    script = Script((reply(b"", b"location: /v1/models?elsewhere=1", status=b"%d Moved" % status),))
    answer, exchange = ask(target, script, None, method=b"GET", path=b"/v1/old")
    assert answer.status == status, f"status {answer.status}, expected {status}"
    same("location", answer.header(b"location") or b"", b"/v1/models?elsewhere=1")
    assert len(target.upstream.exchanges(exchange.header(b"x-script") or b"")) == 1, "the redirect was followed"


ERROR_BODIES: dict[str, tuple[bytes, bytes]] = {
    "html": (b"content-type: text/html", b"<html>\r\n<h1>502 Bad Gateway</h1>\r\n</html>"),
    "empty": (b"x-request-id: r", b""),
    "text": (b"content-type: text/plain; charset=latin-1", b"caf\xe9"),
    "half_json": (JSON_TYPE, b'{"error":'),
}


def _error_body_returns(target: Target, header: bytes, body: bytes) -> None:
    answer, _ = ask(target, Script((reply(body, header, status=b"502 Bad Gateway"),)))
    assert answer.status == 502, f"status {answer.status}"
    same("the error's body", answer.body, body)
    name, _, value = header.partition(b": ")
    same(name.decode(), answer.header(name) or b"", value)


def check_answer_of_2_megabytes(target: Target) -> None:
    body = bytes(range(256)) * (2 * MEGABYTE // 256)
    answer, _ = ask(target, Script((reply(body, b"content-type: audio/mpeg"),)), None, method=b"GET", path=b"/v1/audio")
    same("the answer's body", answer.body, body)


def check_answer_content_length_is_kept(target: Target) -> None:
    answer, _ = ask(target)
    same("content-length", answer.header(b"content-length") or b"", b"%d" % len(COMPLETION))
    assert answer.header(b"transfer-encoding") is None, "the answer became chunked"


def check_answer_of_length_0(target: Target) -> None:
    answer, _ = ask(target, Script((reply(b""),)))
    same("content-length", answer.header(b"content-length") or b"", b"0")
    same("the answer's body", answer.body, b"")


def check_answer_chunked_with_odd_borders(target: Target) -> None:
    pieces = (COMPLETION[:1], COMPLETION[1:2], COMPLETION[2:90], COMPLETION[90:])
    head = STREAM_HEAD.replace(b"text/event-stream; charset=utf-8", b"application/json")
    answer, _ = ask(target, Script((head, *(chunked(piece) for piece in pieces), LAST_CHUNK)))
    same("the answer's body", answer.body, COMPLETION)


def check_answer_with_chunk_extensions_and_trailers(target: Target) -> None:
    body = b"5;name=value\r\nhello\r\n0\r\nx-checksum: 1\r\n\r\n"
    answer, _ = ask(target, Script((STREAM_HEAD + body,)), None, method=b"GET", path=b"/v1/x")
    same("the answer's body", answer.body, b"hello")


def check_answer_until_close(target: Target) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    answer, _ = ask(target, Script((head, COMPLETION[:20], COMPLETION[20:]), end="close"))
    same("the answer's body", answer.body, COMPLETION)


def check_answer_of_http_1_0_upstream(target: Target) -> None:
    head = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n"
    answer, _ = ask(target, Script((head + COMPLETION,), end="close"))
    same("the answer's body", answer.body, COMPLETION)


def check_answer_byte_by_byte(target: Target) -> None:
    data = reply()
    answer, _ = ask(target, Script(tuple(data[i : i + 1] for i in range(len(data)))))
    same("the answer's body", answer.body, COMPLETION)


def check_answer_after_interim_answers(target: Target) -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    answer, _ = ask(target, Script((hints, reply())))
    assert answer.status == 200, f"status {answer.status}"
    same("the answer's body", answer.body, COMPLETION)


# The answer's headers.

ANSWER_HEADERS: dict[str, tuple[bytes, ...]] = {
    "retry_after": (b"retry-after: 7", b"retry-after-ms: 6500", b"x-should-retry: true"),
    "x_request_id": (b"x-request-id: req_123", b"request-id: req_456"),
    "openai_processing_ms": (b"openai-processing-ms: 412", b"openai-version: 2020-10-01"),
    "ratelimits": (b"x-ratelimit-remaining-tokens: 149984", b"anthropic-ratelimit-tokens-reset: 2026-01-01T00:00:00Z"),
    "set_cookie_twice": (b"set-cookie: a=1; Path=/", b"set-cookie: b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
    "content_type_with_charset": (b"content-type: application/json; charset=utf-8",),
    "server_and_date_and_via": (b"server: cloudflare", b"date: Tue, 15 Nov 1994 08:12:31 GMT", b"via: 1.1 edge"),
    "cors": (b"access-control-allow-origin: *", b"vary: Origin", b"vary: Accept"),
    "empty_value": (b"x-empty: ",),
    "bytes_above_127": (b"x-title: \xe9 " + "€".encode(),),
    "of_16_kB": (b"x-long: " + b"b" * 16_000,),
}


def _answer_headers_return(target: Target, lines: tuple[bytes, ...]) -> None:
    answer, _ = ask(target, Script((reply(COMPLETION, *lines, status=b"429 Slow down"),)))
    expected = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    names = {name for name, _ in expected}
    got = [header for header in answer.headers if header[0] in names]
    assert got == expected, f"the client got {got}, expected {expected}"


def check_answer_headers_gain_nothing(target: Target) -> None:
    """No server, date or via of the proxy's own. What longroute says about its decision has its own prefix."""
    answer, _ = ask(target, Script((reply(),)))
    got = [name for name, _ in end_to_end(answer.headers) if not name.startswith(b"x-longroute-")]
    assert got == [b"content-type", b"content-length"], f"the client got {got}"


def check_answer_headers_of_one_connection_stay(target: Target) -> None:
    if not target.is_proxy:
        return
    lines = (JSON_TYPE, b"connection: keep-alive, x-named", b"x-named: 1", b"keep-alive: timeout=77")
    answer, _ = ask(target, Script((reply(COMPLETION, *lines),)))
    got = {name for name, _ in answer.headers} & {b"keep-alive", b"x-named"}
    assert not got, f"passed on: {got}"


def check_answer_gzip_is_untouched(target: Target) -> None:
    body = gzip.compress(COMPLETION * 50, mtime=0)
    script = Script((reply(body, JSON_TYPE, b"content-encoding: gzip"),))
    answer, _ = ask(target, script, CHAT, b"accept-encoding: gzip")
    same("the gzip body", answer.body, body)
    same("content-encoding", answer.header(b"content-encoding") or b"", b"gzip")


# Streams.

STREAMS: dict[str, tuple[bytes, ...]] = {
    "chat": (event("Hel"), event("lo"), b"data: [DONE]\n\n"),
    "comments": (b": OPENROUTER PROCESSING\n\n", event("hi"), b":\n\n:keep-alive\n", b"data: [DONE]\n\n"),
    "crlf": (b"event: x\r\ndata: 1\r\n\r\n", b"data: 2\r", b"\n\r\n", b"data: [DONE]\r\n\r\n"),
    "lone_cr": (b"data: 1\r\rdata: 2\r", b"\rdata: [DONE]\r\r"),
    "ids_and_retry": (b"id: 7\nretry: 3000\nevent: message_start\ndata: {}\n\n", b"id\n\nid:\n\n"),
    "split_utf8": (b'data: "\xf0\x9f', b"\x98", b'\x80"\n\n', b"data: [DONE]\n\n"),
    "invalid_utf8": (b"data: \xff\xfe\n\n", b"data: [DONE]\n\n"),
    "byte_order_mark": (b"\xef\xbb\xbfdata: 1\n\n",),
    "several_data_lines": (b"data: a\ndata: b\ndata\n\n", b"data:no-space\n\n", b"data:  two\n\n"),
    "no_final_blank_line": (event("hi"), b"data: [DONE]"),
    "after_done": (event("hi"), b"data: [DONE]\n\n", b"data: late\n\n"),
    "not_json": (b"data: {not json}\n\n", b"garbage without a colon\n\n", b"data: [DONE]\n\n"),
    "error_event": (event("hi"), b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'),
    "nothing": (),
}


def _stream_returns(target: Target, pieces: tuple[bytes, ...]) -> None:
    answer, _ = ask(target, stream_script(*pieces), STREAM_BODY)
    same("the stream", answer.body, b"".join(pieces))
    same("content-type", answer.header(b"content-type") or b"", b"text/event-stream; charset=utf-8")


def check_stream_with_a_border_at_every_byte(target: Target) -> None:
    whole = event("é😀") + b": c\r\n\r\ndata: [DONE]\n\n"
    answer, _ = ask(target, stream_script(*(whole[i : i + 1] for i in range(len(whole)))), STREAM_BODY)
    same("the stream", answer.body, whole)


def check_stream_first_event_comes_before_the_second_is_sent(target: Target) -> None:
    script = Script((STREAM_HEAD, chunked(event("one")), HOLD, chunked(event("two")), LAST_CHUNK))
    with open_stream(target, script) as (connection, exchange):
        head = connection.head()
        first = connection.at_least(head, len(event("one")))
        same("the first event", first, event("one"))
        exchange.release()
        same("the rest", connection.body(head), event("two"))


def check_stream_head_comes_before_the_first_event(target: Target) -> None:
    script = Script((STREAM_HEAD, HOLD, chunked(event("one")), LAST_CHUNK))
    with open_stream(target, script) as (connection, exchange):
        assert connection.head().status == 200
        exchange.release()


def check_stream_is_held_back_by_a_slow_reader(target: Target) -> None:
    """A client that does not read stops the upstream's writing: at most 16 of 32 MB are taken, and none is lost."""
    piece = chunked(b"data: " + b"x" * (MEGABYTE - 8) + b"\n\n")
    script = Script((STREAM_HEAD, *(piece for _ in range(32)), LAST_CHUNK))
    with open_stream(target, script, receive_buffer=1 << 16) as (connection, exchange):
        head = connection.head()
        taken = target.upstream.settled(lambda: exchange.written)
        assert taken <= 16 * MEGABYTE, f"{taken >> 20} MB were taken of an upstream whose client reads nothing"
        size = len(connection.body(head))
    assert size == 32 * MEGABYTE, f"{size} bytes came"


def check_stream_200_at_once(target: Target) -> None:
    """All are open together, and each client gets its own."""
    count = 200
    open_now = threading.Barrier(count + 1, timeout=6 * target.patience_s)

    def one(number: int) -> None:
        tail = event(f"tail {number}") + b"data: [DONE]\n\n"
        script = Script((STREAM_HEAD, chunked(event(f"head {number}")), HOLD, chunked(tail), LAST_CHUNK))
        patient = replace(target, patience_s=4 * target.patience_s)
        with open_stream(patient, script) as (connection, exchange):
            head = connection.head()
            same("the first event", connection.at_least(head, len(event(f"head {number}"))), event(f"head {number}"))
            open_now.wait()
            exchange.release()
            same("the rest", connection.body(head), tail)

    with ThreadPoolExecutor(count) as threads:
        streams = [threads.submit(one, number) for number in range(count)]
        with suppress(threading.BrokenBarrierError):  # one of the streams says why
            open_now.wait()
        errors = [error for error in (stream.exception() for stream in streams) if error]
    reasons = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    assert not errors, f"{len(errors)} of {count} streams failed, like: {(reasons or errors)[0]}"


FAMILIES: dict[str, Check] = {
    **{f"status_{status}": partial(_status_returns, status=status) for status in STATUSES},
    **{f"redirect_{status}": partial(_redirect_returns, status=status) for status in (301, 307, 308)},
    **{f"error_body_{n}": partial(_error_body_returns, header=h, body=body) for n, (h, body) in ERROR_BODIES.items()},
    **{f"answer_header_{name}": partial(_answer_headers_return, lines=lines) for name, lines in ANSWER_HEADERS.items()},
    **{f"stream_{name}": partial(_stream_returns, pieces=pieces) for name, pieces in STREAMS.items()},
}
