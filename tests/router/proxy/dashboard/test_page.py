"""The page in a real browser: what its script makes of the numbers."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from longroute.router.proxy.dashboard.routes import Viewer, error, routes
from longroute.router.proxy.records import DecisionLog, Record
from longroute.router.proxy.telemetry import Metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

Authorise = Callable[[Request], Viewer | Response]


def anyone(request: Request) -> Viewer | Response:
    return Viewer("", admin=True)


def routed(id: str) -> Record:
    return Record(
        id=id,
        at=1e9,
        upstream="u",
        api="chat",
        model="gpt-4o",
        strategy="rag",
        eligible=True,
        task="lookup",
        reasons=("the terms stand together",),
        tokens_before=40_000,
        tokens_after=4_000,
        status=200,
        timings_s={"decide": 0.02, "total": 2.0},
    )


@contextmanager
def served(log: DecisionLog, authorise: Authorise) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=routes(log, Metrics(), authorise))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/longroute"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def rendered(profile: Path, log: DecisionLog, authorise: Authorise = anyone) -> str:
    """The page's HTML once its first numbers have come."""
    assert CHROMIUM is not None
    offline = ("quic", "background-networking", "component-update", "sync", "gpu")
    with served(log, authorise) as url:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}"]
        command += [*(f"--disable-{what}" for what in offline), "--virtual-time-budget=1500", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=90)
    return re.sub(r"<(style|script)>.*?</\1>", "", done.stdout, flags=re.S)


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def hidden(html: str) -> set[str]:
    return {id for id in ("locked", "empty", "content") if re.search(rf'<[^>]*id="{id}"[^>]*hidden', html)}


def test_the_page_shows_the_saving_and_the_decisions(tmp_path: Path) -> None:
    log = DecisionLog()
    log.add(routed("1"))
    html = rendered(tmp_path, log)
    text = words(html)
    assert hidden(html) == {"locked", "empty"}
    assert "90 % fewer input tokens estimated" in text
    assert "40.0k → 4,000 the terms stand together" in text
    assert "20 ms – 20 ms" in text


def test_what_clients_send_never_becomes_markup(tmp_path: Path) -> None:
    log = DecisionLog()
    attack = "<img src=x onerror=\"document.title='taken'\">"
    log.add(replace(routed("1"), model=attack, reasons=(attack,), strategy=attack, upstream=attack))
    html = rendered(tmp_path, log)
    assert "<img" not in html
    assert "<title>longroute</title>" in html
    assert words(html).count(attack) >= 3  # model, strategy and reason, as text


def test_an_empty_page_tells_how_to_send_the_first_request(tmp_path: Path) -> None:
    html = rendered(tmp_path, DecisionLog())
    assert hidden(html) == {"locked", "content"}
    assert re.search(r'base_url="http://127\.0\.0\.1:\d+/v1"', words(html))


def test_a_page_without_a_key_asks_for_one_and_shows_nothing(tmp_path: Path) -> None:
    log = DecisionLog()
    log.add(routed("1"))
    html = rendered(tmp_path, log, lambda request: error(401, "A key is needed.", "no_key"))
    assert hidden(html) == {"empty", "content"}
    assert re.search(r"<tbody id=\"rows\"[^>]*></tbody>", html)
    assert "waiting for a key" in words(html)
