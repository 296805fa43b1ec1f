"""Looks at the proxy's dashboard without a proxy: serves it with invented traffic.

    python -m benchmarks.proxy_dashboard [--port 8901] [--decisions 600] [--holdout 0.1] [--live]

Then open http://127.0.0.1:8901/longroute. `--decisions 0` shows the empty page; `--holdout 0` an estimated saving;
`--live` adds a decision about every second.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
import uuid
from dataclasses import replace
from decimal import Decimal

import uvicorn
from starlette.applications import Starlette

from longroute.router.core import TASKS, Usage
from longroute.router.outputs import EstimateOutput
from longroute.router.proxy.dashboard.routes import Viewer, routes
from longroute.router.proxy.records import DecisionLog, Record, Shown
from longroute.router.proxy.saving import held_out, measured
from longroute.router.proxy.telemetry import Metrics

INPUT_USD_PER_TOKEN = Decimal("0.0000025")
RAG_TOKENS = 3300


def invented(random_: random.Random, at: float, holdout_share: float) -> Record:
    """One considered request: mostly a question about a long document."""
    id_ = uuid.UUID(int=random_.getrandbits(128)).hex
    if random_.random() < 0.08:
        return Record(id_, at, "openai", "chat", "gpt-4o-mini", "off", reasons=("no text of 4,000 tokens or more",))
    before = round(min(120_000, max(4_000, random_.lognormvariate(10, 0.9))))
    task = random_.choices(TASKS, (40, 14, 8, 7, 12, 6, 5))[0]
    whole = task in ("summary", "aggregation") or before < 6_000
    strategy = "full" if whole else random_.choices(("rag", "self_route", "compressed"), (80, 12, 8))[0]
    sent = {"full": before, "rag": RAG_TOKENS, "self_route": 2 * RAG_TOKENS, "compressed": before // 3}
    holdout = held_out(id_, holdout_share)
    fail_open = random_.random() < 0.01
    if holdout or fail_open:
        strategy = "off" if fail_open else "full"
    after = before if strategy == "off" else min(before, sent[strategy])
    counted = round(after * random_.gauss(1.01, 0.01))
    decide_s, first_s = random_.lognormvariate(-4, 0.5), random_.lognormvariate(-0.4, 0.5) + after / 60_000
    quality = {"full": 0.71, "rag": 0.73, "self_route": 0.74, "compressed": 0.66, "off": 0.71}
    quality_full = 0.71 - before / 1_000_000
    return Record(
        id_,
        at,
        "openai",
        random_.choice(("chat", "chat", "responses")),
        random_.choice(("gpt-4o", "gpt-4o", "gpt-4.1-mini-long-context-preview-2026-10-01")),
        strategy,
        shape=random_.choice(("pasted before the question", "file part", "tagged block", "earlier turn")),
        eligible=True,
        holdout=holdout,
        prefer="balanced",
        policy="learned",
        reasons=(
            f"{strategy} has the best balance of quality and cost for a {task} question on {before:,} tokens",
            "the question's terms stand close together in the document (coverage 0.94)",
            f"full would cost {before / max(after, 1):.0f} times as much",
        ),
        task=task,
        task_probability=random_.uniform(0.5, 0.98),
        estimates={
            name: EstimateOutput(
                feasible=name != "compressed" or before > 8_000,
                infeasible_reason=None if name != "compressed" or before > 8_000 else "the text is too short to gain",
                quality=quality[name],
                quality_interval=(quality[name] - 0.06, quality[name] + 0.05),
                basis="learned weights",
                prompt_tokens=min(before, tokens),
                cached_tokens=0,
                completion_tokens=250,
                calls=2 if name == "self_route" else 1,
                cost_usd=float(min(before, tokens) * INPUT_USD_PER_TOKEN),
                latency_s=1 + min(before, tokens) / 30_000,
                utility=quality[name] - min(before, tokens) / 400_000,
            )
            for name, tokens in sent.items()
        },
        tokens_before=before,
        tokens_after=after,
        token_error=0.02,
        cost_before_usd=before * INPUT_USD_PER_TOKEN,
        cost_after_usd=after * INPUT_USD_PER_TOKEN,
        quality=quality_full if after == before else quality[strategy],
        quality_interval=(quality[strategy] - 0.06, quality[strategy] + 0.05),
        quality_full=quality_full,
        quality_full_interval=(quality_full - 0.05, quality_full + 0.05),
        fail_open="prepare" if fail_open else "",
        status=429 if random_.random() < 0.01 else 200,
        usage=Usage(counted, 0, random_.randrange(40, 600), counted * INPUT_USD_PER_TOKEN),
        timings_s={
            "locate": random_.lognormvariate(-6.5, 0.4),
            "decide": decide_s,
            "prepare": random_.lognormvariate(-2.2, 0.7),
            "upstream_first_byte": first_s,
            "total": first_s + random_.lognormvariate(1, 0.4),
        },
        citations=tuple(
            Shown("annual-report.txt", ("messages", 1, "content"), start, start + 812, random_.uniform(0.2, 0.9))
            for start in (sorted(random_.sample(range(0, 4 * before, 900), 4)) if strategy == "rag" else ())
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8901)
    parser.add_argument("--decisions", type=int, default=600)
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--live", action="store_true")
    options = parser.parse_args()

    random_ = random.Random(4)
    log = DecisionLog()
    metrics = Metrics(lambda: measured(log.recent(log.limit, None)))

    def add(at: float) -> None:
        record = invented(random_, at, options.holdout)
        log.add(replace(record, status=None, usage=None))
        log.complete(record)
        metrics.completed(record)

    def keep_adding() -> None:
        while True:
            time.sleep(random_.expovariate(1))
            add(time.time())

    now = time.time()
    for number in range(options.decisions):
        add(now - 6 * (options.decisions - number))
    if options.live:
        threading.Thread(target=keep_adding, daemon=True).start()
    app = Starlette(routes=routes(log, metrics, lambda request: Viewer("", admin=True)))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
