"""The command as people start it: a process of its own, the openai client, and a signal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from longroute.router.errors import ConfigError
from longroute.router.runner.server import ServerOptions, check_bind

ASK: Any = [{"role": "user", "content": "Who wrote it?"}]
START_S = 120


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    command = [sys.executable, "-m", "longroute", "runner", str(folder), "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


@pytest.mark.timeout(START_S)
def test_the_command_serves_a_model_and_lets_streams_finish_at_the_end(model_folder: Path) -> None:
    with started(model_folder) as (process, client):
        assert [model.id for model in client.models.list().data] == ["tiny"]
        stream = client.chat.completions.create(
            model=str(model_folder), messages=ASK, max_tokens=300, stream=True, logit_bias={"2": -100}
        )
        chunks: list[Any] = []
        for chunk in stream:
            if len(chunks) == 3:
                process.send_signal(signal.SIGTERM)
            chunks.append(chunk)
        assert chunks[-1].choices[0].finish_reason == "length"
        process.wait(20)
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_an_address_that_strangers_reach_needs_a_key() -> None:
    check_bind(ServerOptions("127.0.0.1"))
    check_bind(ServerOptions("0.0.0.0", api_key="k"))
    with pytest.raises(ConfigError, match="api_key"):
        check_bind(ServerOptions("0.0.0.0"))
