"""Train and measure the question classifier (`router/question_type.py`), then write its weights and a table.

    python benchmarks/question_types.py [--data FOLDER] [--out-of-fold FILE] [--check]

Needs scikit-learn and the data sets (LONGROUTE_DATA, else `../shared/data`); neither is needed to use the classifier.
Every set has a style of its own, and a classifier would rather learn the style than the type. Against that:

- sets and types are balanced: a type has its share of the weight (PRIOR), a set the square root of its size in it;
- a word or pair counts only if three sets use it, so no set's names or habits enter;
- own phrases in eleven languages (`question_type_seeds.json`) hold up the types that have English data only;
- besides cross-validation by document, each set in turn is left out entirely (the honest figure for a stranger's
  questions), and the temperature is the best for the two together.

Labels follow what an answer takes, not the set's name for it: LoCoMo's multi-hop questions collect facts over many
sessions (aggregation), its temporal ones ask for one date (lookup). Focused QMSum and SQuALITY questions are used only
where they ask for a summary or a description; the others read like lookups and teach nothing but the set.
--check measures and writes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import GroupKFold

from longroute.router.core import TASKS, Task
from longroute.router.question_type import features, rule

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "policies" / "weights" / "question_type.json"
TABLE = ROOT / "benchmarks" / "results" / "question_types.md"

# What we expect people to ask of long documents; a guess, stated so that it can be argued with.
PRIOR: dict[Task, float] = {
    "lookup": 0.25,
    "reasoning": 0.20,
    "comparison": 0.14,
    "aggregation": 0.12,
    "summary": 0.12,
    "unanswerable": 0.11,
    "code": 0.06,
}
LARA_TASKS: tuple[Task, ...] = ("lookup", "reasoning", "comparison", "unanswerable")
INVERSE_REGULARISATION = 1.0
RULE_SMOOTHING = 50.0  # questions by which each rule is drawn to the prior
SET_LIMIT = 600  # a larger set counts as one of this size
SEED_WORTH = 10  # one own phrase counts as this many questions of a set: they are few, and written to be typical
SETS_PER_GRAM, QUESTIONS_PER_GRAM = 3, 6
SOURCES = {
    "lara": "LaRA (arXiv 2502.09977), questions of the development part; licence not stated in our copy",
    "dragonball-en": "RAGEval DragonBall, CC BY-NC-SA 4.0",
    "dragonball-zh": "RAGEval DragonBall, CC BY-NC-SA 4.0",
    "hotpotqa": "HotpotQA, CC BY-SA 4.0",
    "2wikimultihopqa": "2WikiMultihopQA, Apache-2.0",
    "musique": "MuSiQue, CC BY 4.0",
    "qmsum": "QMSum, MIT",
    "squality": "SQuALITY, CC BY 4.0",
    "locomo": "LoCoMo, CC BY-NC 4.0 by its authors' later statement",
    "loogle": "LooGLE, MIT",
    "xquad": "XQuAD, CC BY-SA 4.0",
    "natural_questions": "Natural Questions (CC BY-SA 3.0) by way of BAMBOO (MIT) and CoLoR (licence not stated)",
    "swe_qa": "SWE-QA-Bench (flask), Apache-2.0",
    "bipia": "BIPIA code and table questions (MIT; tables from WikiTableQuestions, CC BY-SA 4.0)",
    "seeds": "own phrases, benchmarks/question_type_seeds.json, Apache-2.0",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    source: str
    group: str  # never split between training and measuring: a document, or the question itself
    question: str
    task: Task
    case_id: str = ""


def read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def collect(data: Path) -> list[Labelled]:
    """Every labelled question, exact repetitions within a type once."""
    unique: dict[tuple[str, Task], Labelled] = {}
    for item in _collect(data):
        unique.setdefault((item.question.lower(), item.task), item)
    return list(unique.values())


def _collect(data: Path) -> Iterator[Labelled]:
    lara: dict[str, Task] = {
        "location": "lookup",
        "reasoning": "reasoning",
        "comp": "comparison",
        "hallu": "unanswerable",
    }
    for row in read(data / "lara/cases.jsonl.gz"):
        yield Labelled("lara", row["doc_group"], row["question"], lara[row["task"]], row["case_id"])

    dragonball: dict[str, Task] = {
        "fact_based": "lookup",
        "multi_hop": "reasoning",
        "multi_document_compare": "comparison",
        "multi_document_information_integration": "aggregation",
        "summary": "summary",
        "irrelevant_unanswerable": "unanswerable",
    }
    for row in read(data / "dragonball/questions.jsonl.gz"):
        language, kind = row["task"].split(":")
        group = row["doc_ids"][0] if row["doc_ids"] else row["question_id"]
        yield Labelled(f"dragonball-{language}", group, row["question"], dragonball[kind])

    for row in read(data / "multihop/questions.jsonl.gz"):
        source, kind = row["task"].split(":")
        yield Labelled(
            source, row["question_id"], row["question"], "comparison" if "comparison" in kind else "reasoning"
        )

    for name, wanted in (
        ("qmsum", r"summari[sz]e\b|what was the meeting"),
        ("squality", r"describe\b|.*\b(plot|setting)\b"),
    ):
        for row in read(data / name / "questions.jsonl.gz"):
            if row["task"] in ("general-summary", "plot-summary") or re.match(wanted, row["question"], re.IGNORECASE):
                yield Labelled(name, row["doc_ids"][0], row["question"], "summary")

    locomo: dict[str, Task] = {
        "single-hop": "lookup",
        "temporal": "lookup",
        "multi-hop": "aggregation",
        "open-domain": "reasoning",
        "adversarial-unanswerable": "unanswerable",
    }
    for row in read(data / "locomo/questions.jsonl.gz"):
        yield Labelled("locomo", row["doc_ids"][0], row["question"], locomo[row["task"]])

    loogle: dict[str, Task] = {
        "shortdep_qa": "lookup",
        "longdep_qa:comprehension_and_reasoning": "reasoning",
        "longdep_qa:computation": "reasoning",
        "longdep_qa:multiple_information_retrieval": "aggregation",
        "longdep_qa:timeline_reorder": "aggregation",
        "longdep_summarization": "summary",
    }
    for row in read(data / "loogle/questions.jsonl.gz"):
        if row["task"] in loogle:
            yield Labelled("loogle", row["doc_ids"][0], row["question"], loogle[row["task"]])

    for row in read(data / "swe_qa_flask/questions.jsonl.gz"):
        yield Labelled("swe_qa", row["question_id"], row["question"], "code")
    for row in read(data / "xquad/questions.jsonl.gz"):
        yield Labelled("xquad", row["doc_ids"][0].split(":")[1], row["question"], "lookup")
    for row in read(data / "bamboo/questions.jsonl.gz"):
        if row["task"] == "altered-fact-qa":
            yield Labelled("natural_questions", row["question_id"], row["question"].split("\n")[0], "lookup")
    for row in read(data / "color/queries.jsonl.gz"):
        if row["source"] == "nq":
            yield Labelled("natural_questions", row["query_id"], row["query"], "lookup")
        if row["source"] == "musique":
            yield Labelled("musique", row["query_id"], row["query"], "reasoning")
    for row in read(data / "injection/questions.jsonl.gz"):
        if row["task"] == "code":
            yield Labelled("bipia", row["question"][:75], row["question"], "code")
        elif row["task"] == "table" and re.search(r"\b(how many|total)\b", row["question"]):
            yield Labelled("bipia", row["question_id"], row["question"], "aggregation")  # counted over rows of a table

    seeds: dict[Task, list[str]] = json.loads((ROOT / "benchmarks/question_type_seeds.json").read_text("utf-8"))
    for task, questions in seeds.items():
        for question in questions:
            yield Labelled("seeds", question, question, task)


@dataclass(frozen=True, slots=True)
class Linear:
    vocabulary: dict[str, int]
    weights: np.ndarray  # (n_tasks, n_features)
    bias: np.ndarray  # (n_tasks,)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What models that did not see a question say of it; both shape (n_questions, n_tasks)."""

    logits: np.ndarray
    by_rule: np.ndarray

    def mixed(self, temperature: float, rule_share: float) -> np.ndarray:
        return (1 - rule_share) * softmax(self.logits / temperature) + rule_share * self.by_rule


class Trainer:
    """Holds the questions as arrays; `fit` and `logits` take row numbers."""

    def __init__(self, items: Sequence[Labelled]) -> None:
        self.features = [features(item.question) for item in items]
        self.source = np.array([item.source for item in items])
        # Sets that are parts of one are left out together.
        self.family = np.array(
            [re.sub(r"-..$|^2wiki(?=multihop)", "", s).replace("hotpotqa", "multihopqa") for s in self.source]
        )
        self.group = np.array([f"{item.source}/{item.group}" for item in items])
        self.rule = np.array([TASKS.index(rule(found)) for found in self.features])
        self.y = np.array([TASKS.index(item.task) for item in items])
        self.rows = np.arange(len(items))

    def sample_weights(self, rows: np.ndarray) -> np.ndarray:
        """Shape (len(rows),), mean 1: PRIOR over types, square root of size over the sets within a type."""
        weights = np.zeros(len(rows))
        for index, task in enumerate(TASKS):
            inside = self.y[rows] == index
            sizes = Counter(self.source[rows][inside])
            sizes = Counter({s: min(n * (SEED_WORTH if s == "seeds" else 1), SET_LIMIT) for s, n in sizes.items()})
            total = sum(size**0.5 for size in sizes.values())
            for source, size in sizes.items():
                members = inside & (self.source[rows] == source)
                weights[members] = PRIOR[task] * size**0.5 / (total * members.sum())
        return np.asarray(weights / weights.mean())

    def fit(self, rows: np.ndarray) -> Linear:
        seen_in: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for name in self.features[row]:
                seen_in[name][self.source[row]] += 1
        names = sorted(
            name
            for name, sets in seen_in.items()
            if ": " in name or (len(sets) >= SETS_PER_GRAM and sets.total() >= QUESTIONS_PER_GRAM)
        )
        vocabulary = {name: column for column, name in enumerate(names)}
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=400, tol=1e-3)
        model.fit(self._matrix(rows, vocabulary), self.y[rows], sample_weight=self.sample_weights(rows))
        weights, bias = np.zeros((len(TASKS), len(vocabulary))), np.full(len(TASKS), -9.0)
        weights[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        return Linear(vocabulary, weights, bias)

    def logits(self, model: Linear, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._matrix(rows, model.vocabulary) @ model.weights.T + model.bias)

    def _matrix(self, rows: np.ndarray, vocabulary: dict[str, int]) -> csr_matrix:
        cells = [
            (i, vocabulary[name], value)
            for i, row in enumerate(rows)
            for name, value in self.features[row].items()
            if name in vocabulary
        ]
        i, j, values = zip(*cells, strict=True)
        return csr_matrix((values, (i, j)), shape=(len(rows), len(vocabulary)))

    def after_rule(self, rows: np.ndarray) -> np.ndarray:
        """Types of the questions of each rule, shape (n_tasks, n_tasks), rows sum to 1; a little of PRIOR in each."""
        counts = np.tile([RULE_SMOOTHING * PRIOR[task] for task in TASKS], (len(TASKS), 1))
        np.add.at(counts, (self.rule[rows], self.y[rows]), self.sample_weights(rows))
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))

    def by_document(self) -> HeldOut:
        """Every question by models that saw neither it nor its document."""
        return self._held_out([test for _, test in GroupKFold(5).split(self.rows, self.y, self.group)])

    def by_set(self) -> HeldOut:
        """Every question by models that saw nothing of its data set."""
        return self._held_out([self.rows[self.family == family] for family in sorted(set(self.family))])

    def _held_out(self, parts: list[np.ndarray]) -> HeldOut:
        shape = (len(self.rows), len(TASKS))
        held_out = HeldOut(np.zeros(shape), np.zeros(shape))
        for test in parts:
            train = np.setdiff1d(self.rows, test)
            held_out.logits[test] = self.logits(self.fit(train), test)
            held_out.by_rule[test] = self.after_rule(train)[self.rule[test]]
        return held_out


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def log_loss(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    return float(-(w * np.log(np.clip(p[np.arange(len(y)), y], 1e-9, 1))).sum() / w.sum())


def expected_calibration_error(p: np.ndarray, y: np.ndarray, w: np.ndarray, bins: int = 15) -> float:
    """Weighted mean gap between confidence and accuracy over equal-width bins (evaluation by argmax)."""
    confidence, hit = p.max(axis=1), (p.argmax(axis=1) == y).astype(float)
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs((w * (hit - confidence))[where == b].sum()) for b in range(bins)]
    return float(sum(gaps) / w.sum())


def scores(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, float]:
    predicted = p.argmax(axis=1)
    return {
        "accuracy": round(float((w * (predicted == y)).sum() / w.sum()), 3),
        "macro_f1": round(float(f1_score(y, predicted, sample_weight=w, average="macro", zero_division=0)), 3),
        "log_loss": round(log_loss(p, y, w), 3),
        "ece": round(expected_calibration_error(p, y, w), 3),
    }


def lara_scores(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """LaRA has four of the types: probabilities renormalised to those, every case counted once."""
    columns = [TASKS.index(task) for task in LARA_TASKS]
    four = p[:, columns] / p[:, columns].sum(axis=1, keepdims=True)
    return scores(four, np.array([columns.index(label) for label in y]), np.ones(len(y)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure the question classifier.")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("LONGROUTE_DATA", ROOT.parent / "shared/data"))
    )
    parser.add_argument("--out-of-fold", type=Path, help="also write each LaRA case's out-of-fold probabilities here")
    parser.add_argument("--check", action="store_true", help="measure only")
    options = parser.parse_args()

    items = collect(options.data)
    trainer = Trainer(items)
    y, w, lara = trainer.y, trainer.sample_weights(trainer.rows), trainer.source == "lara"
    by_document, by_set = trainer.by_document(), trainer.by_set()
    temperature, rule_share = min(
        product((1.0, 1.1, 1.25, 1.4, 1.6, 1.8), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        key=lambda setting: sum(log_loss(held_out.mixed(*setting), y, w) for held_out in (by_document, by_set)),
    )
    known, unknown = by_document.mixed(temperature, rule_share), by_set.mixed(temperature, rule_share)
    methods = {
        "majority": np.tile([PRIOR[task] for task in TASKS], (len(y), 1)),
        "keyword rules alone, set left out": by_set.by_rule,
        "linear model alone, set left out": by_set.mixed(temperature, 0.0),
        "classifier, set left out": unknown,
        "keyword rules alone": by_document.by_rule,
        "linear model alone": by_document.mixed(temperature, 0.0),
        "classifier": known,
    }
    metrics = {name: scores(p, y, w) for name, p in methods.items()}
    lara_metrics = {name: lara_scores(p[lara], y[lara]) for name, p in methods.items()}
    lara_metrics["majority"] = lara_scores(
        np.tile(np.bincount(y[lara], minlength=len(TASKS)) / lara.sum(), (lara.sum(), 1)), y[lara]
    )

    table = report(
        trainer, metrics, lara_metrics, known, unknown, f"temperature {temperature}, share of the rules {rule_share}"
    )
    print(table)
    if options.out_of_fold:
        probabilities = {
            item.case_id: p.round(4).tolist() for item, p in zip(items, known, strict=True) if item.case_id
        }
        options.out_of_fold.write_text(json.dumps({"tasks": TASKS, "probabilities": probabilities}))
    if options.check:
        return
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table, encoding="utf-8")

    model = trainer.fit(trainer.rows)
    fingerprint = hashlib.sha256("\n".join(sorted(f"{i.source}\t{i.task}\t{i.question}" for i in items)).encode())
    header = {
        "version": 1,
        "trained": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/question_types.py",
        "data_fingerprint": f"sha256:{fingerprint.hexdigest()}",
        "questions": len(items),
        "sources": SOURCES,
        "prior": PRIOR,
        "metrics": {"all sets, balanced": metrics, "LaRA, four types": lara_metrics},
        "tasks": TASKS,
        # The temperature is folded into the weights: the reader of this file need not know of it.
        "temperature": temperature,
        "rule_share": rule_share,
        "after_rule": {TASKS[i]: row.round(3).tolist() for i, row in enumerate(trainer.after_rule(trainer.rows))},
        "bias": (model.bias / temperature).round(3).tolist(),
    }
    rows = (model.weights.T / temperature).round(2).tolist()
    lines = [
        f"{json.dumps(n, ensure_ascii=False)}: {json.dumps(r, separators=(',', ':'))}"
        for n, r in zip(model.vocabulary, rows, strict=True)
    ]
    body = json.dumps(header, indent=1, ensure_ascii=False).removesuffix("\n}")
    WEIGHTS.write_text(body + ',\n "weights": {\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def report(
    trainer: Trainer,
    metrics: dict[str, dict[str, float]],
    lara_metrics: dict[str, dict[str, float]],
    known: np.ndarray,
    unknown: np.ndarray,
    setting: str,
) -> str:
    y, w, lara = trainer.y, trainer.sample_weights(trainer.rows), trainer.source == "lara"
    lines = [
        "# Question types",
        "",
        f"`python benchmarks/question_types.py`: {len(y):,} questions from {len(set(trainer.family))} data sets; "
        f"{setting}.",
        "'classifier' = cross-validated, split by document; 'set left out' = nothing of the question's data set was "
        "seen in training. The rules were written by people who had read some of each set, so for them nothing is "
        "quite left out.",
    ]
    for title, values in (
        ("All sets, types weighted as expected in use", metrics),
        ("LaRA only, its four types", lara_metrics),
    ):
        lines += ["", f"## {title}", "", "| | accuracy | macro-F1 | log loss | ECE |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | " + " | ".join(f"{score:.3f}" for score in v.values()) + " |" for name, v in values.items()
        ]
    lines += [
        "",
        "## Each set left out in turn: recall by type (questions)",
        "",
        "| set | " + " | ".join(TASKS) + " |",
        "|---" * (len(TASKS) + 1) + "|",
    ]
    for family in sorted(set(trainer.family)):
        cells = []
        for index in range(len(TASKS)):
            rows = (trainer.family == family) & (y == index)
            cells.append(f"{(unknown[rows].argmax(axis=1) == index).mean():.2f} ({rows.sum()})" if rows.any() else "")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    for title, p, rows, weight in (
        ("all sets, by document, % of the true type's weight", known, trainer.rows, w),
        ("LaRA, by document, % of the true type's cases", known[lara], trainer.rows[lara], None),
    ):
        matrix = confusion_matrix(
            y[rows], p.argmax(axis=1), labels=range(len(TASKS)), sample_weight=weight, normalize="true"
        )
        lines += [
            "",
            f"## Confusion: {title}",
            "",
            "| true \\ said | " + " | ".join(TASKS) + " |",
            "|---" * (len(TASKS) + 1) + "|",
        ]
        lines += [
            f"| {TASKS[i]} | " + " | ".join(f"{100 * v:.0f}" for v in row) + " |"
            for i, row in enumerate(matrix)
            if row.any()
        ]
    mean_p = {
        TASKS[i]: unknown[y == i][:, TASKS.index("unanswerable")].mean() for i in range(len(TASKS)) if (y == i).any()
    }
    lines += [
        "",
        "Mean P(unanswerable), set left out, by true type: "
        + ", ".join(f"{k} {v:.2f}" for k, v in mean_p.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
