"""The lean transport against raw servers on loopback that say exactly what the test wants said."""

from __future__ import annotations

import asyncio
import gc
import gzip
import socket
import ssl
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trustme
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longroute.router.errors import ConfigError
from longroute.router.proxy.connection import MAX_HEAD_BYTES
from longroute.router.proxy.pool import Pool
from longroute.router.proxy.transport import LeanTransport, open_pool
from longroute.router.proxy.wire import Headers, Timeouts

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
SECRET = "sk-secret-0123456789"
HEADERS: Headers = [(b"Host", b"x"), (b"authorization", f"Bearer {SECRET}".encode())]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run[Any]]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class Peer:
    """The server's side of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number  # of the connection, from 1
        self.reader = reader
        self.writer = writer
        self.requests = 0

    async def head(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        return head

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body, the chunks of the body taken apart."""
        head = await self.head()
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        if b"content-length" in fields:
            return head, await self.reader.readexactly(int(fields[b"content-length"]))
        body = b""
        if b"transfer-encoding" in fields:
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        return head, body

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def gone(self) -> None:
        """Until the client has closed."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Talk = Callable[[Peer], Awaitable[None]]


class Upstream:
    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.open = 0
        self.changed = asyncio.Condition()

    async def count(self, change: int) -> None:
        self.open += change
        async with self.changed:
            self.changed.notify_all()

    async def until(self, n_open: int) -> None:
        """Until so many connections are open; the test's own time limit is the limit."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.open == n_open)


@asynccontextmanager
async def upstream(talk: Talk, context: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """A server that has one talk per connection, then closes it. Its failures fail the test."""
    up = Upstream()
    talks: set[asyncio.Task[Any]] = set()
    failures: list[BaseException] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())  # type: ignore[arg-type]
        up.connections += 1
        await up.count(+1)
        try:
            await talk(Peer(up.connections, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away
        except Exception as error:
            failures.append(error)
        finally:
            writer.close()
            await up.count(-1)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    up.url = f"{'https' if context else 'http'}://127.0.0.1:{port}"
    try:
        yield up
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await asyncio.sleep(0.01)  # sockets close in the loop's next rounds
    assert not failures, failures


def answering(*answers: bytes) -> Talk:
    """Each request on a connection gets the next of these answers, the last one again and again."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answers[min(peer.requests, len(answers)) - 1])

    return talk


@asynccontextmanager
async def pool_to(talk: Talk, **options: Any) -> AsyncIterator[tuple[Pool, Upstream]]:
    async with upstream(talk) as up:
        pool = Pool(up.url, **options)
        try:
            yield pool, up
        finally:
            await pool.aclose()


async def get(pool: Pool, **options: Any) -> bytes:
    response = await pool.send(b"GET", b"/", HEADERS, None, **options)
    return await response.read(2**30)


# ---- bytes that travel -----------------------------------------------------------------------------------------------


def test_request_and_response_travel_as_they_are(run: Run[None]) -> None:
    heads = []

    async def talk(peer: Peer) -> None:
        heads.append(await peer.request())
        await peer.say(b"HTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\nX-A:1\r\nx-a: 2 \r\nContent-Length: 3\r\n\r\nno\n")
        await peer.gone()

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            headers: Headers = [(b"Host", b"h"), (b"X-b", b"2"), (b"x-B", b"\xff"), (b"Content-Length", b"4")]
            response = await pool.send(b"POST", b"/v1/a?b=%20c", headers, b"body")
            assert (response.status, response.reason, response.body_done) == (429, b"Slow Down", True)
            assert response.body == b"no\n"
            assert response.headers == [
                (b"Retry-After", b"7"),
                (b"X-A", b"1"),
                (b"x-a", b"2"),
                (b"Content-Length", b"3"),
            ]
        head = b"POST /v1/a?b=%20c HTTP/1.1\r\nHost: h\r\nX-b: 2\r\nx-B: \xff\r\nContent-Length: 4\r\n\r\n"
        assert heads == [(head, b"body")]

    run(main())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    framing=st.sampled_from(["length", "chunked", "close"]),
    cuts=st.lists(st.integers(1, 200), max_size=6),
)
def test_body_is_the_same_wherever_the_wire_cuts_it(
    run: Run[None], pieces: list[bytes], framing: str, cuts: list[int]
) -> None:
    body = b"".join(pieces)
    wire = {
        "length": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body),
        "close": b"HTTP/1.1 200 OK\r\n\r\n" + body,
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b0;x=y\r\ntrailer: t\r\n\r\n"
        % b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces),
    }[framing]
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(*(wire[a:b] for a, b in pairwise(edges)))
        if framing != "close":
            await peer.gone()

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            assert b"".join([piece async for piece in response]) == body
            assert all(name.lower() != b"trailer" for name, _ in response.headers)

    run(main())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=50), max_size=6), framing=st.sampled_from(["none", "length", "chunked"]))
def test_streamed_request_body_arrives_whole(run: Run[None], pieces: list[bytes], framing: str) -> None:
    body = b"".join(pieces)
    stated: dict[str, Headers] = {
        "none": [],
        "length": [(b"Content-Length", b"%d" % len(body))],
        "chunked": [(b"Transfer-Encoding", b"chunked")],
    }
    got = []

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(0)

    async def talk(peer: Peer) -> None:
        while True:
            got.append((await peer.request())[1])
            await peer.say(OK)

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            for sent in (stream(), body):
                response = await pool.send(b"POST", b"/", [*HEADERS, *stated[framing]], sent)
                assert await response.read(10) == b"hi"
        assert got == [body, body]

    run(main())


def test_compressed_body_stays_compressed(run: Run[None]) -> None:
    packed = gzip.compress(b"text")
    answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(packed), packed)

    async def main() -> None:
        async with pool_to(answering(answer)) as (pool, _):
            assert await get(pool) == packed

    run(main())


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, 200, b"hi"),
        (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi", 200, b"hi"),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi"),
    ],
)
def test_unusual_answers_are_read_to_their_end_and_no_further(
    run: Run[None], answer: bytes, status: int, body: bytes
) -> None:
    async def main() -> None:
        async with pool_to(answering(answer)) as (pool, up):
            for _ in range(2):
                response = await pool.send(b"GET", b"/", HEADERS, None)
                assert (response.status, await response.read(10)) == (status, body)
                assert [name for name, _ in response.headers if name == b"link"] == []
            assert up.connections == 1

    run(main())


def test_head_answer_has_no_body_whatever_its_length_says(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")) as (pool, _):
            for _ in range(2):
                response = await pool.send(b"HEAD", b"/", HEADERS, None)
                assert (response.body_done, response.body) == (True, b"")

    run(main())


# ---- connections used again ------------------------------------------------------------------------------------------


def test_connections_are_used_again_last_first(run: Run[None]) -> None:
    served = []

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            served.append(peer.number)
            await asyncio.sleep(0.02)  # so that requests made together need a connection each
            await peer.say(OK)

    async def main() -> None:
        async with pool_to(talk) as (pool, up):
            await asyncio.gather(*(get(pool) for _ in range(3)))
            for _ in range(3):
                await get(pool)
            assert up.connections == 3
            assert len(set(served[3:])) == 1

    run(main())


def test_more_requests_than_connections_wait_their_turn(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(answering(OK), max_connections=2) as (pool, up):
            assert await asyncio.gather(*(get(pool) for _ in range(20))) == [b"hi"] * 20
            assert up.connections <= 2

    run(main())


def test_no_free_connection_in_time_is_a_pool_timeout(run: Run[None]) -> None:
    async def silent(peer: Peer) -> None:
        await peer.gone()

    async def main() -> None:
        async with pool_to(silent, max_connections=1) as (pool, _):
            first = asyncio.create_task(get(pool))
            await asyncio.sleep(0)
            with pytest.raises(httpx.PoolTimeout, match="max_connections"):
                await get(pool, timeouts=Timeouts(connect_s=0.02))
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: max=5, timeout=1\r\ncontent-length: 2\r\n\r\nhi",
        OK + b"stray",
        OK + OK,
    ],
)
def test_connection_that_cannot_be_trusted_again_is_closed(run: Run[None], answer: bytes) -> None:
    async def main() -> None:
        async with pool_to(answering(answer)) as (pool, up):
            assert [await get(pool) for _ in range(2)] == [b"hi", b"hi"]
            assert up.connections == 2
            await up.until(0)

    run(main())


def test_idle_connection_is_closed_in_time_or_when_the_server_says_something(run: Run[None]) -> None:
    async def chatty(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await asyncio.sleep(0.01)
        await peer.say(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await peer.gone()

    async def main() -> None:
        for talk, idle_s in ((answering(OK), 0.01), (chatty, 60.0)):
            async with pool_to(talk, idle_s=idle_s) as (pool, up):
                for _ in range(2):
                    assert await get(pool) == b"hi"
                    await up.until(0)
                assert up.connections == 2

    run(main())


def test_server_keeping_connections_longer_is_taken_at_its_word(run: Run[None]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=60\r\ncontent-length: 2\r\n\r\nhi"

    async def main() -> None:
        async with pool_to(answering(answer), idle_s=0.01) as (pool, up):
            await get(pool)
            await asyncio.sleep(0.05)
            await get(pool)
            assert up.connections == 1

    run(main())


def closing_after(n_answers: int, parting: bytes = b"") -> Talk:
    """The first connection answers so many requests, reads one more and closes on it; later ones answer all."""

    async def talk(peer: Peer) -> None:
        while peer.number > 1 or peer.requests < n_answers:
            await peer.request()
            await peer.say(OK)
        await peer.head()
        await peer.say(parting)

    return talk


def test_request_that_met_a_closing_connection_is_sent_once_more(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(closing_after(1)) as (pool, up):
            assert await get(pool) == b"hi"
            response = await pool.send(b"POST", b"/", HEADERS, b"question")
            assert await response.read(10) == b"hi"
            assert up.connections == 2

    run(main())


@pytest.mark.parametrize(("n_answers", "parting"), [(0, b""), (1, b"HTTP/1.1 2")])
def test_request_is_not_sent_again_on_a_new_connection_or_after_a_byte(
    run: Run[None], n_answers: int, parting: bytes
) -> None:
    async def main() -> None:
        async with pool_to(closing_after(n_answers, parting)) as (pool, up):
            for _ in range(n_answers):
                await get(pool)
            with pytest.raises(httpx.RemoteProtocolError) as raised:
                await get(pool)
            assert SECRET not in str(raised.value)
            assert up.connections == 1

    run(main())


def test_streamed_request_is_not_sent_again(run: Run[None]) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"once"

    async def main() -> None:
        async with pool_to(closing_after(1)) as (pool, up):
            await get(pool)
            with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                await pool.send(b"POST", b"/", HEADERS, stream())
            assert up.connections == 1

    run(main())


# ---- things that break -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"content-length: 100", b"transfer-encoding: chunked"])
def test_body_that_breaks_off_is_an_error_after_what_arrived(run: Run[None], framing: bytes) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n5\r\nhello\r\n" % framing)

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            assert not response.body_done
            got = b""
            with pytest.raises(httpx.ReadError, match="middle"):
                async for piece in response:
                    got += piece
            assert b"hello" in got

    run(main())


def test_reset_is_never_a_silent_end(run: Run[None]) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nuntil the connection ends")
        await asyncio.sleep(0.02)
        linger = b"\1\0\0\0\0\0\0\0"
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer.writer.transport.abort()

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            with pytest.raises(httpx.ReadError):
                await get(pool)

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01 no HTTP at all",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * MAX_HEAD_BYTES + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * (2 * MAX_HEAD_BYTES),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
    ],
)
def test_malformed_or_oversized_head_is_a_protocol_error(run: Run[None], answer: bytes) -> None:
    async def main() -> None:
        async with pool_to(answering(answer)) as (pool, up):
            with pytest.raises(httpx.RemoteProtocolError, match="malformed"):
                await get(pool)
            await up.until(0)

    run(main())


@pytest.mark.parametrize(
    ("target", "headers", "body"),
    [
        (b"/", [(b"x", b"a\r\nevil: 1")], None),
        (b"/", [(b"x", b"a\nevil: 1")], None),
        (b"/", [(b"x", b"a\0")], None),
        (b"/ HTTP/1.1", [], None),
        (b"/", [(b"Content-Length", b"3")], b"four"),
    ],
)
def test_request_that_would_read_as_two_is_refused(target: bytes, headers: Headers, body: bytes | None) -> None:
    async def main() -> None:
        async with pool_to(answering(OK)) as (pool, up):
            with pytest.raises(httpx.LocalProtocolError) as raised:
                await pool.send(b"POST", target, [*HEADERS, *headers], body)
            assert SECRET not in str(raised.value)
            assert up.connections == 0

    asyncio.run(main())


def test_nobody_listening_is_a_connect_error(run: Run[None]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"

        async def main() -> None:
            pool = Pool(url, max_connections=1)
            for _ in range(2):
                with pytest.raises(httpx.ConnectError, match="cannot be reached"):
                    await get(pool)
            await pool.aclose()

        run(main())


def test_each_phase_has_its_own_time(run: Run[None]) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async def stalling(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
        await peer.gone()

    async def not_reading(peer: Peer) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with pool_to(silent, timeouts=Timeouts(first_byte_s=0.03)) as (pool, up):
            with pytest.raises(httpx.ReadTimeout, match="did not answer"):
                await get(pool)
            await up.until(0)
        async with pool_to(stalling, timeouts=Timeouts(stall_s=0.03)) as (pool, up):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            assert await anext(aiter(response)) == b"hi"
            with pytest.raises(httpx.ReadTimeout, match="nothing more"):
                await anext(aiter(response))
            await up.until(0)
        async with pool_to(not_reading, timeouts=Timeouts(write_s=0.1)) as (pool, _):
            with pytest.raises(httpx.WriteTimeout):
                await pool.send(b"POST", b"/", HEADERS, bytes(40 * 2**20))

    run(main())


def test_slow_reader_is_not_a_stall_of_the_server(run: Run[None]) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhi")
        await proceed.wait()
        await peer.say(b"ho")
        await peer.gone()

    proceed = asyncio.Event()

    async def main() -> None:
        async with pool_to(talk, timeouts=Timeouts(first_byte_s=0.2, stall_s=0.2)) as (pool, _):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            await asyncio.sleep(0.5)
            proceed.set()
            assert await response.read(4) == b"hiho"

    run(main())


def test_answer_before_the_request_is_written_is_delivered(run: Run[None]) -> None:
    async def talk(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await peer.gone()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**16)
            await asyncio.sleep(0)

    async def main() -> None:
        for body in (bytes(40 * 2**20), endless()):
            async with pool_to(talk) as (pool, up):
                response = await pool.send(b"POST", b"/", HEADERS, body)
                assert (response.status, await response.read(3)) == (413, b"big")
                await up.until(0)  # so the connection was not kept

    run(main())


def test_server_hanging_up_on_a_request_it_does_not_read_is_noticed_at_once(run: Run[None]) -> None:
    async def talk(peer: Peer) -> None:
        await peer.head()
        peer.writer.write_eof()
        await asyncio.sleep(60)

    async def main() -> None:
        async with pool_to(talk, timeouts=Timeouts(write_s=1)) as (pool, _):
            with pytest.raises(httpx.WriteError):
                await pool.send(b"POST", b"/", HEADERS, bytes(40 * 2**20))

    run(main())


def test_failing_request_body_fails_the_request_and_closes(run: Run[None]) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"begun"
        raise LookupError("the client went away")

    async def talk(peer: Peer) -> None:
        await peer.gone()

    async def main() -> None:
        async with pool_to(talk) as (pool, up):
            with pytest.raises(LookupError):
                await pool.send(b"POST", b"/", HEADERS, failing())
            await up.until(0)

    run(main())


def test_a_request_that_failed_lets_go_of_its_body_at_once(run: Run[None]) -> None:
    """Not when cyclic garbage is next collected: bodies are large."""

    class Body:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"begun"
            raise RuntimeError

    async def talk(peer: Peer) -> None:
        await peer.gone()

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            body = Body()
            held = weakref.ref(body)
            with suppress(RuntimeError):
                await pool.send(b"POST", b"/", [(b"host", b"x")], body)
            del body
            await asyncio.sleep(0.05)
            assert held() is None

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_body_longer_than_allowed_is_given_up(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(answering(OK)) as (pool, _):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            with pytest.raises(httpx.ReadError, match="1 bytes"):
                await response.read(1)

    run(main())


# ---- giving up -------------------------------------------------------------------------------------------------------


async def endless_answer(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nhi")
    await peer.gone()


def test_closing_a_response_closes_its_connection_at_once(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(endless_answer) as (pool, up):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            assert await anext(aiter(response)) == b"hi"
            await response.aclose()
            await up.until(0)
            with pytest.raises(httpx.ReadError):
                await anext(aiter(response))

    run(main())


def test_cancelling_the_reader_closes_the_connection_at_once(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(endless_answer) as (pool, up):
            reading = asyncio.create_task(get(pool))
            await up.until(1)
            await asyncio.sleep(0.02)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await up.until(0)

    run(main())


def test_cancelling_at_any_moment_leaves_the_pool_whole(run: Run[None]) -> None:
    async def main() -> None:
        async with pool_to(answering(OK), max_connections=1) as (pool, up):
            for rounds in range(60):
                sending = asyncio.create_task(get(pool))
                for _ in range(rounds % 20):
                    await asyncio.sleep(0)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                assert await get(pool, timeouts=Timeouts(connect_s=5)) == b"hi"
        await up.until(0)

    run(main())


def test_cancelling_in_the_moment_of_the_answer_spares_the_next_request(run: Run[None]) -> None:
    """The connection has gone on by the time that the cancelled request hears of it."""

    class Meddling(Pool):
        def free(self, connection: Any) -> None:
            super().free(connection)
            asyncio.get_running_loop().call_soon(sending[0].cancel)

    async def main() -> None:
        async with upstream(answering(OK)) as up:
            pool = Meddling(up.url, max_connections=1)
            sending.extend(asyncio.create_task(get(pool)) for _ in range(2))
            assert await sending[1] == b"hi"
            assert sending[0].cancelled()
            assert up.connections == 1
            await pool.aclose()

    sending: list[asyncio.Task[bytes]] = []
    run(main())


def test_closing_the_pool_ends_what_is_under_way(run: Run[None]) -> None:
    async def main() -> None:
        async with upstream(endless_answer) as up:
            pool = Pool(up.url)
            response = await pool.send(b"GET", b"/", HEADERS, None)
            await pool.aclose()
            with pytest.raises(httpx.ReadError, match="were closed"):
                await response.read(2**20)
            with pytest.raises(RuntimeError, match="closed"):
                await get(pool)
            await up.until(0)

    run(main())


# ---- backpressure ----------------------------------------------------------------------------------------------------


async def settled(count: Callable[[], int]) -> int:
    """The count once it no longer grows."""
    before = -1
    while (now := count()) != before:
        before = now
        await asyncio.sleep(0.15)
    return now


def test_server_waits_for_a_slow_reader(run: Run[None]) -> None:
    n_pieces, piece, sent = 64, bytes(2**20), [0]

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (n_pieces * len(piece)))
        for _ in range(n_pieces):
            await peer.say(piece)
            sent[0] += 1
        await peer.gone()

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            response = await pool.send(b"GET", b"/", HEADERS, None)
            assert await settled(lambda: sent[0]) < n_pieces // 2  # the kernel's buffers hold some
            assert len(await response.read(2**30)) == n_pieces * len(piece)
            assert sent[0] == n_pieces

    run(main())


def test_streamed_request_waits_for_a_slow_server(run: Run[None]) -> None:
    n_pieces, piece, taken = 64, bytes(2**20), [0]
    proceed = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await proceed.wait()
        assert len((await peer.request())[1]) == n_pieces * len(piece)
        await peer.say(OK)
        await peer.gone()

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(n_pieces):
            taken[0] += 1
            yield piece

    async def main() -> None:
        async with pool_to(talk) as (pool, _):
            length = (b"content-length", b"%d" % (n_pieces * len(piece)))
            sending = asyncio.create_task(pool.send(b"POST", b"/", [*HEADERS, length], stream()))
            assert await settled(lambda: taken[0]) < n_pieces // 2
            proceed.set()
            assert await (await sending).read(2) == b"hi"

    run(main())


# ---- TLS and addresses -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def served_as(name: str, authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert(name).configure_cert(context)
    return context


def test_tls_speaks_http_1_over_one_verified_connection(
    run: Run[None], authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    seen = []
    big = bytes(3 * 2**20)

    async def talk(peer: Peer) -> None:
        while True:
            seen.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
            _, body = await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body)

    async def main() -> None:
        async with upstream(talk, served_as("127.0.0.1", authority)) as up:
            pool = Pool(up.url)
            for body in (b"hi", big):
                response = await pool.send(b"POST", b"/", HEADERS, body)
                assert await response.read(2**30) == body
            assert (up.connections, set(seen)) == (1, {"http/1.1"})
            await pool.aclose()

    run(main())


@pytest.mark.parametrize("known", [True, False], ids=["wrong name", "unknown authority"])
def test_certificate_that_does_not_fit_is_a_connect_error(run: Run[None], authority: trustme.CA, known: bool) -> None:
    context = ssl.create_default_context()
    if known:
        authority.configure_trust(context)

    async def main() -> None:
        async with upstream(answering(OK), served_as("elsewhere.example", authority)) as up:
            pool = Pool(up.url, ssl_context=context)
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
                await get(pool)
            await pool.aclose()

    run(main())


def test_handshake_counts_as_connecting(run: Run[None]) -> None:
    async def mute(peer: Peer) -> None:
        await peer.gone()

    async def main() -> None:
        async with upstream(mute) as up:
            pool = Pool(up.url.replace("http", "https"), timeouts=Timeouts(connect_s=0.05))
            with pytest.raises(httpx.ConnectTimeout):
                await get(pool)
            await up.until(0)
            await pool.aclose()

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse where Linux leaves a caller waiting")
def test_address_that_does_not_answer_is_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on uvloop, which resolves names without Python's resolver; what follows is the same code."""

    async def main() -> None:
        async with upstream(answering(OK)) as up:
            port = int(up.url.rpartition(":")[2])
            with socket.socket() as full, socket.socket() as one, socket.socket() as two:
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                for filler in (one, two):  # a full queue leaves the next caller unanswered
                    filler.setblocking(False)
                    filler.connect_ex(full.getsockname())
                addresses = [full.getsockname(), ("127.0.0.1", port)]
                found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
                monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
                pool = Pool("http://several.example")
                assert await get(pool) == b"hi"
                await pool.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://", "http://host:port", f"gopher://{SECRET}@host"])
def test_url_that_is_none_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Pool(url)
    assert SECRET not in str(raised.value)


# ---- proxies of the environment --------------------------------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_proxy_of_the_environment_gets_the_requests(no_proxies: pytest.MonkeyPatch, variable: str) -> None:
    got = []

    async def forward_proxy(peer: Peer) -> None:
        while True:
            got.append(await peer.request())
            await peer.say(b"HTTP/1.1 201 Made\r\nX-Y: z\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")

    async def stream() -> AsyncIterator[bytes]:
        yield b"in "
        yield b"pieces"

    async def main() -> None:
        async with upstream(forward_proxy) as proxy:
            no_proxies.setenv(variable, proxy.url.removeprefix("http://"))
            pool = open_pool("http://model.example")
            for body in (b"whole", stream(), None):
                response = await pool.send(b"POST", b"/v1/a?b", [(b"Host", pool.host)], body)
                assert (response.status, response.reason, response.headers[0]) == (201, b"Made", (b"X-Y", b"z"))
                assert await response.read(2) == b"hi"
                await response.aclose()
            await pool.aclose()
            assert proxy.connections == 1

    asyncio.run(main())
    assert [body for _, body in got] == [b"whole", b"in pieces", b""]
    assert all(head.startswith(b"POST http://model.example/v1/a?b HTTP/1.1\r\n") for head, _ in got)


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "other.example, 127.0.0.1:{port}"])
def test_hosts_in_no_proxy_are_reached_directly(no_proxies: pytest.MonkeyPatch, exempt: str) -> None:
    async def main() -> None:
        async with upstream(answering(OK)) as up:
            no_proxies.setenv("HTTP_PROXY", "http://127.0.0.1:9")
            no_proxies.setenv("NO_PROXY", exempt.format(port=up.url.rpartition(":")[2]))
            pool = open_pool(up.url)
            assert await (await pool.send(b"GET", b"/", HEADERS, None)).read(2) == b"hi"
            await pool.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(("proxy", "help_"), [("socks5", r"httpx\[socks\]"), ("nonsense", "NO_PROXY")])
def test_proxy_that_cannot_be_used_is_a_config_error(no_proxies: pytest.MonkeyPatch, proxy: str, help_: str) -> None:
    no_proxies.setitem(sys.modules, "socksio", None)
    no_proxies.setenv("HTTPS_PROXY", f"{proxy}://user:{SECRET}@127.0.0.1:1")
    with pytest.raises(ConfigError, match=help_) as raised:
        open_pool("https://model.example")
    assert SECRET not in str(raised.value)


# ---- behind httpx ----------------------------------------------------------------------------------------------------


def test_httpx_streams_both_ways_and_decodes(run: Run[None], no_proxies: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(b"some text " * 1000)
    bodies = []

    async def talk(peer: Peer) -> None:
        while True:
            bodies.append((await peer.request())[1])
            await peer.say(
                b"HTTP/1.1 200 Fine\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed),
                packed[:20],
                packed[20:],
            )

    async def stream() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def main() -> None:
        async with upstream(talk) as up, httpx.AsyncClient(transport=LeanTransport(), base_url=up.url) as client:
            assert (await client.get("/")).text == "some text " * 1000
            posted = await client.post("/", json={"a": 1})
            assert (posted.reason_phrase, posted.http_version) == ("Fine", "HTTP/1.1")
            async with client.stream("POST", "/", content=stream()) as response:
                text = "".join([piece async for piece in response.aiter_text()])
            assert text == "some text " * 1000
            assert up.connections == 1
        assert bodies == [b"", b'{"a":1}', b"ab"]

    run(main())


def test_httpx_errors_and_timeouts_keep_their_meaning(run: Run[None], no_proxies: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with upstream(endless_answer) as up, httpx.AsyncClient(transport=LeanTransport()) as client:
            with pytest.raises(httpx.ReadTimeout) as raised:
                await client.get(up.url, timeout=httpx.Timeout(5, read=0.03))
            assert raised.value.request.url == up.url
            async with client.stream("GET", up.url) as response:
                assert await anext(response.aiter_raw()) == b"hi"
            await up.until(0)  # leaving the block early gave it up

    run(main())
