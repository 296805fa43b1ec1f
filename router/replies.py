"""What a reply amounts to: an answer, or one that is empty, broke off, was held back, or says that the text has none.

The words for it, by language, are data (`refusals.json`). How far a refusal is to be believed is left to
`policies/escalation.py`, what is asked of a model to `prompts.py`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from .core import Reply

# Finish reasons of a reply that is longer than it was allowed to be, and of one that a filter or the model's own rules
# cut short or replaced, as OpenAI, Anthropic, Google, Mistral and Amazon call them.
_BROKE_OFF = frozenset(("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"))
_HELD_BACK = frozenset(
    (
        "content_filter",
        "content_filtered",
        "guardrail_intervened",
        "refusal",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
    )
)

_READ = 4_000  # characters at the beginning of a reply that are looked at
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)*\]]*(?=\s|$)|[。！？]+|\n+")
_WORD = re.compile(r"[^\W_]+")

Kind = Literal["no_answer", "nothing_said"]


def answers(reply: Reply) -> bool:
    """Whether a reply is an answer, which is what `Answer.answered` says of every strategy.

    An answer has words, nobody has held part of it back, and it does not say that the text holds no answer. One that
    broke off at its longest is an answer all the same.
    """
    held_back = _reason(reply) in _HELD_BACK
    return reply.answered and bool(reply.text.strip()) and not held_back and not refuses(reply.text)


def broke_off(reply: Reply) -> bool:
    """Whether a reply ended because it was at its longest."""
    return _reason(reply) in _BROKE_OFF


def shortcoming(reply: Reply) -> str:
    """What a reader of an answer should know about how it ended; empty where it ended by itself."""
    if broke_off(reply):
        return "the answer broke off at its longest: raise max_output_tokens"
    if _reason(reply) in _HELD_BACK:
        return f"the answer, or the rest of it, was held back by the model's server ({reply.finish_reason})"
    return ""


def refuses(text: str) -> bool:
    """Whether a reply says that the text does not answer the question, in words like those it was asked to use.

    Models put those words into the question's language, or into their own, so any sentence may say so in any language.
    """
    return any(_words("no_answer").search(sentence) for sentence in _sentences(text))


def nothing_said(sentence: str) -> bool:
    """Whether a sentence says, in a language other than English, that a text does not mention or specify something.

    Broader than `refuses`, and only as reliable as "is not mentioned" is in English: to be weighed, not believed.
    """
    return any(_words("nothing_said").search(part) for part in _sentences(sentence))


def _reason(reply: Reply) -> str:
    """As in the lists above; some libraries hand on the name of an enumeration with it (`FinishReason.SAFETY`)."""
    return reply.finish_reason.rpartition(".")[2].lower()


def _sentences(text: str) -> Iterator[str]:
    """Each sentence as its casefolded words, a space around each."""
    composed = unicodedata.normalize("NFC", text[:_READ])
    for sentence in _SENTENCE_END.split(composed):
        yield " ".join(["", *_WORD.findall(sentence.casefold()), ""])


@cache
def _words(kind: Kind) -> re.Pattern[str]:
    """Of all languages. In the data, `…` stands for anything up to 40 characters."""
    languages = json.loads(Path(__file__).with_name("refusals.json").read_text("utf-8"))
    patterns = [pattern for language in languages.values() for pattern in language[kind]]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns).replace("…", "(?:.{0,40}?)"))
