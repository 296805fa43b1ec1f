"""The vocabulary: every noun that travels between the parts, as a frozen value, and the Protocols of the parts.

    Request ──features──▶ Features ──policy──▶ Decision ──strategy──▶ Plan (model calls) ──backend──▶ Answer

Nothing here does any work, and of the rest of longroute only the errors are imported. Offsets count characters (Unicode
code points) of `Document.text`, `end` exclusive. Money is in US dollars as `Decimal`; None means unknown, never free.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, Protocol

from .errors import RouterError

Prefer = Literal["quality", "balanced", "cheap"]
Task = Literal["lookup", "reasoning", "comparison", "aggregation", "summary", "unanswerable", "code"]
Tier = Literal["small", "medium", "large", "weak_long_context", "extractive", "unknown"]
Kind = Literal["text", "markdown", "html", "code", "pdf", "docx"]
Role = Literal["system", "user", "assistant"]

TASKS: tuple[Task, ...] = (
    "lookup",
    "reasoning",
    "comparison",
    "aggregation",
    "summary",
    "unanswerable",
    "code",
)


# ---- what comes in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """One text to answer from.

    id: shown in citations and unique within a request; empty means the router names it (`document-1`, ...).
    page_starts: offset of the first character of each page, where the source has pages; else empty.
    speaker, time: who said it and when, where the document is one turn of a conversation; consecutive turns belong
    together. Neither is part of `text`.
    """

    text: str
    id: str = ""
    kind: Kind = "text"
    page_starts: tuple[int, ...] = ()
    speaker: str = ""
    time: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """What to optimise. `prefer` sets the price of cost and latency in quality; the limits are hard and override it."""

    prefer: Prefer = "balanced"
    max_cost_usd: Decimal | None = None
    max_latency_s: float | None = None
    min_quality: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A question about documents, addressed to a model.

    allowed: strategy names that may be chosen; empty means all that are installed.
    instructions: the application's own system text; passed on untouched.
    prefix_key: names everything up to the question in a prompt of the caller's own, for what is known of prompt caches;
    empty where the prompt is ours.
    """

    question: str
    documents: tuple[Document, ...]
    model: str
    goal: Goal = Goal()
    allowed: tuple[str, ...] = ()
    instructions: str = ""
    max_output_tokens: int = 1024
    prefix_key: str = ""


# ---- what is known about the model -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Published facts about a model, from dated data. Prices are dollars per million tokens; None means unknown.

    cache_write_usd_per_mtok: of what a provider is asked to cache; None means the price of input.
    long_prompt_tokens: a call with a longer prompt is billed at the `long` prices, all of it; None if length does not
    matter.
    cache_min_tokens, cache_ttl_s: shortest prefix the provider caches, and for how long after its last use.
    prefill_tokens_per_s, decode_tokens_per_s, overhead_s: a latency model; None means unknown.
    speculates: whether its server decodes speculatively with a draft of ours (`Call.draft`).
    speculative_speedup: by how many times it then decodes faster, measured or predicted; None means unknown.
    tokenizer: name of the counting rule (`o200k`, `cl100k`, `claude`, ...) used by `router/tokens.py`.
    """

    name: str
    context_window: int
    max_output_tokens: int | None = None
    tier: Tier = "unknown"
    input_usd_per_mtok: Decimal | None = None
    cached_input_usd_per_mtok: Decimal | None = None
    cache_write_usd_per_mtok: Decimal | None = None
    output_usd_per_mtok: Decimal | None = None
    long_prompt_tokens: int | None = None
    long_input_usd_per_mtok: Decimal | None = None
    long_cached_input_usd_per_mtok: Decimal | None = None
    long_cache_write_usd_per_mtok: Decimal | None = None
    long_output_usd_per_mtok: Decimal | None = None
    cache_min_tokens: int | None = None
    cache_ttl_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    overhead_s: float | None = None
    speculates: bool = False
    speculative_speedup: float | None = None
    tokenizer: str = "default"
    as_of: str = ""
    source: str = ""


# ---- what a policy sees ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """What BM25 alone says about how findable the answer is. All from one pass over the chunks; no embedding.

    coverage: share of the question's distinct content terms that occur anywhere in the documents, idf-weighted, [0, 1].
    top_coverage: the same within the best chunk, [0, 1].
    top_score: BM25 score of the best chunk, >= 0.
    margin: (best - second) / best score, [0, 1].
    entropy: entropy of the softmax over the top 20 scores divided by log(their number), [0, 1]; 1 = no preference.
    spread: standard deviation of the top 5 chunks' positions, as shares of the text, [0, 0.5].
    """

    coverage: float
    top_coverage: float
    top_score: float
    margin: float
    entropy: float
    spread: float


@dataclass(frozen=True, slots=True)
class Features:
    """Everything a policy may look at. Cheap by design: no embedding of documents, no model call.

    document_tokens, question_tokens, instruction_tokens: counted for the request's model.
    token_error: relative error of those counts, 95 % of texts (0 where a tokenizer counted exactly).
    window_ratio: document_tokens / context_window.
    task: probability of each question type, summing to 1.
    lara_task: the same over LaRA's four tasks (lookup, reasoning, comparison, unanswerable), as its authors would label
    the question; empty where it was not asked for.
    cached_tokens: leading part of the full prompt believed to be in the provider's prompt cache.
    name_tokens: of the documents' names, all of them together, as prompts show them.
    """

    document_tokens: int
    question_tokens: int
    instruction_tokens: int
    max_output_tokens: int
    token_error: float
    n_documents: int
    window_ratio: float
    task: Mapping[Task, float]
    evidence: Evidence | None
    kind: Kind
    cached_tokens: int = 0
    lara_task: Mapping[Task, float] = field(default_factory=dict)
    name_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What carrying out a strategy would take, in tokens and calls, before prices are known.

    prompt_tokens: over all calls, includes cached_tokens.
    cached_tokens: the part of prompt_tokens expected from the provider's prompt cache.
    largest_prompt_tokens: of the largest single call that is not delegated; must fit the window with its output.
    sequential_calls: calls that wait for one another; parallel ones count once.
    preparation_s: own work before the first call (retrieval, compression).
    stands_in: it is `full` with less text, so there is no point in it where it takes more than `full` does.
    decode_speedup: by how many times tokens come faster than one by one.
    delegated: the part of all this that another model does; None where the request's own does everything.
    unavailable: empty where it can be carried out with this model, else why not, for a person to read.
    """

    prompt_tokens: int
    completion_tokens: int
    largest_prompt_tokens: int
    cached_tokens: int = 0
    calls: int = 1
    sequential_calls: int = 1
    preparation_s: float = 0.0
    stands_in: bool = False
    decode_speedup: float = 1.0
    delegated: Delegated | None = None
    unavailable: str = ""


@dataclass(frozen=True, slots=True)
class Delegated:
    """What another model than the request's does of a strategy: its prices, its speed and its window count there."""

    profile: ModelProfile
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one strategy would bring. None means unknown.

    quality: probability that the answer is correct, with a 90 % interval; `basis` says where it comes from.
    measured: False where no outcomes stand behind it; decisions then take it at the lower end of its interval.
    infeasible: empty where the strategy can be used, else the reason it cannot, for a person to read.
    """

    strategy: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    calls: int = 1
    cost_usd: Decimal | None = None
    latency_s: float | None = None
    quality: float | None = None
    quality_interval: tuple[float, float] | None = None
    basis: str = ""
    measured: bool = True
    utility: float | None = None
    infeasible: str = ""

    @property
    def feasible(self) -> bool:
        return not self.infeasible


@dataclass(frozen=True, slots=True)
class Decision:
    """Which strategy, why, and what the others would have brought."""

    strategy: str
    policy: str
    model: str
    estimates: tuple[Estimate, ...]
    reasons: tuple[str, ...]
    features: Features
    goal: Goal

    @property
    def estimate(self) -> Estimate:
        """The estimate of the chosen strategy."""
        return next(e for e in self.estimates if e.strategy == self.strategy)


# ---- what is shown to and said by a model ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document, as shown to a model: `text == document.text[start:end]`.

    score: relevance to the question, higher is better; comparable only within one list.
    """

    document_id: str
    start: int
    end: int
    text: str
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Citation(Passage):
    """Where an answer, or a part of it, stands in the source."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and money of one call or of several added up."""

    prompt_tokens: int = 0  # includes cached_tokens and written_tokens
    cached_tokens: int = 0  # the part of prompt_tokens served from a prefix cache
    completion_tokens: int = 0
    cost_usd: Decimal | None = None  # None: the price is unknown, which is not the same as free
    written_tokens: int = 0  # the part of prompt_tokens that the provider put into its cache, where it says so

    def __add__(self, other: Usage) -> Usage:
        both_known = self.cost_usd is not None and other.cost_usd is not None
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd if both_known else None,  # type: ignore[operator]
            self.written_tokens + other.written_tokens,
        )


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What a drafting model reads in place of a call's prompt: the same prompt about less text.

    messages: in place of the call's messages. context: in place of the call's context.
    """

    messages: tuple[Message, ...]
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One model call that a plan asks for.

    purpose: what the call is for, in a trace (`answer`, `worker 3 of 8`).
    final: its text is the answer, so a streaming driver may pass the pieces on as they come.
    question, passages: what the messages were built from; for backends that read text instead of prompts.
    context: what the call shows in place of each document, in their order; for callers that put the question in a
    prompt of their own. Empty where the call does not put the request's own question (a worker's call).
    temperature: None leaves it to the server.
    draft: for servers that decode speculatively; all others answer from the messages alone.
    """

    messages: tuple[Message, ...]
    model: str
    max_output_tokens: int = 1024
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    purpose: str = "answer"
    final: bool = True
    question: str = ""
    passages: tuple[Passage, ...] = ()
    context: tuple[str, ...] = ()
    draft: Draft | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said. `finish_reason` is the server's own word (`stop`, `length`, ...)."""

    text: str
    usage: Usage = Usage()
    finish_reason: str = "stop"
    model: str = ""
    citations: tuple[Citation, ...] = ()  # only from backends that know their source
    answered: bool = True  # False where the backend itself says that nothing fits
    notes: tuple[str, ...] = ()  # what a wrapper did on the way: "retried after 429", ...


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of a finished plan, for the trace. Holds no prompt."""

    purpose: str
    usage: Usage
    latency_s: float
    finish_reason: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """What one path of a strategy of several calls left behind, for those who want to look.

    read: what each call was shown, in its order; () for a call that failed, whose text is unread.
    notes: what was known after each of them (Chain-of-Agents: the communication units).
    answer: what this path alone answered; empty where it was not asked.
    """

    read: tuple[tuple[Passage, ...], ...]
    notes: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes out.

    answered: False where the text is no answer: empty, held back, or saying that there is none (`router/replies.py`).
    citations: the passages the answer rests on, best first; passages: everything the last call was shown,
    empty where that was the whole text.
    notes: what went differently from the decision (a fallback, a retry), for a person to read.
    unread: stretches of the documents that no call has seen, where the strategy was to read all of them.
    work: how strategies of several calls came to it, by path.
    """

    text: str
    answered: bool = True
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    strategy: str = ""
    usage: Usage = Usage()
    calls: tuple[CallRecord, ...] = ()
    decision: Decision | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    unread: tuple[Passage, ...] = ()
    work: tuple[Work, ...] = field(default=(), repr=False)


# ---- the parts -------------------------------------------------------------------------------------------------------

Outcome = Reply | RouterError
"""What became of one call."""

Plan = Generator[Call | tuple[Call, ...], Reply | tuple[Outcome, ...], Answer]
"""The calls of one strategy. Yields a Call and is sent its Reply; where the call fails, the error is thrown in. Or
yields a tuple of Calls that may run side by side and is sent what became of each, in the same order. Returns the
Answer. Nothing has run until it is advanced."""


class Strategy(Protocol):
    """How an answer is produced."""

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        """What carrying it out would take. Pure and fast."""

    def plan(self, request: Request, features: Features) -> Plan:
        """The calls to make. Retrieval and compression happen when the plan is advanced, not before.

        features: what was decided upon.
        """


class Policy(Protocol):
    """Which strategy. Pure: no clock, no network, no state that changes."""

    def decide(self, features: Features, profile: ModelProfile, options: Sequence[Estimate], goal: Goal) -> Decision:
        """Choose among options, whose cost and feasibility are filled in and whose quality is not.

        Raises NoFeasibleStrategy or ContextTooLong where nothing can be chosen.
        """


class Backend(Protocol):
    """Who produces tokens. Asynchronous only: the synchronous driver runs it on an event loop of its own."""

    async def generate(self, call: Call) -> Reply:
        """The whole reply. Raises BackendError."""

    def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        """Pieces of text as they come, then the whole Reply, once, last. Raises BackendError."""

    async def aclose(self) -> None:
        """Release connections. Safe to call twice."""


class Retriever(Protocol):
    """Finds the passages that matter to a question."""

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        """Passages worth showing, best first, not overlapping, at most budget_tokens in total (estimated).

        Every document has an id. Ties break by document order, then position, so results repeat.
        """


class EvidenceSource(Protocol):
    """Says how findable an answer is, without embedding anything."""

    def evidence(self, question: str, documents: Sequence[Document]) -> Evidence | None:
        """None where there is nothing to search (no terms in the question, or no text)."""


class TokenCounter(Protocol):
    """Counts tokens the way one model does, or estimates it."""

    def count(self, text: str) -> int: ...

    @property
    def relative_error(self) -> float:
        """Relative error not exceeded on 95 % of long texts; 0 for an exact tokenizer."""
