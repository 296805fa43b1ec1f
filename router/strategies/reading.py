"""One path of readers through a text: each reads a portion and hands on what is known; failures are met here.

A path is a plan that ends in what was read. Writing the calls is left to `agent_calls.py`, combining paths to
`chain_of_agents.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core import Call, ModelProfile, Passage, Reply, Work
from ..errors import BackendError, BackendRejected, BadReply, ContextTooLong, RouterError, worth_another_try
from ..replies import broke_off
from .agent_calls import CallWriter
from .notes import Notes
from .portions import Portion
from .reports import parse
from .side_by_side import Path
from .spending import Spending
from .view import ranges, view, without_oldest

_HOPELESS = (401, 402, 403, 404)  # what is wrong with the key or the model is wrong for every portion


@dataclass(slots=True)
class Read:
    """What one path came to.

    path: its number, from 0.
    read, states: for `Work`. failed, left: numbers (from 0) of portions whose call failed, and that were not begun.
    why_left: why the path ended before the last portion; empty where it did not.
    summary: the free text handed on last. pointed_out: stretches that a backend itself has cited, in that case.
    """

    path: int = 0
    read: list[Portion] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    summary: str = ""
    pointed_out: list[Passage] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    why_left: str = ""
    remarks: list[str] = field(default_factory=list)
    last_error: RouterError | None = None

    def work(self, answer: str = "") -> Work:
        return Work(tuple(self.read), tuple(self.states), answer)

    @property
    def passages(self) -> tuple[Passage, ...]:
        return self.notes.passages or tuple(dict.fromkeys(self.pointed_out))


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads portions in one order, within what may be spent. label: stands before the names of its calls."""

    writer: CallWriter
    spending: Spending
    path: int = 0
    label: str = ""
    temperature: float | None = None

    def read(self, order: Sequence[int]) -> Path[Read]:
        """Read the portions of these numbers, one after the other.

        Raises the error of a call where that is asked for or hopeless, and the last one where no call succeeded.
        """
        writer, agents, done = self.writer, self.writer.agents, Read(self.path)
        shortened: set[int] = set()
        for place, number in enumerate(order):
            name = f"{self.label}worker {place + 1} of {len(order)}"
            if agents.notes == "free_text":
                if (fitting := writer.summary_beside(number, done.summary)) != done.summary:
                    done.remarks.append(f"before {name} the beginning of the summary was cut, for want of room")
                    done.summary = fitting
                call = writer.summary_call(number, done.summary, name, self.temperature)
            else:
                call, shown = writer.worker_call(number, done.notes, name, self.temperature)
                shortened.update(shown.left_out)
            self._keep_back(done)
            outcome = yield from self.ask(call, writer.worker)
            if outcome is None:
                done.left, done.why_left = list(order[place:]), "for want of money"
                break
            if isinstance(outcome, RouterError):
                if agents.on_failure == "abort" or _hopeless(outcome):
                    raise outcome
                done.failed.append(number)
                done.last_error = outcome
                done.read.append(())
                done.states.append(done.states[-1] if done.states else "")
                done.remarks.append(f"{name} failed, so its part is unread: {outcome}")
                continue
            complete = yield from self._take(outcome, number, done, name)
            done.read.append(writer.portions[number])
            if complete and place + 1 < len(order):
                done.left, done.why_left = list(order[place + 1 :]), "as a reader held the question for answered"
                break
        if done.last_error is not None and len(done.failed) == len(done.read):
            raise done.last_error
        if shortened:
            done.remarks.append(
                f"{self.label}notes {ranges(shortened)} were left out of workers' prompts, for want of room"
            )
        return done

    def ask(self, call: Call, profile: ModelProfile, *, may_be_empty: bool = False) -> Path[Reply | RouterError | None]:
        """The reply, or what went wrong after as many tries as there are; None where there is no money for it."""
        failure: RouterError | None = None
        for _ in range(self.writer.agents.retries + 1):
            tokens = self.writer.prompt_tokens(call) if self.spending.limited else 0
            worst = self.spending.worst(profile, tokens, call.max_output_tokens)
            if not self.spending.take(worst):
                return failure
            try:
                reply = yield call
            except RouterError as error:
                self.spending.settle(worst, profile, error)
                failure = error
            else:
                assert isinstance(reply, Reply)
                self.spending.settle(worst, profile, reply)
                if reply.text.strip() or reply.citations or may_be_empty:
                    return reply
                failure = BadReply(f"{call.purpose} came back empty ({reply.finish_reason})")
            if not worth_another_try(failure):
                break
        return failure

    def _take(self, reply: Reply, number: int, done: Read, name: str) -> Path[bool]:
        """Add what a worker says; whether it says that the question can be answered."""
        if broke_off(reply):
            said = "summary" if self.writer.agents.notes == "free_text" else "report"
            done.remarks.append(f"the {said} of {name} was cut off at its limit, agents.worker_output_tokens")
        if self.writer.agents.notes == "free_text":
            done.pointed_out += [_passage(citation) for citation in reply.citations]
            if reply.answered:  # else the backend itself says that it found nothing, which is no summary
                done.summary = yield from self._in_room(reply.text, done, name)
            done.states.append(done.summary)
            return False
        complete = False
        if reply.citations:
            done.notes = done.notes.with_passages(map(_passage, reply.citations), number + 1)
        elif reply.answered:
            report = parse(reply.text)
            done.notes = done.notes.after(report.lines, number + 1, self.writer.portions[number])
            complete = self.writer.may_stop and report.complete and bool(done.notes.passages)
        done.states.append(view(done.notes, 1 << 62, len).text)
        return complete

    def _in_room(self, summary: str, done: Read, name: str) -> Path[str]:
        """The summary; where it is too long, a shorter one is asked for once, and then its beginning is cut."""
        writer = self.writer

        def fits(text: str) -> bool:
            return writer.summary_tokens(text) <= writer.summary_room

        if fits(summary):
            return summary
        call = writer.shorter_call(summary, f"{name}, shorter")
        if call is not None:
            outcome = yield from self.ask(call, writer.worker)
            if isinstance(outcome, Reply):
                summary = outcome.text
                done.remarks.append(f"{name} wrote more than there is room for and was asked to be shorter")
        if fits(summary):
            return summary
        done.remarks.append(f"of what {name} wrote the beginning was cut, for want of room")
        return without_oldest(summary, fits)

    def _keep_back(self, done: Read) -> None:
        """For the last call: what is known now, and what the next worker may add, quotations and their frame."""
        if self.spending.limited:
            writer = self.writer
            grown = writer.manager_tokens(done.notes, done.summary) + 2 * writer.window.output_tokens
            self.spending.keep_back(
                self.path, self.spending.worst(writer.manager, grown, writer.request.max_output_tokens)
            )


def _hopeless(error: RouterError) -> bool:
    if isinstance(error, BackendRejected):
        return error.status in _HOPELESS
    return not isinstance(error, BackendError | ContextTooLong)


def _passage(citation: Passage) -> Passage:
    return Passage(citation.document_id, citation.start, citation.end, citation.text, citation.score)
