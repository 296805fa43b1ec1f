"""Strategy `chain_of_agents`: readers take the whole text in portions and hand notes on; a manager answers from them.

After Chain-of-Agents (Zhang et al. 2024, arXiv 2406.02818). Where we depart from it: by default readers return
additions and corrections to structured notes that we keep, instead of rewriting one summary, because rewriting loses
evidence; the budget of a portion leaves room for notes and reply; portions are balanced. `notes = "free_text"` and
`split = "greedy"` are as in the paper. Calls are written by `agent_calls.py`, one path is read by `reading.py`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import accumulate

from ..core import (
    Answer,
    Citation,
    Delegated,
    Document,
    Features,
    Footprint,
    ModelProfile,
    Passage,
    Plan,
    Reply,
    Request,
    TokenCounter,
)
from ..errors import NoFeasibleStrategy, RouterError
from ..prompts import NO_TEXT, not_read
from ..replies import answers
from .agent_calls import MIN_PORTION_TOKENS, Agents, CallWriter, Window, judges, reading_of
from .citations import named_passages, verbatim_quotes, without_numbers
from .full import TYPICAL_ANSWER_TOKENS
from .notes import Notes
from .portions import Split
from .quotes import compared_words
from .reading import Read, Reader
from .side_by_side import Path, side_by_side
from .spending import Price, Spending
from .view import View, ranges

# What replies typically have; the rest of an estimate is counted. benchmarks/agents_estimates.py compares.
TYPICAL_REPLY_TOKENS = {"question": 130, "summary": 300, "code": 300}  # of a worker, structured; 130: three lines
TYPICAL_SUMMARY_TOKENS = 350  # of a worker, free text
PREPARATION_S_PER_TOKEN = 4e-7  # cutting, counting, and two milliseconds a call; benchmarks/agents_speed.py

_FILL = 0.98  # of a portion's room: it ends between sentences
_SAMPLING_TEMPERATURE = 0.7  # of paths that are to differ, where none is set
_ARTICLES = frozenset(("a", "an", "the"))  # answers that differ in these alone are one vote


class ChainOfAgents:
    """Reads everything, in as many calls as it takes.

    profile_of, counter_of: what is known about a model, and how its tokens are counted. split: where texts may be cut.
    price: dollars of a usage.
    """

    def __init__(
        self,
        agents: Agents,
        *,
        profile_of: Callable[[str], ModelProfile],
        counter_of: Callable[[ModelProfile], TokenCounter],
        split: Split,
        price: Price,
    ) -> None:
        self._agents = agents
        self._profile_of = profile_of
        self._counter_of = counter_of
        self._split = split
        self._price = price

    def footprint(self, features: Features, profile: ModelProfile) -> Footprint:
        """Exact but for what replies have: `input = n + l (instructions + question) + notes`, l workers on a path."""
        agents = self._agents
        blank = Request("", (), profile.name, max_output_tokens=features.max_output_tokens)
        writer = self._writer(blank, features, profile)
        frame, window = writer.frame(), writer.window
        name = features.name_tokens // max(1, features.n_documents)
        around = frame.worker - frame.document + features.question_tokens + name
        spare = window.most_for_text(features.token_error) - around
        room = max(spare - frame.document, MIN_PORTION_TOKENS)
        text = features.document_tokens + features.name_tokens - name
        text += frame.document * max(0, features.n_documents - 1)
        workers = math.ceil(text / (_FILL * room))
        reply, grown = self._typical(features, window)
        notes = [min(grown(done), window.notes_tokens) for done in range(workers + 1)]
        reading = text + workers * (around + frame.document) + sum(notes[:workers])
        paths = agents.number_of_paths
        judged = paths == 1 or judges(agents, features)
        managers = 1 if judged else paths
        asked = features.question_tokens + features.instruction_tokens + (frame.judge if judged else frame.manager)
        fits = max(asked, int((profile.context_window - features.max_output_tokens) / (1 + features.token_error)))
        managed = min(fits, asked + paths * grown(workers) // managers)  # longer notes are made to fit
        largest = math.ceil(text / max(1, workers)) + around + frame.document + max(notes)
        if spare < MIN_PORTION_TOKENS:  # the plan would be refused, so no window may seem to hold it
            largest = max(largest, writer.worker.context_window)
        read = Footprint(
            prompt_tokens=paths * reading,
            completion_tokens=paths * workers * reply,
            largest_prompt_tokens=largest if workers else 0,
            calls=paths * workers,
            sequential_calls=workers,
        )
        delegated = Delegated(writer.worker, read) if agents.worker_model and workers else None
        answer_tokens = min(TYPICAL_ANSWER_TOKENS, features.max_output_tokens)
        return Footprint(
            prompt_tokens=read.prompt_tokens + managers * managed,
            completion_tokens=read.completion_tokens + managers * answer_tokens,
            largest_prompt_tokens=managed if delegated else max(read.largest_prompt_tokens, managed),
            calls=read.calls + managers,
            sequential_calls=read.sequential_calls + 1,
            preparation_s=features.document_tokens * PREPARATION_S_PER_TOKEN,
            delegated=delegated,
        )

    def _typical(self, features: Features, window: Window) -> tuple[int, Callable[[int], int]]:
        """Typical tokens of a worker's reply, and of what is handed on after so many workers."""
        if self._agents.notes == "free_text":
            summary = min(TYPICAL_SUMMARY_TOKENS, window.output_tokens)
            return summary, lambda done: summary if done else 0
        reply = min(TYPICAL_REPLY_TOKENS[reading_of(features)], window.output_tokens)
        return reply, lambda done: done * reply

    def plan(self, request: Request, features: Features) -> Plan:
        agents = self._agents
        writer = self._writer(request, features, self._profile_of(request.model))
        spending = Spending(request.goal.max_cost_usd, self._price)
        if any(document.text.strip() for document in request.documents):
            writer.cut()
        orders = self._orders(request, len(writer.portions))
        readers = [
            Reader(writer, spending, path, f"path {path + 1}, " if len(orders) > 1 else "", self._temperature)
            for path in range(len(orders))
        ]
        ends = yield from side_by_side(
            [reader.read(order) for reader, order in zip(readers, orders, strict=True)],
            all_or_none=agents.on_failure == "abort",
        )
        reads = [end for end in ends if isinstance(end, Read)]
        failures = [end for end in ends if isinstance(end, RouterError)]
        if failures and (agents.on_failure == "abort" or not reads):
            raise failures[-1]
        if writer.portions and not any(read.read for read in reads):
            raise NoFeasibleStrategy(
                f"max_cost_usd = {request.goal.max_cost_usd} does not pay for reading a single part of the text and "
                "for answering. Raise it, or use the strategy 'rag'."
            )
        notes = [f"a path was given up: {failure}" for failure in failures]
        notes += [remark for read in reads for remark in read.remarks]
        notes += dict.fromkeys(f"parts were not read, {read.why_left}" for read in reads if read.why_left)
        if spending.blind:
            notes.append("max_cost_usd could not be watched, as the model's prices are unknown")
        for lost in set(range(len(orders))) - {read.path for read in reads}:
            spending.keep_back(lost, Decimal(0))
        answer = yield from _Answering(writer, spending, readers[0], reads, judges(agents, features)).answer()
        return replace(answer, notes=(*notes, *answer.notes))

    def _writer(self, request: Request, features: Features, manager: ModelProfile) -> CallWriter:
        worker = self._agents.worker_model
        return CallWriter(
            request,
            features,
            self._agents,
            worker=self._profile_of(worker) if worker else manager,
            manager=manager,
            counter_of=self._counter_of,
            split=self._split,
        )

    @property
    def _temperature(self) -> float | None:
        if self._agents.temperature is None and self._agents.variant == "self_consistency":
            return _SAMPLING_TEMPERATURE
        return self._agents.temperature

    def _orders(self, request: Request, n: int) -> list[list[int]]:
        """In which order each path reads the portions. Permutations depend on the texts and the question alone."""
        natural = list(range(n))
        variant, paths = self._agents.variant, self._agents.number_of_paths
        if variant == "right_to_left":
            return [natural[::-1]]
        if variant == "bidirectional":
            return [natural, natural[::-1]]
        if variant == "permutation":
            seed = hashlib.blake2b(digest_size=8)
            for text in (request.question, *(document.text for document in request.documents)):
                seed.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest())
            chance = random.Random(seed.digest())
            return [chance.sample(natural, n) for _ in range(paths)]
        return [natural] * paths


class _Answering:
    """From what the paths read to the answer. reader: of any path; asks the manager, with its retries."""

    def __init__(
        self, writer: CallWriter, spending: Spending, reader: Reader, reads: Sequence[Read], judged: bool
    ) -> None:
        self._writer, self._spending, self._reader, self._reads, self._judged = writer, spending, reader, reads, judged
        self.unread, _ = _unread(writer, reads)
        self._notes: list[str] = []

    def answer(self) -> Plan:
        vote = len(self._reads) > 1 and not self._judged
        answer = yield from self._vote() if vote else self._single()
        return replace(answer, notes=tuple(self._notes), unread=self.unread)

    def _single(self) -> Plan:
        """One call that sees the notes of every path."""
        name = "judge" if len(self._reads) > 1 else "answer"
        reply, shown, notes = yield from self._managed(self._reads, name, final=True)
        return replace(self._of(reply, shown, notes), work=tuple(read.work() for read in self._reads))

    def _vote(self) -> Plan:
        """A manager for each path, side by side; the answer that most of them give, of the first path that gives it."""
        reads = self._reads
        ends = yield from side_by_side(
            [self._managed([read], f"path {read.path + 1}, answer", final=False) for read in reads]
        )
        told = {place: end for place, end in enumerate(ends) if not isinstance(end, RouterError)}
        failures = [end for end in ends if isinstance(end, RouterError)]
        if not told:
            raise failures[-1]
        self._notes += [f"a path has no answer: {failure}" for failure in failures]
        empty = {place for place, (reply, _, _) in told.items() if not reply.text.strip()}
        if 0 < len(empty) < len(told):  # silence is no opinion, but better than an error where nobody has one
            told = {place: end for place, end in told.items() if place not in empty}
            self._notes.append(f"{len(empty)} of {len(reads)} paths gave an empty answer, which does not count")
        votes = Counter(_plain(reply.text) for reply, _, _ in told.values())
        most = max(votes.values())
        winner = next(place for place, (reply, _, _) in told.items() if votes[_plain(reply.text)] == most)
        self._notes.append(f"{most} of {len(told)} paths gave this answer")
        work = tuple(read.work(told[place][0].text if place in told else "") for place, read in enumerate(reads))
        return replace(self._of(*told[winner]), work=work)

    def _managed(
        self, reads: Sequence[Read], name: str, *, final: bool
    ) -> Path[tuple[Reply, tuple[Passage, ...], tuple[Notes, ...]]]:
        """The manager's reply on these paths, the passages it was shown, and the notes as they were numbered."""
        writer, spending = self._writer, self._spending
        for read in reads:
            spending.keep_back(read.path, Decimal(0))
        most = spending.prompt_tokens_left(writer.manager, writer.request.max_output_tokens)
        passages = _in_document_order((passage for read in reads for passage in read.passages), writer.request)
        _, remarks = _unread(writer, reads)
        notes: tuple[Notes, ...] = ()
        if writer.agents.notes == "free_text":
            summaries = [read.summary for read in reads]
            call, cut = writer.summaries_call(summaries, passages, remarks, name, final=final, most_tokens=most)
            if cut:
                self._notes.append("the beginning of the summary was left out of the last prompt, for want of room")
        else:
            notes = _numbered([read.notes for read in reads])
            call, views = writer.manager_call(notes, passages, remarks, name, final=final, most_tokens=most)
            self._tell(views)
        outcome = yield from self._reader.ask(call, writer.manager, may_be_empty=True)
        if outcome is None:
            raise NoFeasibleStrategy(
                f"What max_cost_usd = {writer.request.goal.max_cost_usd} left after reading does not pay for the "
                "answer. Raise it, or use the strategy 'rag'."
            )
        if isinstance(outcome, RouterError):
            raise outcome
        return outcome, passages, notes

    def _tell(self, views: Sequence[View]) -> None:
        if left_out := [number for one in views for number in one.left_out]:
            self._notes.append(f"notes {ranges(left_out)} were left out of the last prompt, for want of room")
        elif any(one.shortened for one in views):
            self._notes.append("notes were shortened in the last prompt, for want of room")

    def _of(self, reply: Reply, passages: tuple[Passage, ...], notes: tuple[Notes, ...]) -> Answer:
        answered = answers(reply)
        return Answer(
            reply.text,
            answered=answered,
            citations=(reply.citations or self._cited(reply.text, passages, notes)) if answered else (),
            passages=passages,
        )

    def _cited(self, text: str, passages: Sequence[Passage], notes: Sequence[Notes]) -> tuple[Citation, ...]:
        """What the answer names by number; else what it quotes; else everything that it was shown."""
        nowhere = Passage("", 0, 0, "")
        places = [item.place or nowhere for one in notes for item in one.items]
        named = tuple(citation for citation in named_passages(text, places) if citation.end > citation.start)
        if named:
            return named
        if not notes:
            return verbatim_quotes(text, self._writer.request.documents)
        return _quoted(text, passages) or tuple(map(_citation, passages))


def _unread(writer: CallWriter, reads: Sequence[Read]) -> tuple[tuple[Passage, ...], list[str]]:
    """Stretches that none of these paths has read, and what the model that answers from them is told."""
    if not writer.portions:
        return (), [NO_TEXT]
    everywhere = set.intersection(*(set(read.failed) | set(read.left) for read in reads))
    why: dict[str, list[Passage]] = {}
    for number in sorted(everywhere):
        reason = next((read.why_left for read in reads if number in read.left), "as the call failed")
        why.setdefault(reason, []).extend(writer.portions[number])
    stretches = {reason: _run_together(passages) for reason, passages in why.items()}
    return (
        tuple(passage for passages in stretches.values() for passage in passages),
        [not_read(passages, reason) for reason, passages in stretches.items()],
    )


def _run_together(passages: Iterable[Passage]) -> list[Passage]:
    """Passages that follow one another without a gap, as one."""
    joined: list[Passage] = []
    for passage in passages:
        if joined and (joined[-1].document_id, joined[-1].end) == (passage.document_id, passage.start):
            before = joined.pop()
            passage = Passage(before.document_id, before.start, passage.end, before.text + passage.text)
        joined.append(passage)
    return joined


def _numbered(notes: Sequence[Notes]) -> tuple[Notes, ...]:
    """Notes with numbers that go on from one to the next."""
    starts = accumulate((len(one.items) for one in notes), initial=1)
    return tuple(one.numbered_from(start) for one, start in zip(notes, starts, strict=False))


def _in_document_order(passages: Iterable[Passage], request: Request) -> tuple[Passage, ...]:
    position = {document.id: place for place, document in enumerate(request.documents)}
    return tuple(sorted(set(passages), key=lambda one: (position[one.document_id], one.start, one.end, one.score)))


def _quoted(text: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """The answer's quotations that stand in the passages, with offsets in their documents."""
    shown = [Document(passage.text, str(place)) for place, passage in enumerate(passages)]
    found = []
    for quote in verbatim_quotes(text, shown):
        passage = passages[int(quote.document_id)]
        start, end = passage.start + quote.start, passage.start + quote.end
        found.append(Citation(passage.document_id, start, end, quote.text, quote.score))
    return tuple(found)


def _citation(passage: Passage) -> Citation:
    return Citation(passage.document_id, passage.start, passage.end, passage.text, passage.score)


def _plain(answer: str) -> str:
    """An answer as votes compare it: its words without articles. Numbers of notes are different on every path."""
    words = [word for word in compared_words(without_numbers(answer)) if word not in _ARTICLES]
    return " ".join(words) or answer.strip()
