"""The proxy as a process: how it starts and stops, what it bounds, what it survives, what it writes down."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from longroute.benchmarks.recording import HOLD, Recorder, Script, chunked
from longroute.tests.router.proxy.fakes import FACT, chat

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Recorder]:
    with closing(Recorder()) as recorder:
        yield recorder


class Served:
    """`longroute serve` in a process of its own; `log` is complete once it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.said = process.stdout.readline()
        self.url = self.said.split()[3].removesuffix("/v1") if "http://" in self.said else ""

    def stop(self, patience_s: float = 20) -> str:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=patience_s)
        return out + err

    def resident_mb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@contextmanager
def serving(
    upstream: Recorder | None, home: Path, *arguments: str, before: Any = None, **settings: Any
) -> Iterator[Served]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGROUTE_")}
    environment |= {f"LONGROUTE_{name}": str(value) for name, value in ({"EMBEDDING_MODEL": "none"} | settings).items()}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}
    named = ["--upstream", f"{upstream.url}/v1"] if upstream else []
    process = subprocess.Popen(
        [sys.executable, "-m", "longroute", "serve", *named, "--port", "0", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    try:
        yield Served(process)
    finally:
        process.kill()
        process.communicate()


# ---- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0", "--upstream", "http://u.test"], "client_keys"),
        ([], "longroute serve --upstream"),
        (["--upstream", "ftp://u.test"], "https://host"),
        (["--upstream", "https://user:secret@u.test"], "api_key_env"),
        (["--upstream", "http://u.test", "--holdout", "2"], "holdout"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_served(arguments: list[str], message: str, tmp_path: Path) -> None:
    with serving(None, tmp_path, *arguments) as served:
        _, err = served.process.communicate(timeout=30)
        assert served.process.returncode not in (0, None)
        assert message in err and "Traceback" not in err and "secret" not in err


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with serving(None, tmp_path, "--upstream", "http://u.test", "--port", port) as served:
            _, err = served.process.communicate(timeout=30)
            assert port in err and "Traceback" not in err


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(upstream: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(upstream, tmp_path_factory.mktemp("home"), PROXY__MAX_HEAD_KB="8") as started:
        yield started


def test_a_head_without_end_is_cut_off(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    for filler in (b"x-filler: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
            received = b""
            try:
                for _ in range(1000):
                    client.sendall(filler)
                while piece := client.recv(4096):
                    received += piece
            except OSError:
                pass  # cut off while we were still talking
            assert not received or received.startswith(b"HTTP/1.1 431")
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}


OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"


@pytest.mark.parametrize("split", [0, 40, 300])
@pytest.mark.parametrize(
    "body", [b"content-length: 2\r\n\r\n{}", b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
def test_a_body_behind_an_offer_of_http_2_is_read(body: bytes, split: int, served: Served, upstream: Recorder) -> None:
    """Java's client makes the offer with the first request of a connection."""
    names = [upstream.add(Script((ANSWER,))) for _ in range(2)]
    first, second = (b"POST /v1/x HTTP/1.1\r\nhost: x\r\nx-script: %b\r\n" % name for name in names)
    sent = first + OFFER + body + second + b"connection: close\r\ncontent-length: 3\r\n\r\n[1]"
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        for piece in (sent[:split], sent[split:]):
            client.sendall(piece)
            time.sleep(0.05)
        received = b""
        while piece := client.recv(4096):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert [upstream.exchange(name, 5).body for name in names] == [b"{}", b"[1]"]
    assert upstream.exchange(names[0], 5).header(b"http2-settings") is None


CODED = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: %b\r\n"


def sent_raw(served: Served, request: bytes) -> bytes:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(request)
        return client.recv(4096)


def test_trailers_are_no_headers(served: Served, upstream: Recorder) -> None:
    """Whoever checks heads in front of us has not seen them."""
    name = upstream.add(Script((ANSWER,)))
    trailers = b"authorization: Bearer other\r\nx-longroute-strategy: none\r\n"
    body = b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n"
    request = CODED % b"chunked" + b"x-script: %b\r\ntrailer: authorization\r\n\r\n" % name + body
    assert sent_raw(served, request).startswith(b"HTTP/1.1 200")
    exchange = upstream.exchange(name, 5)
    assert exchange.body == b"{}" and exchange.header(b"authorization") is None
    assert exchange.header(b"content-length") == b"2"


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        (CODED % b"gzip, chunked" + b"\r\n2\r\n{}\r\n0\r\n\r\n", b"501"),
        (CODED % b"xchunked" + b"\r\n2\r\n{}\r\n0\r\n\r\n", b"400"),
        (CODED % b"chunked" + b"transfer-encoding: identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"400"),
        (CODED % b"chunked" + b"content-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"400"),
        (CODED % b"chunked" + b"\r\n0x2\r\n{}\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", b"400"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +2\r\n\r\n{}", b"400"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length : 2\r\n\r\n{}", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n c\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx-a: b\rx-b: c\r\n\r\n", b"400"),
        (b"CONNECT evil.test:443 HTTP/1.1\r\nhost: evil.test\r\n\r\n", b"400"),
    ],
)
def test_requests_that_two_servers_might_read_differently_reach_no_upstream(
    framing: bytes, status: bytes, served: Served
) -> None:
    assert sent_raw(served, framing).split(b" ")[1] == status


def test_a_hundred_megabytes_pass_without_being_held(served: Served, upstream: Recorder) -> None:
    name = upstream.add(Script((ANSWER,)))
    before = served.resident_mb()
    size = 100 << 20
    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "' + b"a" * (size - 66) + b'"}]}'
    answer = httpx.post(
        f"{served.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json", "x-script": name.decode()},
        timeout=60,
    )
    assert answer.content == b"{}"
    exchange = upstream.exchange(name, 5)
    assert exchange.body == body
    assert served.resident_mb() - before < 60


# ---- stopping --------------------------------------------------------------------------------------------------------


def refuses_connections(url: str) -> bool:
    """A connection still in the backlog when the port closes is reset: that is no refusal yet."""
    try:
        httpx.get(f"{url}/readyz")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False


def test_streams_under_way_finish_after_a_signal(upstream: Recorder, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    name = upstream.add(Script((head + chunked(b"data: 1\n\n"), HOLD, chunked(b"data: 2\n\n") + b"0\r\n\r\n")))
    with serving(upstream, tmp_path) as served:
        with httpx.stream(
            "POST", f"{served.url}/v1/chat/completions", content=b"{}", headers={"x-script": name.decode()}
        ) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == b"data: 1\n\n"
            served.process.send_signal(signal.SIGTERM)
            while not refuses_connections(served.url):
                assert served.process.poll() is None
            upstream.exchange(name, 5).release()
            assert b"".join(pieces) == b"data: 2\n\n"
        assert served.process.wait(20) in (0, -signal.SIGTERM)


def test_a_signal_under_load_cuts_no_answer(upstream: Recorder, tmp_path: Path) -> None:
    """A request gets its whole answer, or the connection is closed before a byte of it, as at any server's end."""
    name = upstream.add(Script((0.02, ANSWER)))
    whole, cut, begun = [], [], threading.Event()

    def ask_on(url: str) -> None:
        with httpx.Client() as client:
            for _ in range(200):
                try:
                    answer = client.post(f"{url}/v1/x", content=b"{}", headers={"x-script": name.decode()})
                    whole.append(answer.content == b"{}")
                except (httpx.ConnectError, httpx.ReadError, httpx.WriteError):
                    return
                except httpx.RemoteProtocolError as error:
                    if "without sending a response" not in str(error):
                        cut.append(str(error))
                    return
                if len(whole) >= 64:
                    begun.set()

    with serving(upstream, tmp_path) as served:
        threads = [threading.Thread(target=ask_on, args=(served.url,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        assert begun.wait(20)
        served.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert served.process.wait(20) in (0, -signal.SIGTERM)
    assert len(whole) >= 64 and all(whole) and not cut


# ---- faults of the machine -------------------------------------------------------------------------------------------


def ask_long(served: Served, upstream: Recorder, **headers: str) -> httpx.Response:
    name = upstream.add(Script((ANSWER,)))
    sent = {"content-type": "application/json", "x-script": name.decode(), "x-longroute-strategy": "rag", **headers}
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=chat(), headers=sent, timeout=60)
    assert answer.content == b"{}"
    body = bytes(upstream.exchange(name, 5).body)
    assert body == chat() if answer.headers["x-longroute-strategy"] == "off" else FACT.encode() in body
    return answer


def no_room() -> None:
    """No file may grow: what a full disk looks like to SQLite."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_with_a_full_disk_requests_are_answered(upstream: Recorder, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with serving(upstream, tmp_path, before=no_room, EMBEDDING_MODEL="default", PROXY__BUDGET_S="60") as served:
        assert ask_long(served, upstream).headers["x-longroute-strategy"] in ("rag", "off")


def test_with_a_spoiled_cache_requests_are_answered(upstream: Recorder, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    cache = tmp_path / "longroute"
    cache.mkdir()
    for name in ("cache.db", "embeddings", "vectors.db"):
        (cache / name).write_bytes(b"\x00garbage" * 1000)
    with serving(upstream, tmp_path, EMBEDDING_MODEL="default", PROXY__BUDGET_S="60") as served:
        assert ask_long(served, upstream).headers["x-longroute-strategy"] in ("rag", "off")


def test_the_log_holds_no_text_and_no_key(upstream: Recorder, tmp_path: Path) -> None:
    keys = '{"search": "client-key-7"}'
    with serving(upstream, tmp_path, PROXY__CLIENT_KEYS=keys) as served:
        ask_long(served, upstream, **{"authorization": "Bearer sk-secret", "x-longroute-key": "client-key-7"})
        httpx.get(f"{served.url}/v1/x?token=hunter2", headers={"x-longroute-key": "client-key-7"})
        log = served.stop()
    assert '"strategy": "rag"' in log and '"client": "search"' in log
    for secret in ("sk-secret", "client-key-7", "hunter2", "warden", "Mara", "station"):
        assert secret not in log


# ---- slow clients ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(upstream: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    with serving(
        upstream, home, PROXY__CLIENT_STALL_S="0.8", PROXY__STALL_S="0.8", PROXY__MAX_CONCURRENCY="4"
    ) as started:
        yield started


def connected(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


HEAD = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"


@pytest.mark.parametrize("drips", [(b"",), (b"GET / HTTP/1.1\r\n", b"x-a: b\r\n"), (HEAD,), (HEAD, b"a")])
def test_a_client_that_sends_next_to_nothing_is_cut_off(drips: tuple[bytes, ...], impatient: Served) -> None:
    with connected(impatient) as client:
        client.sendall(drips[0])
        client.settimeout(0.1)
        cut, deadline = False, time.monotonic() + 10
        while not cut:
            assert time.monotonic() < deadline
            try:
                cut = client.recv(1) == b""
            except TimeoutError:
                client.sendall(b"".join(drips[1:]))
            except ConnectionError:
                cut = True
    counted = [line for line in httpx.get(f"{impatient.url}/metrics").text.splitlines() if 'total{reason="slow' in line]
    assert len(counted) == 1 and float(counted[0].split()[1]) >= 1


def test_slow_clients_take_no_place_for_long(impatient: Served, upstream: Recorder) -> None:
    slow = [connected(impatient) for _ in range(4)]
    for client in slow:
        client.sendall(HEAD)
    name = upstream.add(Script((ANSWER,)))
    deadline = time.monotonic() + 10
    while (answer := httpx.post(f"{impatient.url}/v1/x", content=b"{}", headers={"x-script": name.decode()})).is_error:
        assert answer.status_code == 503 and time.monotonic() < deadline
        time.sleep(0.1)
    for client in slow:
        client.close()


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off_and_the_upstream_call_ends(
    impatient: Served, upstream: Recorder
) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    name = upstream.add(Script((head, *[chunked(bytes(1 << 16))] * 1000)))
    with connected(impatient) as client:
        client.sendall(b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-script: %b\r\n\r\n" % name)
        exchange = upstream.exchange(name, 5)
        deadline = time.monotonic() + 10
        while not exchange.gone:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert exchange.written < 1000 << 16


def test_a_client_that_is_slow_but_goes_on_is_served(impatient: Served, upstream: Recorder) -> None:
    name = upstream.add(Script((2.0, ANSWER)))  # an upstream may take longer than a client
    with connected(impatient) as client:
        client.sendall(b"POST /v1/x HTTP/1.1\r\nhost: x\r\nx-script: %b\r\ncontent-length: 98304\r\n\r\n" % name)
        for _ in range(6):
            client.sendall(bytes(16384))
            time.sleep(0.3)
        assert client.recv(12) == b"HTTP/1.1 200"
