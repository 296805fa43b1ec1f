from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longroute.router.core import Answer, Call, Document, Features, ModelProfile, Reply, Request
from longroute.router.strategies.compressed import Compressed

TEXT = "It is, by and large, agreed that the tenant shall not, under any terms, keep a dog in the flat."


@dataclass
class EverySecondWord:
    """Keeps every second word; offsets are true."""

    asked: list[tuple[str, float | None]]

    def compress(self, texts: Sequence[str], *, question: str = "", keep_rate: float | None = None) -> list[Kept]:
        self.asked.append((question, keep_rate))
        return [Kept(text) for text in texts]


@dataclass
class Kept:
    source: str

    @property
    def text(self) -> str:
        return " ".join(self.source.split()[::2])

    def source_offset(self, place: int) -> int:
        before, words = self.text[:place].count(" "), self.source.split()
        start = len(" ".join(words[: 2 * before])) + (before > 0)
        return start + place - (self.text.rfind(" ", 0, place) + 1)


FEATURES = Features(30_000, 20, 0, 1024, 0.0, 1, 0.2, {"lookup": 1.0}, None, "text")
REQUEST = Request("May I keep a dog?", (Document(TEXT, "lease"), Document("short", "note")), "model")


def first_call(strategy: Compressed, request: Request = REQUEST) -> Call:
    call = next(strategy.plan(request, FEATURES))
    assert isinstance(call, Call)
    return call


def test_the_model_is_shown_the_shortened_text_and_told_so() -> None:
    compressor = EverySecondWord([])
    call = first_call(Compressed(compressor, 0.5))
    assert compressor.asked == [(REQUEST.question, 0.5)] * 2
    shown = call.messages[-1].content
    assert Kept(TEXT).text in shown and TEXT not in shown
    assert "shortened" in call.messages[0].content


def test_other_prompts_get_the_shortened_text_marked_and_the_rest_as_it_was() -> None:
    context = first_call(Compressed(EverySecondWord([]))).context
    assert context[0].startswith("[Shortened") and context[0].endswith(Kept(TEXT).text)
    assert context[1] == "short"  # nothing was left out


def test_quotations_are_cited_where_they_stand_in_the_source() -> None:
    plan = Compressed(EverySecondWord([])).plan(REQUEST, FEATURES)
    next(plan)
    quote = " ".join(Kept(TEXT).text.split()[3:8])
    try:
        plan.send(Reply(f'It says "{quote}".'))
    except StopIteration as finished:
        answer: Answer = finished.value
    [citation] = answer.citations
    assert TEXT[citation.start : citation.end] == citation.text
    assert citation.text.split()[::2] == quote.split()


def test_code_may_have_a_compressor_of_its_own() -> None:
    text, code = EverySecondWord([]), EverySecondWord([])
    request = Request("What does f do?", (Document("def f(): pass", "f.py", kind="code"),), "model")
    first_call(Compressed(text, by_kind={"code": code}), request)
    assert (len(text.asked), len(code.asked)) == (0, 1)


def test_where_the_one_for_code_keeps_nothing_the_general_one_does() -> None:
    class Nothing(EverySecondWord):
        def compress(self, texts: Sequence[str], *, question: str = "", keep_rate: float | None = None) -> list[Kept]:
            return [Kept("") for _ in texts]

    text = EverySecondWord([])
    request = Request("What does f do?", (Document("one two three four", "min.js", kind="code"),), "model")
    call = first_call(Compressed(text, by_kind={"code": Nothing([])}), request)
    assert len(text.asked) == 1 and "one three" in call.messages[-1].content


def test_the_footprint_follows_the_rate() -> None:
    profile = ModelProfile("m", 128_000)
    third, half = (Compressed(EverySecondWord([]), rate).footprint(FEATURES, profile) for rate in (1 / 3, 1 / 2))
    assert 10_000 < third.prompt_tokens < 10_300 and half.prompt_tokens - third.prompt_tokens == 5_000
    assert third.preparation_s > 0


# ---- conversations ---------------------------------------------------------------------------------------------------

TURNS = (
    Document("Have you signed the lease of the flat?", "chat#1", speaker="Ada"),
    Document("  Yes, on Friday,\r\nand the garden is ours alone.", "chat#2", speaker="Ben"),
    Document("Good.", "chat#3", speaker="Ada"),
)
TALK = Request("When was the lease signed?", TURNS, "model")


class FirstWords:
    """Keeps the beginning of a text, as the real compressors say what they keep."""

    def __init__(self, characters: int) -> None:
        self._characters = characters
        self.seen: list[str] = []

    def compress(self, texts: Sequence[str], *, question: str = "", keep_rate: float | None = None) -> list[Beginning]:
        self.seen += texts
        return [Beginning(text[: self._characters]) for text in texts]


@dataclass
class Beginning:
    text: str

    def source_offset(self, place: int) -> int:
        return place


@dataclass
class Rewritten:
    text: str

    def source_offset(self, place: int) -> int:
        raise IndexError(place)


def test_a_conversation_is_shortened_as_one_text() -> None:
    compressor = FirstWords(60)
    call = first_call(Compressed(compressor), TALK)
    assert compressor.seen == [
        "Ada: Have you signed the lease of the flat?\nBen: Yes, on Friday,\n  and the garden is ours alone.\nAda: Good."
    ]
    assert "Ada: Have you signed the lease of the flat?\nBen: Yes, on Fri\n" in call.messages[-1].content


def test_each_turn_has_what_was_kept_of_it_in_its_place() -> None:
    context = first_call(Compressed(FirstWords(60)), TALK).context
    assert context[0] == TURNS[0].text
    assert context[1].startswith("[Shortened") and context[1].endswith("\n\nYes, on Fri")
    assert context[2] == "[…]"


def test_a_text_of_the_compressor_s_own_stands_for_all_turns() -> None:
    class Writes:
        def compress(
            self, texts: Sequence[str], *, question: str = "", keep_rate: float | None = None
        ) -> list[Rewritten]:
            return [Rewritten("Lease signed on Friday.") for _ in texts]

    context = first_call(Compressed(Writes()), TALK).context
    assert context[0].endswith("\n\nLease signed on Friday.")
    assert context[2] == "[…]"


def test_quotations_of_a_conversation_are_cited_turn_by_turn() -> None:
    plan = Compressed(FirstWords(1000)).plan(TALK, FEATURES)
    next(plan)
    try:
        plan.send(Reply('It says "of the flat?\nBen: Yes, on Friday, and the garden is ours".'))
    except StopIteration as finished:
        answer: Answer = finished.value
    assert [(citation.document_id, citation.text) for citation in answer.citations] == [
        ("chat#1", "of the flat?"),
        ("chat#2", "Yes, on Friday,\r\nand the garden is ours"),
    ]
    for citation, turn in zip(answer.citations, TURNS, strict=False):
        assert turn.text[citation.start : citation.end] == citation.text
