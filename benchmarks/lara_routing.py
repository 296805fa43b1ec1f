"""Does the router choose better than any fixed rule? Trains and measures the policy `learned` on LaRA.

    python -m benchmarks.lara_routing          # cross-validated by document, and with each model left out
    python -m benchmarks.lara_routing --fit    # writes policies/weights/{learned,escalation,lara_task}.json

1,420 of LaRA's cases with the published long-context (full) and RAG answers of 13 models, judged strictly. Folds keep
documents whole; what reads the question is trained inside each fold, out of fold for the rows that the second stage
learns from. Quality is the mean over models of the share judged right; tokens are input tokens against always-full.
Intervals resample documents. Writes results/lara_routing.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longroute.policies import policy_file
from longroute.policies.decision_rule import LAMBDA
from longroute.policies.lara import quality as lara_quality
from longroute.policies.learned import LearnedWeights, inputs, published_logit
from longroute.retrievers.corpus import BM25Retriever
from longroute.router.calibration.fit import train
from longroute.router.calibration.outcomes import Outcome
from longroute.router.core import Document, Features, ModelProfile, Prefer, Request, Tier
from longroute.router.features import extract
from longroute.router.lara_task import LARA_TASKS, ngrams
from longroute.router.models import profile_of
from longroute.router.tokens import counter_for

from .data import data_directory, records
from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "lara_routing"
WEIGHTS = Path(__file__).parents[1] / "policies" / "weights"
RAG_TOKENS = 3_300
FOLDS, INNER, LEFT_OUT_FOLDS = 8, 4, 3
PREFERENCES: tuple[Prefer, ...] = ("quality", "balanced", "cheap")
TASK = {"location": "lookup", "reasoning": "reasoning", "comp": "comparison", "hallu": "unanswerable"}
# LaRA's folders by the names that people use, with the tiers of the shipped profiles.
MODELS: dict[str, tuple[str, Tier]] = {
    "claude-3-5-haiku-20241022": ("claude-3-5-haiku", "medium"),
    "claude-3-5-sonnet-20241022": ("claude-3-5-sonnet", "large"),
    "gemini-1.5-pro": ("gemini-1.5-pro", "large"),
    "gpt-4o": ("gpt-4o", "large"),
    "gpt-4o-0806": ("gpt-4o-2024-08-06", "large"),
    "gpt-4o-mini": ("gpt-4o-mini", "medium"),
    "llama-3.1-8b": ("llama-3.1-8b", "small"),
    "llama-3.2-3b": ("llama-3.2-3b", "small"),
    "llama-3.3-70b": ("llama-3.3-70b", "medium"),
    "llama-3.3-70b-turbo": ("llama-3.3-70b-turbo", "medium"),
    "mistral-nemo": ("mistral-nemo", "weak_long_context"),
    "qwen2.5-72b-instruct": ("qwen2.5-72b", "medium"),
    "qwen2.5-7b-instruct": ("qwen2.5-7b", "small"),
}
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Lara:
    """n cases × 13 models. strict: 0 or 1; soft: the judge's probability, or a reader's label. Last axis: full, rag."""

    ids: list[str]
    questions: list[str]
    groups: npt.NDArray[np.str_]
    tasks: npt.NDArray[np.str_]
    features: list[Features]
    tokens: Floats
    strict: Floats
    soft: Floats
    profiles: list[ModelProfile]


def load(data: Path) -> Lara:
    folder = data / "lara"
    cases = list(records(folder / "cases.jsonl.gz"))
    documents = {record["doc_id"]: record for record in records(folder / "documents.jsonl.gz")}
    place = {case["case_id"]: number for number, case in enumerate(cases)}
    folders = list(MODELS)
    strict = np.full((len(cases), len(folders), 2), np.nan)
    soft = strict.copy()
    for row in records(folder / "judgments.jsonl.gz"):
        at = place[row["case_id"]], folders.index(row["model"]), int(row["method"] == "rag")
        read = row["read_label"]
        strict[at] = row["strict"]
        soft[at] = row["p_strict"] if read is None else 0.75 * read + 0.25 * row["p_strict"]
    tokens = np.array([float(documents[case["doc_id"]]["tokens_cl100k"]) for case in cases])
    return Lara(
        ids=[case["case_id"] for case in cases],
        questions=[case["question"] for case in cases],
        groups=np.array([case["doc_group"] for case in cases]),
        tasks=np.array([TASK[case["task"]] for case in cases]),
        features=[_features(case, documents[case["doc_id"]], n) for case, n in zip(cases, tokens, strict=True)],
        tokens=np.minimum(tokens, 127_000),  # LaRA cut the middle out of longer texts
        strict=strict,
        soft=soft,
        profiles=[ModelProfile(name, 128_000, tier=tier) for name, tier in MODELS.values()],
    )


def _features(case: dict[str, Any], document: dict[str, Any], tokens: float) -> Features:
    """As the router extracts them; without the text (books under copyright), without its evidence."""
    profile, counter, source = profile_of("gpt-4o"), counter_for("cl100k"), BM25Retriever()
    text = Document(document["text"] or "x", id=case["doc_id"])
    request = Request(case["question"], (text,), "gpt-4o")
    evidence = source.evidence(case["question"], (text,)) if document["text"] else None
    return replace(extract(request, profile, counter, evidence), document_tokens=int(tokens))


# ---- the question's task ---------------------------------------------------------------------------------------------


class TaskModel:
    """TF-IDF of words and pairs of words, logistic regression: what `router/lara_task.py` runs without scikit-learn."""

    def fit(self, questions: list[str], tasks: npt.NDArray[np.str_]) -> TaskModel:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.vectors_ = TfidfVectorizer(analyzer=lambda q: list(ngrams(q).elements()), sublinear_tf=True, min_df=2)
        self.model_ = LogisticRegression(C=10.0, max_iter=300)
        self.model_.fit(self.vectors_.fit_transform(questions), tasks)
        return self

    def predict(self, questions: list[str]) -> Floats:
        order = [list(self.model_.classes_).index(task) for task in LARA_TASKS]
        shares: Floats = self.model_.predict_proba(self.vectors_.transform(questions))[:, order]
        return shares

    def save(self, path: Path) -> None:
        order = [list(self.model_.classes_).index(task) for task in LARA_TASKS]
        vocabulary = {
            gram: [float(f"{self.vectors_.idf_[at]:.4g}"), *(float(f"{w:.3g}") for w in self.model_.coef_[order, at])]
            for gram, at in sorted(self.vectors_.vocabulary_.items())
        }
        row = {
            "version": 1,
            "source": "LaRA, github.com/Alibaba-NLP/LaRA: questions and task labels; no licence stated in our copy",
            "command": "python -m benchmarks.lara_routing --fit",
            "tasks": LARA_TASKS,
            "bias": [float(f"{b:.4g}") for b in self.model_.intercept_[order]],
            "vocabulary": vocabulary,
        }
        path.write_text(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def folds(groups: npt.NDArray[np.str_], count: int, seed: int) -> Ints:
    """A fold for every case; cases of one document share theirs."""
    names = np.unique(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    of = {name: int(place) % count for name, place in zip(names, order, strict=True)}
    return np.array([of[name] for name in groups])


def task_shares(lara: Lara, learn: npt.NDArray[np.bool_]) -> Floats:
    """Task probabilities of all cases, from the cases in `learn`; for those themselves out of fold. Shape (n, 4)."""
    shares = np.zeros((len(lara.questions), len(LARA_TASKS)))
    inner = folds(lara.groups, INNER, seed=1)

    def fill(training: npt.NDArray[np.bool_], rest: npt.NDArray[np.bool_]) -> None:
        model = TaskModel().fit([lara.questions[i] for i in np.flatnonzero(training)], lara.tasks[training])
        if rest.any():
            shares[rest] = model.predict([lara.questions[i] for i in np.flatnonzero(rest)])

    fill(learn, ~learn)
    for part in range(INNER):
        fill(learn & (inner != part), learn & (inner == part))
    return shares


def with_shares(lara: Lara, shares: Floats) -> list[Features]:
    """Features whose reading of the question is `shares`; LaRA has no other tasks, so the general one keeps out."""
    return [
        replace(features, lara_task=dict(zip(LARA_TASKS, row.tolist(), strict=True)), task={})
        for features, row in zip(lara.features, shares, strict=True)
    ]


# ---- predictors: P(correct) of every case, model and strategy, shape (n, 13, 2) --------------------------------------


def outcomes(lara: Lara, features: list[Features], cases: Ints, models: list[int]) -> list[Outcome]:
    return [
        Outcome(
            lara.ids[i], str(lara.groups[i]), lara.profiles[j].name, strategy, float(lara.soft[i, j, s]), features[i]
        )
        for i in cases
        for j in models
        for s, strategy in enumerate(("full", "rag"))
    ]


def learned(lara: Lara, features: list[Features], learn: Ints, test: Ints, models: list[int]) -> Floats:
    weights = train(
        outcomes(lara, features, learn, models),
        {profile.name: profile for profile in lara.profiles}.__getitem__,
        trained={},
    )
    return predicted(lara, [features[i] for i in test], weights)


def predicted(lara: Lara, features: list[Features], weights: LearnedWeights) -> Floats:
    scaled = [weights.scaled(f) for f in features]
    result = np.zeros((len(features), len(lara.profiles), 2))
    for j, profile in enumerate(lara.profiles):
        for s, strategy in enumerate(("full", "rag")):
            level = weights.level(strategy, profile)
            assert level is not None
            belief = weights.beliefs[strategy][level]
            result[:, j, s] = [
                belief.predict(row, published_logit(f, profile, strategy)).mean
                for row, f in zip(scaled, features, strict=True)
            ]
    return result


def prior(lara: Lara, features: list[Features], learn: Ints, test: Ints, models: list[int]) -> Floats:
    """The published table alone, with the same reading of the question."""
    general = [replace(features[i], task=dict(features[i].lara_task)) for i in test]
    return np.array([[[lara_quality(f, p, s).mean for s in ("full", "rag")] for p in lara.profiles] for f in general])


def neighbours(lara: Lara, features: list[Features], learn: Ints, test: Ints, models: list[int]) -> Floats:
    """Mean outcome of the 50 most similar training questions (TF-IDF of words), drawn to the model's mean."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, stop_words=None)
    training = vectors.fit_transform([lara.questions[i] for i in learn])
    similar = (vectors.transform([lara.questions[i] for i in test]) @ training.T).toarray()
    nearest = np.argsort(-similar, axis=1)[:, :50]
    mean = lara.soft[learn].mean(axis=0)
    result: Floats = (50 * lara.soft[learn][nearest].mean(axis=1) + 10 * mean) / 60
    return result


def clusters(lara: Lara, features: list[Features], learn: Ints, test: Ints, models: list[int]) -> Floats:
    """Mean outcome of the training cases in the same of 16 clusters of the features."""
    from sklearn.cluster import KMeans

    raw = np.array([inputs(f) for f in features])
    scaled = np.nan_to_num((raw - np.nanmean(raw[learn], 0)) / (np.nanstd(raw[learn], 0) + 1e-9))
    of = KMeans(16, n_init=3, random_state=0).fit(scaled[learn]).predict(scaled)
    result = np.zeros(lara.soft.shape)
    mean = lara.soft[learn].mean(axis=0)
    for cluster in range(16):
        mine = learn[of[learn] == cluster]
        result[of == cluster] = (lara.soft[mine].sum(axis=0) + 10 * mean) / (len(mine) + 10)
    return result[test]


def trees(lara: Lara, features: list[Features], learn: Ints, test: Ints, models: list[int]) -> Floats:
    """Gradient-boosted trees on the same features and the model's number, one per strategy."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    raw = np.array([inputs(f) for f in features])
    count = len(lara.profiles)

    def rows(cases: Ints) -> Floats:
        return np.hstack([np.repeat(raw[cases], count, axis=0), np.tile(np.arange(count), len(cases))[:, None]])

    result = np.zeros((len(test), count, 2))
    for s in (0, 1):
        model = HistGradientBoostingRegressor(
            max_iter=120, learning_rate=0.06, max_leaf_nodes=12, min_samples_leaf=60, random_state=0,
            categorical_features=[raw.shape[1]],
        )  # fmt: skip
        model.fit(rows(learn), lara.soft[learn, :, s].ravel())
        result[:, :, s] = model.predict(rows(test)).reshape(-1, count)
    return result


# ---- measuring -------------------------------------------------------------------------------------------------------


def route(lara: Lara, quality: Floats, price: float) -> npt.NDArray[np.bool_]:
    """Whether full is chosen, by the decision rule: quality - price · share of the text that is read."""
    share = np.minimum(RAG_TOKENS / lara.tokens, 1.0)[:, None]
    chosen: npt.NDArray[np.bool_] = quality[:, :, 0] - price > quality[:, :, 1] - price * share
    return chosen


def results(lara: Lara, full: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
    """Quality per case (mean over models), and the share of always-full's input tokens."""
    rag_tokens = np.minimum(RAG_TOKENS, lara.tokens)[:, None]
    used = np.where(full, lara.tokens[:, None], rag_tokens).sum()
    quality: Floats = np.where(full, lara.strict[:, :, 0], lara.strict[:, :, 1]).mean(axis=1)
    return quality, float(used / (lara.tokens.sum() * full.shape[1]))


def interval(lara: Lara, values: Floats, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean over cases, resampling documents."""
    names, of = np.unique(lara.groups, return_inverse=True)
    sums, counts = np.bincount(of, values), np.bincount(of)
    picks = np.random.default_rng(0).integers(0, len(names), (draws, len(names)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), [2.5, 97.5])
    return float(low), float(high)


Predictor = Callable[[Lara, list[Features], Ints, Ints, list[int]], Floats]
PREDICTORS: dict[str, Predictor] = {
    "lara prior": prior,
    "nearest neighbours": neighbours,
    "clusters": clusters,
    "boosted trees": trees,
    "learned": learned,
}


def cross_validated(lara: Lara) -> tuple[dict[str, Floats], Floats]:
    """Out-of-fold predictions by predictor, and out-of-fold task probabilities."""
    fold = folds(lara.groups, FOLDS, seed=0)
    quality = {name: np.zeros(lara.soft.shape) for name in [*PREDICTORS, "learned, true task"]}
    read = np.zeros((len(lara.questions), len(LARA_TASKS)))
    everyone = list(range(len(lara.profiles)))
    truth = with_shares(lara, np.array([[float(task == t) for t in LARA_TASKS] for task in lara.tasks]))
    for part in range(FOLDS):
        learn, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        shares = task_shares(lara, fold != part)
        read[test] = shares[test]
        features = with_shares(lara, shares)
        for name, predict in PREDICTORS.items():
            quality[name][test] = predict(lara, features, learn, test, everyone)
        quality["learned, true task"][test] = learned(lara, truth, learn, test, everyone)
    return quality, read


def left_out(lara: Lara) -> dict[str, dict[str, float]]:
    """Each model held out entirely, and documents too: its tier's belief against its best strategy by other models."""
    fold = folds(lara.groups, LEFT_OUT_FOLDS, seed=2)
    shares = [task_shares(lara, fold != part) for part in range(LEFT_OUT_FOLDS)]
    result = {}
    for j, profile in enumerate(lara.profiles):
        others = [k for k in range(len(lara.profiles)) if k != j]
        # Under another name, or the published table would know it.
        unnamed = replace(lara, profiles=[replace(p, name="new") if p is profile else p for p in lara.profiles])
        quality = np.zeros((len(lara.ids), 2))
        single = np.zeros(len(lara.ids))
        for part in range(LEFT_OUT_FOLDS):
            learn, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
            quality[test] = learned(unnamed, with_shares(lara, shares[part]), learn, test, others)[:, j]
            peers = [k for k in others if lara.profiles[k].tier == profile.tier] or others
            best = int(lara.soft[learn][:, peers].mean(axis=(0, 1)).argmax())
            single[test] = lara.strict[test, j, best]
        row = {"best single by other models": single.mean()}
        for prefer in PREFERENCES[:2]:
            full = route(lara, quality[:, None], LAMBDA[prefer])[:, 0]
            row[prefer] = np.where(full, lara.strict[:, j, 0], lara.strict[:, j, 1]).mean()
        result[profile.name] = {name: 100 * float(value) for name, value in row.items()}
    return result


def fit(lara: Lara, data: Path) -> None:
    """Write the shipped weights."""
    from .self_route import fit_escalation, load_replies  # builds on this module

    everything = np.ones(len(lara.ids), dtype=bool)
    features = with_shares(lara, task_shares(lara, everything))
    escalation, simulated = fit_escalation(lara, features, load_replies(data, lara))
    weights = train(
        outcomes(lara, features, np.arange(len(lara.ids)), list(range(len(lara.profiles)))) + simulated,
        {profile.name: profile for profile in lara.profiles}.__getitem__,
        trained={
            "source": "LaRA's published answers, judged",
            "data": "github.com/Alibaba-NLP/LaRA, 1,420 cases x 13 models x full and rag; no licence in our copy; "
            "self_route simulated from them out of fold",
            "command": "python -m benchmarks.lara_routing --fit",
            "metrics": "benchmarks/results/lara_routing.md",
        },
    )
    policy_file.write(WEIGHTS / "learned.json", weights)
    row = json.dumps(escalation.to_json(), ensure_ascii=False, separators=(",", ":"))
    (WEIGHTS / "escalation.json").write_text(row + "\n", encoding="utf-8")
    TaskModel().fit(lara.questions, lara.tasks).save(WEIGHTS / "lara_task.json")
    for name in ("learned.json", "escalation.json", "lara_task.json"):
        print(f"{WEIGHTS / name}: {(WEIGHTS / name).stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="write the shipped weights instead of measuring")
    arguments = parser.parse_args()
    data = data_directory()
    if data is None:
        raise SystemExit("The set `lara` is not here. Set LONGROUTE_DATA to the folder that holds it.")
    started = time.perf_counter()
    lara = load(data)
    if arguments.fit:
        fit(lara, data)
        return
    quality, read = cross_validated(lara)
    report(lara, quality, read, left_out(lara), started)


def report(
    lara: Lara, quality: dict[str, Floats], read: Floats, held_out: dict[str, dict[str, float]], started: float
) -> None:
    single = lara.strict.mean(axis=0).argmax(axis=1)  # the better strategy of each model, in hindsight
    best = np.where(single == 0, lara.strict[:, :, 0], lara.strict[:, :, 1])
    best_single = best.mean(axis=1)
    rows: list[tuple[str, Floats, float]] = [
        ("always full", lara.strict[:, :, 0].mean(axis=1), 1.0),
        ("always rag", lara.strict[:, :, 1].mean(axis=1), results(lara, np.zeros(best.shape, bool))[1]),
        ("best single per model, in hindsight", best_single, results(lara, np.tile(single == 0, (len(best), 1)))[1]),
    ]
    rows += [
        (f"{name}, {prefer}", *results(lara, route(lara, values, LAMBDA[prefer])))
        for name, values in quality.items()
        for prefer in PREFERENCES
    ]
    rows.append(
        ("oracle", lara.strict.max(axis=2).mean(axis=1), results(lara, lara.strict[:, :, 0] > lara.strict[:, :, 1])[1])
    )
    lines = [
        "# Routing on LaRA, documents never seen",
        "",
        "| | quality | against best single (95 %) | input tokens |",
        "|---|---:|---:|---:|",
    ]
    for name, values, share in rows:
        low, high = interval(lara, 100 * (values - best_single))
        lines.append(
            f"| {name} | {100 * values.mean():.1f} | {100 * (values - best_single).mean():+.1f} ({low:+.1f} to "
            f"{high:+.1f}) | {share:.0%} |"
        )
    accuracy = float((np.array(LARA_TASKS)[read.argmax(axis=1)] == lara.tasks).mean())
    lines += [
        "",
        "The published table that `lara prior` holds and `learned` starts from averages over these cases among others: "
        "each cell over 19 to 250 of them, by length and task, never by document.",
        "",
        "The prior deviations of `learned`, the cut of its evidence and the prices of `prefer` were chosen while "
        "looking at these cross-validated numbers, so differences of a few tenths of a point are not to be trusted.",
        "",
        f"The task is read right from the question alone in {accuracy:.1%} of cases. `true task` is told it: the "
        "ceiling of what these features can carry.",
        "",
        "## At equal tokens",
        "",
        "Quality at a share of always-full's input tokens, interpolated along each method's price.",
        "",
        "| | 10 % | 15 % | 20 % | 25 % | 35 % | 50 % |",
        "|---|" + "---:|" * 6,
        *(
            f"| {name} | {' | '.join(f'{q:.1f}' for q in at_tokens(lara, values))} |"
            for name, values in quality.items()
        ),
        "",
        "## Per model",
        "",
        "| | always full | always rag | quality | balanced | cheap | oracle |",
        "|---|" + "---:|" * 6,
    ]
    chosen = {prefer: route(lara, quality["learned"], LAMBDA[prefer]) for prefer in LAMBDA}
    for j, profile in enumerate(lara.profiles):
        full, rag = lara.strict[:, j, 0], lara.strict[:, j, 1]
        routed = [np.where(chosen[p][:, j], full, rag).mean() for p in PREFERENCES]
        cells = [full.mean(), rag.mean(), *routed, np.maximum(full, rag).mean()]
        lines.append(f"| {profile.name} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |")
    means = {name: np.mean([row[name] for row in held_out.values()]) for name in next(iter(held_out.values()))}
    lines += [
        "",
        "## A model never seen",
        "",
        "Everything learned from the other twelve; its tier is all that is known of it.",
        "",
        f"| | {' | '.join(means)} |",
        "|---|" + "---:|" * len(means),
        *(f"| {m} | {' | '.join(f'{v:.1f}' for v in row.values())} |" for m, row in held_out.items()),
        f"| **mean** | {' | '.join(f'{v:.1f}' for v in means.values())} |",
        "",
        "## Calibration",
        "",
        "Between documents: standard deviation of the share right, beyond chance, not explained by the prediction.",
        "",
        "| | ECE | Brier | Brier of the mean | between documents |",
        "|---|---:|---:|---:|---:|",
    ]
    for s, strategy in enumerate(("full", "rag")):
        p, y = quality["learned"][:, :, s].ravel(), lara.strict[:, :, s].ravel()
        lines.append(
            f"| {strategy} | {expected_calibration_error(p, y):.3f} | {((p - y) ** 2).mean():.3f} | {y.var():.3f} | "
            f"{between_documents(lara, quality['learned'][:, :, s], lara.strict[:, :, s]):.3f} |"
        )
    where = measured_on("numpy", "scikit-learn")
    lines += [
        "",
        f"`{where['command']}`, {time.perf_counter() - started:.0f} s. {where['processor']}; {where['versions']}; "
        f"commit {where['commit']}.",
        "",
    ]
    print("\n".join(lines))
    RESULTS.with_suffix(".md").write_text("\n".join(lines))
    numbers = {name: {"quality": float(values.mean()), "tokens": share} for name, values, share in rows}
    RESULTS.with_suffix(".json").write_text(
        json.dumps({"measured_on": where, "rows": numbers, "left_out": held_out}, indent=1) + "\n"
    )


def at_tokens(lara: Lara, quality: Floats) -> list[float]:
    prices = np.linspace(-0.3, 0.6, 91)
    points = [results(lara, route(lara, quality, float(price))) for price in prices]
    shares = np.array([share for _, share in points])
    values = np.array([100 * values.mean() for values, _ in points])
    order = np.argsort(shares)
    at: list[float] = np.interp([0.10, 0.15, 0.20, 0.25, 0.35, 0.50], shares[order], values[order]).tolist()
    return at


def between_documents(lara: Lara, predicted: Floats, right: Floats) -> float:
    """Standard deviation over documents of a model's mean residual, less what sampling alone would leave."""
    excess, weights = [], []
    for name in np.unique(lara.groups):
        rows = lara.groups == name
        chance = (predicted[rows] * (1 - predicted[rows])).mean(axis=0) / rows.sum()
        excess.append(((right[rows] - predicted[rows]).mean(axis=0) ** 2 - chance).mean())
        weights.append(rows.sum())
    return float(np.sqrt(max(np.average(excess, weights=weights), 0.0)))


def expected_calibration_error(predicted: Floats, right: Floats, bins: int = 15) -> float:
    of = np.minimum((predicted * bins).astype(int), bins - 1)
    return float(
        sum(
            (of == b).mean() * abs(predicted[of == b].mean() - right[of == b].mean())
            for b in range(bins)
            if (of == b).any()
        )
    )


if __name__ == "__main__":
    main()
