"""One path of readers through a text: each reads a portion and hands on what is known; failures are met here.

A path is a plan that ends in what was read. Writing the calls is left to `desk.py`, combining paths to
`chain_of_agents.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core import Call, ModelProfile, Passage, Reply, Work
from ..errors import BackendError, BackendRejected, BadReply, ContextTooLong, RouterError
from .desk import Desk
from .notes import Notes
from .portions import Portion
from .purse import Purse
from .reports import parse
from .side_by_side import Path
from .view import ranges, view, without_oldest

_HOPELESS = (401, 402, 403, 404)  # what is wrong with the key or the model is wrong for every portion
_CUT_OFF = ("length", "max_tokens")  # as servers call it


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
    """Reads the portions on a desk, and pays from a purse. label: before the names of the calls, like `path 2, `."""

    desk: Desk
    purse: Purse
    path: int = 0
    label: str = ""
    temperature: float | None = None

    def read(self, order: Sequence[int]) -> Path[Read]:
        """Read the portions of these numbers, one after the other.

        Raises the error of a call where that is asked for or hopeless, and the last one where no call succeeded.
        """
        desk, agents, done = self.desk, self.desk.agents, Read(self.path)
        shortened: set[int] = set()
        for place, number in enumerate(order):
            name = f"{self.label}worker {place + 1} of {len(order)}"
            if agents.notes == "free_text":
                if (fitting := desk.summary_beside(number, done.summary)) != done.summary:
                    done.remarks.append(f"before {name} the beginning of the summary was cut, for want of room")
                    done.summary = fitting
                call = desk.summary_call(number, done.summary, name, self.temperature)
            else:
                call, shown = desk.worker_call(number, done.notes, name, self.temperature)
                shortened.update(shown.left_out)
            self._keep_back(done)
            outcome = yield from self.ask(call, desk.worker)
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
            done.read.append(desk.portions[number])
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
        for _ in range(self.desk.agents.retries + 1):
            tokens = self.desk.prompt_tokens(call) if self.purse.limited else 0
            worst = self.purse.worst(profile, tokens, call.max_output_tokens)
            if not self.purse.take(worst):
                return failure
            try:
                reply = yield call
            except RouterError as error:
                self.purse.settle(worst, profile, error)
                failure = error
            else:
                assert isinstance(reply, Reply)
                self.purse.settle(worst, profile, reply)
                if reply.text.strip() or reply.citations or may_be_empty:
                    return reply
                failure = BadReply(f"{call.purpose} came back empty ({reply.finish_reason})")
            if not (isinstance(failure, BadReply) or (isinstance(failure, BackendError) and failure.retryable)):
                break
        return failure

    def _take(self, reply: Reply, number: int, done: Read, name: str) -> Path[bool]:
        """Add what a worker says; whether it says that the question can be answered."""
        if self.desk.agents.notes == "free_text":
            done.pointed_out += [_passage(citation) for citation in reply.citations]
            done.summary = yield from self._in_room(reply.text, done, name)
            done.states.append(done.summary)
            return False
        complete = False
        if reply.citations:
            done.notes = done.notes.with_passages(map(_passage, reply.citations), number + 1)
        elif reply.answered:
            report = parse(reply.text)
            if reply.finish_reason in _CUT_OFF:
                done.remarks.append(f"the report of {name} was cut off at its limit, agents.worker_output_tokens")
            done.notes = done.notes.after(report.lines, number + 1, self.desk.portions[number])
            complete = self.desk.may_stop and report.complete and bool(done.notes.passages)
        done.states.append(view(done.notes, 1 << 62, len).text)
        return complete

    def _in_room(self, summary: str, done: Read, name: str) -> Path[str]:
        """The summary; where it is too long, a shorter one is asked for once, and then its beginning is cut."""
        desk = self.desk

        def fits(text: str) -> bool:
            return desk.summary_tokens(text) <= desk.summary_room

        if fits(summary):
            return summary
        call = desk.shorter_call(summary, f"{name}, shorter")
        if call is not None:
            outcome = yield from self.ask(call, desk.worker)
            if isinstance(outcome, Reply):
                summary = outcome.text
                done.remarks.append(f"{name} wrote more than there is room for and was asked to be shorter")
        if fits(summary):
            return summary
        done.remarks.append(f"of what {name} wrote the beginning was cut, for want of room")
        return without_oldest(summary, fits)

    def _keep_back(self, done: Read) -> None:
        """For the last call: what is known now, and what the next worker may add, quotations and their frame."""
        if self.purse.limited:
            desk = self.desk
            grown = desk.manager_tokens(done.notes, done.summary) + 2 * desk.window.output_tokens
            self.purse.keep_back(self.path, self.purse.worst(desk.manager, grown, desk.request.max_output_tokens))


def _hopeless(error: RouterError) -> bool:
    if isinstance(error, BackendRejected):
        return error.status in _HOPELESS
    return not isinstance(error, BackendError | ContextTooLong)


def _passage(citation: Passage) -> Passage:
    return Passage(citation.document_id, citation.start, citation.end, citation.text, citation.score)
