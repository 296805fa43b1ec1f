"""A model folder that is ready to answer: weights, tokenizer, and the engine that runs them."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..errors import ConfigError
from .engine import Engine, EngineOptions
from .generation import SamplingOptions
from .laws import Law
from .model import LanguageModel
from .prefixes import Ids, as_ids, shared_length
from .speculative import Speculation, common_vocabulary
from .tokenizer import Tokenizer

USUAL_SPECULATION = Speculation(Law("rapid"))
_REMEMBERED_PROMPTS = 16  # ids only: 128k tokens are one megabyte
_WORTH_MARKING_TOKENS = 256  # reading fewer again costs less than keeping a copy of the cache
_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Where and how a model runs.

    device, dtype: see `LanguageModel.load`. draft_model: folder of a second model that makes drafts; None lets the
    model draft for itself. speculation: how drafts are made and judged where a request does not say.
    """

    device: str = "auto"
    dtype: str = "auto"
    draft_model: str | Path | None = None
    speculation: Speculation = USUAL_SPECULATION
    engine: EngineOptions = field(default_factory=EngineOptions)


class LocalModel:
    """Answers prompts; safe to use from any thread. A context manager, or call `close`.

    sampling: what the model's own authors recommend where a request says nothing. speculation: as in the options.
    end_ids: tokens that end an answer: those of the weights' configuration, of the tokenizer and of its chat template.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        engine: Engine,
        sampling: SamplingOptions,
        speculation: Speculation = USUAL_SPECULATION,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.engine = engine
        self.sampling = sampling
        self.speculation = speculation
        self.end_ids = frozenset(
            token for token in engine.model.eos_ids | tokenizer.end_ids if token < engine.model.vocab_size
        )
        self._recent: deque[Ids] = deque(maxlen=_REMEMBERED_PROMPTS)
        self._remembering = threading.Lock()
        engine.start()

    @classmethod
    def load(cls, folder: str | Path, options: LocalOptions | None = None) -> LocalModel:
        """Takes as long as reading the weights does. Raises ConfigError with what to change."""
        options = options or LocalOptions()
        for place in (folder, options.draft_model):
            if place is not None:
                check_folder(Path(place))
        tokenizer = Tokenizer.load(folder)
        model = _weights(folder, options)
        draft_model, vocabulary = None, None
        if options.draft_model is not None:
            theirs = Tokenizer.load(options.draft_model).vocabulary
            vocabulary = common_vocabulary(tokenizer.vocabulary, theirs)
            draft_model = _weights(options.draft_model, options)
        engine = Engine(model, tokenizer.decode, options.engine, draft_model=draft_model, vocabulary=vocabulary)
        return cls(Path(folder).resolve().name, tokenizer, engine, recommended_sampling(folder), options.speculation)

    def close(self) -> None:
        """Requests under way end with an error. Safe to call twice, and from any thread."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def usual_sampling(self, *, drafted: bool) -> SamplingOptions:
        """Where a request says nothing. With a draft a repetition penalty is impossible, and the authors' gives way."""
        return replace(self.sampling, repetition_penalty=1.0) if drafted else self.sampling

    @property
    def context_window(self) -> int | None:
        return self.engine.model.max_positions

    def shared_head(self, prompt_ids: Sequence[int]) -> int:
        """Tokens that this prompt begins with like a recent one did, so that a third on the same text reuses them.

        For callers that do not know where the question begins. 0 for models that need no such mark.
        """
        if not self.engine.model.is_windowed:
            return 0
        ids = as_ids(prompt_ids)
        with self._remembering:
            head = max((shared_length(ids, other) for other in self._recent), default=0)
            self._recent.append(ids)
        head = min(head, len(ids) - 1)  # the last token is read again for its logits, so a mark behind it serves nobody
        return head if head >= _WORTH_MARKING_TOKENS else 0

    def shared_tokens(self, messages: Sequence[Mapping[str, str]], question: str, ids: Sequence[int]) -> int:
        """Tokens before the question, where it comes last: what other questions on the same text begin with, too.

        0 for models that need no such mark (see `Generation.shared_tokens`), and where the question is not found.
        """
        last = dict(messages[-1])
        at = last["content"].rfind(question) if question else -1
        if at <= 0 or not self.engine.model.is_windowed:
            return 0
        head = self.tokenizer.chat_ids([*messages[:-1], {**last, "content": last["content"][:at]}])
        return min(shared_length(as_ids(head), as_ids(ids)), len(ids) - 1)


def check_folder(folder: Path) -> None:
    """Raises ConfigError for what is no folder of a model that transformers reads, with what it is and what to do."""
    other = "Name the original folder, or serve it with another engine (llama.cpp reads GGUF) and set base_url to that."
    if folder.suffix == ".gguf" and folder.is_file():
        raise ConfigError(f"{folder} is a GGUF file, which the runner does not read. {other}")
    if not folder.is_dir():  # else it would be taken for a name on the Hub
        raise ConfigError(f"There is no folder {folder}. Name one with weights, tokenizer and config.json.")
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} holds an adapter and not the model it belongs to. Merge the two (peft: merge_and_unload), save "
            "the result with its tokenizer, and name that folder."
        )
    if any(folder.glob("*.gguf")):
        raise ConfigError(f"{folder} holds GGUF files, which the runner does not read. {other}")
    raise ConfigError(f"There is no model in {folder}: config.json is missing. Name a folder that holds one.")


def _weights(folder: str | Path, options: LocalOptions) -> LanguageModel:
    from safetensors import SafetensorError

    try:
        return LanguageModel.load(folder, options.device, options.dtype)
    except SafetensorError as error:
        raise ConfigError(
            f"The weights in {folder} cannot be read ({error}): a file is cut short or is none. Copy it again."
        ) from error


def recommended_sampling(folder: str | Path) -> SamplingOptions:
    """From the folder's generation_config.json, as far as it says something."""
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads((Path(folder) / "generation_config.json").read_text("utf-8"))
    given = {name: found[name] for name in _SAMPLED if isinstance(found.get(name), int | float)}
    try:
        return SamplingOptions(**given)
    except ConfigError as error:
        raise ConfigError(f"{Path(folder) / 'generation_config.json'}: {error}") from error
