"""What "byte-identical" and "fail open" mean on the wire, as checks that any proxy can be put under.

    python -m benchmarks.wire --target direct --target naive --target longroute

A check sends exact bytes through a target to the recording upstream, looks at what arrived and what came back, and
raises AssertionError with the difference. Through a proxy, and only there, these may differ: headers that concern one
connection (RFC 9110, 7.6.1), `host`, the case of header names, the reason phrase, where chunks begin. LiteLLM
reads chat completions and writes its own: it is asked only what is one, and where it fails, the list says whether more
than the bytes is different. Starting the targets is left to `targets.py`. Writes results/wire.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import wire_answers, wire_failures, wire_requests
from .machine import measured_on
from .raw_client import CutOff
from .recording import Recorder
from .targets import available, peer_versions, running
from .wire_target import Check, Target

RESULTS = Path(__file__).parent / "results" / "wire.md"


def _checks() -> dict[str, Check]:
    """Every `check_...` of the suite, and the families that are one check with many values."""
    found: dict[str, Check] = {}
    for module in (wire_requests, wire_answers, wire_failures):
        found |= module.FAMILIES
        found |= {name.removeprefix("check_"): f for name, f in vars(module).items() if name.startswith("check_")}
    return dict(sorted(found.items()))


CHECKS: dict[str, Check] = _checks()

# What longroute does differently, and why.
KNOWN: dict[str, str] = {
    "connection_of_http_1_0_gets_no_chunks": "uvicorn frames an answer without a length in chunks for every client",
}

# LiteLLM translates chat completions, so only what is one can be asked of it.
NOT_CHAT = (
    "abort_of_an_upload",
    "answer_204",
    "answer_304",
    "answer_of_2_megabytes",
    "answer_with_chunk_extensions",
    "failure_anthropic",
    "method_",
    "path_",
    "redirect_",
    "request_answered",
    "request_body_byte_order",
    "request_body_empty",
    "request_body_gzip",
    "request_body_half",
    "request_body_invalid",
    "request_body_json_of",
    "request_body_nested",
    "request_body_not_json",
    "request_body_null",
    "request_body_of_get",
    "request_framed",
    "request_host",
    "request_upload",
    "request_without_body",
)


def makes_sense(kind: str, name: str) -> bool:
    return kind != "litellm" or not name.startswith(NOT_CHAT)


def outcome(name: str, target: Target) -> str:
    """Empty where the check holds, else why not."""
    try:
        CHECKS[name](target)
    except AssertionError as error:
        return str(error) or "assertion failed"
    except (OSError, CutOff, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run_checks(kind: str, names: Sequence[str], patience_s: float) -> dict[str, str]:
    upstream = Recorder()
    try:
        with running(kind, upstream.url) as started:
            target = Target(kind, started.port, upstream, patience_s)
            return {name: outcome(name, target) for name in names if makes_sense(kind, name)}
    finally:
        upstream.close()


def table(results: dict[str, dict[str, str]]) -> str:
    """Markdown: the checks by target, then why those failed that failed."""

    def cell(kind: str, name: str) -> str:
        why = results[kind].get(name)
        return "–" if why is None else "fails" if why else "ok"

    lines = [f"| check | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    lines += [f"| {name} | {' | '.join(cell(kind, name) for kind in results)} |" for name in CHECKS]
    counts = (f"{sum(not why for why in found.values())} of {len(found)}" for found in results.values())
    lines += [f"| **held** | {' | '.join(counts)} |"]
    for kind, found in results.items():
        failed = {name: why for name, why in found.items() if why}
        if failed:
            lines += ["", f"## What {kind} does", ""]
            for name, why in failed.items():
                known = f" ({KNOWN[name]})" if kind == "longroute" and name in KNOWN else ""
                lines.append(f"- {name}: `{why[:300].replace('`', chr(39))}`{known}")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--target", action="append", choices=["direct", "naive", "longroute", "litellm"])
    arguments.add_argument("--only", default="", help="checks whose names contain this; writes no results")
    arguments.add_argument("--patience", type=float, default=5.0, help="seconds to wait for a byte")
    chosen = arguments.parse_args()
    names = [name for name in CHECKS if chosen.only in name]
    results = {}
    for kind in chosen.target or ["direct", "naive", "longroute"]:
        if not available(kind):
            raise SystemExit(f"{kind} is not installed: see targets.py for where it is looked for")
        results[kind] = run_checks(kind, names, chosen.patience)
        held = sum(not why for why in results[kind].values())
        print(f"{kind}: {held} of {len(results[kind])} checks hold")
        for name, why in results[kind].items():
            if why:
                print(f"  {name}: {why[:300]}")
    if not chosen.only:
        measured = measured_on("uvicorn", "httpx") | {"peers": peer_versions()}
        about = "\n".join(f"{key}: {value}  " for key, value in measured.items())
        RESULTS.write_text(f"# What arrives, and what comes back\n\n{__doc__}\n{about}\n\n{table(results)}\n")


if __name__ == "__main__":
    main()
