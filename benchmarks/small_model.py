"""A language model small enough to train in minutes on a CPU that answers from a text, in longroute's own prompts.

    python -m benchmarks.small_model [FOLDER]

Writes an ordinary Hugging Face folder (build/small_model by default): a Llama with a tokenizer of its own, one token
for each word of `key_values.py` and of the prompts, and a chat template. Nothing is downloaded. The task is
`key_values.py`'s; what a model of this size can learn is to look a name up and to copy what stands behind it, and to
say in the words of the prompts that there is nothing to copy.

How it learns that in so few steps: (1) sentences of a text come again behind it, and every repeated word is to be
predicted, which starts the heads that look back; (2) texts grow only when the model answers nearly all questions on
those of the size before; (3) several questions are asked of each text, one after the other; (4) rotary angles with a
long base, so that words are found as well at distances never trained. Source of (1): "In-context learning and
induction heads", Olsson et al. 2022, arXiv 2209.11895.
"""

from __future__ import annotations

import random
import re
import string
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longroute.router.core import Document, Message, Passage
from longroute.router.prompts import REFUSAL, compressed_messages, full_messages, rag_messages

from .key_values import Fact, Page, invented_page, words

FOLDER = Path(__file__).resolve().parents[1] / "build" / "small_model"
START, END, PAD = "<s>", "<|end|>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPACE = "\u2581"  # what stands for a space inside a token


@dataclass(frozen=True, slots=True)
class Level:
    """How hard the texts of a stage are. Counts of sentences are the most; each text draws its own."""

    facts: int
    fillers: int
    real_prompts: float = 0.0  # share of texts inside longroute's prompts
    refusals: float = 0.1  # share of questions whose answer is not there
    echoes: float = 0.2  # share of texts that are repeated instead of asked about


LEVELS = (
    Level(2, 1, refusals=0, echoes=0.5),
    Level(4, 3, echoes=0.5),
    Level(8, 6, echoes=0.3),
    Level(12, 15, real_prompts=0.3),
    Level(20, 30, real_prompts=0.6, echoes=0.1),
    Level(24, 60, real_prompts=1.0, echoes=0),
    Level(30, 120, real_prompts=1.0, echoes=0),
)


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    """A transformers tokenizer: a token for each word known beforehand, else characters, else bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = dict.fromkeys([PAD, START, END, *ROLES, "<unk>"], 0.0)
    pieces |= dict.fromkeys([f"<0x{byte:02X}>" for byte in range(256)], -20.0)
    pieces |= dict.fromkeys([_SPACE, "\n", *string.digits, *string.ascii_letters, *string.punctuation], -10.0)
    for word in [*words(), *_prompt_words()]:
        pieces |= {word: -3.0, _SPACE + word: -3.0}
    own = Tokenizer(models.Unigram(list(pieces.items()), unk_id=list(pieces).index("<unk>"), byte_fallback=True))
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never")
    own.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]  # type: ignore[list-item]
    )
    own.add_special_tokens([AddedToken(name, special=True) for name in (PAD, START, END, *ROLES, "<unk>")])
    fast: Any = PreTrainedTokenizerFast  # untyped there
    return fast(
        tokenizer_object=own,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token="<unk>",  # noqa: S106  # not a password
        additional_special_tokens=list(ROLES),
        chat_template=TEMPLATE,
    )


def _prompt_words() -> list[str]:
    """The words of longroute's prompts, without those of a text or question."""
    passage = Passage("document", 0, 0, "")
    prompts = [
        *full_messages([Document("", "document")], ""),
        *rag_messages([passage], ""),
        *compressed_messages([Document("", "document")], ""),
        Message("assistant", REFUSAL),
    ]
    found = re.findall(r"[A-Za-z]+", " ".join(message.content for message in prompts))
    return sorted(set(found))


# ---- what is trained on ----------------------------------------------------------------------------------------------

Row = tuple[list[int], list[bool]]  # token ids, and which of them are to be predicted


def answer_to(fact: Fact, page: Page) -> str:
    return fact.sentence if fact in page.facts else REFUSAL


def prompt(kind: str, page: Page, question: str, rng: random.Random) -> tuple[Message, ...]:
    """A question on a page in one of longroute's prompts: `full`, `rag` or `compressed`; `bare` has no task before it."""
    name = f"document-{rng.randint(1, 9)}"
    if kind == "full":
        return full_messages([Document(page.text, name)], question)
    if kind == "compressed":
        return compressed_messages([Document(page.text, name)], question)
    if kind == "rag":
        passages, sentences = [], list(page.sentences)
        while sentences:
            n = rng.randint(1, 12)
            passages.append(Passage(name, 0, 0, " ".join(sentences[:n])))
            del sentences[:n]
        return rag_messages(passages, question)
    return (Message("user", f"{page.text}\n\nQuestion: {question}"),)


class Lessons:
    """Rows to train on. Token ids of one tokenizer; chance from one generator."""

    def __init__(self, own: Any, rng: random.Random) -> None:
        self._tokenizer, self._rng = own, rng

    def row(self, level: Level) -> Row:
        rng = self._rng
        page = invented_page(rng, rng.randint((level.facts + 1) // 2, level.facts), rng.randint(level.fillers // 2, level.fillers), 8)
        if rng.random() < level.echoes:
            return self._echo(page)
        kind = rng.choice(("full", "rag", "compressed")) if rng.random() < level.real_prompts else "bare"
        return self._asked(page, kind, level)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _echo(self, page: Page) -> Row:
        again = self._rng.sample(page.sentences, min(12, len(page.sentences)))
        first, second = self._ids(START + page.text), self._ids(" " + " ".join(again))
        return first + second, [False] * len(first) + [True] * len(second)

    def _asked(self, page: Page, kind: str, level: Level) -> Row:
        asked = self._rng.sample(page.facts, min(8, len(page.facts)))
        asked = [self._rng.choice(page.missing) if self._rng.random() < level.refusals else fact for fact in asked]
        messages = prompt(kind, page, asked[0].question, self._rng)
        shown = [{"role": message.role, "content": message.content} for message in messages]
        ids = self._ids(self._tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True))
        counted = [False] * len(ids)
        for number, fact in enumerate(asked):
            turn = self._ids(f"{ROLES[1]}Question: {fact.question}{END}{ROLES[2]}") if number else []
            answer = self._ids(answer_to(fact, page) + END)
            ids += turn + answer
            counted += [False] * len(turn) + [True] * len(answer)
        return ids, counted
