"""Between text and token ids: the tokenizer and chat template of a model folder.

What a template writes around the messages is markup; what stands in the messages is text. A document that spells out
`<|im_end|>` therefore stays those characters and cannot end its message, let alone begin another role's.
"""

from __future__ import annotations

import copy
import inspect
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_SET_ASIDE = "\ue000"  # private use: stands in for a special token that a message spells out, while a template runs


class Tokenizer:
    """One model's. Safe to use from any thread: the engine decodes while a server spells tokens or encodes prompts."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: transformers' own, any class."""
        self._markup = tokenizer
        # Copies, as a tokenizer must not be used and set up otherwise at the same time.
        self._text, self._decoder = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
        self._encoding, self._decoding = threading.Lock(), threading.Lock()
        # Named ones are not all: Llama 3's headers, for instance, are special without a name like `eos_token`.
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials = sorted(filter(None, {*tokenizer.all_special_tokens, *added}), key=len, reverse=True)
        self._not_the_templates = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
        self._special = re.compile("|".join(map(re.escape, specials)) or r"(?!)")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Raises ConfigError where the folder holds none that can be read."""
        from transformers import AutoTokenizer

        if not any((Path(folder) / name).is_file() for name in _FILES):  # transformers would say it in five lines
            raise ConfigError(
                f"There is no tokenizer in {folder}: neither {', '.join(_FILES[:-1])} nor {_FILES[-1]}. Copy the "
                "tokenizer's files there from where the model came from."
            )
        try:
            return cls(AutoTokenizer.from_pretrained(str(folder)))
        except (OSError, ValueError, KeyError, ImportError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"There is no tokenizer that can be read in {folder}: {said}") from error

    @property
    def vocabulary(self) -> Mapping[str, int]:
        return dict(self._markup.get_vocab())

    @property
    def has_chat_template(self) -> bool:
        return bool(self._markup.chat_template)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's end of text, and what the template writes behind an answer.

        A generation config names one of them only, or neither, often enough: texts and turns end with different tokens.
        """
        known = {int(token) for token in self._markup.added_tokens_decoder}
        behind = self._behind_an_answer()
        ends = {self._markup.eos_token_id, behind if behind in known else None}
        return frozenset(int(token) for token in ends if token is not None)

    def _behind_an_answer(self) -> int | None:
        """The first token that the template writes after an assistant's text."""
        if not self.has_chat_template:
            return None
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SET_ASIDE}]
        try:
            rendered: str = self._markup.apply_chat_template(turns, tokenize=False)
        except Exception:  # templates are programs; one that refuses such a conversation tells nothing about ends
            return None
        _, found, behind = rendered.rpartition(_SET_ASIDE)
        ids = self._ids(self._markup, behind.lstrip(), False) if found else []
        return ids[0] if ids else None

    def chat_ids(
        self, messages: Sequence[Mapping[str, str]], template_options: Mapping[str, Any] | None = None
    ) -> tuple[int, ...]:
        """A conversation as the model was taught to read it, up to where its answer begins.

        messages: `role` and `content` each. template_options: what this template understands besides; they cannot
        replace the template itself, nor change what is asked of it here.
        Raises ConfigError where there is no template, or where it refuses.
        """
        if not self.has_chat_template:
            raise ConfigError(
                "This model has no chat template, so there is no right way to show it a conversation. Use plain "
                "completions (/v1/completions), or an instruction-tuned model."
            )
        options = dict(template_options or {})
        if taken := sorted(options.keys() & self._not_the_templates):
            raise ConfigError(f"{taken[0]!r} is no option of a chat template; leave it out.")
        aside: list[str] = []

        def put_aside(found: re.Match[str]) -> str:
            aside.append(found[0])
            return f"{_SET_ASIDE}{len(aside) - 1}{_SET_ASIDE}"

        # A text may hold the stand-in itself; it is set aside as well, so whatever is found later is ours.
        spelled_out = re.compile(f"{self._special.pattern}|{_SET_ASIDE}")
        shown = [{**m, "content": spelled_out.sub(put_aside, m["content"])} for m in messages]
        try:
            rendered: str = self._markup.apply_chat_template(
                shown, tokenize=False, add_generation_prompt=True, **options
            )
        except Exception as error:  # templates are programs, and raise what they like
            raise ConfigError(f"The model's chat template refuses these messages: {error}") from error
        ids: list[int] = []
        for number, part in enumerate(re.split(f"{_SET_ASIDE}(\\d+){_SET_ASIDE}", rendered)):
            ids += self._ids(self._text, aside[int(part)], True) if number % 2 else self._ids(self._markup, part, False)
        return tuple(ids)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """A text to go on from, with what the model wants at its beginning. Special tokens are read as such."""
        with self._encoding:
            return tuple(self._markup(text)["input_ids"])

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text and nothing around it, and which of its characters each of them stands for.

        Special tokens that it spells out are text. Raises ConfigError where the tokenizer does not know places.
        """
        if not self._text.is_fast:
            raise ConfigError(
                f"{type(self._text).__name__} does not say where its tokens stand in a text. "
                "Use a model whose folder has a tokenizer.json."
            )
        # Rust strings cannot hold lone surrogates; a question mark is one character as well.
        plain = text.encode("utf-8", "replace").decode("utf-8")
        with self._encoding:
            found = self._text(
                plain, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
            )
        return list(found["input_ids"]), [(int(start), int(end)) for start, end in found["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        with self._decoding:
            text: str = self._decoder.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def spelled(self, token: int) -> str:
        """Text of a token on its own. A part of a character shows as U+FFFD."""
        return self.decode([token])

    def _ids(self, tokenizer: Any, text: str, split_special_tokens: bool) -> list[int]:
        if not text:
            return []
        with self._encoding:
            ids: list[int] = tokenizer(
                text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
            )["input_ids"]
        return ids
