"""The command as people start it: a process of its own, the openai client, and a signal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from longroute.router.errors import ConfigError
from longroute.router.runner.local_model import LocalModel, LocalOptions
from longroute.router.runner.server import ServerOptions, _Opening, check_bind, serve

ASK: Any = [{"role": "user", "content": "Who wrote it?"}]
NO_END = {"1": -100, "2": -100}  # what ends the toy's answers
START_S = 120


@contextmanager
def started(folder: Path, *options: str, **settings: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """settings: of the table `[runner]`."""
    command = [sys.executable, "-m", "longroute", "runner", str(folder), "--port", "0", "--device", "cpu", *options]
    env = os.environ | {f"LONGROUTE_RUNNER__{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, f"{said}{process.stderr.read() if process.stderr else ''}"
        with openai.OpenAI(base_url=found[0], api_key="unused", max_retries=0) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def streamed(client: openai.OpenAI, **options: Any) -> Iterator[Any]:
    """An answer that ends at its limit only, after its first piece."""
    stream: Any = client.chat.completions.create(messages=ASK, stream=True, logit_bias=NO_END, **options)
    pieces: Iterator[Any] = iter(stream)
    next(pieces)
    return pieces


@pytest.mark.timeout(START_S)
def test_the_command_serves_a_model_and_at_a_signal_streams_may_finish_in_time(model_folder: Path) -> None:
    with started(model_folder, shutdown_s="4") as (process, client):
        assert [model.id for model in client.models.list().data] == ["tiny"]
        long = streamed(client, model="tiny", max_tokens=8000, n=4)
        short = streamed(client, model=str(model_folder), max_tokens=20)
        process.send_signal(signal.SIGTERM)
        assert list(short)[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIError, match="was closed"):
            list(long)
        process.wait(20)
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


@pytest.mark.timeout(START_S)
def test_a_second_signal_waits_for_nobody(model_folder: Path) -> None:
    with started(model_folder) as (process, client):
        long = streamed(client, model="tiny", max_tokens=8000, n=4)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # another one, as two of a kind may arrive as one
        with suppress(httpx.HTTPError, openai.APIError):  # whichever it is that a client makes of it
            list(long)
        process.wait(20)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_an_address_that_strangers_reach_needs_a_key() -> None:
    check_bind(ServerOptions("127.0.0.1"))
    check_bind(ServerOptions("0.0.0.0", api_key="k"))
    with pytest.raises(ConfigError, match="api_key"):
        check_bind(ServerOptions("0.0.0.0"))


def test_an_address_that_cannot_be_had_is_told_before_the_model_is_loaded() -> None:
    def load() -> LocalModel:
        raise AssertionError("it was loaded")

    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigError, match="Address already in use"),
    ):
        serve(load, ServerOptions(port=other.getsockname()[1]))
    with pytest.raises(ConfigError, match=r"127\.0\.0\.300.*--host"):
        serve(load, ServerOptions(host="127.0.0.300"))


def test_what_goes_wrong_in_loading_stops_the_server_and_is_told() -> None:
    def load() -> LocalModel:
        raise ConfigError("no such folder")

    with pytest.raises(ConfigError, match="no such folder"):
        serve(load, ServerOptions(port=0))


def test_while_the_model_is_loaded_clients_are_told_to_come_back(model_folder: Path) -> None:
    may_load = threading.Event()

    def load() -> LocalModel:
        may_load.wait(START_S)
        return LocalModel.load(model_folder, LocalOptions("cpu"))

    async def seen() -> list[tuple[int, str]]:
        opening, opened = _Opening(load, (), None), asyncio.Event()
        opening.start(opened.set)
        found = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(opening), base_url="http://127.0.0.1") as http:
            for _ in range(2):
                for path in ("/healthz", "/v1/models"):
                    answer = await http.get(path)
                    found.append((answer.status_code, answer.headers.get("retry-after", "")))
                may_load.set()
                await opened.wait()
                assert opening.model is not None
                opening.open(opening.model)
        opening.close()
        return found

    assert asyncio.run(seen()) == [(503, ""), (503, "1"), (200, ""), (200, "")]
