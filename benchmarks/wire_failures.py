"""Checks on connections: clients that leave, upstreams that fail, and what is kept open meanwhile."""

from __future__ import annotations

import json
from functools import partial

from .raw_client import Answer, CutOff
from .recording import HOLD, Script, chunked
from .wire_target import (
    CHAT,
    CHAT_PATH,
    COMPLETION,
    LAST_CHUNK,
    MEGABYTE,
    MESSAGES_PATH,
    OK,
    STREAM_BODY,
    STREAM_HEAD,
    Check,
    Target,
    ask,
    event,
    open_stream,
    reply,
    request,
    same,
    stream_script,
)

# Clients that leave, and upstreams that fail.


def check_abort_before_the_head_reaches_the_upstream(target: Target) -> None:
    with open_stream(target, Script(end="hang")) as (connection, exchange):
        connection.socket.close()
        target.wait(lambda: exchange.gone, "the upstream's connection is closed after the client has left")


def check_abort_by_reset_before_the_head_reaches_the_upstream(target: Target) -> None:
    with open_stream(target, Script(end="hang")) as (connection, exchange):
        connection.reset()
        target.wait(lambda: exchange.gone, "the upstream's connection is closed after the client has left")


def check_abort_in_a_silent_stream_reaches_the_upstream(target: Target) -> None:
    with open_stream(target, Script((STREAM_HEAD, chunked(event("one"))), end="hang")) as (connection, exchange):
        connection.at_least(connection.head(), 1)
        connection.socket.close()
        target.wait(lambda: exchange.gone, "the upstream's connection is closed after the client has left")


def check_abort_in_a_busy_stream_reaches_the_upstream(target: Target) -> None:
    pieces = tuple(part for _ in range(3000) for part in (chunked(event("x")), 0.01))
    with open_stream(target, Script((STREAM_HEAD, *pieces, LAST_CHUNK))) as (connection, exchange):
        connection.at_least(connection.head(), 1)
        connection.socket.close()
        target.wait(lambda: exchange.gone, "the upstream's connection is closed after the client has left")


def check_abort_of_an_unread_stream_reaches_the_upstream(target: Target) -> None:
    """The client left while the upstream was held back by it."""
    script = Script((STREAM_HEAD, *(chunked(bytes(MEGABYTE)) for _ in range(32)), LAST_CHUNK))
    with open_stream(target, script, receive_buffer=1 << 16) as (connection, exchange):
        connection.head()
        target.upstream.settled(lambda: exchange.written)
        connection.reset()
        target.wait(lambda: exchange.gone, "the upstream's connection is closed after the client has left")
    assert exchange.written < 30 * MEGABYTE, "the whole stream was taken"


def check_abort_of_an_upload_reaches_the_upstream(target: Target) -> None:
    name = target.upstream.add(OK)
    with target.connect() as connection:
        connection.send(request(name, None, b"content-length: 1000000", path=b"/v1/files") + bytes(1000))
        exchange = target.arrived(name)
        connection.socket.close()
        target.wait(lambda: exchange.gone, "the upstream's connection is closed after the client has left")
    assert not exchange.whole, "half an upload became a whole one"


def _cut_is_visible(target: Target, script: Script) -> None:
    """The client reads what came before the cut, and then sees a cut, not an end."""
    with open_stream(target, script) as (connection, exchange):
        head = connection.head()
        connection.at_least(head, 1)
        exchange.release()
        try:
            rest = connection.body(head)
        except CutOff:
            return
        raise AssertionError(f"the cut answer ended as if it were whole, with {rest!r}")


LONG_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
OPEN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
CUTS: dict[str, Script] = {
    "stream_reset": Script((STREAM_HEAD, chunked(event("one")), HOLD), end="reset"),
    "stream_closed": Script((STREAM_HEAD, chunked(event("one")), HOLD), end="close"),
    "stream_closed_in_a_chunk": Script((STREAM_HEAD, chunked(event("one")), HOLD, b"ff\r\ndata: "), end="close"),
    "stream_broken_chunk": Script((STREAM_HEAD, chunked(event("one")), HOLD, b"zz\r\nnot a chunk\r\n"), end="close"),
    "body_reset": Script((LONG_HEAD, COMPLETION[:50], HOLD), end="reset"),
    "body_closed": Script((LONG_HEAD, COMPLETION[:50], HOLD), end="close"),
    "until_close_reset": Script((OPEN_HEAD, event("one"), HOLD), end="reset"),
}


def _is_gateway_error(answer: Answer, path: bytes) -> None:
    assert answer.status == 502, f"status {answer.status}, expected 502; body {answer.body[:200]!r}"
    try:
        said = json.loads(answer.body)
        error = said["error"]
        known = isinstance(error["message"], str) and isinstance(error["type"], str)
        if path == MESSAGES_PATH:
            known = known and said["type"] == "error"
    except (ValueError, KeyError, TypeError):
        known = False
    assert known, f"not an error in the shape of {path.decode()}: {answer.body[:300]!r}"


FAILURES: dict[str, Script] = {
    "closes_before_the_head": Script(end="close"),
    "resets_before_the_head": Script(end="reset"),
    "closes_in_the_head": Script((b"HTTP/1.1 200 OK\r\ncontent-ty",), end="close"),
    "sends_garbage": Script((b"\x16\x03\x01\x02\x00garbage\r\n\r\n",), end="close"),
    "speaks_another_protocol": Script((b"220 mail.test ESMTP\r\n",), end="close"),
    "sends_a_bad_length": Script((b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\nx",), end="close"),
}


def _failure_is_a_gateway_error(target: Target, script: Script, path: bytes = CHAT_PATH) -> None:
    if not target.is_proxy:
        return
    name = target.upstream.add(script)
    with target.connect() as connection:
        connection.send(request(name, path=path))
        try:
            _is_gateway_error(connection.answer(), path)
        except CutOff as error:
            raise AssertionError(f"the client was cut off, where a 502 says what happened: {error}") from error
    # A close at once may have crossed the request on a kept connection: one more try is what browsers do, and nginx.
    assert len(target.upstream.exchanges(name)) <= 2, "the request was sent more than twice"


def check_failure_after_work_is_not_sent_again(target: Target) -> None:
    """An upstream that had a request for a second may have charged for it."""
    if not target.is_proxy:
        return
    working, failing = target.upstream.add(OK), target.upstream.add(Script((1.0,), end="close"))
    with target.connect() as connection:
        connection.send(request(working))
        connection.answer()
        connection.send(request(failing))
        _is_gateway_error(connection.answer(), CHAT_PATH)
    assert len(target.upstream.exchanges(failing)) == 1, "a request that the upstream worked on was sent again"


def check_failure_anthropic_shape(target: Target) -> None:
    _failure_is_a_gateway_error(target, Script(end="close"), MESSAGES_PATH)


def check_failure_refused(target: Target) -> None:
    if not target.is_proxy:
        return
    name = target.upstream.add(OK)
    with target.upstream.down(), target.connect() as connection:
        connection.send(request(name))
        _is_gateway_error(connection.answer(), CHAT_PATH)


def check_failure_refused_and_back_on_the_same_connection(target: Target) -> None:
    if not target.is_proxy:
        return
    name = target.upstream.add(OK)
    with target.connect() as connection:
        with target.upstream.down():
            connection.send(request(name))
            connection.answer()
        connection.send(request(name))
        same("the answer once the upstream is back", connection.answer().body, COMPLETION)


def check_failure_leaves_the_clients_connection_open(target: Target) -> None:
    if not target.is_proxy:
        return
    failing, working = target.upstream.add(Script(end="reset")), target.upstream.add(OK)
    with target.connect() as connection:
        for name in (failing, working, failing, working):
            connection.send(request(name))
            answer = connection.answer()
            if name == working:
                same("the answer after a failure", answer.body, COMPLETION)


def check_failure_of_an_idle_connection_is_not_seen(target: Target) -> None:
    """The upstream closes its kept connections between requests; the next request is answered all the same."""
    if not target.is_proxy:
        return
    for _ in range(5):
        answer, _ = ask(target)
        assert answer.status == 200, f"status {answer.status}"
        target.upstream.drop_connections()


def check_failure_of_a_connection_closed_unannounced_is_not_seen(target: Target) -> None:
    if not target.is_proxy:
        return
    for _ in range(5):
        answer, _ = ask(target, Script((reply(),), end="close"))
        assert answer.status == 200, f"status {answer.status}"


# The client's connection.


def check_connection_is_kept_for_the_next_request(target: Target) -> None:
    names = [target.upstream.add(Script((reply(b'{"n":%d}' % n),))) for n in range(3)]
    with target.connect() as connection:
        for number, name in enumerate(names):
            connection.send(request(name))
            same("the answer's body", connection.answer().body, b'{"n":%d}' % number)


def check_connection_is_kept_after_a_stream(target: Target) -> None:
    first, second = target.upstream.add(stream_script(event("hi"))), target.upstream.add(OK)
    with target.connect() as connection:
        connection.send(request(first, STREAM_BODY))
        same("the stream", connection.answer().body, event("hi"))
        connection.send(request(second))
        same("the answer's body", connection.answer().body, COMPLETION)


def check_connection_with_pipelined_requests(target: Target) -> None:
    names = [target.upstream.add(Script((reply(b'{"n":%d}' % n),))) for n in range(3)]
    with target.connect() as connection:
        connection.send(b"".join(request(name) for name in names))
        for number in range(3):
            same("the answer's body", connection.answer().body, b'{"n":%d}' % number)


def check_connection_to_the_upstream_is_reused(target: Target) -> None:
    name = target.upstream.add(OK)
    with target.connect() as connection:
        for _ in range(10):
            connection.send(request(name))
            connection.answer()
    used = {exchange.connection for exchange in target.upstream.exchanges(name)}
    assert len(used) <= 2, f"10 requests in a row took {len(used)} connections to the upstream"


def check_connection_of_http_1_0(target: Target) -> None:
    name = target.upstream.add(OK)
    with target.connect() as connection:
        connection.send(request(name, version=b"HTTP/1.0"))
        answer = connection.answer()
        same("the answer's body", answer.body, COMPLETION)
        assert not target.is_proxy or connection.ends(), "the connection of an HTTP/1.0 client was kept"


def check_connection_of_http_1_0_gets_no_chunks(target: Target) -> None:
    if not target.is_proxy:
        return
    name = target.upstream.add(stream_script(event("hi")))
    with target.connect() as connection:
        connection.send(request(name, STREAM_BODY, version=b"HTTP/1.0"))
        answer = connection.answer()
    assert answer.header(b"transfer-encoding") is None, "an HTTP/1.0 client was sent chunks"
    same("the stream", answer.body, event("hi"))


def check_connection_slow_request(target: Target) -> None:
    """A request that comes byte by byte."""
    name = target.upstream.add(OK)
    message = request(name)
    with target.connect() as connection:
        for start in range(len(message)):
            connection.send(message[start : start + 1])
        same("the answer's body", connection.answer().body, COMPLETION)
    same("the body", bytes(target.arrived(name).body), CHAT.replace(b"MODEL", name))


FAMILIES: dict[str, Check] = {
    **{f"cut_{name}": partial(_cut_is_visible, script=script) for name, script in CUTS.items()},
    **{f"failure_{name}": partial(_failure_is_a_gateway_error, script=script) for name, script in FAILURES.items()},
}
