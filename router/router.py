"""Features → decision → plan → answer: the router made of ready parts. `assemble.py` makes one from settings."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Protocol, TypedDict, Unpack, get_args

from .core import (
    Answer,
    Backend,
    Call,
    Decision,
    Document,
    Estimate,
    EvidenceSource,
    Features,
    Footprint,
    Goal,
    ModelProfile,
    Plan,
    Policy,
    Prefer,
    Reply,
    Request,
    Strategy,
    TokenCounter,
    Usage,
)
from .costs import PromptCacheLedger, charge, estimate, no_gain
from .errors import ConfigError, ContextTooLong, DocumentError
from .features import extract
from .run import Listener, arun, astream, run, stream

Documents = str | Document | Sequence[str | Document]

SHOW_EVERYTHING = ("full", "speculative")
"""Strategies of one call that shows the documents whole, question last: prompt caches then hold that prefix."""


class Options(TypedDict, total=False):
    """What a request may say beyond question and documents. What it does not say comes from the settings."""

    model: str
    allowed: Sequence[str]  # strategies that may be chosen; empty means all
    prefer: Prefer
    max_cost_usd: Decimal | float | None
    max_latency_s: float | None
    min_quality: float | None
    instructions: str  # the application's own system text
    max_output_tokens: int
    prefix_key: str  # see Request


class Recorder(Protocol):
    """Keeps how right an answer was, for calibration. Raises RouterError where it cannot."""

    def __call__(self, answer: Answer, score: float, *, case_id: str, task: str, group: str) -> None: ...


class BaseRouter:
    """Routes questions about documents.

    strategies: by name; what a request may be answered with.
    profile_of, counter_of: what is known about a model, and how its tokens are counted.
    evidence: cheap look at how findable an answer is; None where there is no such look.
    defaults: what holds for requests that do not say otherwise.
    record_outcome: where `record` leaves its outcomes; None where nothing is kept.

    Every method takes the question, the documents (texts or Documents) and, by keyword, the fields of `Options`. All
    raise ConfigError, DocumentError, ContextTooLong or NoFeasibleStrategy before anything is sent, and the answering
    ones BackendError when the model fails.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        strategies: Mapping[str, Strategy],
        policy: Policy,
        profile_of: Callable[[str], ModelProfile],
        counter_of: Callable[[ModelProfile], TokenCounter],
        evidence: EvidenceSource | None,
        defaults: Request,
        record_outcome: Recorder | None = None,
    ) -> None:
        self._backend = _Priced(backend, profile_of)
        self._strategies = dict(strategies)
        self._policy = policy
        self._profile_of = profile_of
        self._counter_of = counter_of
        self._evidence = evidence
        self._defaults = defaults
        self._record_outcome = record_outcome
        self._prompt_caches = PromptCacheLedger()
        self._token_counts = _TokenCounts()

    # ---- the ways to ask ---------------------------------------------------------------------------------------------

    def decide(self, question: str, documents: Documents, **options: Unpack[Options]) -> Decision:
        """Which strategy, why, and what the others would bring. Sends nothing and embeds nothing."""
        return self._decide(self._request(question, documents, options))

    def answer(
        self, question: str, documents: Documents, *, listener: Listener | None = None, **options: Unpack[Options]
    ) -> Answer:
        """Decide, carry out, answer. Blocks until the answer is complete.

        listener: told of every model call and what became of it, as it ends; here and in the three below.
        """
        request, decision = self.prepare(question, documents, **options)
        return self._learn(request, run(self.plan(request, decision), self._backend, listener))

    async def aanswer(
        self, question: str, documents: Documents, *, listener: Listener | None = None, **options: Unpack[Options]
    ) -> Answer:
        """`answer` for asynchronous callers. Cancelling it cancels every outstanding model call."""
        request, decision = await asyncio.to_thread(partial(self.prepare, question, documents, **options))
        return self._learn(request, await arun(self.plan(request, decision), self._backend, listener))

    def stream(
        self, question: str, documents: Documents, *, listener: Listener | None = None, **options: Unpack[Options]
    ) -> Generator[str | Answer, None, None]:
        """Pieces of the answer's text as they come, then the whole Answer, once, last."""
        request, decision = self.prepare(question, documents, **options)
        with closing(stream(self.plan(request, decision), self._backend, listener)) as pieces:
            for piece in pieces:
                yield piece if isinstance(piece, str) else self._learn(request, piece)

    def record(self, answer: Answer, score: float, *, case_id: str = "", task: str = "", group: str = "") -> None:
        """Keep how right an answer of this router was, in [0, 1], for fitting the policy and for the check of drift.

        case_id: names the question; a new one if empty. task: the true question type, where it is known.
        group: what questions about the same documents share; the case alone if empty.
        Of question, documents and answer no text is kept. May be called from several threads and processes.
        """
        if self._record_outcome is None:
            raise ConfigError("There is nowhere to record outcomes. Name a file for them in the setting outcomes_file.")
        if not 0 <= score <= 1:
            raise ConfigError(f"score = {score!r}; it must lie between 0 (wrong) and 1 (right).")
        if answer.decision is None:
            raise ConfigError(
                "This answer carries no decision to learn from. Record answers as a router returned them."
            )
        case_id = case_id or uuid.uuid4().hex
        self._record_outcome(answer, score, case_id=case_id, task=task, group=group or case_id)

    async def aclose(self) -> None:
        """Release the backend's connections. The router can be used again afterwards."""
        await self._backend.aclose()

    async def astream(
        self, question: str, documents: Documents, *, listener: Listener | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[str | Answer, None]:
        """`stream` for asynchronous callers."""
        request, decision = await asyncio.to_thread(partial(self.prepare, question, documents, **options))
        async with aclosing(astream(self.plan(request, decision), self._backend, listener)) as pieces:
            async for piece in pieces:
                yield piece if isinstance(piece, str) else self._learn(request, piece)

    # ---- the same in steps, for callers that send the calls themselves -----------------------------------------------

    def prepare(self, question: str, documents: Documents, **options: Unpack[Options]) -> tuple[Request, Decision]:
        """`decide`, with the checked request that belongs to the decision."""
        request = self._request(question, documents, options)
        return request, self._decide(request)

    def plan(self, request: Request, decision: Decision) -> Plan:
        """The decided strategy's plan; where the server says that the text does not fit after all, a smaller one's."""
        try:
            answer = yield from self._strategies[decision.strategy].plan(request, decision.features)
            return replace(answer, strategy=decision.strategy, decision=decision)
        except ContextTooLong as error:
            rescue = smaller(decision)
            if rescue is None:
                raise
            answer = yield from self._strategies[rescue].plan(request, decision.features)
            note = f"{decision.strategy} did not fit after all, so {rescue} answered. The server said: {error}"
            return replace(answer, strategy=rescue, decision=decision, notes=(note, *answer.notes))

    def sent_in_full(self, request: Request, usage: Usage) -> None:
        """Remember what is now in the provider's prompt cache: `full` leaves its whole prefix there."""
        if usage.prompt_tokens:
            profile = self._profile_of(request.model)
            self._prompt_caches.sent(profile, _prefix_key(request), usage.prompt_tokens, usage.cached_tokens)

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of what a request may be answered with."""
        return tuple(self._strategies)

    def count_tokens(self, text: str, model: str) -> int:
        """Tokens of a text as the model would count them, as exactly as is known (see `router/tokens.py`)."""
        profile = self._profile_of(model)
        return self._token_counts.count(profile.tokenizer, self._counter_of(profile), text)

    def profile_of(self, model: str) -> ModelProfile:
        """What is known about a model."""
        return self._profile_of(model)

    # ---- each arrow, one function ------------------------------------------------------------------------------------

    def _request(self, question: str, documents: Documents, options: Options) -> Request:
        """Check what came in and fill in what it does not say."""
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise TypeError(f"Unknown option {', '.join(unknown)}. Known: {', '.join(Options.__annotations__)}.")
        if not isinstance(question, str):
            raise TypeError(f"The question is a text, not {type(question).__name__}.")
        if not question.strip():
            raise ConfigError("The question is empty. Say what the documents should be asked.")
        goal = self._defaults.goal
        max_cost = options.get("max_cost_usd", goal.max_cost_usd)
        request = replace(
            self._defaults,
            question=question,
            documents=_named(documents),
            model=options.get("model", self._defaults.model),
            allowed=tuple(options.get("allowed", self._defaults.allowed)),
            instructions=options.get("instructions", self._defaults.instructions),
            max_output_tokens=options.get("max_output_tokens", self._defaults.max_output_tokens),
            prefix_key=options.get("prefix_key", ""),
            goal=Goal(
                prefer=options.get("prefer", goal.prefer),
                max_cost_usd=None if max_cost is None else Decimal(str(max_cost)),
                max_latency_s=options.get("max_latency_s", goal.max_latency_s),
                min_quality=options.get("min_quality", goal.min_quality),
            ),
        )
        if request.goal.prefer not in get_args(Prefer):
            raise ConfigError(f"prefer = {request.goal.prefer!r}; use one of {', '.join(get_args(Prefer))}.")
        for limit in ("max_cost_usd", "max_latency_s", "min_quality"):
            value = getattr(request.goal, limit)
            if value is not None and math.isnan(value):
                raise ConfigError(f"{limit} = {value}; it must be a number.")
        if unknown := sorted(set(request.allowed) - self._strategies.keys()):
            raise ConfigError(f"Unknown strategy {', '.join(unknown)}. Known: {', '.join(self._strategies)}.")
        if request.max_output_tokens < 1:
            raise ConfigError(f"max_output_tokens = {request.max_output_tokens}; it must be at least 1.")
        return request

    def _decide(self, request: Request) -> Decision:
        profile = self._profile_of(request.model)
        counter = self._counter_of(profile)
        features = extract(
            request,
            profile,
            counter,
            self._evidence.evidence(request.question, request.documents) if self._evidence else None,
            self._prompt_caches.warm_tokens(profile, _prefix_key(request)),
            lambda text: self._token_counts.count(profile.tokenizer, counter, text),
        )
        footprints = {
            name: strategy.footprint(features, profile)
            for name, strategy in self._strategies.items()
            if name == "full" or not request.allowed or name in request.allowed
        }
        options = [
            self._estimated(name, footprints, features, request, profile)
            for name in footprints
            if not request.allowed or name in request.allowed
        ]
        return self._policy.decide(features, profile, options, request.goal)

    def _estimated(
        self,
        name: str,
        footprints: Mapping[str, Footprint],
        features: Features,
        request: Request,
        profile: ModelProfile,
    ) -> Estimate:
        def sized(footprint: Footprint) -> Estimate:
            return estimate(
                name,
                footprint,
                profile,
                max_output_tokens=request.max_output_tokens,
                token_error=features.token_error,
            )

        option, full = sized(footprints[name]), footprints.get("full")
        if option.feasible and footprints[name].stands_in and full is not None and request.allowed != (name,):
            return replace(option, infeasible=no_gain(footprints[name], full, profile) if sized(full).feasible else "")
        return option

    def _learn(self, request: Request, answer: Answer) -> Answer:
        if answer.strategy in SHOW_EVERYTHING and answer.calls:
            self.sent_in_full(request, answer.calls[-1].usage)
        return answer


def smaller(decision: Decision) -> str | None:
    """The best feasible strategy that reads less than the decided one; None where there is none."""
    options = [
        option
        for option in decision.estimates
        if option.feasible and option.prompt_tokens < decision.estimate.prompt_tokens
    ]
    return max(options, key=lambda option: (option.utility or 0.0, option.prompt_tokens)).strategy if options else None


def _named(documents: Documents) -> tuple[Document, ...]:
    """Documents with an id each. Raises DocumentError where there is no text, or two have the same id."""
    given: list[str | Document] = []
    if isinstance(documents, Iterable) and not isinstance(documents, str):
        given += documents
    else:
        given.append(documents)
    if wrong := [item for item in given if not isinstance(item, str | Document)]:
        raise TypeError(f"Documents are texts, or longroute's Documents, one or several, not {type(wrong[0]).__name__}")
    named = tuple(
        replace(document, id=document.id or f"document-{number}")
        for number, document in enumerate(
            (item if isinstance(item, Document) else Document(item) for item in given), start=1
        )
    )
    if not any(document.text.strip() for document in named):
        raise DocumentError(f"There is no text to answer from in {len(named)} document(s). Pass at least one text.")
    seen: set[str] = set()
    for document in named:
        if document.id in seen:
            raise DocumentError(f"Two documents have the id {document.id!r}. Citations need different ids.")
        seen.add(document.id)
    return named


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _prefix_key(request: Request) -> str:
    """Names everything that comes before the question in the prompt of `full`."""
    if request.prefix_key:
        return request.prefix_key
    parts = (request.instructions, *(part for d in request.documents for part in (d.id, d.text)))
    return _digest(" ".join(map(_digest, parts)))


class _Priced:
    """A backend that puts the price on every reply's usage."""

    def __init__(self, backend: Backend, profile_of: Callable[[str], ModelProfile]) -> None:
        self._backend = backend
        self._profile_of = profile_of

    async def generate(self, call: Call) -> Reply:
        return self._priced(await self._backend.generate(call), call)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        async with aclosing(self._backend.stream(call)) as pieces:
            async for piece in pieces:
                yield piece if isinstance(piece, str) else self._priced(piece, call)

    async def aclose(self) -> None:
        await self._backend.aclose()

    def _priced(self, reply: Reply, call: Call) -> Reply:
        return replace(reply, usage=charge(reply.usage, self._profile_of(call.model)))


class _TokenCounts:
    """Token counts of recent texts, by content. Counting a long text costs more than the rest of a decision."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, tokenizer: str, counter: TokenCounter, text: str) -> int:
        key = (tokenizer, _digest(text))
        with self._lock:
            if key in self._counts:
                self._counts.move_to_end(key)
                return self._counts[key]
        count = counter.count(text)
        with self._lock:
            self._counts[key] = count
            while len(self._counts) > self._limit:
                self._counts.popitem(last=False)
        return count
