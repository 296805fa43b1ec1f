"""How often selection by a local model's attention keeps the sentence that answers, and how long it takes.

    python -m benchmarks.attention_selection FOLDER [PAGES] [TOKENS]

FOLDER: a Hugging Face causal model. Pages are `key_values.py`'s: 70 sentences of about 1,000 tokens, one of which
answers. InfiniRetri reads them in windows of 400 tokens, so that what was kept has to hold its own. GemFilter stands at
its default depth, at the one that `best_depth` finds on four other pages, and by inner products, as published. BM25
stands beside as the easy way, for these questions share their words with the answers.
TOKENS: of a text for which a second table tells what asking a layer costs, in whole prefills; 0 leaves it out.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from longroute.compressors.compression import Compressor
from longroute.compressors.gemfilter import AnsweredText, GemFilter, best_depth
from longroute.compressors.specpc import SpecPC
from longroute.retrievers.attention import InfiniRetri, sentences
from longroute.retrievers.corpus import BM25Retriever
from longroute.router.core import Document, Passage
from longroute.router.runner import AttentionReader, LanguageModel
from longroute.router.runner.tokenizer import Tokenizer
from longroute.router.tokens import counter_for

from .key_values import Fact, invented_page
from .machine import measured_on

FIRST_SEED = 100  # depths are compared on seeds 0 to 3
BUDGET_TOKENS = 100
KEEP_RATE = 0.2
CHUNK_TOKENS = 2048


def asked_page(seed: int) -> tuple[str, Fact]:
    """A page and one of its facts, to be asked for."""
    rng = random.Random(seed)
    page = invented_page(rng, 20, 50)
    return page.text, rng.choice(page.facts)


def depth_by_pages(reader: AttentionReader, seeds: Sequence[int]) -> float:
    examples = []
    for text, fact in map(asked_page, seeds):
        start = text.index(fact.value)
        examples.append(AnsweredText(text, fact.question, (start, start + len(fact.value))))
    return best_depth(reader, examples)


def ways(folder: str) -> dict[str, Callable[[str, str], str]]:
    """Text and question → what is kept."""
    count = counter_for("default").count
    reader = AttentionReader.load(folder)

    def found(passages: Sequence[Passage]) -> str:
        return "\n".join(passage.text for passage in passages)

    def compressed(compressor: Compressor) -> Callable[[str, str], str]:
        return lambda text, question: compressor.compress([text], question=question, keep_rate=KEEP_RATE)[0].text

    def retrieved(depth: float) -> Callable[[str, str], str]:
        retriever = InfiniRetri(reader, count=count, window_tokens=400, top_tokens=60, depth=depth)
        return lambda text, question: found(
            retriever.retrieve(question, [Document(text, "d")], budget_tokens=BUDGET_TOKENS)
        )

    def gemfilter(**options: Any) -> Callable[[str, str], str]:
        return compressed(GemFilter(reader, count=count, split=sentences, **options))

    chosen = depth_by_pages(reader, range(4))
    return {
        f"specpc, {KEEP_RATE:.0%} kept": compressed(SpecPC(reader, count=count, split=sentences)),
        f"gemfilter, {KEEP_RATE:.0%} kept": gemfilter(),
        f"gemfilter at depth {chosen:.2f}, {KEEP_RATE:.0%} kept": gemfilter(depth=chosen),
        f"gemfilter by inner products, {KEEP_RATE:.0%} kept": gemfilter(products=True),
        f"infiniretri at depth 0.6, {BUDGET_TOKENS} tokens": retrieved(0.6),
        f"infiniretri at depth 1, {BUDGET_TOKENS} tokens": retrieved(1.0),
        f"bm25, {BUDGET_TOKENS} tokens": lambda text, question: found(
            BM25Retriever(20).retrieve(question, [Document(text, "d")], budget_tokens=BUDGET_TOKENS)
        ),
    }


def costs(folder: str, n_tokens: int) -> list[tuple[float, float]]:
    """Depths, and the processor time that the last query of the layer there takes, as a share of a whole prefill's."""
    model = LanguageModel.load(folder)
    reader = AttentionReader(model, Tokenizer.load(folder), chunk_tokens=CHUNK_TOKENS)
    rng = random.Random(0)
    ids = [rng.randrange(model.vocab_size) for _ in range(n_tokens)]

    def whole() -> None:
        cache = model.new_cache(n_tokens)
        for start in range(0, n_tokens, CHUNK_TOKENS):
            model.forward(model.tokens(ids[start : start + CHUNK_TOKENS]), cache)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(2):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    prefill = seconds(whole)
    asked = [(layer, seconds(partial(reader.last_query, ids, [layer]))) for layer in reader.layers]
    return [((layer + 1) / reader.n_layers, spent / prefill) for layer, spent in asked]


def main(folder: str, pages: int, n_tokens: int) -> None:
    known = ways(folder)
    kept, seconds = dict.fromkeys(known, 0), dict.fromkeys(known, 0.0)
    for seed in range(FIRST_SEED, FIRST_SEED + pages):
        text, fact = asked_page(seed)
        for name, way in known.items():
            start = time.perf_counter()
            kept[name] += fact.value in way(text, fact.question)
            seconds[name] += time.perf_counter() - start
    print("| way | pages with the answer kept | seconds a page |\n|---|---|---|")
    for name in known:
        print(f"| {name} | {kept[name]} of {pages} | {seconds[name] / pages:.2f} |")
    if n_tokens:
        print(f"\n| depth | share of a prefill of {n_tokens} tokens |\n|---|---|")
        for depth, share in costs(folder, n_tokens):
            print(f"| {depth:.2f} | {share:.2f} |")
    print("\n" + "\n".join(f"- {what}: {value}" for what, value in measured_on("torch", "transformers").items()))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    main(sys.argv[1], *numbers, *(8, 0)[len(numbers) :])
