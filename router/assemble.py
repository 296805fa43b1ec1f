"""Settings → Router: the one module that knows every concrete class. It imports them inside functions, when needed.

Registries are dicts of small factories: adding a strategy, policy or backend is one file, one line here, one test file.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import (
    Answer,
    Backend,
    Call,
    Document,
    Estimate,
    EvidenceSource,
    Features,
    Goal,
    Message,
    ModelProfile,
    Passage,
    Policy,
    Reply,
    Request,
    Retriever,
    Strategy,
    TokenCounter,
)
from .errors import ConfigError, RouterError
from .router import BaseRouter, Recorder
from .settings import Settings, default_cache_dir, load_settings

if TYPE_CHECKING:
    from ..compressors.compression import Compressed, Compressor
    from ..compressors.relevance import Scorer
    from ..policies.escalation import Verdict
    from ..retrievers.embed import Embedder
    from .runner import AttentionReader
    from .runner.local_model import LocalModel

EXTRACTIVE = "extractive"
LOCAL = "local:"
"""What names of models begin with that are run in this process: `local:FOLDER`."""


class Router(BaseRouter):
    """The router that applications use, wired from settings.

        Router().answer(question, documents)                      # embedded, no key, no network
        Router(model="gpt-4o", prefer="cheap").answer(...)        # any OpenAI-compatible server
        Router(backend=LangChainChat(model)).answer(...)          # a backend of your own

    settings: ready Settings; else they are read from environment and file, with `overrides` on top.
    backend, policy, retriever, profile_of: parts of your own in place of the configured ones.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        backend: Backend | None = None,
        policy: Policy | None = None,
        retriever: Retriever | None = None,
        profile_of: Callable[[str], ModelProfile] | None = None,
        **overrides: Any,
    ) -> None:
        if settings is not None and overrides:
            raise ConfigError(f"Pass either ready settings or single ones, not both: {', '.join(overrides)}.")
        self.settings = settings = settings or load_settings(**overrides)
        parts = make_parts(settings, retriever, profile_of)
        super().__init__(
            backend=backend or make_backend(settings),
            strategies=make_strategies(parts),
            policy=policy or make_policy(settings.policy),
            profile_of=parts.profile_of,
            counter_of=parts.counter_of,
            evidence=make_evidence_source(),
            defaults=Request(
                question="",
                documents=(),
                model=settings.model,
                goal=Goal(settings.prefer, settings.max_cost_usd, settings.max_latency_s, settings.min_quality),
                allowed=settings.allowed,
                max_output_tokens=settings.max_output_tokens,
            ),
            record_outcome=make_recorder(settings),
        )


def make_profiles(settings: Settings) -> Callable[[str], ModelProfile]:
    """What is known about models: our own data, and the configured file on top."""
    from . import models

    profiles = models.load_profiles(settings.models_file) if settings.models_file else {}

    def profile_of(name: str) -> ModelProfile:
        if name.startswith(LOCAL):
            from .backends.local import profile_of_folder

            return profile_of_folder(name, Path(name.removeprefix(LOCAL)), profiles)
        return models.profile_of(name, overrides=profiles)

    return profile_of


# ---- strategies and policies -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """What strategies are made of."""

    settings: Settings
    retriever: Retriever
    profile_of: Callable[[str], ModelProfile]

    def counter_of(self, profile: ModelProfile) -> TokenCounter:
        """Counts as the model does, or as the configured tokenizer does."""
        from . import tokens

        return tokens.counter_for(str(self.settings.tokenizer or profile.tokenizer))


def make_parts(
    settings: Settings,
    retriever: Retriever | None = None,
    profile_of: Callable[[str], ModelProfile] | None = None,
) -> Parts:
    """The configured parts, but for those that are given."""
    return Parts(settings, retriever or make_retriever(settings), profile_of or make_profiles(settings))


def make_strategies(parts: Parts) -> dict[str, Strategy]:
    """Every strategy by name."""
    return {name: make(parts) for name, make in _STRATEGIES.items()}


def _full(parts: Parts) -> Strategy:
    from .strategies.full import Full

    return Full()


def _rag(parts: Parts) -> Strategy:
    from .strategies.rag import Rag

    return Rag(parts.retriever, parts.settings.rag_budget_tokens)


def _compressed(parts: Parts) -> Strategy:
    from .strategies.compressed import Compressed

    settings = parts.settings
    code = _Lazily(partial(make_compressor, settings, "code"))
    text = _Lazily(partial(make_compressor, settings, settings.compressor))
    return Compressed(text, settings.compressed_keep_rate, by_kind={"code": code})


def _retrieve_then_reason(parts: Parts) -> Strategy:
    from . import costs
    from .strategies.retrieve_then_reason import RetrieveThenReason

    return RetrieveThenReason(
        profile_of=parts.profile_of,
        counter_of=parts.counter_of,
        split=_pieces,
        price=costs.price,
        portion_tokens=parts.settings.agents.window_tokens,
    )


def _pieces(document: Document, max_tokens: int) -> list[tuple[int, int]]:
    """Where a document may be cut, at ends of sentences and of what it is structured in."""
    from ..retrievers.chunks import split

    return [(chunk.start, chunk.end) for chunk in split(document, max_tokens=max_tokens)]


def _chain_of_agents(parts: Parts) -> Strategy:
    from . import costs
    from .strategies.agent_calls import Agents
    from .strategies.chain_of_agents import ChainOfAgents

    return ChainOfAgents(
        Agents(**parts.settings.agents.model_dump()),
        profile_of=parts.profile_of,
        counter_of=parts.counter_of,
        split=_pieces,
        price=costs.price,
    )


def _speculative(parts: Parts) -> Strategy:
    from .strategies.full import Full
    from .strategies.speculative import Speculative

    return Speculative(parts.retriever, Full(), parts.profile_of, parts.settings.speculative_context_tokens)


def _self_route(parts: Parts) -> Strategy:
    from .strategies.full import Full
    from .strategies.rag import Rag
    from .strategies.self_route import SelfRoute

    full, rag = Full(), Rag(parts.retriever, parts.settings.rag_budget_tokens)
    return SelfRoute(rag, full, _Relied(parts, rag, full))


class _Relied:
    """Whether an answer from passages is relied on: the policies' verdict, with what the second call would take."""

    def __init__(self, parts: Parts, rag: Strategy, full: Strategy) -> None:
        self._parts = parts
        self._rag = rag
        self._full = full

    def expected_share(self, features: Features, profile: ModelProfile) -> float:
        from ..policies.escalation import Escalation

        if not self._estimate("full", self._full, features, profile).feasible:
            return 0.0
        shown = self._parts.settings.rag_budget_tokens / max(features.document_tokens, 1)
        return Escalation().expected_share(features, profile, min(shown, 1.0))

    def verdict(self, request: Request, features: Features, answer: Answer) -> Verdict:
        from ..policies.escalation import Escalation
        from ..policies.reply import signs
        from .strategies.self_route import shown_share

        profile = self._parts.profile_of(request.model)
        passages = [passage.text for passage in answer.passages]
        return Escalation().judge(
            features,
            profile,
            signs(answer.text, request.question, passages, refused=not answer.answered),
            shown_share(answer.passages, request),
            spent=self._estimate("rag", self._rag, features, profile),
            full=self._estimate("full", self._full, features, profile),
            goal=request.goal,
        )

    def _estimate(self, name: str, strategy: Strategy, features: Features, profile: ModelProfile) -> Estimate:
        from .costs import estimate

        return estimate(
            name,
            strategy.footprint(features, profile),
            profile,
            max_output_tokens=features.max_output_tokens,
            token_error=features.token_error,
        )


_STRATEGIES: Mapping[str, Callable[[Parts], Strategy]] = {
    "full": _full,
    "rag": _rag,
    "self_route": _self_route,
    "compressed": _compressed,
    "chain_of_agents": _chain_of_agents,
    "retrieve_then_reason": _retrieve_then_reason,
    "speculative": _speculative,
}


def make_policy(name: str) -> Policy:
    """A policy from its name in the settings: `learned`, `lara`, `fixed:STRATEGY`, or a policy file's path.

    Raises ConfigError on any other.
    """
    kind, _, argument = name.partition(":")
    if kind in _POLICIES:
        return _POLICIES[kind](argument)
    if name.endswith(".json"):
        from ..policies import policy_file

        return policy_file.read(Path(name))
    raise ConfigError(f"Unknown policy {name!r}. Known: learned, lara, fixed:STRATEGY, or the path of a policy file.")


def _learned(argument: str) -> Policy:
    from ..policies.learned import Learned

    return Learned()


def _lara(argument: str) -> Policy:
    from ..policies.lara import Lara

    return Lara()


def _fixed(argument: str) -> Policy:
    from ..policies.fixed import Fixed

    if argument not in _STRATEGIES:
        raise ConfigError(f"Policy fixed:{argument} names no strategy. Known: {', '.join(_STRATEGIES)}.")
    return Fixed(argument)


_POLICIES: Mapping[str, Callable[[str], Policy]] = {"learned": _learned, "lara": _lara, "fixed": _fixed}


# ---- outcomes --------------------------------------------------------------------------------------------------------


def make_recorder(settings: Settings) -> Recorder | None:
    """Appends to the configured outcome file; None where there is none."""
    path = settings.outcomes_file
    if path is None:
        return None

    def record(answer: Answer, score: float, *, case_id: str, task: str, group: str) -> None:
        from .calibration.outcomes import append, of_answer

        append(path, of_answer(answer, score, case_id=case_id, task=task, group=group))

    return record


# ---- compression -----------------------------------------------------------------------------------------------------


def make_compressor(settings: Settings, name: str) -> Compressor:
    """A compressor by its name: `lexical`, `embedded`, or one that a local model may serve, `KIND:FOLDER`.

    `question_aware`, `code`: a causal model in the folder ranks in place of BM25 and embeddings. `color`: it writes in
    place of the configured chat model. `llmlingua2`: a token classification model, without which there is none;
    `specpc`, `gemfilter`: likewise, a small causal model that drafts, or whose early layers select.
    Raises ConfigError on any other, and where the folder holds no model.
    """
    kind, _, argument = name.partition(":")
    if kind not in _COMPRESSORS or (argument and kind in ("lexical", "embedded")):
        known = ", ".join(kind if kind in ("lexical", "embedded") else f"{kind}[:FOLDER]" for kind in _COMPRESSORS)
        raise ConfigError(f"Unknown compressor {name!r}. Known: {known}.")
    return _COMPRESSORS[kind](settings, argument)


def _counter(settings: Settings) -> TokenCounter:
    from . import tokens

    return tokens.counter_for(str(settings.tokenizer or make_profiles(settings)(settings.model).tokenizer))


def _lexical(settings: Settings, argument: str) -> Compressor:
    from ..compressors.embedded import Embedded

    return Embedded(count=_counter(settings).count)


def _embedded(settings: Settings, argument: str) -> Compressor:
    """The encoder tier; MissingExtra on first use where its packages are missing."""
    from ..compressors.embedded import Embedded
    from ..compressors.word_encoder import WordEncoder

    return Embedded(WordEncoder(), count=_counter(settings).count)


def _scorer(settings: Settings, folder: str) -> Scorer:
    """BM25, and embeddings of the passages that it finds best where there is an embedding model; or a causal model."""
    from ..compressors.relevance import EmbeddingScorer, LexicalScorer, LogProbScorer, TwoStageScorer
    from ..retrievers.terms import terms

    if folder:
        return LogProbScorer.load(folder)
    embedder = make_embedder(settings)
    lexical = LexicalScorer(terms)
    return lexical if embedder is None else TwoStageScorer(lexical, EmbeddingScorer(embedder.encode))


def _question_aware(settings: Settings, argument: str) -> Compressor:
    from ..compressors.question_aware import QuestionAware

    return QuestionAware(_scorer(settings, argument), _lexical(settings, ""), count=_counter(settings).count)


def _code(settings: Settings, argument: str) -> Compressor:
    from ..compressors.code import Code

    return Code(_scorer(settings, argument), count=_counter(settings).count)


def _llmlingua2(settings: Settings, argument: str) -> Compressor:
    from ..compressors.llmlingua2 import LLMLingua2

    if not argument:
        raise ConfigError("llmlingua2 needs the folder of a token classification model: llmlingua2:FOLDER.")
    return LLMLingua2.from_folder(Path(argument), _counter(settings))


def _specpc(settings: Settings, argument: str) -> Compressor:
    from ..compressors.specpc import SpecPC
    from ..retrievers.attention import sentences

    if not argument:
        raise ConfigError("specpc needs the folder of a small causal language model: specpc:FOLDER.")
    return SpecPC(_attention_reader(settings, argument), count=_counter(settings).count, split=sentences)


def _gemfilter(settings: Settings, argument: str) -> Compressor:
    from ..compressors.gemfilter import GemFilter
    from ..retrievers.attention import sentences

    if not argument:
        raise ConfigError("gemfilter needs the folder of a causal language model: gemfilter:FOLDER.")
    return GemFilter(_attention_reader(settings, argument), count=_counter(settings).count, split=sentences)


def _attention_reader(settings: Settings, folder: str) -> AttentionReader:
    from .runner import AttentionReader

    return AttentionReader.load(folder, settings.runner.device, settings.runner.dtype)


def _color(settings: Settings, argument: str) -> Compressor:
    """Passages rewritten by the configured chat model, or by a local one."""
    from ..compressors.color import Color, LocalColor
    from ..compressors.question_aware import paragraphs
    from .run import ask_all

    count = _counter(settings).count
    if argument:
        return Color(LocalColor.load(argument), model=argument, count=count, split=paragraphs)
    if settings.model == EXTRACTIVE:
        raise ConfigError("color rewrites texts with a chat model; name one in the setting model (LONGROUTE_MODEL).")
    backend = make_backend(settings)

    def generate(prompts: Sequence[tuple[Message, ...]]) -> list[str | None]:
        calls = [Call(prompt, settings.model, settings.max_output_tokens, purpose="compress") for prompt in prompts]
        replies = ask_all(calls, backend)
        if replies and all(isinstance(reply, RouterError) for reply in replies):
            raise replies[0]  # type: ignore[misc]  # the server is not there at all
        return [reply.text if isinstance(reply, Reply) else None for reply in replies]

    return Color(generate, model=settings.model, count=count, split=paragraphs)


_COMPRESSORS: Mapping[str, Callable[[Settings, str], Compressor]] = {
    "question_aware": _question_aware,
    "embedded": _embedded,
    "lexical": _lexical,
    "code": _code,
    "color": _color,
    "llmlingua2": _llmlingua2,
    "specpc": _specpc,
    "gemfilter": _gemfilter,
}


class _Lazily:
    """A compressor that is made when it is first used: deciding must not load it."""

    def __init__(self, make: Callable[[], Compressor]) -> None:
        self._make = cache(make)

    def compress(
        self, texts: Sequence[str], *, question: str = "", keep_rate: float | None = None
    ) -> Sequence[Compressed]:
        return self._make().compress(texts, question=question, keep_rate=keep_rate)


# ---- retrieval -------------------------------------------------------------------------------------------------------


def make_retriever(settings: Settings) -> Retriever:
    """The configured retriever. Raises ConfigError on a name that is none."""
    kind, _, argument = settings.retriever.partition(":")
    if kind not in _RETRIEVERS or bool(argument) != (kind == "infiniretri"):
        raise ConfigError(f"Unknown retriever {settings.retriever!r}. Known: hybrid, infiniretri:FOLDER.")
    return _RETRIEVERS[kind](settings, argument)


def _hybrid(settings: Settings, argument: str) -> Retriever:
    """In two stages; BM25 alone where no embedding model is wanted or installed."""
    from ..retrievers.hybrid import HybridRetriever

    return HybridRetriever(make_embedder(settings))


# Layers that look for what is asked stand in the middle: SmolLM2-135M's 18th of 30 ranked the sentence that answers
# first of 70 (median of four invented pages), its last, which InfiniRetri's authors take, 18th.
_RETRIEVAL_DEPTH = 0.6


def _infiniretri(settings: Settings, argument: str) -> Retriever:
    """By the attention of a local model, which is loaded for the first question."""

    def make() -> Retriever:
        from ..retrievers.attention import InfiniRetri

        reader = _attention_reader(settings, argument)
        return InfiniRetri(reader, count=_counter(settings).count, depth=_RETRIEVAL_DEPTH)

    return _LazyRetriever(make)


_RETRIEVERS: Mapping[str, Callable[[Settings, str], Retriever]] = {"hybrid": _hybrid, "infiniretri": _infiniretri}


class _LazyRetriever:
    """A retriever that is made when it is first used, once: deciding must not load it."""

    def __init__(self, make: Callable[[], Retriever]) -> None:
        self._make = cache(make)
        self._making = threading.Lock()

    def retrieve(self, question: str, documents: Sequence[Document], *, budget_tokens: int) -> list[Passage]:
        with self._making:
            retriever = self._make()
        return retriever.retrieve(question, documents, budget_tokens=budget_tokens)


def make_evidence_source() -> EvidenceSource:
    from ..retrievers.corpus import BM25Retriever

    return BM25Retriever()


def make_embedder(settings: Settings) -> Embedder | None:
    """The configured embedding model with its disk cache, not yet loaded; None for `none` or where it is missing."""
    from ..retrievers.cache import open_cache
    from ..retrievers.embed import CachedEmbedder, SentenceTransformerEmbedder, installed

    default = settings.embedding_model == "default"
    if settings.embedding_model == "none" or (default and not installed()):
        return None
    model = None if default else settings.embedding_model  # a model the user named is missed loudly, on first use
    cache = open_cache(cache_dir(settings), size_bytes=settings.cache_size_mb << 20)
    return CachedEmbedder(SentenceTransformerEmbedder(model), cache)


def cache_dir(settings: Settings) -> Path | None:
    """Where this configuration caches on disk, or None where it does not."""
    return (settings.cache_dir or default_cache_dir()) if settings.cache else None


# ---- backends --------------------------------------------------------------------------------------------------------


def make_backend(settings: Settings) -> Backend:
    """The embedded backend for the model `extractive`, the runner for `local:FOLDER`, a server for every other."""
    return _ByModel(
        {EXTRACTIVE: partial(_extractive, settings)},
        local=lambda name: _local(settings, name.removeprefix(LOCAL)),
        otherwise=partial(_server, settings),
    )


def make_local_model(settings: Settings, folder: str | Path) -> LocalModel:
    """Load the model in a folder, to run in this process. Takes its time; MissingExtra where its packages are missing.

    Raises ConfigError where the folder holds no model that can be run.
    """
    from .runner import EngineOptions
    from .runner.laws import Law
    from .runner.local_model import LocalModel, LocalOptions
    from .runner.speculative import Speculation

    runner = settings.runner
    engine = EngineOptions(
        chunk_tokens=runner.chunk_tokens,
        slots=runner.slots,
        queue_limit=runner.queue_limit,
        cache_bytes=None if runner.cache_mb is None else runner.cache_mb << 20,
        prefix_bytes=None if runner.prefix_cache_mb is None else runner.prefix_cache_mb << 20,
    )
    speculation = Speculation(Law(runner.speculative_mode, runner.speculative_eta), runner.draft_tokens)
    return LocalModel.load(folder, LocalOptions(runner.device, runner.dtype, runner.draft_model, speculation, engine))


def _local(settings: Settings, folder: str) -> Backend:
    from .backends.local import Local
    from .backends.wrappers import Timeout

    return Local(partial(make_local_model, settings, folder), lambda backend: Timeout(backend, settings.timeout_s))


def _extractive(settings: Settings) -> Backend:
    from ..retrievers.terms import terms
    from .backends.extractive import Extractive

    embedder = make_embedder(settings)
    return Extractive(terms=terms, encode=embedder.encode if embedder else None)


def _server(settings: Settings) -> Backend:
    """Outermost first: retries see a deadline per try, and a waiting place is held only while a try is under way."""
    from .backends.openai import OpenAI
    from .backends.wrappers import CircuitBreaker, ConcurrencyLimit, Retry, Timeout

    key = settings.api_key.get_secret_value() if settings.api_key else None
    if key is None and "api.openai.com" in settings.base_url:
        raise ConfigError(
            f"Models other than '{EXTRACTIVE}' are served by {settings.base_url}, which needs a key. Set "
            f"OPENAI_API_KEY, point LONGROUTE_BASE_URL at a server of your own, or use the model '{EXTRACTIVE}'."
        )
    backend: Backend = OpenAI(settings.base_url, key, key_name="LONGROUTE_API_KEY or OPENAI_API_KEY")
    backend = Timeout(backend, settings.timeout_s)
    backend = CircuitBreaker(backend)
    backend = ConcurrencyLimit(backend, settings.max_concurrency)
    return Retry(backend, max_retries=settings.max_retries)


class _ByModel:
    """A backend that hands each call to the backend of its model, made on first use."""

    def __init__(
        self,
        known: Mapping[str, Callable[[], Backend]],
        *,
        local: Callable[[str], Backend],
        otherwise: Callable[[], Backend],
    ) -> None:
        self._make = {name: cache(make) for name, make in known.items()}
        self._make_local = local
        self._otherwise = cache(otherwise)
        self._adding = threading.Lock()

    async def generate(self, call: Call) -> Reply:
        return await self._of(call).generate(call)

    def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        return self._of(call).stream(call)

    async def aclose(self) -> None:
        for make in (*self._make.values(), self._otherwise):
            if make.cache_info().currsize:
                await make().aclose()

    def _of(self, call: Call) -> Backend:
        name = call.model
        if name.startswith(LOCAL):
            with self._adding:  # two models of one folder would be one too many
                self._make.setdefault(name, cache(partial(self._make_local, name)))
                return self._make[name]()
        return self._make.get(name, self._otherwise)()
