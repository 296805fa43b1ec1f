"""Does what was learned on LaRA carry over to conversations, and how soon does a fit to one's own outcomes help?

    python -m benchmarks.locomo_transfer

LoCoMo: 1,347 questions on long conversations, gpt-4o-mini, whole conversation (full) against 30 retrieved observations
(rag), judged by an LLM. The policy comes from LaRA alone; then it is adapted to n questions of some conversations and
measured on the others, over 20 random divisions. At equal tokens: the score at a share of always-full's input tokens,
along the price of tokens, against the random mix of the two strategies that reads as much. Writes
results/locomo_transfer.md.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longroute.policies.learned import Learned, LearnedWeights, shipped
from longroute.router.calibration.evaluate import cells
from longroute.router.calibration.fit import adapt
from longroute.router.calibration.outcomes import Outcome
from longroute.router.calibration.published import read_published
from longroute.router.models import profile_of
from longroute.router.settings import load_settings

from .data import data_directory
from .machine import measured_on

RESULTS = Path(__file__).parent / "results" / "locomo_transfer.md"
STRATEGIES = {"long_context": "full", "rag_observation_pgvector": "rag"}
SIZES = (0, 30, 100, 300, 600)
DIVISIONS = 20
PRICES = np.linspace(-0.6, 1.2, 181)
Floats = npt.NDArray[np.float64]
Case = tuple[Outcome, Outcome]  # full, rag


def predicted(weights: LearnedWeights, cases: list[Case]) -> Floats:
    """P(correct), shape (n, 2)."""
    policy = Learned(weights)
    result = np.zeros((len(cases), 2))
    for row, (full, rag) in enumerate(cases):
        for column, outcome in enumerate((full, rag)):
            belief = policy.quality(outcome.features, profile_of(outcome.model), outcome.strategy)
            assert belief is not None
            result[row, column] = belief.mean
    return result


def arrays(cases: list[Case]) -> tuple[Floats, Floats]:
    """Scores and input tokens, shape (n, 2) each."""
    scores = np.array([[outcome.score for outcome in case] for case in cases])
    tokens = np.array([[float(outcome.prompt_tokens) for outcome in case] for case in cases])
    return scores, tokens


def gain_over_mix(quality: Floats, scores: Floats, tokens: Floats, price: float) -> tuple[float, float, float]:
    """Score and token share at one price, and the score over the random mix of full and rag with those tokens."""
    unit = tokens[:, 0].mean()
    full = quality[:, 0] - price * tokens[:, 0] / unit > quality[:, 1] - price * tokens[:, 1] / unit
    score = float(np.where(full, scores[:, 0], scores[:, 1]).mean())
    used = float(np.where(full, tokens[:, 0], tokens[:, 1]).mean())
    low, high = tokens[:, 1].mean(), tokens[:, 0].mean()
    share = (used - low) / (high - low)
    mix = share * scores[:, 0].mean() + (1 - share) * scores[:, 1].mean()
    return score, used / high, score - float(mix)


def best_gain(quality: Floats, scores: Floats, tokens: Floats) -> list[float]:
    """Gain over the mix at 25, 50 and 75 % of always-full's tokens, interpolated along the price."""
    points = sorted((share, gain) for _, share, gain in (gain_over_mix(quality, scores, tokens, p) for p in PRICES))
    shares, gains = np.array(points).T
    at: list[float] = np.interp([0.25, 0.5, 0.75], shares, gains).tolist()
    return at


def main() -> None:
    data = data_directory()
    if data is None:
        raise SystemExit("The set `locomo` is not here. Set LONGROUTE_DATA to the folder that holds it.")
    started = time.perf_counter()
    imported = read_published(data / "locomo", load_settings(cache=False), strategies=STRATEGIES)
    cases = [(cell["full"], cell["rag"]) for cell in cells(imported.outcomes).values() if len(cell) == 2]
    scores, tokens = arrays(cases)
    groups = np.array([full.group for full, _ in cases])
    names = np.unique(groups)
    tasks = np.array([full.task for full, _ in cases])
    transferred = predicted(shipped(), cases)

    lines = [
        "# From LaRA to conversations",
        "",
        f"{len(cases):,} questions, {len(names)} conversations. Always full {100 * scores[:, 0].mean():.1f}, always "
        f"rag {100 * scores[:, 1].mean():.1f} at {tokens[:, 1].mean() / tokens[:, 0].mean():.0%} of the tokens, oracle "
        f"{100 * scores.max(axis=1).mean():.1f}.",
        "",
        "| task | questions | full | rag |",
        "|---|---:|---:|---:|",
    ]
    for task in np.unique(tasks):
        of = tasks == task
        lines.append(f"| {task} | {of.sum()} | {100 * scores[of, 0].mean():.1f} | {100 * scores[of, 1].mean():.1f} |")
    lines += [
        "",
        "Points over the random mix with equal tokens, on conversations that the fit did not see; mean and standard "
        f"deviation over {DIVISIONS} divisions. 0 is LaRA alone.",
        "",
        "| questions fitted to | at 25 % of full's tokens | at 50 % | at 75 % | score of the better estimate |",
        "|---:|---:|---:|---:|---:|",
    ]
    rng = np.random.default_rng(0)
    gains: dict[int, list[list[float]]] = {size: [] for size in SIZES}
    picked: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(DIVISIONS):
        learning = rng.choice(names, len(names) // 2, replace=False)
        pool, test = np.flatnonzero(np.isin(groups, learning)), np.flatnonzero(~np.isin(groups, learning))
        order = rng.permutation(pool)
        for size in SIZES:
            rows = [outcome for i in order[:size] for outcome in cases[i]]
            weights = adapt(shipped(), rows, profile_of, trained={})[0] if rows else shipped()
            quality = predicted(weights, [cases[i] for i in test]) if rows else transferred[test]
            gains[size].append(best_gain(quality, scores[test], tokens[test]))
            picked[size].append(float(scores[test][np.arange(len(test)), quality.argmax(axis=1)].mean()))
    for size in SIZES:
        mean, spread = np.mean(gains[size], axis=0), np.std(gains[size], axis=0)
        cells_ = " | ".join(f"{100 * m:+.1f} ± {100 * s:.1f}" for m, s in zip(mean, spread, strict=True))
        lines.append(f"| {size} | {cells_} | {100 * np.mean(picked[size]):.1f} |")
    where = measured_on("numpy")
    lines += [
        "",
        "The general question classifier was trained on questions of LoCoMo among others (not on outcomes).",
        "",
        f"`{where['command']}`, {time.perf_counter() - started:.0f} s. {where['processor']}; {where['versions']}; "
        f"commit {where['commit']}.",
        "",
    ]
    print("\n".join(lines))
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
