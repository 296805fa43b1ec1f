"""Is what must not be lost found, and does it survive compression?

    python -m benchmarks.protected_spans

Two public sets (not part of the repository): passages of color (English) and documents of dragonball (English and
Chinese). Found: the share of negations and of numbers that a second method sees and `protected_spans` has as a whole.
The second method is not ours: for negations the word list of NLTK's `mark_negation` (nltk.sentiment.util, English
only), for numbers every run of figures. Survives: the share that is still there after LLMLingua-2 with a model that
knows nothing, so that protection alone decides; with and without it. Writes results/protected_spans.md.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

from longroute.compressors.compression import Span
from longroute.compressors.llmlingua2 import LLMLingua2
from longroute.compressors.protect import protected_spans
from longroute.compressors.token_classifier import Vocabulary
from longroute.router.tokens import EstimatedCounter

from .data import data_directory, records
from .llmlingua2_speed import NoModel
from .machine import measured_on
from .tiny_models import SPECIAL, tokenizer

RESULTS = Path(__file__).parent / "results" / "protected_spans.md"
RATES = (0.5, 0.33, 0.2)
N_TEXTS = 400
_NEGATION = re.compile(
    r"\b(?:never|no|nothing|nowhere|noone|none|not|havent|hasnt|hadnt|cant|couldnt|shouldnt|wont|wouldnt|dont|doesnt"
    r"|didnt|isnt|arent|aint)\b|\b\w+n['’]t\b",
    re.IGNORECASE,
)
_FIGURES = re.compile(r"\d+(?:[.,]\d+)*")


def sampled_texts() -> dict[str, list[str]]:
    """Set and language → texts of up to 4,000 characters."""
    data = data_directory()
    if data is None:
        raise SystemExit("The public sets are not at hand; see benchmarks/data.py.")
    rng = random.Random(0)
    color = [record["text"] for record in records(data / "color" / "passages.jsonl.gz")]
    found = {"color, en": rng.sample(color, N_TEXTS)}
    for language in ("en", "zh"):
        documents = records(data / "dragonball" / "documents.jsonl.gz")
        texts = [record["text"][:4000] for record in documents if f"-{language}-" in record["doc_id"]]
        found[f"dragonball, {language}"] = texts[:N_TEXTS]
    return found


def share_inside(wanted: Iterable[Span], spans: list[Span]) -> tuple[int, int]:
    """How many of the wanted stretches lie whole in one of the spans (ascending, apart), and how many there are."""
    starts = [start for start, _ in spans]
    inside = total = 0
    for start, end in wanted:
        place = bisect_right(starts, start) - 1
        total += 1
        inside += place >= 0 and end <= spans[place][1]
    return inside, total


def merged(spans: Iterable[Span]) -> list[Span]:
    found: list[Span] = []
    for start, end in spans:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def percent(pairs: Iterable[tuple[int, int]]) -> str:
    inside, total = (sum(column) for column in zip(*pairs, strict=True))
    return f"{inside / total:.1%} of {total:,}" if total else "-"


def main() -> None:
    vocabulary = Vocabulary.of(tokenizer("bert"), SPECIAL["bert"])
    counter = EstimatedCounter()
    protecting = LLMLingua2(NoModel(), vocabulary, counter)
    bare = LLMLingua2(NoModel(), vocabulary, counter, protect=())
    sets = sampled_texts()
    lines = [
        "# Protected stretches: found, and surviving",
        "",
        "| set | texts | characters protected | negations found | numbers found |",
        "|---|---|---|---|---|",
    ]
    for name, texts in sets.items():
        spans = [merged((span.start, span.end) for span in protected_spans(text)) for text in texts]
        covered = sum(end - start for own in spans for start, end in own) / sum(map(len, texts))
        columns = [
            percent(
                share_inside((m.span() for m in pattern.finditer(text)), own)
                for text, own in zip(texts, spans, strict=True)
            )
            for pattern in (_NEGATION, _FIGURES)
        ]
        lines.append(f"| {name} | {len(texts)} | {covered:.1%} | {' | '.join(columns)} |")
    lines += ["", "| set | keep rate | negations, protected | not protected | numbers, protected | not protected |"]
    lines.append("|---|---|---|---|---|---|")
    for name, texts in sets.items():
        for rate in RATES:
            cells = []
            for pattern in (_NEGATION, _FIGURES):
                for compressor in (protecting, bare):
                    done = compressor.compress(texts, keep_rate=rate)
                    cells.append(
                        percent(
                            share_inside((m.span() for m in pattern.finditer(text)), list(own.kept))
                            for text, own in zip(texts, done, strict=True)
                        )
                    )
            lines.append(f"| {name} | {rate} | {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {value}" for name, value in measured_on("numpy", "tokenizers").items()), ""]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
