"""How often selection by a local model's attention keeps the sentence that answers, and how long it takes.

    python -m benchmarks.attention_selection FOLDER [PAGES]

FOLDER: a Hugging Face causal model. Pages are `key_values.py`'s: 70 sentences of about 1,000 tokens, one of which
answers. InfiniRetri reads them in windows of 400 tokens, so that what was kept has to hold its own; BM25 stands beside
as the easy way, for these questions share their words with the answers.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence

from longroute.compressors.attention import SpecPC
from longroute.retrievers.attention import InfiniRetri, sentences
from longroute.retrievers.corpus import BM25Retriever
from longroute.router.core import Document, Passage
from longroute.router.runner import AttentionReader
from longroute.router.tokens import counter_for

from .key_values import invented_page
from .machine import measured_on

FIRST_SEED = 100  # depths were compared on seeds 0 to 3
BUDGET_TOKENS = 100


def ways(folder: str) -> dict[str, Callable[[str, str], str]]:
    """Text and question → what is kept."""
    count = counter_for("default").count
    reader = AttentionReader.load(folder)

    def found(passages: Sequence[Passage]) -> str:
        return "\n".join(passage.text for passage in passages)

    def compressed(keep_rate: float) -> Callable[[str, str], str]:
        compressor = SpecPC(reader, count=count, split=sentences)
        return lambda text, question: compressor.compress([text], question=question, keep_rate=keep_rate)[0].text

    def retrieved(depth: float) -> Callable[[str, str], str]:
        retriever = InfiniRetri(reader, count=count, window_tokens=400, top_tokens=60, depth=depth)
        return lambda text, question: found(
            retriever.retrieve(question, [Document(text, "d")], budget_tokens=BUDGET_TOKENS)
        )

    return {
        "specpc, a fifth kept": compressed(0.2),
        f"infiniretri at depth 0.6, {BUDGET_TOKENS} tokens": retrieved(0.6),
        f"infiniretri at depth 1, {BUDGET_TOKENS} tokens": retrieved(1.0),
        f"bm25, {BUDGET_TOKENS} tokens": lambda text, question: found(
            BM25Retriever(20).retrieve(question, [Document(text, "d")], budget_tokens=BUDGET_TOKENS)
        ),
    }


def main(folder: str, pages: int) -> None:
    known = ways(folder)
    kept, seconds = dict.fromkeys(known, 0), dict.fromkeys(known, 0.0)
    for seed in range(FIRST_SEED, FIRST_SEED + pages):
        rng = random.Random(seed)
        page = invented_page(rng, 20, 50)
        fact = rng.choice(page.facts)
        for name, way in known.items():
            start = time.perf_counter()
            kept[name] += fact.value in way(page.text, fact.question)
            seconds[name] += time.perf_counter() - start
    print("| way | pages with the answer kept | seconds a page |\n|---|---|---|")
    for name in known:
        print(f"| {name} | {kept[name]} of {pages} | {seconds[name] / pages:.1f} |")
    print("\n" + "\n".join(f"- {what}: {value}" for what, value in measured_on("torch", "transformers").items()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8)
