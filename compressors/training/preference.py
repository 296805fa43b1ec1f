"""Preference pairs for CoLoR: of several summaries of a passage, one to write and one not to write.

    python -m longroute.compressors.training.preference PASSAGES.jsonl QUERIES.jsonl VERDICTS.jsonl --out PAIRS.jsonl

Each summariser's corpus is searched with queries whose passages are known; a summary is correct where its passage was
found. Chosen is the shortest correct summary, rejected the longest wrong one. Who searches is handed to `judge`: a
model that reads the corpus in its prompt, as in the paper, or any retriever. The training is in `orpo.py`.

PASSAGES: {"id", "text", "summaries": {summariser: text}}; QUERIES: {"id", "text", "relevant": [passage ids]};
VERDICTS: {"query", "summariser", "correct"}, which `judge` writes as it goes; one JSON object per line.

Source: CoLoR (arXiv 2412.18232), its rule rather than its released script, which consulted one summariser only.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...router.errors import ConfigError

Search = Callable[[str, Mapping[str, str]], Collection[str]]
"""A query and a corpus (passage id → summary) → the ids that answer it."""
VALIDATION_SHARE = 0.1
_VERDICT = ("query", "summariser", "correct")


@dataclass(frozen=True, slots=True)
class Summarised:
    """A passage and what each summariser made of it; where one made nothing, it is not in `summaries`."""

    id: str
    text: str
    summaries: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Query:
    """relevant: ids of all passages that are needed."""

    id: str
    text: str
    relevant: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a query found its passages in the corpus of one summariser."""

    query: str
    summariser: str
    correct: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """One summary. correct: whether its passage was found by it."""

    text: str
    correct: bool
    summariser: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """passage: what is to be summarised. weak: the two differ in length only, for both were correct or both wrong."""

    passage: str
    chosen: str
    rejected: str
    weak: bool = False
    passage_id: str = ""
    chosen_by: str = ""
    rejected_by: str = ""


# ---- the rule --------------------------------------------------------------------------------------------------------


def paired(candidates: Sequence[Candidate], *, hard: bool = True) -> tuple[Candidate, Candidate] | None:
    """Chosen and rejected of the summaries of one passage; None where there is nothing to learn.

    Some correct, some wrong: the shortest correct one against the longest wrong one, which may well be shorter.
    All alike: the shortest against the longest. hard: not where none is correct (the released setting).
    Lengths are in characters; of equals the first is taken. Two equal texts are no pair.
    """
    correct = [candidate for candidate in candidates if candidate.correct]
    wrong = [candidate for candidate in candidates if not candidate.correct]
    if not candidates or (hard and not correct):
        return None
    chosen = min(correct or wrong, key=lambda candidate: len(candidate.text))
    rejected = max(wrong if correct and wrong else candidates, key=lambda candidate: len(candidate.text))
    return (chosen, rejected) if chosen.text != rejected.text else None


def build_pairs(
    passages: Iterable[Summarised], queries: Iterable[Query], verdicts: Iterable[Verdict], *, hard: bool = True
) -> list[Pair]:
    """At most one pair for each passage, in their order.

    A verdict speaks for all passages of its query. A summary is correct where every judged query that needs its passage
    was answered from its summariser's corpus; one that no query was judged on is left out, as we know nothing of it.
    """
    relevant = {query.id: query.relevant for query in queries}
    judged: dict[tuple[str, str], bool] = {}
    for verdict in verdicts:
        for passage_id in relevant.get(verdict.query, ()):
            key = (passage_id, verdict.summariser)
            judged[key] = judged.get(key, True) and verdict.correct
    pairs = []
    for passage in passages:
        candidates = [
            Candidate(text, judged[passage.id, summariser], summariser)
            for summariser, text in passage.summaries.items()
            if text.strip() and (passage.id, summariser) in judged
        ]
        found = paired(candidates, hard=hard)
        if found is not None:
            chosen, rejected = found
            pairs.append(
                Pair(
                    passage.text,
                    chosen.text,
                    rejected.text,
                    weak=chosen.correct == rejected.correct,
                    passage_id=passage.id,
                    chosen_by=chosen.summariser,
                    rejected_by=rejected.summariser,
                )
            )
    return pairs


def divided(pairs: Sequence[Pair], seed: int = 0, share: float = VALIDATION_SHARE) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs, shuffled. All pairs of one passage are on one side."""
    texts = sorted({pair.passage for pair in pairs})
    shuffle = random.Random(seed)
    shuffle.shuffle(texts)
    held_out = set(texts[: round(share * len(texts))])
    order = list(pairs)
    shuffle.shuffle(order)
    return [p for p in order if p.passage not in held_out], [p for p in order if p.passage in held_out]


# ---- judging ---------------------------------------------------------------------------------------------------------


def succeeded(found: Collection[str], relevant: Collection[str], *, relaxed: bool = False) -> bool:
    """Exactly the relevant passages were found; relaxed: at least one of them."""
    return not set(relevant).isdisjoint(found) if relaxed else set(found) == set(relevant)


def judge(
    passages: Sequence[Summarised], queries: Sequence[Query], search: Search, path: Path, *, relaxed: bool = False
) -> list[Verdict]:
    """Search every summariser's corpus with every query, and write each verdict down before the next search.

    Called again with the same path, it goes on where it was stopped, also in the middle of a line; so other passages or
    summaries need another path. A passage that a summariser made nothing of stands in its corpus as it is.
    Raises whatever `search` raises; what was judged before is kept.
    """
    known = {(verdict.query, verdict.summariser): verdict for verdict in _whole_lines(path)}
    _rewrite(path, map(asdict, known.values()))  # without the torn line
    verdicts = []
    with path.open("a", encoding="utf-8") as lines:
        for summariser in dict.fromkeys(name for passage in passages for name in passage.summaries):
            corpus = {passage.id: passage.summaries.get(summariser, "").strip() or passage.text for passage in passages}
            for query in queries:
                verdict = known.get((query.id, summariser))
                if verdict is None:
                    correct = succeeded(search(query.text, corpus), query.relevant, relaxed=relaxed)
                    verdict = Verdict(query.id, summariser, correct)
                    lines.write(json.dumps(asdict(verdict)) + "\n")
                    lines.flush()
                verdicts.append(verdict)
    return verdicts


def _whole_lines(path: Path) -> list[Verdict]:
    if not path.exists():
        return []
    *lines, _ = path.read_text("utf-8").split("\n")  # what follows the last line break was not written to its end
    return _verdicts(_records(path, lines, *_VERDICT))


# ---- files -----------------------------------------------------------------------------------------------------------


def read_passages(path: Path) -> list[Summarised]:
    return [Summarised(r["id"], r["text"], r["summaries"]) for r in _read(path, "id", "text", "summaries")]


def read_queries(path: Path) -> list[Query]:
    return [Query(r["id"], r["text"], tuple(r["relevant"])) for r in _read(path, "id", "text", "relevant")]


def read_verdicts(path: Path) -> list[Verdict]:
    return _verdicts(_read(path, *_VERDICT))


def _verdicts(records: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    return [Verdict(record["query"], record["summariser"], record["correct"]) for record in records]


def read_pairs(path: Path) -> list[Pair]:
    """What `write_pairs` wrote, or any file whose objects have passage, chosen and rejected."""
    names = Pair.__dataclass_fields__
    read = _read(path, "passage", "chosen", "rejected")
    return [Pair(**{name: value for name, value in record.items() if name in names}) for record in read]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """The file is there whole or not at all."""
    _rewrite(path, map(asdict, pairs))


def _rewrite(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    beside.replace(path)


def _read(path: Path, *needed: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    return list(_records(path, path.read_text("utf-8").split("\n"), *needed))


def _records(path: Path, lines: Sequence[str], *needed: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"Line {number} of {path} is not JSON: {error}.") from error
        missing = [name for name in needed if not isinstance(record, dict) or name not in record]
        if missing:
            raise ConfigError(f"Line {number} of {path} has no {missing[0]!r}; it needs {', '.join(needed)}.")
        yield record


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Makes preference pairs of judged summaries.")
    for name in ("passages", "queries", "verdicts"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="keep pairs of passages that no summary was found by")
    chosen = parser.parse_args(arguments)
    pairs = build_pairs(
        read_passages(chosen.passages),
        read_queries(chosen.queries),
        read_verdicts(chosen.verdicts),
        hard=not chosen.all,
    )
    write_pairs(chosen.out, pairs)
    by_length = sum(pair.weak for pair in pairs)
    print(f"{len(pairs)} pairs in {chosen.out}; {by_length} of them tell short from long only.")


if __name__ == "__main__":
    main()
