"""CoLoR: every passage written anew, shorter, by a language model, so that more of them fit one prompt.

Made for finding passages, not for reading details out of them: compress a corpus once, without a question, let a model
choose among the short passages, and answer from the long ones (`retrievers/in_context.py` does both). The model is any
function from prompts to texts: a chat model behind HTTP, or a local one (`LocalColor`), fine-tuned or not
(`training/preference.py` makes the data, `training/orpo.py` trains). How calls run side by side is left to it.

Source: CoLoR (arXiv 2412.18232) and its published code; the prompt, the checks and the fall-backs are ours.
"""

from __future__ import annotations

import copy
import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..router.core import Message
from ..router.errors import ConfigError, MissingExtra
from ..router.tokens import estimate_tokens
from .compression import Compressed, Compressor, Count, Span, Units, keep_best, shares, unspaced, whole
from .protect import Kind, protected_spans
from .words import words

Generate = Callable[[Sequence[tuple[Message, ...]]], Sequence[str | None]]
"""Prompts → what the model said to each, in order; None where it gave nothing."""
Split = Callable[[str], Sequence[Span]]
Outcome = Literal["rewritten", "empty", "refused", "longer", "lost"]
"""What became of a passage. All but the first keep the passage as it was: the model said nothing, would not, was not
shorter, or left out too many names and numbers."""

INSTRUCTION = """\
Summarise the passage below. It will stand for the passage in a list that others search with questions you do not know,
so keep every name, number, date and distinctive term by which it could be recognised, and leave the rest out. Be as
short as possible. Answer with the summary and nothing else.

Passage:
"""

MAX_LOST = 0.8
"""A passage is kept as it was where more than this share of the words in its names and numbers is gone.

Half of the summaries of CoLoR's data lack more than a fifth of these words, 4 to 6 % more than four fifths: they speak
of something else, or of the kind of text the passage is."""
_TELLING: tuple[Kind, ...] = ("number", "name", "identifier")
_REFUSAL = re.compile(
    r"\W*(?:i['’]?m sorry|i am sorry|sorry, |i can(?:no|['’])t |i am (?:unable|not able)|i['’]m (?:unable|not able)"
    r"|i won['’]t |as an ai\b|unfortunately, i )",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(r"\A(?:the |a )?(?:short )?summary(?: of the passage)?\s*:\s*", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def color_prompt(passage: str) -> tuple[Message, ...]:
    """What the model is asked. One turn of the user, for not every chat template knows a system message; the same for
    training and for use."""
    return (Message("user", INSTRUCTION + passage),)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What stands for a passage. text: the model's words where the outcome is `rewritten`, else the passage itself."""

    text: str
    outcome: Outcome


class Color:
    """A `Compressor` that rewrites (abstractive).

    What its results hold does not stand in the source in these words: `Compressed.kept` and `placed` are empty wherever
    a word of the model's is in the text, and no offset can be asked for; cite the source as a whole. Only a text of
    which no passage was rewritten has its offsets. `broken` names the names, numbers and identifiers of the source of
    which the result lacks a word, whatever the reason.
    A result is as short as the model makes it; ask with keep_rate=1 for that alone. Where a limit is lower, the end of
    the text gives way. The question is ignored: results serve all questions and can be kept.

    generate: asks the model. model: names it and its weights, for `version`. split: text → its passages as spans,
    ascending and not overlapping; None takes each text for one passage. cut: shortens what is above the limit; None
    keeps its beginning. max_lost: see MAX_LOST; 1 turns the check off.
    outcomes: how many passages had which outcome, since this object was made.
    """

    def __init__(
        self,
        generate: Generate,
        *,
        model: str = "",
        count: Count = estimate_tokens,
        split: Split | None = None,
        cut: Compressor | None = None,
        max_lost: float = MAX_LOST,
    ) -> None:
        if not 0 <= max_lost <= 1:
            raise ConfigError(f"max_lost is {max_lost}; it is a share, in [0, 1].")
        self.generate = generate
        self.model = model
        self.count = count
        self.split = split
        self.cut = cut
        self.max_lost = max_lost
        self.outcomes: Counter[Outcome] = Counter()
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """Changes when the same passage may be rewritten otherwise; for keys of caches."""
        prompt = hashlib.blake2b(INSTRUCTION.encode(), digest_size=4).hexdigest()
        return f"color:{prompt}:{self.max_lost}:{self.model}"

    def rewrite(self, passages: Sequence[str]) -> list[Rewrite]:
        """One for each passage, in their order. Equal passages are asked about once, blank ones not at all."""
        asked = list(dict.fromkeys(passage for passage in passages if passage.strip()))
        said = self.generate([color_prompt(passage) for passage in asked]) if asked else []
        if len(said) != len(asked):
            raise ConfigError(
                f"The function `generate` gave {len(said)} texts for {len(asked)} prompts; give one each."
            )
        made = {passage: self._checked(passage, text) for passage, text in zip(asked, said, strict=True)}
        with self._lock:
            self.outcomes.update(rewrite.outcome for rewrite in made.values())
        return [made.get(passage, Rewrite(passage, "empty")) for passage in passages]

    def compress(
        self,
        texts: Sequence[str],
        *,
        question: str = "",
        budget_tokens: int | None = None,
        keep_rate: float | None = None,
    ) -> list[Compressed]:
        """See `compression.Compressor`, and the class for what is different here.

        A total budget that is too small shortens all rewritten texts alike.
        """
        tokens = [self.count(text) if text else 0 for text in texts]
        limits = shares(tokens, budget_tokens=budget_tokens, keep_rate=keep_rate)
        spans = [list(self.split(text)) if self.split else [(0, len(text))] for text in texts]
        rewrites = iter(self.rewrite([text[a:b] for text, cut in zip(texts, spans, strict=True) for a, b in cut]))
        results = [
            self._joined(text, before, cut, [next(rewrites) for _ in cut])
            for text, before, cut in zip(texts, tokens, spans, strict=True)
        ]
        if budget_tokens is not None:
            limits = shares([result.tokens_after for result in results], budget_tokens=budget_tokens)
        return [self._within(text, result, limit) for text, result, limit in zip(texts, results, limits, strict=True)]

    def _checked(self, passage: str, said: str | None) -> Rewrite:
        text = _LABEL.sub("", _THOUGHTS.sub("", said or "").strip())
        if not text:
            return Rewrite(passage, "empty")
        if _REFUSAL.match(text) and not _REFUSAL.match(passage):
            return Rewrite(passage, "refused")
        if len(text) > len(passage) or self.count(text) >= self.count(passage):
            return Rewrite(passage, "longer")
        if self.max_lost < 1 and lost_share(passage, text) > self.max_lost:
            return Rewrite(passage, "lost")
        return Rewrite(text, "rewritten")

    def _joined(self, text: str, before: int, spans: Sequence[Span], rewrites: Sequence[Rewrite]) -> Compressed:
        """The passages of a text, with what stood between them."""
        if all(rewrite.outcome != "rewritten" for rewrite in rewrites):
            return whole(text, before)
        ends = [*(text[end:start] for (_, end), (start, _) in pairwise(spans)), text[spans[-1][1] :]]
        pieces = [rewrite.text + end for rewrite, end in zip(rewrites, ends, strict=True)]
        made = text[: spans[0][0]] + "".join(pieces)
        after = self.count(made)
        # Every piece is shorter than its passage; a tokenizer may still see more in all of them together.
        return Compressed(made, (), (), before, after, _broken(text, made)) if after < before else whole(text, before)

    def _within(self, source: str, result: Compressed, limit: int) -> Compressed:
        if result.tokens_after <= limit:
            return result
        if self.cut is not None:
            shorter = self.cut.compress([result.text], budget_tokens=limit)[0]
        else:
            shorter = _beginning(result.text, result.tokens_after, limit, self.count)
        broken = _broken(source, shorter.text)
        if result.kept:  # the source itself: its offsets hold
            return replace(shorter, broken=shorter.broken or broken)
        return Compressed(shorter.text, (), (), result.tokens_before, shorter.tokens_after, broken)


def lost_share(passage: str, summary: str) -> float:
    """Share of the distinct words in the names, numbers and identifiers of a passage that its summary lacks, [0, 1]."""
    telling = set[str]().union(*(_words_of(passage[s.start : s.end]) for s in protected_spans(passage, _TELLING)))
    return len(_missing(telling, summary)) / len(telling) if telling else 0.0


def _broken(source: str, text: str) -> tuple[Span, ...]:
    spans = protected_spans(source, _TELLING)
    missing = _missing(set[str]().union(*(_words_of(source[s.start : s.end]) for s in spans)), text)
    return tuple(
        dict.fromkeys((s.start, s.end) for s in spans if not missing.isdisjoint(_words_of(source[s.start : s.end])))
    )


def _missing(telling: set[str], text: str) -> set[str]:
    missing, folded = telling - _words_of(text), text.casefold()
    # Between spaces, scripts without spaces have whole sentences.
    return {word for word in missing if not (any(map(unspaced, word)) and word in folded)}


def _words_of(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _beginning(text: str, tokens: int, limit: int, count: Count) -> Compressed:
    """The words a text begins with, as many as fit."""
    starts, ends = words(text)
    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    units = Units.of(spans, -np.arange(len(spans), dtype=np.float64))
    return keep_best(text, units, budget_tokens=limit, tokens_before=tokens, count=count)


# ---- a local model ---------------------------------------------------------------------------------------------------


class LocalColor:
    """A `Generate` by a causal language model of Hugging Face's: greedy, in batches.

    model, tokenizer: loaded objects; `load` reads them from a folder. name: of the model and its weights, for caches.
    max_prompt_tokens: a longer prompt is not sent, and its passage stays as it is: a summary of a cut passage would
    pass for one of all of it. batch_tokens: prompts and what may be written, padding included; alike lengths together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "",
        max_prompt_tokens: int = 2048,
        max_new_tokens: int = 1024,
        batch_tokens: int = 8192,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens
        self._lock = threading.Lock()  # Hugging Face tokenizers are not thread-safe

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> LocalColor:
        """From a folder that holds a model and its tokenizer; nothing is downloaded.

        Raises ConfigError where it cannot be read, MissingExtra without transformers.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise MissingExtra(
                "A local model needs torch and transformers, which are not installed. "
                "Install them with: pip install 'longroute[embed]'"
            ) from error
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True)
            tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"No causal language model could be loaded from {folder}: {error}") from error
        return cls(model.eval(), tokenizer, name=_name_of(Path(folder)), **options)

    def __call__(self, prompts: Sequence[tuple[Message, ...]]) -> list[str]:
        said = [""] * len(prompts)
        with self._lock:
            rows = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
            batch: list[int] = []
            # Longest first, so that memory that does not suffice shows at once; and one batch is padded to its first.
            for number in sorted(range(len(rows)), key=lambda n: -len(rows[n])):
                if len(rows[number]) > self.max_prompt_tokens:
                    continue
                if batch and (len(batch) + 1) * 2 * len(rows[batch[0]]) > self.batch_tokens:
                    self._write(batch, rows, said)
                    batch = []
                batch.append(number)
            if batch:
                self._write(batch, rows, said)
        return said

    def _write(self, batch: Sequence[int], rows: Sequence[list[int]], said: list[str]) -> None:
        import torch

        width = len(rows[batch[0]])
        settings = copy.deepcopy(self.model.generation_config)
        ends = _ends(settings.eos_token_id, self.tokenizer.eos_token_id)
        padding = next(iter([p for p in (self.tokenizer.pad_token_id, *ends) if p is not None]), 0)
        # What is longer than its prompt is longer than its passage, and of no use.
        settings.update(
            do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, max_length=None,
            max_new_tokens=min(self.max_new_tokens, width), eos_token_id=ends or None, pad_token_id=padding,
        )  # fmt: skip
        ids = torch.tensor([[padding] * (width - len(rows[n])) + rows[n] for n in batch], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(rows[n])) + [1] * len(rows[n]) for n in batch], device=ids.device)
        with torch.inference_mode():
            written = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        for number, row in zip(batch, written[:, width:], strict=True):
            said[number] = self.tokenizer.decode(row, skip_special_tokens=True)


def _ends(*known: int | list[int] | None) -> list[int]:
    """The tokens that end an answer: a chat model's end of turn often differs from its tokenizer's end of text."""
    return list(
        dict.fromkeys(end for ends in known for end in (ends if isinstance(ends, list) else [ends]) if end is not None)
    )


def prompt_ids(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """The tokens of a prompt, up to where the model's answer begins.

    By the tokenizer's chat template; a model without one is a plain language model and gets plain text.
    """
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        text = "\n\n".join(message.content for message in prompt) + "\n\nSummary:\n"
        start = tokenizer.bos_token or ""
        text = start + text
    # Special tokens stand in the text already.
    return [int(number) for number in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _name_of(folder: Path) -> str:
    """Changes when a file of the folder does. Weights are too large to read for this; size and time are enough."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return f"{folder.name}@{digest.hexdigest()}"
