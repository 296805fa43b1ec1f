"""What the engine counts, as Prometheus reads it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import EngineMetrics

GAUGES = frozenset({"waiting", "running", "prefixes", "prefix_bytes"})
"""Fields of EngineMetrics that say what is there now; all others only grow."""

_HELP = {
    "http_requests": "HTTP requests that came in, health checks left out.",
    "http_refused": "HTTP requests that were answered with an error, in the middle of a stream too.",
    "submitted": "Answers asked of the engine; n of them in one request count n times.",
    "finished": "Answers that came to their end.",
    "cancelled": "Answers given up because the client left.",
    "failed": "Answers that ended with an error.",
    "prefilled_tokens": "Tokens of prompts that were read.",
    "reused_tokens": "Tokens of prompts that an earlier prompt had read already.",
    "decoded_tokens": "Tokens of answers.",
    "drafted_tokens": "Tokens drafted by speculative decoding.",
    "accepted_tokens": "Drafted tokens that were kept.",
    "decode_steps": "Steps that gave every answer under way one or more tokens.",
    "failed_passes": "Passes over several answers that failed and were tried again one by one.",
    "prefill_s": "Seconds spent on reading prompts.",
    "decode_s": "Seconds spent on making answers.",
    "waiting": "Answers that wait for a slot or for memory.",
    "running": "Answers under way.",
    "prefixes": "Prompts whose keys and values are kept for the next that begins alike.",
    "prefix_bytes": "Memory of kept prompts.",
}


def metrics_text(now: EngineMetrics, http_requests: int, http_refused: int) -> str:
    """The Prometheus exposition format, version 0.0.4."""
    counted = {"http_requests": http_requests, "http_refused": http_refused}
    counted |= {name: getattr(now, name) for name in now.__dataclass_fields__}
    return "".join(f"{line}\n" for name, value in counted.items() for line in _metric(name, value))


def _metric(name: str, value: float) -> Iterator[str]:
    kind = "gauge" if name in GAUGES else "counter"
    full = f"longroute_runner_{name.removesuffix('_s')}"
    full += ("_seconds" if name.endswith("_s") else "") + ("_total" if kind == "counter" else "")
    if name in _HELP:
        yield f"# HELP {full} {_HELP[name]}"
    yield f"# TYPE {full} {kind}"
    yield f"{full} {value}"
