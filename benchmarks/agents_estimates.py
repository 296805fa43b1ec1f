"""How close are the estimates of strategies of several calls to what they turn out to take? 50 long inputs.

    python -m benchmarks.agents_estimates

Estimated before the first call by `decide`; taken: the usage that the calls report, added up. Replies come from the
scripted reader of simulated_reader.py, and tokens are counted as the router counts them for the model, so what is
measured is our arithmetic and the typical lengths in it, not the counting (benchmarks/token_estimates.py measures
that). How long replies are is a matter of the model: prompt and completion tokens are listed apart.
Writes results/agents_estimates.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longroute.router.assemble import Router
from longroute.router.core import Document
from longroute.router.settings import load_settings
from longroute.router.tokens import counter_for

from .data import Question, data_directory
from .long_inputs import SETS, facts, long_inputs
from .machine import measured_on
from .simulated_reader import SimulatedReader

RESULTS = Path(__file__).parent / "results" / "agents_estimates.md"
DOCUMENTS = 50
LENGTHS = (6_000, 12_000, 20_000, 35_000, 60_000, 90_000, 120_000, 180_000, 250_000)
MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "o3-mini", "gpt-5-mini", "claude-haiku-4-5", "gpt-3.5-turbo")
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chain_of_agents": ("chain_of_agents", {}),
    "chain_of_agents, free text": ("chain_of_agents", {"notes": "free_text"}),
    "chain_of_agents, bidirectional": ("chain_of_agents", {"variant": "bidirectional"}),
    "retrieve_then_reason": ("retrieve_then_reason", {}),
}
GOAL = 0.03


@dataclass(frozen=True, slots=True)
class Row:
    """Of one input: estimated and taken; prompt tokens, completion tokens, dollars."""

    estimated: tuple[float, float, float]
    taken: tuple[float, float, float]


def inputs() -> Iterator[tuple[Question, Sequence[Document], str]]:
    """Questions on inputs of all sets and lengths in turn, with the model each is put to."""
    data = data_directory()
    if data is None:
        raise SystemExit("The data sets are missing: set LONGROUTE_DATA (see benchmarks/data.py).")
    for number in range(DOCUMENTS):
        name, tokens = SETS[number % len(SETS)], LENGTHS[number % len(LENGTHS)]
        [pool] = long_inputs(data, name, tokens, 1, seed=number)
        yield pool.questions[0], pool.documents, MODELS[number % len(MODELS)]


def measure(name: str, asked: Sequence[tuple[Question, Sequence[Document], str]]) -> list[Row]:
    strategy, agents = STRATEGIES[name]
    settings = load_settings(policy=f"fixed:{strategy}", embedding_model="none", agents=agents)
    rows = []
    for question, documents, model in asked:
        reader = SimulatedReader(facts(question, documents))
        router = Router(settings, backend=reader)
        reader.counter = counter_for(router.profile_of(model).tokenizer)
        answer = router.answer(question.text, documents, model=model, allowed=(strategy,))
        assert answer.decision is not None
        estimate, usage = answer.decision.estimate, answer.usage
        assert estimate.cost_usd is not None
        assert usage.cost_usd is not None
        rows.append(
            Row(
                (estimate.prompt_tokens, estimate.completion_tokens, float(estimate.cost_usd)),
                (usage.prompt_tokens, usage.completion_tokens, float(usage.cost_usd)),
            )
        )
    return rows


def cells(rows: Sequence[Row]) -> str:
    """Of prompt, completion and cost: error of the sum, mean size of the errors, share of inputs within the goal."""
    estimated, taken = (np.array([getattr(row, which) for row in rows]) for which in ("estimated", "taken"))
    errors = estimated / taken - 1
    total = estimated.sum(axis=0) / taken.sum(axis=0) - 1
    within = (np.abs(errors) <= GOAL).mean(axis=0)
    return " | ".join(
        f"{100 * total[i]:+.1f} | {100 * np.abs(errors[:, i]).mean():.1f} | {100 * within[i]:.0f}" for i in range(3)
    )


def main() -> None:
    asked = list(inputs())
    tokens = [sum(counter_for(None).count(document.text) for document in documents) for _, documents, _ in asked]
    columns = [f"{of}: {what}" for of in ("prompt", "completion", "cost") for what in ("sum", "mean", "within 3 %")]
    lines = [
        "# Estimates of strategies of several calls",
        "",
        f"{DOCUMENTS} inputs of {min(tokens):,} to {max(tokens):,} tokens from {', '.join(SETS)}, put to {len(MODELS)} "
        "models. `sum`: error of the estimates added up; `mean`: mean size of the single errors; `within 3 %`: share "
        "of inputs whose error is at most that; all in percent.",
        "",
        f"| strategy | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name in STRATEGIES:
        rows = measure(name, asked)
        lines.append(f"| {name} | {cells(rows)} |")
        if name == "chain_of_agents":
            lines += [f"| ... on {name} | {cells(rows[i :: len(SETS)])} |" for i, name in enumerate(SETS)]
        print("\n".join(lines[-5:]), flush=True)
    lines += [
        "",
        "Meetings (qmsum) have far more evidence than is typical, and how long replies are is guessed: there the "
        "errors are.",
    ]
    lines += ["", "; ".join(measured_on("numpy").values()), ""]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
