"""Strategy `retrieve_then_reason`: evidence is copied out word for word and checked, then answered from alone.

Models asked to find and to answer at once make up part of what they found. Here the first call only copies, what it
copied is looked up in what it was shown, and the second call sees what was there, in the source's words.
Source: ALR² (arXiv 2410.03227), without its training. Checking copies is left to `copied.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from ..core import (
    Answer,
    Call,
    Features,
    Footprint,
    Message,
    ModelProfile,
    Outcome,
    Passage,
    Plan,
    Reply,
    Request,
    TokenCounter,
    Work,
)
from ..errors import BadReply, ContextTooLong, NoFeasibleStrategy, RouterError, worth_another_try
from ..prompts import (
    COPY_OVERHEAD_TOKENS,
    EVIDENCE_OVERHEAD_TOKENS,
    FULL_OVERHEAD_TOKENS,
    UNREAD_BECAUSE,
    copy_messages,
    evidence_in_place,
    evidence_messages,
    full_messages,
    not_read,
)
from ..replies import answers, broke_off
from .agent_calls import MESSAGE_TOKENS
from .citations import named_passages, verbatim_quotes
from .copied import Copied, checked, in_order
from .full import TYPICAL_ANSWER_TOKENS, Full
from .portions import Portion, Split, portions
from .spending import Price, Spending

COPY_OUTPUT_TOKENS = 1500  # most that one call may copy; the published range is 200 to 1,000
TYPICAL_COPIED_TOKENS = 300  # by all calls together, where there is something; used for estimates only
TYPICAL_COPIED_PASSAGES = 6  # they make, at most one for every 20 tokens
TYPICAL_NOTHING_TOKENS = 20  # by a call more, most of which have little or nothing to copy
_LEAST_ROOM_TOKENS = 256  # for text in a prompt; with less, portions are too short to be understood


class RetrieveThenReason:
    """One call that copies evidence, or one for each portion of a text longer than the window, and one that answers.

    A text within the window is shown whole, so that its prompt cache serves. A longer one has to be cut anyway, so its
    portions have no more than `portion_tokens`, which models read more closely than a full window.

    profile_of, counter_of: what is known about a model, and how its tokens are counted.
    split: where documents may be cut; price: what tokens cost.
    """

    def __init__(
        self,
        *,
        profile_of: Callable[[str], ModelProfile],
        counter_of: Callable[[ModelProfile], TokenCounter],
        split: Split,
        price: Price,
        portion_tokens: int = 16_000,
    ) -> None:
        self._profile_of = profile_of
        self._counter_of = counter_of
        self._split = split
        self._price = price
        self._portion_tokens = portion_tokens

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        room = _Room.of(features, profile)
        text = room.whole - room.fixed
        portion = self._most_in_portion(room)
        n_portions = 1 if room.whole <= room.tokens else math.ceil(text / max(1, portion - room.fixed - room.each))
        read = n_portions * room.fixed + text + room.each * (n_portions - 1)
        once, each = EVIDENCE_OVERHEAD_TOKENS
        each += features.name_tokens // max(1, features.n_documents)
        evidence = min(TYPICAL_COPIED_TOKENS, features.document_tokens)
        answering = features.question_tokens + features.instruction_tokens + once
        answering += evidence + each * min(TYPICAL_COPIED_PASSAGES, 1 + evidence // 20)
        return Footprint(
            prompt_tokens=read + answering,
            completion_tokens=evidence
            + TYPICAL_NOTHING_TOKENS * (n_portions - 1)
            + min(TYPICAL_ANSWER_TOKENS, features.max_output_tokens),
            largest_prompt_tokens=max(room.whole if n_portions == 1 else portion, answering),
            cached_tokens=min(features.cached_tokens, read) if n_portions == 1 else 0,
            calls=n_portions + 1,
            sequential_calls=2,
        )

    def plan(self, request: Request, features: Features) -> Plan:
        profile = self._profile_of(request.model)
        spending = Spending(request.goal.max_cost_usd, self._price)
        asking = _Asking(request, features, profile, self._counter_of(profile))
        there = self._portions(asking)
        outcomes = yield from _copied_out(asking, there, spending)
        # None where no reply came: by portion, so that what was read and what was found in it stay together.
        checks = [
            _found(outcome, portion) if isinstance(outcome, Reply) else None
            for outcome, portion in zip(outcomes, there, strict=True)
        ]
        found = [copied for copied in checks if copied is not None]
        read = tuple(portion if copied else () for portion, copied in zip(there, checks, strict=True))
        unread = tuple(passage for portion, seen in zip(there, read, strict=True) if not seen for passage in portion)
        evidence, left_out = asking.that_fits([copied.passages for copied in found], unread, spending)
        notes = [*_mishaps(outcomes, request), *_corrections(found, left_out)]
        if spending.blind:
            notes.append(f"max_cost_usd could not be kept to: the price of {request.model} is not known")
        if not evidence and not unread and asking.full_fits(spending):
            said = (
                "nothing that was copied stands in the text" if any(c.dropped for c in found) else "nothing was copied"
            )
            notes.append(f"{said}, so the whole text was shown")
            answer = yield from Full().plan(request, features)
        else:
            if not evidence:
                notes.append("no evidence was found, so the question was put without any")
            answer = yield from _answered_from(asking, evidence, unread)
        known = tuple("\n".join(passage.text for passage in copied.passages) if copied else "" for copied in checks)
        return replace(answer, notes=(*notes, *answer.notes), unread=unread, work=(Work(read, known),))

    def _portions(self, asking: _Asking) -> tuple[Portion, ...]:
        documents = asking.request.documents
        if asking.room.whole <= asking.room.tokens:
            return (tuple(Passage(d.id, 0, len(d.text), d.text) for d in documents),)
        without_text = asking.copy_tokens(())
        portion = self._most_in_portion(asking.room)
        if portion - without_text < _LEAST_ROOM_TOKENS:
            raise ContextTooLong(
                f"Question and instructions take {without_text:,} of the {portion:,} tokens that a prompt "
                f"may have; at least {_LEAST_ROOM_TOKENS} are needed for text. Shorten them, lower max_output_tokens, "
                "or choose a model with a longer window."
            )
        return portions(
            documents,
            portion,
            measure=asking.copy_tokens,
            weigh=lambda portion: (
                asking.counter.count("".join(passage.text for passage in portion)) + asking.room.each * len(portion)
            ),
            split=self._split,
        )

    def _most_in_portion(self, room: _Room) -> int:
        """Tokens that the prompt of a portion may have; more than usual where question and instructions are long."""
        return min(room.tokens, max(self._portion_tokens, 2 * room.fixed))


@dataclass(frozen=True, slots=True)
class _Room:
    """How a window is shared out, in tokens.

    tokens: most that a prompt may be counted as, so that it fits by the worst count, with its output.
    output: most that a copying call may write.
    fixed, each: of a copying prompt without text, and for a document in it, its name of mean length. whole: with all
    of the text.
    """

    tokens: int
    output: int
    fixed: int
    each: int
    whole: int

    @classmethod
    def of(cls, features: Features, profile: ModelProfile) -> _Room:
        once, each = FULL_OVERHEAD_TOKENS
        output = min(COPY_OUTPUT_TOKENS, profile.max_output_tokens or COPY_OUTPUT_TOKENS, profile.context_window // 4)
        fixed = once + COPY_OVERHEAD_TOKENS + features.question_tokens + features.instruction_tokens
        return cls(
            tokens=int(profile.context_window / (1 + features.token_error)) - max(output, features.max_output_tokens),
            output=output,
            fixed=fixed,
            each=each + features.name_tokens // max(1, features.n_documents),
            whole=fixed + features.document_tokens + each * features.n_documents + features.name_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Asking:
    """One request, its prompts, and what they take."""

    request: Request
    features: Features
    profile: ModelProfile
    counter: TokenCounter

    @property
    def room(self) -> _Room:
        return _Room.of(self.features, self.profile)

    def count(self, messages: Sequence[Message]) -> int:
        return sum(self.counter.count(message.content) + MESSAGE_TOKENS for message in messages)

    def worst(self, messages: Sequence[Message]) -> int:
        """Tokens that may turn out to be there."""
        return math.ceil(self.count(messages) * (1 + self.features.token_error))

    def worst_usd(
        self, spending: Spending, messages: Sequence[Message], output_tokens: int, more_tokens: int = 0
    ) -> Decimal:
        """Dollars a call may cost, with so many tokens more than the messages have. Counts nothing without a limit."""
        tokens = self.worst(messages) + more_tokens if spending.limited else 0
        return spending.worst(self.profile, tokens, output_tokens)

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def copy_prompt(self, portion: Portion) -> tuple[Message, ...]:
        sources = {document.id: document for document in self.request.documents}
        shown = [replace(sources[passage.document_id], text=passage.text, page_starts=()) for passage in portion]
        return copy_messages(shown, self.request.question, self.request.instructions)

    def copy_tokens(self, portion: Portion) -> int:
        return self.count(self.copy_prompt(portion))

    def evidence_prompt(self, evidence: Sequence[Passage], unread: Sequence[Passage]) -> tuple[Message, ...]:
        request = self.request
        remarks = [not_read(unread, UNREAD_BECAUSE)] if unread else []
        return evidence_messages(evidence, request.documents, request.question, request.instructions, remarks)

    # ---- what fits ---------------------------------------------------------------------------------------------------

    def that_fits(
        self, lists: Sequence[Sequence[Passage]], unread: Sequence[Passage], spending: Spending
    ) -> tuple[tuple[Passage, ...], int]:
        """The evidence in document order, and how many passages of it there was no room or money for.

        The longest lists are shortened first, from their ends, so that every portion has its say.
        """
        documents = self.request.documents
        paid = spending.prompt_tokens_left(self.profile, self.request.max_output_tokens)
        kept = [list(passages) for passages in lists]
        evidence = everything = in_order([passage for passages in kept for passage in passages], documents)
        while evidence:
            prompt = self.evidence_prompt(evidence, unread)
            if self.count(prompt) <= self.room.tokens and self.worst(prompt) <= paid:
                break
            longest = max(kept, key=len)
            del longest[-max(1, len(longest) // 10) :]
            evidence = in_order([passage for passages in kept for passage in passages], documents)
        return evidence, len(everything) - len(evidence)

    def full_fits(self, spending: Spending) -> bool:
        """Whether the whole text fits into the window, and what it costs into what may be spent."""
        request = self.request
        paid = spending.prompt_tokens_left(self.profile, request.max_output_tokens)
        return self.room.whole <= self.room.tokens and (
            paid == math.inf
            or self.worst(full_messages(request.documents, request.question, request.instructions)) <= paid
        )


Copies = Generator[tuple[Call, ...], tuple[Outcome, ...], tuple[Outcome | None, ...]]


def _copied_out(asking: _Asking, there: Sequence[Portion], spending: Spending) -> Copies:
    """What became of each portion's call, all of them side by side; None where there was no money for it.

    What fails by chance is tried once more; what there was no money for, once it is known what the others have left.
    Raises the last error where every call failed, and NoFeasibleStrategy where there is not enough money for any.
    """
    profile, output = asking.profile, asking.room.output
    prompts = [asking.copy_prompt(portion) for portion in there]
    without_evidence = asking.evidence_prompt((), [passage for portion in there for passage in portion])
    worst = [asking.worst_usd(spending, prompt, output) for prompt in prompts]
    outcomes: list[Outcome | None] = [None] * len(there)

    def answering() -> Decimal:
        """What the answer may cost from what has been copied, and from as much again as one call may copy."""
        copied = sum(asking.counter.count(reply.text) for reply in outcomes if isinstance(reply, Reply))
        return asking.worst_usd(
            spending, without_evidence, asking.request.max_output_tokens, more_tokens=2 * copied + output
        )

    tries = [0] * len(there)
    wanted = list(range(len(there)))
    while wanted:
        spending.keep_back(0, answering())
        paid: list[int] = []
        while len(paid) < len(wanted) and spending.take(worst[wanted[len(paid)]]):
            paid.append(wanted[len(paid)])
        if not paid:
            break
        calls = tuple(
            Call(
                prompts[number],
                model=asking.request.model,
                max_output_tokens=output,
                purpose="copy evidence" + (f", portion {number + 1} of {len(there)}" if len(there) > 1 else ""),
                final=False,
                question=asking.request.question,
                passages=there[number],
            )
            for number in paid
        )
        for number, outcome in zip(paid, (yield calls), strict=True):
            spending.settle(worst[number], profile, outcome)
            outcomes[number] = _or_empty(outcome)
            tries[number] += 1
        again = [number for number in paid if tries[number] < 2 and worth_another_try(outcomes[number])]
        wanted = [*again, *wanted[len(paid) :]]
    spending.keep_back(0, Decimal(0))
    if outcomes[0] is None:
        raise NoFeasibleStrategy(
            f"max_cost_usd = {asking.request.goal.max_cost_usd} does not cover reading the text: the first of "
            f"{len(there)} calls may cost {worst[0]:.4f} dollars, and the answer {answering():.4f}. Raise it, lower "
            "max_output_tokens, or allow the strategy 'rag'."
        )
    errors = [outcome for outcome in outcomes if isinstance(outcome, RouterError)]
    if errors and not any(isinstance(outcome, Reply) for outcome in outcomes):
        raise errors[-1]
    return tuple(outcomes)


def _or_empty(outcome: Outcome) -> Outcome:
    """An empty reply is an error: where there is nothing to copy, a model has a word for it."""
    if isinstance(outcome, Reply) and outcome.answered and not outcome.text.strip() and not outcome.citations:
        return BadReply(f"The model's reply is empty (finish_reason {outcome.finish_reason!r}).")
    return outcome


def _found(reply: Reply, portion: Portion) -> Copied:
    """What a reply copied. A backend that quotes by itself says where, and whether there is anything."""
    if reply.citations or not reply.answered:
        return Copied(reply.citations, verbatim=len(reply.citations))
    return checked(reply.text, portion)


def _answered_from(asking: _Asking, evidence: tuple[Passage, ...], unread: tuple[Passage, ...]) -> Plan:
    request = asking.request
    reply = yield Call(
        asking.evidence_prompt(evidence, unread),
        model=request.model,
        max_output_tokens=request.max_output_tokens,
        question=request.question,
        passages=evidence,
        context=evidence_in_place(evidence, request.documents, unread),
    )
    assert isinstance(reply, Reply)
    return Answer(
        reply.text,
        answered=answers(reply),
        citations=reply.citations
        or named_passages(reply.text, evidence)
        or verbatim_quotes(reply.text, request.documents),
        passages=evidence,
    )


# ---- for a person to read --------------------------------------------------------------------------------------------


def _mishaps(outcomes: Sequence[Outcome | None], request: Request) -> list[str]:
    """What was not read, and which lists broke off."""
    said, of = [], len(outcomes)
    for number, outcome in enumerate(outcomes, start=1):
        if isinstance(outcome, RouterError):
            said.append(f"portion {number} of {of} could not be read: {outcome}")
        elif isinstance(outcome, Reply) and broke_off(outcome):
            said.append(f"the list of what was copied from portion {number} of {of} broke off at its longest")
    if unpaid := sum(outcome is None for outcome in outcomes):
        said.append(f"{unpaid} of {of} portions were not read: max_cost_usd = {request.goal.max_cost_usd} is used up")
    return said


def _corrections(found: Sequence[Copied], left_out: int) -> list[str]:
    """What was done to copies that were not quite right."""
    repaired, dropped = (sum(copied.repaired for copied in found), sum(copied.dropped for copied in found))
    lines = repaired + dropped + sum(copied.verbatim for copied in found)
    said = []
    if repaired:
        said.append(f"{repaired} of {lines} copied lines differed a little from the text, whose words were used")
    if dropped:
        said.append(
            f"{dropped} of {lines} copied lines do not stand in the text, or are too short to tell, and were dropped"
        )
    if left_out:
        said.append(f"{left_out} passages of evidence were left out for want of room")
    return said
