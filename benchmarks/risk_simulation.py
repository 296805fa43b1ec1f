"""Do the guarantees of `router/calibration/risk.py` hold, and what do they cost? By resampling LaRA's outcomes.

    python -m benchmarks.risk_simulation

The population is every case × model of LaRA's development part with its judged answers by `full` and `rag`, so the true
mean loss of every threshold is known. Calibration sets are drawn from it with replacement, a threshold is chosen on
each, and its true loss is held against epsilon: a violation is a true loss over epsilon, and at most delta of the sets
may have one. The qualities are predicted by gradient-boosted trees that did not see the document; how good they are
decides the share of tokens and nothing else.
Writes results/risk_simulation.{md,json}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from longroute.policies.risk_controlled import Loss
from longroute.router.calibration.risk import THRESHOLDS, betting_p_value, binomial_p_value, hoeffding_bentkus_p_value
from longroute.router.question_type import question_type

from .data import data_directory, records
from .machine import measured_on

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

RESULTS = Path(__file__).parent / "results" / "risk_simulation"
DRAWS = 2000
SIZES = (200, 1000, 4000)
EPSILONS = (0.01, 0.02, 0.05)
RAG_TOKENS = 3_300
WINDOW = 128_000  # LaRA cut longer texts to its models' window
REPEATS = 20  # requests drawn together where draws are not independent
TESTS = {"binomial": binomial_p_value, "Hoeffding-Bentkus": hoeffding_bentkus_p_value}


@dataclass(frozen=True, slots=True)
class Population:
    """Arrays of shape (n_pairs,), one pair per case × model; qualities are 0 or 1, or the judge's probabilities."""

    predicted_gap: Floats  # of full over rag
    full: Floats
    rag: Floats
    full_soft: Floats
    rag_soft: Floats
    tokens: Floats  # what full reads
    document: Integers
    model: Integers

    def where_full_is_better(self) -> Population:
        """Only the models that lose something on average when everything goes to rag: there epsilon bites."""
        wins = np.bincount(self.model, self.full - self.rag) > 0
        kept = wins[self.model]
        documents = np.unique(self.document[kept], return_inverse=True)[1]
        arrays = {field.name: getattr(self, field.name)[kept] for field in fields(self)}
        return Population(**{**arrays, "document": documents})

    def differences(self, *, soft: bool = False) -> Floats:
        """Quality of full minus quality of the route, shape (n_pairs, n_thresholds)."""
        lost = self.full_soft - self.rag_soft if soft else self.full - self.rag
        return np.where(self._routed, lost[:, None], 0.0)

    @property
    def token_shares(self) -> Floats:
        """Input tokens against always-full, shape (n_thresholds,)."""
        read = np.where(self._routed, np.minimum(RAG_TOKENS, self.tokens)[:, None], self.tokens[:, None])
        return np.asarray(read.sum(axis=0) / self.tokens.sum())

    @property
    def _routed(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.predicted_gap[:, None] <= np.array(THRESHOLDS))


@dataclass(frozen=True, slots=True)
class Experiment:
    """One way to calibrate. models: `all`, or `losing` for those where full is better; delta: None without one."""

    title: str
    test: str = "betting"
    loss: Loss = "difference"
    delta: float | None = 0.1
    models: Literal["all", "losing"] = "losing"
    soft: bool = False
    drawn: Literal["independent", "by document", "copied"] = "independent"
    per: int = 1  # so many neighbouring draws make one unit
    sizes: tuple[int, ...] = SIZES


EXPERIMENTS = (
    Experiment("difference (the default)"),
    Experiment("difference, δ = 0.05", delta=0.05, sizes=SIZES[:2]),
    Experiment("difference, Hoeffding-Bentkus for betting", "Hoeffding-Bentkus"),
    Experiment("difference, scores are probabilities", soft=True, sizes=SIZES[:2]),
    Experiment("difference, all 13 models", models="all", sizes=SIZES[:2]),
    Experiment("shortfall, binomial", "binomial", "shortfall"),
    Experiment("shortfall, conformal risk control", "conformal", "shortfall", delta=None),
    Experiment("difference, 20 requests a document, taken for independent", drawn="by document", sizes=SIZES[:2]),
    Experiment("difference, 20 requests a document, documents as units", drawn="by document", per=REPEATS),
    Experiment("difference, each request 20 times, taken for independent", drawn="copied", sizes=SIZES[:2]),
    Experiment("difference, each request 20 times, requests as units", drawn="copied", per=REPEATS),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What 2,000 calibrations of one experiment came to; losses are true ones, always-full where none was safe."""

    title: str
    n: int
    epsilon: float
    delta: float | None
    violations: float
    token_share: float
    none_safe: float
    mean_loss: float


# ---- the population --------------------------------------------------------------------------------------------------


def population(data: Path) -> Population:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import GroupKFold, cross_val_predict

    cases = {row["case_id"]: row for row in records(data / "lara" / "cases.jsonl.gz")}
    lengths = {row["doc_id"]: row["tokens_cl100k"] for row in records(data / "lara" / "documents.jsonl.gz")}
    judged = {(j["case_id"], j["model"], j["method"]): j for j in records(data / "lara" / "judgments.jsonl.gz")}
    pairs = sorted({(case, model) for case, model, _ in judged})
    tokens = np.array([float(min(lengths[cases[case]["doc_id"]], WINDOW)) for case, _ in pairs])
    groups = np.unique([cases[case]["doc_group"] for case, _ in pairs], return_inverse=True)[1]
    models = np.unique([model for _, model in pairs], return_inverse=True)[1]
    types = {case: list(question_type(row["question"]).values()) for case, row in cases.items()}
    features = np.column_stack([models, np.log2(tokens), [types[case] for case, _ in pairs]])

    def scores(method: str, field: str) -> Floats:
        return np.array([float(judged[case, model, method][field]) for case, model in pairs])

    trees = HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=100, random_state=0)
    soft = {method: scores(method, "p_strict") for method in ("lc", "rag")}
    gap = cross_val_predict(trees, features, soft["lc"] - soft["rag"], groups=groups, cv=GroupKFold(5))
    hard = {method: scores(method, "strict") for method in soft}
    return Population(gap, hard["lc"], hard["rag"], soft["lc"], soft["rag"], tokens, groups, models)


# ---- the simulation --------------------------------------------------------------------------------------------------


def independent(people: Population, n: int, random: np.random.Generator) -> Integers:
    """Shape (DRAWS, n): requests drawn one by one."""
    return random.integers(len(people.full), size=(DRAWS, n))


def by_document(people: Population, n: int, random: np.random.Generator) -> Integers:
    """The same, but documents are drawn one by one, and REPEATS requests of each; neighbours share a document."""
    members = np.argsort(people.document, kind="stable")
    sizes = np.bincount(people.document)
    starts = sizes.cumsum() - sizes
    documents = np.repeat(random.integers(len(sizes), size=(DRAWS, n // REPEATS)), REPEATS, axis=1)
    return np.asarray(members[starts[documents] + (random.random(documents.shape) * sizes[documents]).astype(int)])


def copied(people: Population, n: int, random: np.random.Generator) -> Integers:
    """The same, but each request comes REPEATS times, as where people ask one thing in many wordings."""
    return np.repeat(independent(people, n // REPEATS, random), REPEATS, axis=1)


def chosen(losses: Floats, draws: Integers, epsilon: float, delta: float, test: str, per: int = 1) -> Integers:
    """Column chosen by each calibration set, -1 where none is safe; shape (DRAWS,).

    The same sequence of tests as `learn_then_test`, many sets at once. losses: shape (n_pairs, n_thresholds), in
    [0, 1]; per: so many neighbouring draws are averaged into one before the test.
    """
    columns = np.full(len(draws), -1)
    active = np.arange(len(draws))
    for column in range(losses.shape[1]):
        if column == 0 or (losses[:, column] != losses[:, column - 1]).any():
            values = losses[draws[active], column].reshape(len(active), draws.shape[1] // per, per).mean(axis=2)
            active = active[p_values(values, epsilon, delta, test) <= delta]
        columns[active] = column
    return columns


def p_values(losses: Floats, epsilon: float, delta: float, test: str) -> Floats:
    """One per row."""
    n = losses.shape[1]
    if test in TESTS:
        return TESTS[test](losses.mean(axis=1), n, epsilon)
    step = max(1, 400_000 // n)  # pieces that stay in the processor's cache
    pieces = [betting_p_value(losses[i : i + step], epsilon, delta) for i in range(0, len(losses), step)]
    return np.concatenate([np.empty(0), *pieces])


def conformal(losses: Floats, draws: Integers, epsilon: float) -> Integers:
    """Column chosen by conformal risk control on each set."""
    n = draws.shape[1]
    safe = [(losses[draws, column].sum(axis=1) + 1) / (n + 1) <= epsilon for column in range(losses.shape[1])]
    return np.asarray(np.sum(safe, axis=0) - 1)  # losses grow along the columns, so the safe ones come first


def measure(people: Population, experiment: Experiment, n: int) -> Iterator[Row]:
    """One row for each epsilon. Where documents are drawn, each counts the same in the true loss."""
    differences = people.differences(soft=experiment.soft)
    losses = np.maximum(differences, 0.0) if experiment.loss == "shortfall" else differences
    sizes = np.bincount(people.document)[people.document]
    true = np.average(losses, axis=0, weights=1 / sizes if experiment.drawn == "by document" else None)
    true, shares = np.append(true, 0.0), np.append(people.token_shares, 1.0)  # the last is always-full
    random = np.random.default_rng(n)
    draw = {"independent": independent, "by document": by_document, "copied": copied}[experiment.drawn]
    draws = draw(people, n, random)
    if experiment.per == 1:
        draws = draws[:, random.permutation(n)]  # nobody marked which belong together
    for epsilon in EPSILONS:
        if experiment.delta is None:
            columns = conformal(losses, draws, epsilon)
        elif experiment.loss == "shortfall":
            columns = chosen(losses, draws, epsilon, experiment.delta, experiment.test, experiment.per)
        else:
            halved, limit = (1 + losses) / 2, (1 + epsilon) / 2
            columns = chosen(halved, draws, limit, experiment.delta, experiment.test, experiment.per)
        yield Row(
            experiment.title,
            n,
            epsilon,
            experiment.delta,
            violations=float((true[columns] > epsilon).mean()),
            token_share=float(shares[columns].mean()),
            none_safe=float((columns < 0).mean()),
            mean_loss=float(true[columns].mean()),
        )


# ---- the report ------------------------------------------------------------------------------------------------------


def report(results: Sequence[Row], curves: Mapping[str, Population], seconds: float) -> tuple[str, dict[str, object]]:
    """The tables as Markdown and the same as JSON."""
    where = measured_on("numpy", "scipy", "scikit-learn")
    parts = [
        "# Risk control: do the guarantees hold, and what do they cost?\n",
        f"{DRAWS:,} calibration sets of n requests a cell. A cell is *violations / tokens / none safe / true loss*:\n\n"
        "- violations: percent of sets whose chosen threshold has a true mean loss over ε. At most 100 δ are promised "
        "(δ = 0.1 where the row does not say); conformal risk control promises nothing here.\n"
        "- tokens: mean input tokens, percent of always-full.\n"
        "- none safe: percent of sets on which no threshold passed, so that everything goes to `full`.\n"
        "- true loss: mean over sets, in points, as ε is. Conformal risk control promises that it is at most ε.\n",
        f"The population is {len(curves['losing'].full):,} pairs of case and model, of the models for which `full` is "
        f"better on average: for these ε bites. With all 13 models ({len(curves['all'].full):,} pairs) `rag` is better "
        "on average, and no threshold can violate anything; nor can any at ε = 5, because sending everything to `rag` "
        "loses less.\n",
        "| calibration | n | " + " | ".join(f"ε = {100 * epsilon:g}" for epsilon in EPSILONS) + " |",
        "|---|---:|" + "---:|" * len(EPSILONS),
    ]
    for start in range(0, len(results), len(EPSILONS)):
        cells = results[start : start + len(EPSILONS)]
        parts.append(f"| {cells[0].title} | {cells[0].n} | " + " | ".join(map(_cell, cells)) + " |")
    parts += [
        "\nThe truth behind the table, in points (models for which `full` is better):\n",
        "| threshold | mean difference | mean shortfall | tokens |",
        "|---:|---:|---:|---:|",
    ]
    differences, shares = curves["losing"].differences(), curves["losing"].token_shares
    parts += [
        f"| {100 * threshold:g} | {100 * differences[:, column].mean():.1f} | "
        f"{100 * np.maximum(differences[:, column], 0).mean():.1f} | {100 * shares[column]:.0f} % |"
        for column, threshold in enumerate(THRESHOLDS)
        if column % 3 == 0
    ]
    parts.append("\n" + "; ".join([*where.values(), f"{seconds:.0f} s"]) + "\n")
    return "\n".join(parts), {"rows": [asdict(row) for row in results], **where}


def _cell(row: Row) -> str:
    return (
        f"{100 * row.violations:.1f} / {100 * row.token_share:.0f} / {100 * row.none_safe:.0f} / "
        f"{100 * row.mean_loss:.2f}"
    )


def main() -> None:
    data = data_directory()
    if data is None:
        raise SystemExit("The data sets are missing: set LONGROUTE_DATA (see benchmarks/data.py).")
    started = time.perf_counter()
    everyone = population(data)
    curves = {"all": everyone, "losing": everyone.where_full_is_better()}
    results: list[Row] = []
    for experiment in EXPERIMENTS:
        for n in experiment.sizes:
            results += measure(curves[experiment.models], experiment, n)
    text, numbers = report(results, curves, time.perf_counter() - started)
    print(text)
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    RESULTS.with_suffix(".json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
