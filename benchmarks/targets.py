"""Starts what the wire suite and the speed table compare: each target is a process in front of one upstream."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LITELLM = (
    ROOT / "build" / "litellm" / "bin" / "litellm"
)  # a virtual environment with litellm[proxy], where there is one
START_S = 120


@dataclass(frozen=True, slots=True)
class Running:
    """A target that accepts connections. pid is None for the upstream itself."""

    port: int
    pid: int | None


def available(kind: str) -> bool:
    return kind not in ("litellm", "naive-aiohttp") or LITELLM.exists()


def peer_versions() -> str:
    """Of the peers that have an environment of their own."""
    paths = [str(path) for path in LITELLM.parents[1].glob("lib/python*/site-packages")]
    found = {each.name: each.version for each in metadata.distributions(path=paths)}
    return ", ".join(f"{name} {found[name]}" for name in ("litellm", "aiohttp") if name in found) or "none"


@contextmanager
def running(
    kind: str, upstream_url: str, core: int | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A target until the block ends, on one processor core where that is asked for. settings: of longroute, by name."""
    if kind == "direct":
        yield Running(int(upstream_url.rpartition(":")[2]), None)
        return
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        log = Path(folder) / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGROUTE_")}
        environment |= {"HOME": folder, "XDG_CACHE_HOME": folder, "HF_HUB_OFFLINE": "1", "NO_PROXY": "*"}
        environment |= {f"LONGROUTE_{name}": value for name, value in (settings or {}).items()}
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(kind, upstream_url, port, Path(folder)),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            _wait_for(process, port, log, ready="/readyz" if kind == "longroute" else "")
            yield Running(port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _command(kind: str, upstream_url: str, port: int, folder: Path) -> list[str]:
    if kind == "naive":
        return [sys.executable, "-m", "benchmarks.naive_proxy", upstream_url, str(port)]
    if kind == "naive-aiohttp":  # LiteLLM's environment has aiohttp, and the same uvicorn and uvloop
        python = str(LITELLM.with_name("python"))
        return [python, "-m", "benchmarks.naive_proxy", upstream_url, str(port), "aiohttp"]
    if kind == "litellm":
        config = folder / "litellm.yaml"
        config.write_text(
            "model_list:\n  - model_name: '*'\n    litellm_params:\n      model: openai/*\n"
            f"      api_base: {upstream_url}/v1\n      api_key: sk-none\n"
            "litellm_settings:\n  num_retries: 0\n  telemetry: false\nrouter_settings:\n  num_retries: 0\n"
            "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"  # loopback, and gone in a minute
        )
        return [str(LITELLM), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    return [sys.executable, "-m", "longroute", "serve", "--upstream", f"{upstream_url}/v1", "--port", str(port)]


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path, ready: str) -> None:
    """Until it accepts connections and, where it has a path that tells, says that it is ready."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as probe:
            probe.connect()
            if not ready:
                return
            probe.request("GET", ready)
            if probe.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start (exit {process.poll()}); it said:\n{log.read_text()[-2000:]}")
