"""Answer every case with every model and strategy, score the answers, and lose nothing on the way.

Outcomes are appended to one file, a line each, and synced to disk before the next calls start; a side file
(`OUT.run.json`) says what they were made from. Whatever ends a run (a limit, Ctrl-C, SIGKILL), running it again does
what is not there yet and nothing twice. Fitting a policy to the outcomes is left to `fit.py`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..assemble import Router, make_backend, make_parts, make_retriever, make_strategies
from ..core import Backend, Call, Features, Reply, Usage
from ..costs import charge, price
from ..errors import BackendError, CalibrationError, ConfigError, MissingExtra, RouterError
from ..settings import Settings
from .dataset import Case, Dataset
from .observe import Observer
from .outcomes import Outcome, read_outcomes, to_line
from .score import judge_call, score, verdict

OF_ONE_CALL = ("full", "rag", "compressed")
"""What is run where nobody names strategies: the bill of those of several calls is several times as long."""

Key = tuple[str, str, str]  # case, model, strategy
Progress = Callable[["Summary"], None]

_HOPELESS = 10  # failures in a row, all of a kind that no other question would mend
_HOPELESS_STATUS = (401, 403, 404)  # key refused, model or address unknown
_SHAPING_SETTINGS = (
    "rag_budget_tokens",
    "speculative_context_tokens",
    "embedding_model",
    "max_output_tokens",
    "tokenizer",
    "agents",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    judge: model that scores the answers in place of the scorers; asked through the same server.
    temperature: of every call; 0 makes runs repeat as far as the server does.
    concurrency: cases under way at once.
    max_cost_usd, max_tokens: limits on all that is spent on the outcome file, earlier runs included. Nothing is sent
    that could pass them, taking each answer at its longest.
    retry_failed: do failed outcomes again instead of keeping them.
    """

    strategies: tuple[str, ...]
    models: tuple[str, ...]
    judge: str = ""
    temperature: float = 0.0
    concurrency: int = 4
    max_cost_usd: Decimal | None = None
    max_tokens: int | None = None
    retry_failed: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """How far a run has come. stopped: empty where everything is done, else why not.

    done, failed: outcomes in the file; unjudged: how many of its answers the judge left to the scorer.
    tokens, cost_usd: spent on the file so far, with the judge's of this run; an unknown cost counts as none.
    """

    total: int
    done: int = 0
    failed: int = 0
    unjudged: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    stopped: str = ""

    @property
    def left(self) -> int:
        return self.total - self.done


@dataclass(frozen=True, slots=True)
class _Job:
    case: Case
    model: str
    strategy: str
    features: Features
    largest: Usage  # what it could take at most, the answer at its longest

    @property
    def key(self) -> Key:
        return self.case.id, self.model, self.strategy


async def run(
    dataset: Dataset,
    settings: Settings,
    options: Options,
    out: Path,
    *,
    backend: Backend | None = None,
    on_progress: Progress = lambda summary: None,
) -> Summary:
    """Do what is not in `out` yet, in the order of the cases; returns how far that came.

    A call that fails is an outcome with score 0. Raises CalibrationError where `out` was made from something else,
    where a limit in dollars meets a model without a price, and where the server fails every call; ConfigError and
    MissingExtra where nothing can work.
    """
    _check(options)
    outcomes = resume(dataset, settings, options, out)
    backend = _AtTemperature(backend or make_backend(settings), options.temperature)
    try:
        return await _Run(dataset, settings, options, out, backend, outcomes, on_progress).all()
    finally:
        await backend.aclose()


def _check(options: Options) -> None:
    for name in ("strategies", "models"):
        if not getattr(options, name):
            raise CalibrationError(f"No {name} to run. Name at least one.")
    if options.concurrency < 1:
        raise CalibrationError(f"concurrency = {options.concurrency}; it must be at least 1.")


# ---- the outcome file ------------------------------------------------------------------------------------------------


def resume(dataset: Dataset, settings: Settings, options: Options, out: Path) -> list[Outcome]:
    """The outcomes that are in the file already, after mending what a kill or a full disk left behind."""
    side = header_path(out)
    made_from = header(dataset, settings, options)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(side, json.dumps(made_from, indent=2) + "\n")
        out.touch()
        return []
    try:
        before: dict[str, Any] = json.loads(side.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{out} is there, but {side.name}, which says what it was made from, cannot be read. Name another file."
        ) from error
    # What an older version did not write down is not held against its file.
    changed = [
        name for name, value in made_from.items() if name != "longroute" and name in before and before[name] != value
    ]
    if changed:
        differences = "; ".join(f"{name} was {before.get(name)!r} and is {made_from[name]!r}" for name in changed)
        raise CalibrationError(
            f"{out} was made from something else: {differences}. Name another file, or run with what it was made from."
        )
    cut_torn_line(out)
    outcomes = list(read_outcomes([out]))
    if options.retry_failed and any(outcome.status == "failed" for outcome in outcomes):
        outcomes = [outcome for outcome in outcomes if outcome.status == "ok"]
        write_whole(out, "".join(f"{to_line(outcome)}\n" for outcome in outcomes))
    return outcomes


def header_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.run.json")


def header(dataset: Dataset, settings: Settings, options: Options) -> dict[str, Any]:
    """Everything that outcomes depend on and that is not in their lines. No addresses, no keys."""
    chosen = settings.model_dump(mode="json", include=set(_SHAPING_SETTINGS))
    return {
        "longroute": version("longroute"),
        "dataset": dataset.fingerprint,
        "scorers": sorted({case.scorer for case in dataset.cases}),
        "judge": options.judge,
        "temperature": options.temperature,
        **{name: chosen[name] for name in _SHAPING_SETTINGS},
    }


def cut_torn_line(path: Path) -> None:
    """A line without its end was being written when the run died: its outcome is not one yet."""
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing: a kill leaves the file as it was."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def spent(outcomes: Iterable[Outcome]) -> tuple[int, Decimal]:
    """Tokens and dollars; an unknown cost counts as none."""
    tokens, cost = 0, Decimal(0)
    for outcome in outcomes:
        tokens += outcome.prompt_tokens + outcome.completion_tokens
        cost += Decimal(str(outcome.cost_usd or 0))
    return tokens, cost


# ---- one run ---------------------------------------------------------------------------------------------------------


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        options: Options,
        out: Path,
        backend: Backend,
        outcomes: Iterable[Outcome],
        on_progress: Progress,
    ) -> None:
        self._cases = dataset.cases
        self._options = options
        self._out = out
        self._backend = backend
        self._on_progress = on_progress
        retriever = make_retriever(settings)
        self._router = Router(settings, backend=backend, retriever=retriever)
        self._installed = make_strategies(make_parts(settings, retriever))
        self._observer = Observer(settings)
        self._models = tuple(dict.fromkeys(options.models))
        self._strategies = tuple(dict.fromkeys(options.strategies))
        if unknown := [name for name in self._strategies if name not in self._installed]:
            raise ConfigError(f"Unknown strategy {', '.join(unknown)}. Known: {', '.join(self._installed)}.")
        self._done: set[Key] = set()
        self._failures_in_a_row = 0
        self.summary = Summary(len(self._cases) * len(self._models) * len(self._strategies))
        wanted = {(case.id, model, strategy) for case, model, strategy in self._wanted()}
        for outcome in outcomes:
            self._count(outcome, Usage(), wanted=outcome.key in wanted)

    async def all(self) -> Summary:
        self._refuse_unknown_prices()
        running: dict[asyncio.Task[tuple[Outcome, Usage]], _Job] = {}
        self._on_progress(self.summary)
        jobs = self._jobs()
        job = await anext(jobs, None)
        try:
            while job or running:
                if job and len(running) < self._options.concurrency and not self._beyond(job, running.values()):
                    running[asyncio.create_task(self._outcome(job))] = job
                    job = await anext(jobs, None)
                elif running:
                    finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    self._record(task for task in running if task in finished)
                    running = {task: started for task, started in running.items() if task not in finished}
                elif job:
                    limit = self._beyond(job, ())
                    self.summary = replace(self.summary, stopped=f"the next case could pass {limit}")
                    break
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            # What was answered meanwhile has been paid for.
            self._record(task for task in running if not task.cancelled() and not task.exception())
            await jobs.aclose()
        return self.summary

    def _wanted(self) -> Iterable[tuple[Case, str, str]]:
        return (
            (case, model, strategy) for case in self._cases for model in self._models for strategy in self._strategies
        )

    async def _jobs(self) -> AsyncGenerator[_Job, None]:
        """What is still to be done, in order, each case looked at when its turn has come."""
        looked_at: tuple[str, dict[str, Features]] = "", {}
        for case, model, strategy in self._wanted():
            if (case.id, model, strategy) in self._done:
                continue
            if looked_at[0] != case.id:
                looked_at = (
                    case.id,
                    await asyncio.to_thread(self._observer.features, case.question, case.documents, self._models),
                )
            features = looked_at[1][model]
            yield _Job(case, model, strategy, features, self._largest(strategy, features, model))

    def _largest(self, strategy: str, features: Features, model: str) -> Usage:
        footprint = self._installed[strategy].footprint(features, self._observer.profile(model))
        handed_on = (footprint.calls - 1) * features.max_output_tokens  # a call's reply stands in the next one's prompt
        # What is expected counts calls by how often they are needed (Self-Route's second); here all of them are.
        prompt_tokens = max(footprint.prompt_tokens, footprint.calls * footprint.largest_prompt_tokens) + handed_on
        return Usage(
            prompt_tokens=math.ceil(prompt_tokens * (1 + features.token_error)),
            completion_tokens=footprint.calls * features.max_output_tokens,
        )

    async def _outcome(self, job: _Job) -> tuple[Outcome, Usage]:
        """What became of a job, and what its judge took."""
        started = time.perf_counter()
        outcome = Outcome(
            case_id=job.case.id,
            group=job.case.group,
            model=job.model,
            strategy=job.strategy,
            score=0.0,
            features=job.features,
            task=job.case.task,
        )
        paid: list[Usage] = []  # what went well before a failure has its price, too

        def listener(call: Call, became: Reply | RouterError) -> None:
            if isinstance(became, Reply):
                paid.append(became.usage)

        try:
            answer = await self._router.aanswer(
                job.case.question, job.case.documents, listener=listener, model=job.model, allowed=[job.strategy]
            )
        except (ConfigError, MissingExtra):
            raise
        except RouterError as error:
            self._give_up_if_hopeless(error)
            failed = replace(outcome, status="failed", error=f"{type(error).__name__}: {error}")
            return _with_usage(failed, sum(paid, Usage(cost_usd=Decimal(0)))), Usage()
        self._failures_in_a_row = 0
        latency_s = time.perf_counter() - started
        scored, note, judging = await self._scored(job.case, answer.text)
        done = replace(outcome, score=scored, latency_s=latency_s, prediction=answer.text, error=note)
        return _with_usage(done, answer.usage), judging

    async def _scored(self, case: Case, prediction: str) -> tuple[float, str, Usage]:
        """The score, what a person should know about it, and what the judge took."""
        by_scorer = score(case.scorer, prediction, case.answers)
        if not self._options.judge:
            return by_scorer, "", Usage()
        call = judge_call(case.question, case.answers, prediction, self._options.judge)
        try:
            reply = await self._backend.generate(call)
        except BackendError as error:
            return by_scorer, f"scored by {case.scorer}: the judge failed with {type(error).__name__}", Usage()
        judging = charge(reply.usage, self._observer.profile(call.model))
        said = verdict(reply.text)
        if said is None:
            return by_scorer, f"scored by {case.scorer}: the judge gave no verdict", judging
        return said, "", judging

    def _record(self, finished: Iterable[asyncio.Task[tuple[Outcome, Usage]]]) -> None:
        """Put outcomes on disk, all of these or none."""
        results = [task.result() for task in finished]
        if not results:
            return
        size_before = self._out.stat().st_size
        try:
            with self._out.open("a", encoding="utf-8") as file:
                file.write("".join(f"{to_line(outcome)}\n" for outcome, _ in results))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self._out, size_before)
            raise CalibrationError(
                f"Cannot write to {self._out}: {error.strerror}. Mend that, and run again."
            ) from error
        for outcome, judging in results:
            self._count(outcome, judging)
        self._on_progress(self.summary)

    def _count(self, outcome: Outcome, judging: Usage, *, wanted: bool = True) -> None:
        """wanted: whether this run is about the outcome; what it cost is spent in any case."""
        s = self.summary
        tokens, cost = spent([outcome])
        self._done.add(outcome.key)
        self.summary = replace(
            s,
            done=s.done + wanted,
            failed=s.failed + (wanted and outcome.status == "failed"),
            unjudged=s.unjudged + (outcome.status == "ok" and bool(outcome.error)),
            tokens=s.tokens + tokens + judging.prompt_tokens + judging.completion_tokens,
            cost_usd=s.cost_usd + cost + (judging.cost_usd or 0),
        )

    # ---- limits ------------------------------------------------------------------------------------------------------

    def _refuse_unknown_prices(self) -> None:
        if self._options.max_cost_usd is None:
            return
        for model in filter(None, (*self._models, self._options.judge)):
            if price(self._observer.profile(model), Usage(1, 0, 1)) is None:
                raise CalibrationError(
                    f"max_cost_usd needs prices, and that of {model!r} is unknown. Limit max_tokens instead, or give "
                    "its price (0 where it costs nothing) in a models_file."
                )

    def _beyond(self, job: _Job, running: Collection[_Job]) -> str:
        """The limit that sending this job could pass, with those under way at their most; empty where none."""
        options = self._options
        jobs = (job, *running)
        if options.max_tokens is not None:
            most = self.summary.tokens + sum(j.largest.prompt_tokens + j.largest.completion_tokens for j in jobs)
            if most > options.max_tokens:
                return f"max_tokens = {options.max_tokens:,}"
        if options.max_cost_usd is not None:
            costs = (charge(j.largest, self._observer.profile(j.model)).cost_usd or Decimal(0) for j in jobs)
            if self.summary.cost_usd + sum(costs) > options.max_cost_usd:
                return f"max_cost_usd = {options.max_cost_usd}"
        return ""

    def _give_up_if_hopeless(self, error: RouterError) -> None:
        """Stop filling the file with failures that say nothing about the cases."""
        alike = isinstance(error, BackendError) and (error.retryable or error.status in _HOPELESS_STATUS)
        self._failures_in_a_row = self._failures_in_a_row + 1 if alike else 0
        if self._failures_in_a_row >= _HOPELESS:
            raise CalibrationError(
                f"{_HOPELESS} calls in a row failed, the last with: {error} What was done is kept. Mend the cause and "
                "run again with --retry-failed."
            ) from error


def _with_usage(outcome: Outcome, usage: Usage) -> Outcome:
    return replace(
        outcome,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        cost_usd=None if usage.cost_usd is None else float(usage.cost_usd),
    )


class _AtTemperature(Backend):
    """A backend whose calls all have one temperature, unless they have one of their own."""

    def __init__(self, backend: Backend, temperature: float) -> None:
        self._backend = backend
        self._temperature = temperature

    async def generate(self, call: Call) -> Reply:
        return await self._backend.generate(self._set(call))

    def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        return self._backend.stream(self._set(call))

    async def aclose(self) -> None:
        await self._backend.aclose()

    def _set(self, call: Call) -> Call:
        return call if call.temperature is not None else replace(call, temperature=self._temperature)
