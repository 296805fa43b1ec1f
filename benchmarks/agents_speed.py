"""Wall clock of strategies of several calls on a model that always takes equally long, and what our own code adds.

    python -m benchmarks.agents_speed

The model sleeps, then says one line. `ideal` is the calls that must wait for one another times the latency; what is
above it is ours: cutting the text into portions before the first call, and reading replies and writing prompts between
the calls. With no latency at all, `own` is the time of the plan after its first call, by call; the goal is below 2 ms.
Deciding is left out: benchmarks/preparation.py measures it. Writes results/agents_speed.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longroute.router.assemble import Router
from longroute.router.core import Backend, Call, Document, ModelProfile, Reply, Usage
from longroute.router.run import run
from longroute.router.settings import load_settings

from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "agents_speed.md"
LATENCY_S = 0.05
QUESTION = "Who brought the compass to Velm, and when?"
LENGTHS = (128_000, 1_000_000)
RUNS = 5
OUTPUT_TOKENS = 1024

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chain_of_agents": ("chain_of_agents", {}),
    "chain_of_agents, free text": ("chain_of_agents", {"notes": "free_text"}),
    "chain_of_agents, bidirectional": ("chain_of_agents", {"variant": "bidirectional"}),
    "chain_of_agents, permutation x5": ("chain_of_agents", {"variant": "permutation", "paths": 5}),
    "chain_of_agents, self_consistency x5": ("chain_of_agents", {"variant": "self_consistency", "paths": 5}),
    "retrieve_then_reason": ("retrieve_then_reason", {}),
}


@dataclass(slots=True)
class Sleeper(Backend):
    """Takes so long for every call; readers quote the beginning of their part. first_*: when it was first asked."""

    latency_s: float
    n_calls: int = 0
    first_call_s: float = 0.0
    first_cpu_s: float = 0.0

    async def generate(self, call: Call) -> Reply:
        if not self.n_calls:
            self.first_call_s, self.first_cpu_s = time.perf_counter(), time.process_time()
        self.n_calls += 1
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        words = call.passages[0].text[:80].rpartition(" ")[0] if call.passages else "nothing"
        if call.purpose.startswith("copy"):
            return Reply(words, Usage(1, 0, 1))
        return Reply(f'EVIDENCE: "{words}" | it begins so', Usage(1, 0, 1))

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        yield await self.generate(call)

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Timed:
    """One run. before_s: until the first call; own_s, own_cpu_s: from then to the end."""

    calls: int
    sequential_calls: int
    total_s: float
    before_s: float
    own_s: float
    own_cpu_s: float


def timed(name: str, tokens: int, latency_s: float) -> Timed:
    """The best of RUNS without latency, as other work on the machine only adds; one run with it."""
    strategy, agents = VARIANTS[name]
    router = Router(
        load_settings(policy=f"fixed:{strategy}", model="m", agents=agents, max_output_tokens=OUTPUT_TOKENS),
        backend=Sleeper(0),
        profile_of=lambda model: ModelProfile(model, 16_000 if strategy == "retrieve_then_reason" else 128_000),
    )
    request, decision = router.prepare(QUESTION, [Document(text(tokens), "book")], allowed=(strategy,))
    found = []
    for _ in range(1 if latency_s else RUNS):
        backend = Sleeper(latency_s)
        started = time.perf_counter()
        answer = run(router.plan(request, decision), backend)
        ended, cpu = time.perf_counter(), time.process_time()
        paths = max(1, len(answer.work))
        portions = len(answer.work[0].read)
        sequential = portions + 1 + (backend.n_calls > paths * (portions + 1)) if "copy" not in name else 2
        found.append(
            Timed(
                backend.n_calls,
                2 if strategy == "retrieve_then_reason" else sequential,
                ended - started,
                backend.first_call_s - started,
                ended - backend.first_call_s,
                cpu - backend.first_cpu_s,
            )
        )
    return min(found, key=lambda one: one.own_s)


def text(tokens: int) -> str:
    """Sentences that are all different, about so many tokens in all."""
    draw = random.Random(4)
    names, wares = ("Orla", "Bram", "Ines", "Tarik"), ("salt", "bells", "a compass", "copper", "glass")
    sentences = (
        f"In {draw.randint(1200, 1800)} {draw.choice(names)} brought {draw.choice(wares)} number {n} to Velm."
        for n in range(tokens // 16)
    )
    return " ".join(sentences)


def main() -> None:
    lines = [
        "# Strategies of several calls: wall clock at a fixed latency, and own time",
        "",
        f"Every model call takes {1000 * LATENCY_S:.0f} ms; who reads portions has a window of 16,000 tokens.",
        "",
        "| strategy | tokens | calls | one after another | ideal, s | measured, s | before the first call, s "
        "| own wall / CPU by call, ms |",
        f"|---|{'---:|' * 7}",
    ]
    for tokens in LENGTHS:
        for name in VARIANTS:
            slow, quick = timed(name, tokens, LATENCY_S), timed(name, tokens, 0)
            ideal = slow.sequential_calls * LATENCY_S
            by_call = [1000 * own / quick.calls for own in (quick.own_s, quick.own_cpu_s)]
            lines.append(
                f"| {name} | {tokens:,} | {slow.calls} | {slow.sequential_calls} | {ideal:.2f} | {slow.total_s:.2f} "
                f"| {quick.before_s:.2f} | {by_call[0]:.2f} / {by_call[1]:.2f} |"
            )
            print(lines[-1], flush=True)
    where = measured_on("numpy")
    lines += ["", f"Own time is the best of {RUNS} runs.", "", "; ".join(where.values()), ""]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
