"""How good is the embedded backend? Does it quote the right sentence, and does it refuse where nothing answers?

    python -m benchmarks.extractive [--embed] [--questions 150]

Every document of a question is shown whole, as the strategy `full` does, so retrieval helps nothing and hides nothing.
Right means that a quotation overlaps the marked evidence; for `lara`, which marks none, that it holds at least half of
the words of the reference answer, which is rough. `wrong` asks XQuAD's questions of another article. One half of each
set chooses the threshold of evidence that makes most outcomes right, one question in four having
no answer; the other half is reported.
Writes results/extractive.{md,json}, with --embed results/extractive_embed.{md,json}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from longroute.retrievers.embed import SentenceTransformerEmbedder
from longroute.retrievers.terms import terms
from longroute.router.backends.extractive import MIN_EVIDENCE, MIN_EVIDENCE_EMBEDDED, Extractive
from longroute.router.core import Call, Passage, Reply

from .data import Record, data_directory, records
from .machine import measured_on

RESULTS = Path(__file__).parent / "results"
LANGUAGES = ("en", "de", "es", "ru", "ar", "zh")
THRESHOLDS = [step / 100 for step in range(0, 71)]


@dataclass(frozen=True, slots=True)
class Case:
    """One question, everything shown with it, and how to tell a right answer; None where there is none."""

    id: str
    call: Call
    right: Callable[[Reply], bool] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """evidence: of the best quotation, or 0. right: whether it answers; None where nothing could."""

    evidence: float
    right: bool | None
    seconds: float

    def value(self, threshold: float) -> bool:
        """Whether answering from this threshold on turns out right."""
        return self.evidence < threshold if self.right is None else self.right and self.evidence >= threshold


def overlaps(record: Record) -> Callable[[Reply], bool]:
    spans = [(item["doc_id"], item["start"], item["end"]) for item in record["evidence"] if item["end"] is not None]
    return lambda reply: any(
        cited.document_id == doc_id and cited.start < end and start < cited.end
        for cited in reply.citations
        for doc_id, start, end in spans
    )


def holds_half(answer: str) -> Callable[[Reply], bool]:
    wanted = set(terms(answer))
    return lambda reply: 2 * len(wanted & set(terms(reply.text))) >= len(wanted)


def case(id: str, question: str, texts: dict[str, str], right: Callable[[Reply], bool] | None) -> Case:
    passages = tuple(Passage(doc_id, 0, len(text), text) for doc_id, text in texts.items())
    return Case(id, Call((), "extractive", question=question, passages=passages), right)


def sets(data: Path) -> Iterator[tuple[str, list[Case]]]:
    def read(folder: str, file: str) -> list[Record]:
        return list(records(data / folder / f"{file}.jsonl.gz"))

    def texts(folder: str) -> dict[str, str]:
        return {record["doc_id"]: record["text"] for record in read(folder, "documents") if record["text"]}

    def asked(folder: str, task: str, *, answerable: bool = True) -> list[Case]:
        return [
            case(
                record["question_id"],
                record["question"],
                {doc_id: shown[folder][doc_id] for doc_id in record["doc_ids"]},
                overlaps(record) if answerable else None,
            )
            for record in questions[folder]
            if task in record["task"]
            and (not answerable or any(item["end"] is not None for item in record["evidence"]))
            and all(doc_id in shown[folder] for doc_id in record["doc_ids"])
        ]

    shown = {folder: texts(folder) for folder in ("xquad", "multihop", "loogle", "dragonball", "lara")}
    questions = {folder: read(folder, "questions") for folder in ("xquad", "multihop", "loogle", "dragonball")}
    for language in LANGUAGES:
        yield f"xquad {language}", asked("xquad", language)
    yield "multihop", asked("multihop", "")
    yield "loogle short", asked("loogle", "shortdep_qa")
    for language in ("en", "zh"):
        yield f"dragonball {language}", asked("dragonball", f"{language}:fact_based")
        yield (
            f"dragonball {language} unanswerable",
            asked("dragonball", f"{language}:irrelevant_unanswerable", answerable=False),
        )
    cases = [record for record in read("lara", "cases") if record["doc_id"] in shown["lara"]]
    for task, name in (("location", "lara location"), ("reasoning", "lara reasoning"), ("hallu", "lara unanswerable")):
        yield (
            name,
            [
                case(
                    record["case_id"],
                    record["question"],
                    {record["doc_id"]: shown["lara"][record["doc_id"]]},
                    None if task == "hallu" else holds_half(record["answer"]),
                )
                for record in cases
                if record["task"] == task
            ],
        )
    for language in ("en", "zh"):
        articles = sorted(doc_id for doc_id in shown["xquad"] if doc_id.startswith(language))
        other = dict(zip(articles, articles[1:] + articles[:1], strict=True))
        yield (
            f"wrong {language} unanswerable",
            [
                case(
                    c.id,
                    c.call.question,
                    {(doc_id := other[c.call.passages[0].document_id]): shown["xquad"][doc_id]},
                    None,
                )
                for c in asked("xquad", language)
            ],
        )


def outcome(backend: Extractive, asked: Case) -> Outcome:
    started = time.perf_counter()
    reply = asyncio.run(backend.generate(asked.call))
    seconds = time.perf_counter() - started
    evidence = reply.citations[0].score if reply.citations else 0.0
    return Outcome(evidence, asked.right and asked.right(reply), seconds)


def for_tuning(id: str) -> bool:
    return crc32(id.encode()) % 2 == 0


def share(values: list[bool]) -> tuple[float, float, float]:
    """The share of true values with its 95 % interval. Wilson (1927), J. Am. Stat. Assoc. 22:209-212."""
    n, z = len(values), 1.96
    p = sum(values) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, middle - half, middle + half


def cell(values: list[bool]) -> str:
    if not values:
        return ""
    p, low, high = (100 * number for number in share(values))
    return f"{p:.0f} ({low:.0f}–{high:.0f})"


def mean_value(by_set: dict[str, list[Outcome]], threshold: float) -> float:
    """Share of right outcomes where one question in four has no answer, as in LaRA; sets of a kind weigh the same."""
    shares = {name: sum(one.value(threshold) for one in outcomes) / len(outcomes) for name, outcomes in by_set.items()}
    without = [value for name, value in shares.items() if name.endswith("unanswerable")]
    with_answer = [value for name, value in shares.items() if not name.endswith("unanswerable")]
    return 0.25 * sum(without) / len(without) + 0.75 * sum(with_answer) / len(with_answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=150, help="most questions of each half of a set")
    parser.add_argument(
        "--embed", action="store_true", help="refine by sentence embeddings, as where they are installed"
    )
    arguments = parser.parse_args()
    data = data_directory()
    if data is None:
        raise SystemExit("No data: set LONGROUTE_DATA to the folder with the data sets.")
    backend = Extractive(terms, SentenceTransformerEmbedder().encode if arguments.embed else None, min_evidence=0.0)

    shipped = MIN_EVIDENCE_EMBEDDED if arguments.embed else MIN_EVIDENCE
    tuning: dict[str, list[Outcome]] = {}
    held_out: dict[str, list[Outcome]] = {}
    for name, cases in sets(data):
        cases.sort(key=lambda one: crc32(one.id[::-1].encode()))  # any fixed order that is not the files' own
        for half, into in ((True, tuning), (False, held_out)):
            chosen = [one for one in cases if for_tuning(one.id) is half][: arguments.questions]
            into[name] = [outcome(backend, one) for one in chosen]
        print(name, len(tuning[name]), len(held_out[name]), flush=True)

    best = max(THRESHOLDS, key=lambda threshold: mean_value(tuning, threshold))
    rows = []
    for name, outcomes in held_out.items():
        answerable = outcomes[0].right is not None
        rows.append(
            {
                "set": name,
                "n": len(outcomes),
                "right": cell([bool(one.right) for one in outcomes]) if answerable else "",
                "right and answered": cell([one.value(shipped) for one in outcomes]) if answerable else "",
                "refused": cell([one.evidence < shipped for one in outcomes]),
                "median ms": f"{1000 * sorted(one.seconds for one in outcomes)[len(outcomes) // 2]:.0f}",
            }
        )
    where = measured_on("numpy", *(("torch", "sentence-transformers") if arguments.embed else ()))
    text = "\n".join(
        [
            f"# The embedded backend{', refined by sentence embeddings' if arguments.embed else ''}",
            "",
            "Held-out halves, per cent with 95 % intervals. Right: quotes the evidence, if it never refuses. Refused: "
            f"at the shipped threshold of {shipped} (the other halves choose {best}); for unanswerable sets, more "
            "is better. Whole documents are shown, so the times are those of reading everything.",
            "",
            f"| {' | '.join(rows[0])} |",
            "|---|---:|---:|---:|---:|---:|",
            *(f"| {' | '.join(map(str, row.values()))} |" for row in rows),
            "",
            "Right outcomes where one question in four has no answer: "
            f"{100 * mean_value(held_out, shipped):.1f} % at {shipped}, "
            f"{100 * mean_value(held_out, best):.1f} % at {best}, "
            f"{100 * mean_value(held_out, 0.0):.1f} % never refusing.",
            "",
            f"`{where['command']}`. {where['processor']}; {where['versions']}; commit {where['commit']}.",
            "",
        ]
    )
    print(text)
    file = RESULTS / ("extractive_embed" if arguments.embed else "extractive")
    file.with_suffix(".md").write_text(text)
    curve = {str(threshold): mean_value(held_out, threshold) for threshold in THRESHOLDS[::5]}
    numbers = {
        "measured_on": where,
        "threshold": shipped,
        "chosen": best,
        "rows": rows,
        "right_by_threshold": curve,
    }
    file.with_suffix(".json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
