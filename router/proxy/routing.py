"""One request body → what to send in its place, and why. Knows no HTTP and no clock; decides nothing itself.

    bytes ──parse──▶ Conversation ──locate──▶ Located ──router──▶ Decision ──plan──▶ context ──splice──▶ bytes

`consider` is the blocking part (parsing, retrieval), meant for a worker thread. A strategy of several calls hands them
out as a `Step`; the caller makes them and comes back with the replies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, get_args

import orjson

from ..core import Answer, Call, Decision, Draft, Outcome, Passage, Plan, Prefer, Reply, Request
from ..errors import ConfigError, NoFeasibleStrategy, RouterError
from ..router import SHOW_EVERYTHING, BaseRouter, Options
from .anthropic import read_messages
from .body import EXTENSION
from .locate import locate
from .openai import read_chat, read_completion, read_responses
from .saving import held_out
from .splice import Edit, prefix_end, splice
from .stopwatch import Stopwatch
from .texts import Api, Conversation, JsonPath, LeftAlone, Located, Place

OFF, AUTO, FULL = "off", "auto", "full"
_LONGEST_MODEL_NAME = 300  # names are noted in records and log lines, thousands of which are kept

_READERS: Mapping[Api, Callable[[Mapping[str, Any]], Conversation | LeftAlone]] = {
    "chat": read_chat,
    "completions": read_completion,
    "responses": read_responses,
    "messages": read_messages,
}
_OPTIONS = ("strategy", "prefer", "question", "max_cost_usd", "max_latency_s", "min_quality", "question_last")


class CannotFollow(ConfigError):
    """The request asks something of us that there is not. Its sender must know; all other errors are our own affair."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What the request asks of us: headers first, then its `longroute` field, then the settings.

    strategy: `off`, `auto` or the name of one. None: not said.
    """

    strategy: str | None = None
    prefer: str | None = None


def steering_of(ours: Mapping[str, str], router: BaseRouter) -> Steering:
    """From our request headers, without their prefix. Raises CannotFollow for what we do not know."""
    strategy, prefer = ours.get("strategy"), ours.get("prefer")
    known = (OFF, AUTO, *router.strategies)
    if strategy is not None and strategy not in known:
        raise CannotFollow(f"x-longroute-strategy names no strategy. Known: {', '.join(known)}.")
    if prefer is not None and prefer not in get_args(Prefer):
        raise CannotFollow(f"x-longroute-prefer must be one of {', '.join(get_args(Prefer))}.")
    return Steering(strategy, prefer)


@dataclass(frozen=True, slots=True)
class Considered:
    """What became of a request.

    strategy: what is sent: `off` for a request left as it came, `full` for the whole text by decision, else a name.
    reason: why, for a person to read.
    raw: the body as it came. original: the same without our own fields: what is sent where all else fails.
    body: what to send. step: what must be called before there is a body; None where it is ready.
    forced: the request named the strategy. holdout: drawn to be sent as it came.
    shown: the passages in the body. tokens_before, tokens_after: estimated, of the prompt as it came and as sent, with
    tokens_spent, of the calls of a strategy's own up to now.
    notes, unread: what the strategy says of its way (see `core.Answer`).
    """

    strategy: str
    reason: str
    raw: bytes
    original: bytes
    body: bytes
    step: Step | None = None
    conversation: Conversation | None = None
    located: Located | None = None
    request: Request | None = None
    decision: Decision | None = None
    forced: bool = False
    holdout: bool = False
    shown: tuple[Passage, ...] = ()
    tokens_before: int | None = None
    tokens_after: int | None = None
    tokens_spent: int = 0
    notes: tuple[str, ...] = ()
    unread: tuple[Passage, ...] = ()

    @property
    def rewritten(self) -> bool:
        return self.strategy not in (OFF, FULL)

    @property
    def streamed(self) -> bool:
        """Whether the client waits for a stream while a strategy makes its calls."""
        return self.step is not None and self.step.original.get("stream") is True

    @property
    def as_it_came(self) -> bool:
        """Whether a decision left the caller's own prompt as it was; something for drafts may have been added."""
        return self.strategy in SHOW_EVERYTHING and self.body.startswith(self.original.rstrip()[:-1])


@dataclass(frozen=True, slots=True)
class Step:
    """Where a strategy of several calls stands: `calls` must be made, their replies go to `resume`.

    bodies: beside the calls; the caller's own request about another context, or None for a call of the strategy's own.
    """

    plan: Plan
    calls: tuple[Call, ...]
    together: bool
    bodies: tuple[bytes | None, ...]
    original: Mapping[str, Any]


def api_of(body: Mapping[str, Any]) -> Api:
    """The API a body is written for, by its fields. Where chat and messages look alike, chat."""
    if "messages" in body:
        anthropic = "system" in body or "anthropic_version" in body or "stop_sequences" in body
        return "messages" if anthropic else "chat"
    return "responses" if "input" in body else "completions"


def consider(
    raw: bytes,
    api: Api | None,
    router: BaseRouter,
    steering: Steering = Steering(),
    *,
    watch: Stopwatch,
    min_document_tokens: int,
    question_last: bool = False,
    stored_responses: bool = False,
    stream_calls: int = 1,
    holdout: float = 0.0,
    upstream: str = "",
    carry_out: bool = True,
) -> Considered:
    """Decide about a request and do the work up to the first call that must be made.

    api: None finds it out. watch: is told which stage begins.
    stream_calls: most calls of a strategy that a stream is sent to without asking for it.
    holdout: share that is decided about, but sent as it came. carry_out: False only decides.
    Raises CannotFollow for what the request asks of us and we cannot give; other RouterErrors and whatever else goes
    wrong are the caller's to turn into "send the original".
    """
    watch.enter("parse")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _left_alone("the body is not JSON", raw)
    if not isinstance(body, dict):
        return _left_alone("the body is not a JSON object", raw)
    if not isinstance(body.get("longroute", {}), dict):
        raise CannotFollow('The field \'longroute\' must be an object, like {"strategy": "rag"}.')
    conversation = _READERS[api or api_of(body)](body)
    if isinstance(conversation, LeftAlone):
        ours: list[JsonPath] = [("longroute",)] if "longroute" in body else []
        return _left_alone(conversation.reason, raw, splice(raw, [], ours) if ours else raw)
    if len(conversation.model) > _LONGEST_MODEL_NAME:
        return _left_alone("the model's name is longer than any model's", raw, splice(raw, [], conversation.marks))
    options = _options(conversation, steering)
    # Our own fields are taken out whatever happens: the upstream does not know them.
    original = splice(raw, [], conversation.marks) if conversation.marks else raw
    if options.get("strategy") == OFF:
        return _left_alone("asked to leave the request alone", raw, original, conversation)
    stored = conversation.api == "responses" and body.get("store") is not False
    if stored and not stored_responses and "strategy" not in options:
        # Later turns would build on the shorter text, and nothing in them would show it.
        return _left_alone("the upstream stores this request for later turns (store)", raw, original, conversation)
    watch.enter("locate")
    located = locate(conversation, min_tokens=min_document_tokens)
    if isinstance(located, LeftAlone):
        return _left_alone(located.reason, raw, original, conversation)
    if isinstance(options.get("question"), str) and str(options["question"]).strip():
        located = replace(located, question=str(options["question"]))

    watch.enter("decide")
    prefix_key = _prefix_key(raw, located.places[-1], upstream)
    request, decision = _decided(router, conversation, located, options, prefix_key, few=_few_calls(body, stream_calls))
    located = replace(located, documents=request.documents)  # named now, where the request named none
    tokens_before = sum(
        (decision.features.document_tokens, decision.features.question_tokens, decision.features.instruction_tokens)
    )
    considered = Considered(
        decision.strategy,
        decision.reasons[0] if decision.reasons else "",
        raw,
        original,
        original,
        conversation=conversation,
        located=located,
        request=request,
        decision=decision,
        tokens_before=tokens_before,
        tokens_after=tokens_before,
        forced=options.get("strategy") not in (None, AUTO),
    )
    if not considered.forced and (reason := _better_untouched(decision, located)):
        considered = replace(considered, strategy=FULL, reason=reason)
    if not considered.forced and _drawn(raw, holdout):
        reason = f"held out to measure the saving; {considered.strategy} would have been sent"
        return replace(considered, strategy=FULL, reason=reason, holdout=True)
    if considered.strategy == FULL:
        wanted = bool(options.get("question_last", question_last))
        return replace(considered, body=_question_last(considered)) if wanted else considered
    if not carry_out:
        return considered
    watch.enter("prepare")
    return _advance(considered, router.plan(request, decision), body, router)


def without_our_fields(raw: bytes, api: Api) -> bytes:
    """The body as the upstream knows it, where nothing but our own fields is to be changed."""
    conversation = _READERS[api](orjson.loads(raw))
    return splice(raw, [], [("longroute",)] if isinstance(conversation, LeftAlone) else conversation.marks)


def rescue(considered: Considered, router: BaseRouter, strategy: str) -> Considered:
    """The same request by a smaller strategy, after the upstream said that the whole text does not fit."""
    assert considered.request is not None and considered.decision is not None
    decision = replace(considered.decision, strategy=strategy)
    reason = f"the upstream said that the text does not fit, so {strategy} was sent"
    rescued = replace(considered, strategy=strategy, reason=reason)
    return _advance(rescued, router.plan(considered.request, decision), orjson.loads(considered.raw), router)


def resume(
    considered: Considered, outcomes: tuple[Outcome, ...], router: BaseRouter
) -> Considered | tuple[Considered, str]:
    """Go on with a strategy of several calls. Where it ends without a last call of the caller's own: the text of its
    answer, beside what became of the request."""
    step = considered.step
    assert step is not None
    for call, outcome in zip(step.calls, outcomes, strict=True):
        if isinstance(outcome, Reply):
            spent = considered.tokens_spent + (outcome.usage.prompt_tokens or _prompt_tokens(call, considered, router))
            considered = replace(considered, tokens_spent=spent)
    sent = outcomes if step.together else outcomes[0]
    advanced = _advance_or_answer(considered, step.plan, sent, step.original, router)
    if isinstance(advanced, Considered):
        return advanced
    ended = replace(_told(considered, advanced), step=None, shown=advanced.passages)
    return replace(ended, tokens_after=considered.tokens_spent), advanced.text


# ---- parts -----------------------------------------------------------------------------------------------------------


def _options(conversation: Conversation, steering: Steering) -> dict[str, object]:
    """What the request asks for. Raises CannotFollow where we do not know it."""
    options = dict(conversation.options)
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise CannotFollow(f"Unknown field {unknown[0][:40]!r} in 'longroute'. Known: {', '.join(_OPTIONS)}.")
    options |= {
        key: value for key, value in (("strategy", steering.strategy), ("prefer", steering.prefer)) if value is not None
    }
    if (prefer := options.get("prefer")) is not None and prefer not in get_args(Prefer):
        raise CannotFollow(f"prefer is {str(prefer)[:40]!r}; use one of {', '.join(get_args(Prefer))}.")
    for name in ("max_cost_usd", "max_latency_s", "min_quality"):
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise CannotFollow(f"{name} in 'longroute' must be a number that is not negative.")
    return options


def _decided(
    router: BaseRouter,
    conversation: Conversation,
    located: Located,
    options: Mapping[str, Any],
    prefix_key: str,
    *,
    few: tuple[int, str] | None,
) -> tuple[Request, Decision]:
    asked: Options = {
        "model": conversation.model,
        "instructions": located.instructions,
        "prefix_key": prefix_key,
    }
    if conversation.max_output_tokens:
        asked["max_output_tokens"] = conversation.max_output_tokens
    if options.get("prefer") is not None:
        asked["prefer"] = options["prefer"]
    if options.get("max_cost_usd") is not None:
        asked["max_cost_usd"] = Decimal(str(options["max_cost_usd"]))
    if options.get("max_latency_s") is not None:
        asked["max_latency_s"] = options["max_latency_s"]
    if options.get("min_quality") is not None:
        asked["min_quality"] = options["min_quality"]
    request, decision = router.prepare(located.question, located.documents, **asked)
    wish = options.get("strategy")
    if wish in (None, AUTO) and few is not None and decision.estimate.calls > few[0]:
        return _of_few_calls(router, located, asked, request, decision, *few)
    if wish in (None, AUTO, decision.strategy):
        return request, decision
    estimate = next((estimate for estimate in decision.estimates if estimate.strategy == wish), None)
    if estimate is None:
        allowed = ", ".join(estimate.strategy for estimate in decision.estimates)
        raise CannotFollow(f"The strategy {str(wish)[:40]!r} cannot be asked for here. Allowed: {allowed}.")
    if not estimate.feasible:
        raise NoFeasibleStrategy(f"{wish} was asked for, but {estimate.infeasible}.")
    reasons = (f"the request asked for {wish}; {decision.strategy} would have been chosen", *decision.reasons)
    return request, replace(decision, strategy=estimate.strategy, reasons=reasons)


def _few_calls(body: Mapping[str, Any], stream_calls: int) -> tuple[int, str] | None:
    """How many calls there may be, and why; None where it is all the same."""
    if body.get("background") is True:
        return 1, "the answer is fetched later (background)"
    tools = body.get("tools")
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    if body.get("mcp_servers") or any(kind not in (None, "function", "custom") for kind in kinds):
        return 1, "the server runs tools of its own for every call"  # a search is paid for, others have effects
    return (stream_calls, "the answer is streamed") if body.get("stream") is True else None  # who streams reads along


def _of_few_calls(
    router: BaseRouter, located: Located, asked: Options, request: Request, decision: Decision, most: int, because: str
) -> tuple[Request, Decision]:
    """The decision among what takes no more calls than that. As it was where there is nothing."""
    quick = [e.strategy for e in decision.estimates if e.feasible and e.calls <= most]
    if not quick:
        return request, decision
    asked = asked.copy()
    asked["allowed"] = quick
    try:
        request, again = router.prepare(located.question, located.documents, **asked)
    except RouterError:  # the policy knows no other strategy
        return request, decision
    reason = f"{because}, and {decision.strategy} takes {decision.estimate.calls} calls"
    return request, replace(again, reasons=(*again.reasons[:1], reason, *again.reasons[1:]))


def _better_untouched(decision: Decision, located: Located) -> str:
    """Why the original is sent although a shorter strategy was chosen; nothing where it is not."""
    full = next((estimate for estimate in decision.estimates if estimate.strategy == FULL), None)
    if decision.strategy in SHOW_EVERYTHING or full is None or not full.feasible:
        return ""
    if located.app_caches:
        return "the application caches this text itself (cache_control), so it stays as it is"
    chosen = decision.estimate
    known = full.cost_usd is not None and chosen.cost_usd is not None
    if full.cached_tokens and known and full.cost_usd <= chosen.cost_usd:  # type: ignore[operator]
        return f"{full.cached_tokens:,} tokens are in the prompt cache, which makes the original the cheaper one"
    return ""


def _left_alone(
    reason: str, raw: bytes, original: bytes | None = None, conversation: Conversation | None = None
) -> Considered:
    original = raw if original is None else original
    return Considered(OFF, reason, raw, original, original, conversation=conversation)


def _advance(considered: Considered, plan: Plan, original: Mapping[str, Any], router: BaseRouter) -> Considered:
    advanced = _advance_or_answer(considered, plan, None, original, router)
    if isinstance(advanced, Answer):
        raise RuntimeError(f"strategy {considered.strategy} ended without a single call")
    return advanced


def _advance_or_answer(
    considered: Considered,
    plan: Plan,
    outcome: Outcome | tuple[Outcome, ...] | None,
    original: Mapping[str, Any],
    router: BaseRouter,
) -> Considered | Answer:
    """To the next calls; where that is the last one and puts the caller's own question, its body is ready."""
    try:
        step = plan.throw(outcome) if isinstance(outcome, RouterError) else plan.send(outcome)  # type: ignore[arg-type]
    except StopIteration as finished:
        answer: Answer = finished.value
        return answer
    if isinstance(step, Call) and step.final and step.context:
        shown = _shown(considered, step, router)
        told = _told_so_far(plan)
        return shown if told is None else _told(shown, told)
    calls = (step,) if isinstance(step, Call) else step
    bodies = tuple(_asked_about(call.context, considered) if call.context else None for call in calls)
    return replace(considered, step=Step(plan, calls, not isinstance(step, Call), bodies, original))


def _shown(considered: Considered, call: Call, router: BaseRouter) -> Considered:
    """The caller's request with the call's context in place of the documents, and what to make drafts from."""
    assert considered.located is not None
    body = _asked_about(call.context, considered)
    return replace(
        considered,
        body=body if call.draft is None else _drafted(body, call.draft, considered),
        step=None,
        shown=() if call.context == tuple(d.text for d in considered.located.documents) else call.passages,
        tokens_after=considered.tokens_spent + _prompt_tokens(call, considered, router),
    )


def _prompt_tokens(call: Call, considered: Considered, router: BaseRouter) -> int:
    """Estimated, of a call as it is sent: the caller's question about a context, or messages of the strategy's own."""
    assert considered.decision is not None
    features, around = considered.decision.features, 0
    if call.context:
        around = features.question_tokens + features.instruction_tokens
    texts = call.context or tuple(message.content for message in call.messages)
    if call.draft is not None and call.context:
        around, texts = 2 * around, (*texts, *call.draft.context)
    return around + sum(router.count_tokens(text, call.model) for text in texts)


def _told_so_far(plan: Plan) -> Answer | None:
    """What a plan has to say of its way to the last call, whose reply goes to the client and never passes by here.

    So the plan is told of another in its place; only what does not depend on it is of any worth.
    """
    try:
        plan.send(Reply("."))
    except StopIteration as finished:
        answer: Answer = finished.value
        return answer
    except Exception:  # it makes something of the reply that this one does not hold
        return None
    finally:
        plan.close()
    return None


def _told(considered: Considered, answer: Answer) -> Considered:
    return replace(
        considered,
        notes=answer.notes,
        unread=answer.unread,
        # A plan may have ended with another strategy, where a server said that the text does not fit.
        strategy=answer.strategy or considered.strategy,
    )


def _asked_about(context: tuple[str, ...], considered: Considered) -> bytes:
    """The caller's request with a context in place of the documents."""
    located, conversation = considered.located, considered.conversation
    assert located is not None and conversation is not None
    edits = [
        Edit(place, text)
        for place, document, text in zip(located.places, located.documents, context, strict=True)
        if text != document.text
    ]
    return splice(considered.raw, edits, conversation.marks)


def _drafted(body: bytes, draft: Draft, considered: Considered) -> bytes:
    """The body with the runner's extension as its last member: the caller's own prompt about the draft's context.

    The runner serves chats and plain completions; for other APIs the body stays as it is.
    """
    assert considered.conversation is not None
    about = orjson.loads(_asked_about(draft.context, considered))
    if considered.conversation.api == "chat":
        prompt = about["messages"]
    elif considered.conversation.api == "completions":
        prompt = about["prompt"][0] if isinstance(about["prompt"], list) else about["prompt"]
    else:
        return body
    end = body.rindex(b"}")
    extension = orjson.dumps({"speculative": {"draft": prompt}})
    return b'%b,"%b":%b%b' % (body[:end], EXTENSION.encode(), extension, body[end:])


def _question_last(considered: Considered) -> bytes:
    """Question behind the text, where both stand in one string and the question comes first; else as it came."""
    located, conversation = considered.located, considered.conversation
    assert located is not None and conversation is not None
    place = located.question_place
    behind = [p for p in located.places if place is not None and p.path == place.path and p.start >= place.end]
    if place is None or not behind or len(behind) < len(located.places):
        return considered.original
    text = located.documents[-1].text
    edits = [Edit(place, ""), Edit(behind[-1], f"{text}\n\n{located.question}")]
    return splice(considered.raw, edits, conversation.marks)


def _drawn(raw: bytes, share: float) -> bool:
    """By content: a client that tries again meets the same fate."""
    return share > 0 and held_out(hashlib.blake2b(raw, digest_size=16).hexdigest(), share)


def _prefix_key(raw: bytes, last: Place, upstream: str) -> str:
    """Names the prompt's beginning up to the end of its last document, as this upstream has seen it."""
    prefix = raw[: prefix_end(raw, last)]
    return hashlib.blake2b(upstream.encode() + b"\0" + prefix, digest_size=16).hexdigest()
