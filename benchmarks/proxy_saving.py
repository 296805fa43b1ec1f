"""What the proxy saves on 100 long requests of mixed shapes, and how long it takes to decide.

    python -m benchmarks.proxy_saving      # writes results/proxy_saving.md

The requests are those of `proxy_locate.py`'s held-out half (its shapes take turns), sent to `longroute serve` as it is
started by its command, in front of an upstream on loopback that answers at once. All are sent once, when their texts
are new to the proxy (cold), and then once more (warm). Decided: all own work before the upstream is asked, retrieval
included. What an answer would have been worth is not measured here, only estimated by the policy; see
`lara_routing.py` for that.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from longroute.router.proxy.texts import Api

from .data import data_directory
from .machine import measured_on
from .proxy_locate import Sketch, cases, write
from .recording import Recorder, Script
from .targets import running

RESULTS = Path(__file__).parent / "results" / "proxy_saving.md"
N_REQUESTS = 100
PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and what became of it. decision_s: own work before the upstream was asked, by the proxy's clock."""

    shape: str
    strategy: str
    bytes_before: int
    bytes_after: int
    tokens_before: int
    tokens_after: int
    question_kept: bool
    fail_open: str
    decision_s: float
    seconds: float


def requests() -> Iterator[tuple[str, Sketch, Api]]:
    """The shapes in turn, so that each has its share of the hundred."""
    data = data_directory()
    if data is None:
        raise SystemExit("The data sets are not here; set LONGROUTE_DATA to their folder.")
    by_shape: dict[str, list[tuple[str, Sketch, Api]]] = defaultdict(list)
    for shape, wanted, sketch, api in cases(data, "held-out"):
        if wanted:
            by_shape[shape].append((shape, sketch, api))
    rounds = zip(*by_shape.values(), strict=False)
    yield from [request for each in rounds for request in each][:N_REQUESTS]


def send(port: int, upstream: Recorder, request: tuple[str, Sketch, Api], prefer: str) -> Sent:
    shape, sketch, api = request
    name = upstream.add(Script((ANSWER,)))
    body = write(sketch, api)
    headers = {"content-type": "application/json", "x-script": name.decode(), "x-longroute-prefer": prefer}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        started = time.perf_counter()
        client.request("POST", PATHS[api], body, headers)
        answer = client.getresponse()
        answer.read()
        seconds = time.perf_counter() - started
        got = answer.headers
        decision = _decision(client, got.get("x-longroute-decision-id", ""))
    arrived = bytes(upstream.exchange(name, 5).body)
    own = ("parse", "locate", "decide", "prepare")
    return Sent(
        shape=shape,
        strategy=got.get("x-longroute-strategy", "off"),
        bytes_before=len(body),
        bytes_after=len(arrived),
        tokens_before=int(got.get("x-longroute-tokens-before", 0)) or len(body) // 4,
        tokens_after=int(got.get("x-longroute-tokens-after", 0)) or len(arrived) // 4,
        question_kept=json.dumps(sketch.question, ensure_ascii=False)[1:-1].encode() in arrived,
        fail_open=got.get("x-longroute-fail-open", ""),
        decision_s=sum(decision.get(phase, 0.0) for phase in own),
        seconds=seconds,
    )


def _decision(client: http.client.HTTPConnection, decision_id: str) -> dict[str, float]:
    if not decision_id:
        return {}
    client.request("GET", f"/v1/longroute/decisions/{decision_id}")
    timings: dict[str, float] = json.loads(client.getresponse().read())["timings_s"]
    return timings


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _times(milliseconds: list[float]) -> str:
    return f"{statistics.median(milliseconds):.0f} / {percentile(milliseconds, 0.99):.0f} ms"


def table(prefer: str, cold: list[Sent], warm: list[Sent]) -> list[str]:
    rows = [
        "",
        f"prefer = {prefer}",
        "",
        "| strategy | requests | tokens before | after | saved | question kept | decided, cold p50 / p99 | warm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    again = {id(first): second for first, second in zip(cold, warm, strict=True)}
    for name in ["all", *sorted({sent.strategy for sent in cold})]:
        chosen = [sent for sent in cold if name in ("all", sent.strategy)]
        before, after = sum(s.tokens_before for s in chosen), sum(s.tokens_after for s in chosen)
        times = [s.decision_s * 1000 for s in chosen]
        later = [again[id(s)].decision_s * 1000 for s in chosen]
        rows.append(
            f"| {name} | {len(chosen)} | {before:,} | {after:,} | {1 - after / before:.0%} | "
            f"{sum(s.question_kept for s in chosen)} | {_times(times)} | {_times(later)} |"
        )
    failed = [sent.fail_open for sent in (*cold, *warm) if sent.fail_open]
    rows += ["", f"Failed open: {len(failed)} of {len(cold) + len(warm)} {', '.join(sorted(set(failed)))}".rstrip()]
    return rows


def shapes(cold: list[Sent]) -> list[str]:
    rows = ["", "| shape | requests | rag | tokens before | saved where rag |", "|---|---|---|---|---|"]
    for shape in dict.fromkeys(sent.shape for sent in cold):
        own = [sent for sent in cold if sent.shape == shape]
        rag = [sent for sent in own if sent.strategy == "rag"]
        saved = f"{1 - sum(s.tokens_after for s in rag) / sum(s.tokens_before for s in rag):.0%}" if rag else "-"
        rows.append(f"| {shape} | {len(own)} | {len(rag)} | {sum(s.tokens_before for s in own):,} | {saved} |")
    return rows


def main() -> None:
    lines = ["# What the proxy saves", "", (__doc__ or "").split("\n\n")[2].replace("\n", " ")]
    for prefer in ("balanced", "cheap"):
        with closing(Recorder()) as upstream, running("longroute", upstream.url) as started:
            asked = list(requests())
            cold = [send(started.port, upstream, request, prefer) for request in asked]
            warm = [send(started.port, upstream, request, prefer) for request in asked]
        lines += table(prefer, cold, warm)
    lines += ["", "By shape, prefer = cheap:", *shapes(cold)]
    lines += ["", *(f"- {key}: {value}" for key, value in measured_on("uvicorn", "sentence-transformers").items())]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
