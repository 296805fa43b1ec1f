"""Where the calls of Chain-of-Agents are written: every prompt within its window, counted as the model counts.

One writer serves one request. It decides what readers read for, cuts the text into portions, and fits notes into the
room that there is. It makes calls and sends none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..core import Call, Document, Features, Message, ModelProfile, Passage, Request, TokenCounter
from ..errors import ConfigError, ContextTooLong
from ..prompts import (
    Reading,
    free_text_worker_messages,
    manager_messages,
    part_text,
    shorter_messages,
    stood_in,
    worker_messages,
)
from .notes import Notes
from .portions import Portion, Split, portions
from .view import View, view, without_oldest

Variant = Literal["left_to_right", "right_to_left", "permutation", "bidirectional", "self_consistency"]

MIN_PORTION_TOKENS = 256  # of text; with less a reader sees little but its instructions
SAFETY_TOKENS = 32  # for what a count does not know of: a template's own words, the end of a reply
MESSAGE_TOKENS = 8  # what a server writes around one message of a prompt
_MIN_NOTES_TOKENS = 64  # for the last call: room for less than that is no room
_SUMMARY_SHARE, _CODE_SHARE, _COUNTING_SHARE, _LOOKUP_SHARE = 0.5, 0.5, 0.25, 0.6  # probability that a type counts from
_SHARES, _MOST_OUTPUT = 8, 1024  # one share of the window is for notes; one, up to so many tokens, for the reply
_MOST_MARKED = 200  # documents; of more, those without notes are not even marked in a prompt that is not ours


@dataclass(frozen=True, slots=True)
class Agents:
    """How readers work together; the settings `agents` tell what each of these is."""

    worker_model: str = ""
    window_tokens: int = 16_000
    notes_tokens: int | None = None
    worker_output_tokens: int | None = None
    notes: Literal["structured", "free_text"] = "structured"
    split: Literal["balanced", "greedy"] = "balanced"
    variant: Variant = "left_to_right"
    paths: int | None = None
    combine: Literal["auto", "vote", "judge"] = "auto"
    temperature: float | None = None
    retries: int = 1
    on_failure: Literal["skip", "abort"] = "skip"
    early_exit: bool = False

    @property
    def number_of_paths(self) -> int:
        if self.variant == "bidirectional":
            return 2
        if self.variant in ("left_to_right", "right_to_left"):
            return 1
        return self.paths or (5 if self.variant == "self_consistency" else 1)

    def window_of(self, profile: ModelProfile, max_output_tokens: int) -> Window:
        """What a worker may read and write. The answer's room is kept free as well, as `decide` requires it."""
        most = min(self.window_tokens, profile.context_window)
        output = self.worker_output_tokens or min(_MOST_OUTPUT, max(1, most // _SHARES))
        output = min(output, profile.max_output_tokens or output)
        spare = max(0, max_output_tokens - output)
        return Window(min(most, profile.context_window - spare), output, self.notes_tokens or max(1, most // _SHARES))


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of one call of a worker, in all; and those of them that are kept for its reply and for notes."""

    tokens: int
    output_tokens: int
    notes_tokens: int

    def most_for_prompt(self, relative_error: float) -> int:
        """Counted tokens that a prompt may have, the count's error allowed for."""
        return math.floor((self.tokens - self.output_tokens) / (1 + relative_error))

    def most_for_text(self, relative_error: float) -> int:
        """The same without notes."""
        return self.most_for_prompt(relative_error) - self.notes_tokens - SAFETY_TOKENS


@dataclass(frozen=True, slots=True)
class Frame:
    """Tokens of prompts without what they are about: a worker's with one document that has no name, what another such
    document adds, the manager's with the notes of one path, and with those of every path.
    """

    worker: int
    document: int
    manager: int
    judge: int


def reading_of(features: Features) -> Reading:
    """What workers read for."""
    if features.kind == "code" or features.task.get("code", 0.0) >= _CODE_SHARE:
        return "code"
    return "summary" if features.task.get("summary", 0.0) >= _SUMMARY_SHARE else "question"


def judges(agents: Agents, features: Features) -> bool:
    """Whether a judge combines several paths: long answers are never the same, so there is nothing to vote on."""
    if agents.combine == "auto":
        return reading_of(features) != "question"
    return agents.combine == "judge"


class CallWriter:
    """Makes the calls for one request.

    worker, manager: what is known about their models; count_worker, count_manager count for them.
    """

    def __init__(
        self,
        request: Request,
        features: Features,
        agents: Agents,
        *,
        worker: ModelProfile,
        manager: ModelProfile,
        counter_of: Callable[[ModelProfile], TokenCounter],
        split: Split,
    ) -> None:
        self.request = request
        self.agents = agents
        self.worker, self.manager = worker, manager
        self.window = agents.window_of(worker, request.max_output_tokens)
        self._worker_counter, self._manager_counter = counter_of(worker), counter_of(manager)
        self._documents = {document.id: document for document in request.documents}
        self._order: Mapping[str, int] = {document.id: n for n, document in enumerate(request.documents)}
        self._split = split
        self._reading = reading_of(features)
        share = features.task
        self._counting = share.get("aggregation", 0.0) >= _COUNTING_SHARE
        self.may_stop = agents.early_exit and share.get("lookup", 0.0) >= _LOOKUP_SHARE and not self._counting
        self.portions: tuple[Portion, ...] = ()

    def frame(self) -> Frame:
        """What prompts have beside text, question, notes and the application's instructions."""
        # Keys of fences differ in length, so what a document adds is the mean of several, less the letter in each.
        letters = [Document(letter) for letter in "abcdefghi"]
        shown = [Passage("", 0, 1, letter.text) for letter in letters]
        one, all_of_them = (part_text(shown[:n], letters[:n], "Part 3 of 9.") for n in (1, len(letters)))
        count = self._worker_counter.count
        return Frame(
            self._tokens(self._worker_counter, self._worker_prompt(one, "", "-")) - 1,
            round((count(all_of_them) - count(one)) / (len(letters) - 1)) - 1,
            *(
                self._tokens(
                    self._manager_counter,
                    manager_messages(["-"] * groups, "", free_text=self.agents.notes == "free_text"),
                )
                for groups in (1, self.agents.number_of_paths)
            ),
        )

    # ---- portions ----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the documents into portions. Raises ConfigError where the window leaves no room for text."""
        documents = [document for document in self.request.documents if document.text]
        around = self._tokens(self._worker_counter, self._worker_messages((), 0, ""))
        most = self.window.most_for_text(self._worker_counter.relative_error)
        if most - around < MIN_PORTION_TOKENS:
            window = self.window
            raise ConfigError(
                f"Of {window.tokens:,} tokens for a worker, {window.output_tokens:,} are kept for its reply, "
                f"{window.notes_tokens:,} for notes, and question and instructions take {around:,}: that leaves "
                f"{most - around:,} for text, and {MIN_PORTION_TOKENS} are needed. Lower agents.notes_tokens or "
                "agents.worker_output_tokens, raise agents.window_tokens, or use a model with a longer window."
            )
        self.portions = portions(
            documents,
            most,
            measure=lambda portion: self._tokens(self._worker_counter, self._worker_messages(portion, 999, "")),
            weigh=lambda portion: self._worker_counter.count(self._part(portion, 0)),
            split=self._split,
            balanced=self.agents.split == "balanced",
        )

    # ---- workers -----------------------------------------------------------------------------------------------------

    def worker_call(self, number: int, notes: Notes, name: str, temperature: float | None) -> tuple[Call, View]:
        """Portion `number` (from 0) and the notes so far, as much of them as fits; and what that is."""
        portion, room = self.portions[number], self.window.notes_tokens
        while True:
            shown = view(notes, room, self._worker_counter.count, withdrawn=False)
            messages = self._worker_messages(portion, number + 1, shown.text)
            if room < 1 or self._fits_worker(messages):
                return self._call(messages, name, temperature, portion), shown
            room = room * 3 // 4

    def summary_call(self, number: int, summary: str, name: str, temperature: float | None) -> Call:
        """Portion `number` (from 0) and the summary so far."""
        portion = self.portions[number]
        return self._call(self._worker_messages(portion, number + 1, summary), name, temperature, portion)

    def summary_beside(self, number: int, summary: str) -> str:
        """The summary as it fits beside portion `number`: whole, unless counts do not add up."""
        portion = self.portions[number]
        if self._fits_worker(self._worker_messages(portion, number + 1, summary)):
            return summary
        return without_oldest(summary, lambda rest: self._fits_worker(self._worker_messages(portion, number + 1, rest)))

    def shorter_call(self, summary: str, name: str) -> Call | None:
        """Asks for a shorter summary; None where even the request would not fit."""
        messages = shorter_messages(summary, self.request.question, self.summary_room)
        return self._call(messages, name, None, ()) if self._fits_worker(messages) else None

    @property
    def summary_room(self) -> int:
        return self.window.notes_tokens

    def summary_tokens(self, summary: str) -> int:
        return self._worker_counter.count(summary)

    def _fits_worker(self, messages: Sequence[Message]) -> bool:
        return self._tokens(self._worker_counter, messages) <= self.window.most_for_prompt(
            self._worker_counter.relative_error
        )

    def prompt_tokens(self, call: Call) -> float:
        """Prompt tokens of a call at most."""
        counter = self._manager_counter if call.context else self._worker_counter
        return self._tokens(counter, call.messages) * (1 + counter.relative_error)

    def _worker_messages(self, portion: Portion, number: int, notes: str) -> tuple[Message, ...]:
        return self._worker_prompt(self._part(portion, number), self.request.question, notes)

    def _worker_prompt(self, part: str, question: str, notes: str) -> tuple[Message, ...]:
        if self.agents.notes == "free_text":
            room = min(self.window.output_tokens, self.summary_room)
            return free_text_worker_messages(part, question, notes, room, reading=self._reading)
        return worker_messages(
            part, question, notes, reading=self._reading, counting=self._counting, may_finish=self.may_stop
        )

    def _part(self, portion: Portion, number: int) -> str:
        place = f"Part {number} of {len(self.portions)}." if number else ""
        return part_text(portion, [self._documents[passage.document_id] for passage in portion], place)

    def _call(self, messages: tuple[Message, ...], name: str, temperature: float | None, portion: Portion) -> Call:
        return Call(
            messages,
            self.agents.worker_model or self.request.model,
            self.window.output_tokens,
            temperature,
            purpose=name,
            final=False,
            question=self.request.question,
            passages=portion,
        )

    # ---- manager -----------------------------------------------------------------------------------------------------

    def manager_call(
        self,
        notes: Sequence[Notes],
        passages: tuple[Passage, ...],
        remarks: Sequence[str],
        name: str,
        *,
        final: bool,
        most_tokens: float = math.inf,
    ) -> tuple[Call, tuple[View, ...]]:
        """The call that answers from notes; and what it is shown of each of them.

        notes: of one path, or of several between which to choose. most_tokens: of the prompt, where money is short.
        Raises ContextTooLong where question and instructions alone fill the window.
        """
        limit = self._manager_limit(most_tokens)
        bare = self._tokens(self._manager_counter, self._manager_messages([""] * len(notes), remarks))
        room = limit - bare
        if room < _MIN_NOTES_TOKENS * len(notes) and math.isinf(most_tokens):
            raise ContextTooLong(
                f"Question and instructions take {bare:,} of the {limit:,} tokens that {self.manager.name} accepts "
                "beside its answer, which leaves no room for notes. Use a model with a longer window."
            )
        while True:
            views = tuple(
                view(one, max(0, room) // len(notes), self._manager_counter.count, order=self._order) for one in notes
            )
            messages = self._manager_messages([one.text for one in views], remarks)
            context = self._context(views, remarks)
            if room < 1 or self._fits_manager(messages, context, limit):
                return self._last(messages, context, passages, name, final=final), views
            room = room * 3 // 4

    def summaries_call(
        self,
        summaries: Sequence[str],
        passages: tuple[Passage, ...],
        remarks: Sequence[str],
        name: str,
        *,
        final: bool,
        most_tokens: float = math.inf,
    ) -> tuple[Call, bool]:
        """The call that answers from summaries; and whether they had to be cut for it."""
        limit = self._manager_limit(most_tokens)
        cut = False
        shown = list(summaries)
        while True:
            messages = self._manager_messages(shown, remarks)
            context = self._context(tuple(View((("", text),) if text else ()) for text in shown), remarks)
            if self._fits_manager(messages, context, limit) or not any(shown):
                return self._last(messages, context, passages, name, final=final), cut
            cut = True
            shown = [without_oldest(text, _shorter_than(len(text) * 3 // 4)) for text in shown]

    def manager_tokens(self, notes: Notes, summary: str) -> float:
        """Prompt tokens of the last call, were it made now, at most."""
        text = summary or view(notes, 1 << 62, len, order=self._order).text
        return self._tokens(self._manager_counter, self._manager_messages([text], ())) * (
            1 + self._manager_counter.relative_error
        )

    def _manager_limit(self, most_tokens: float) -> int:
        window = self.manager.context_window - self.request.max_output_tokens
        return _within(min(window, most_tokens), self._manager_counter) - SAFETY_TOKENS

    def _fits_manager(self, messages: Sequence[Message], context: Sequence[str], limit: int) -> bool:
        """Whether it fits our own prompt and, as far as that is known, the caller's."""
        count = self._manager_counter.count
        callers = sum(map(count, (*context, self.request.question, self.request.instructions)))
        return max(self._tokens(self._manager_counter, messages), callers) <= limit

    def _manager_messages(self, notes: Sequence[str], remarks: Sequence[str]) -> tuple[Message, ...]:
        return manager_messages(
            notes,
            self.request.question,
            self.request.instructions,
            free_text=self.agents.notes == "free_text",
            remarks=remarks,
        )

    def _context(self, views: Sequence[View], remarks: Sequence[str]) -> tuple[str, ...]:
        """The evidence of each document in its place; what is about several stands in that of the first."""
        lines: list[list[str]] = [[] for _ in self.request.documents]
        for group, shown in enumerate(views, start=1):
            own: list[list[str]] = [[] for _ in lines]
            for document_id, line in shown.lines:
                own[self._order.get(document_id, 0)].append(line)
            for place, some in enumerate(own):
                if some and len(views) > 1:
                    lines[place].append(f"Group {group}:")
                lines[place] += some
        marked = len(lines) <= _MOST_MARKED
        return tuple(
            stood_in(some, first=place == 0, remarks=remarks, groups=len(views)) if some or place == 0 or marked else ""
            for place, some in enumerate(lines)
        )

    def _last(
        self,
        messages: tuple[Message, ...],
        context: tuple[str, ...],
        passages: tuple[Passage, ...],
        name: str,
        *,
        final: bool,
    ) -> Call:
        return Call(
            messages,
            self.request.model,
            self.request.max_output_tokens,
            purpose=name,
            final=final,
            question=self.request.question,
            passages=passages,
            context=context,
        )

    def _tokens(self, counter: TokenCounter, messages: Sequence[Message]) -> int:
        return sum(counter.count(message.content) + MESSAGE_TOKENS for message in messages)


def _shorter_than(length: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= length


def _within(tokens: float, counter: TokenCounter) -> int:
    """The largest count that means no more than so many tokens, the count's error allowed for."""
    return math.floor(tokens / (1 + counter.relative_error))
