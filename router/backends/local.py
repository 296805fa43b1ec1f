"""A model of this machine, in this process: calls become generations of the runner's engine.

Loaded on the first call. Errors come from the engine ready to raise: ContextTooLong for what does not fit the window or
the memory, BackendUnavailable where memory ran out on the way, with the numbers in both.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..core import Backend, Call, Message, ModelProfile, Reply, Usage
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..runner.generation import Generation, GenerationUsage
    from ..runner.handle import Event
    from ..runner.local_model import LocalModel

_FREE = Decimal(0)
_ASSUMED_WINDOW = 32_768  # where the model's configuration does not say
_REMEMBERED_S = 600.0  # prompts are kept while there is memory; how long that is nobody can say beforehand


class Local(Backend):
    """Runs one model. Safe to use from several threads and event loops; all share one queue.

    load: makes the model; it may take minutes, and runs in a thread.
    guarded: wraps what answers once the model is there, so that loading is not held against a call's deadline.
    """

    def __init__(self, load: Callable[[], LocalModel], guarded: Callable[[Backend], Backend] | None = None) -> None:
        self._load = load
        self._guarded = guarded or (lambda backend: backend)
        self._loading = threading.Lock()
        self._model: LocalModel | None = None
        self._loaded: Backend | None = None

    async def generate(self, call: Call) -> Reply:
        return await (await self._ready()).generate(call)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        async with aclosing((await self._ready()).stream(call)) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """Gives back the model's memory; a later call loads it again."""
        await asyncio.to_thread(self._drop)

    async def _ready(self) -> Backend:
        ready = self._loaded
        return ready if ready is not None else await asyncio.to_thread(self._make)

    def _make(self) -> Backend:
        with self._loading:
            ready = self._loaded
            if ready is None:
                self._model = self._load()
                self._loaded = ready = self._guarded(_Loaded(self._model))
            return ready

    def _drop(self) -> None:
        with self._loading:
            model, self._model, self._loaded = self._model, None, None
            if model is not None:
                model.close()


class _Loaded(Backend):
    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def generate(self, call: Call) -> Reply:
        async with aclosing(self.stream(call)) as pieces:
            *_, reply = [piece async for piece in pieces]
        assert isinstance(reply, Reply)
        return reply

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        from ..runner.generation import Done

        handle = self._model.engine.submit(await asyncio.to_thread(self._generation, call))
        text = ""
        arriving = cast("AsyncGenerator[Event, None]", aiter(handle))  # so it is, though typed as a mere iterator
        async with aclosing(arriving) as events:  # leaving early cancels the request
            async for event in events:
                text += event.text
                if event.text:
                    yield event.text
                if isinstance(event, Done):
                    notes = _notes(call, event.usage, can_speculate=self._model.engine.can_speculate)
                    yield Reply(text, _usage(event.usage), finish_reason=event.reason, model=call.model, notes=notes)

    async def aclose(self) -> None:
        """The model is closed by whoever loaded it."""

    def _generation(self, call: Call) -> Generation:
        from ..runner.generation import Draft, Generation

        model = self._model
        messages = _shown(call.messages)
        ids = model.tokenizer.chat_ids(messages)
        draft = None
        if call.draft is not None and model.engine.can_speculate:
            draft = Draft(model.tokenizer.chat_ids(_shown(call.draft.messages)), model.speculation)
        sampling = model.usual_sampling(drafted=draft is not None)
        if call.temperature is not None:
            sampling = replace(sampling, temperature=call.temperature)
        shared = model.shared_tokens(messages, call.question, ids)
        return Generation(
            ids, sampling, call.max_output_tokens, call.stop, model.end_ids, shared_tokens=shared, draft=draft
        )


def _shown(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _usage(used: GenerationUsage) -> Usage:
    drafted_from = used.speculation.prefill_draft if used.speculation else 0
    return Usage(used.prompt_tokens + drafted_from, used.reused_tokens, used.completion_tokens, _FREE)


def _notes(call: Call, used: GenerationUsage, *, can_speculate: bool) -> tuple[str, ...]:
    if call.draft is None:
        return ()
    if not can_speculate:
        return ("no drafts were made: this model cannot take back what it has read (recurrent layers)",)
    if used.speculation is None:
        return ("no drafts were made: what would be drafted from is too long beside the whole text to save time",)
    return (f"{used.speculation.accepted} of {used.speculation.drafted} drafted tokens were kept",)


def profile_of_folder(name: str, folder: Path, measured: Mapping[str, ModelProfile]) -> ModelProfile:
    """What is known about a model in a folder: its window and tokenizer; free of charge.

    measured: profiles by name, of which one called like the folder, or like the whole name, adds its speed.
    Raises ConfigError where the folder holds no model.
    """
    for known in (name, folder.name, folder.resolve().name):
        if known in measured:
            return replace(measured[known], name=name)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"There is no model in {folder}: its config.json cannot be read ({error}).") from error
    window = (config.get("text_config") or config).get("max_position_embeddings")
    tokenizer = folder / "tokenizer.json"
    assumed = ModelProfile(
        name,
        window if isinstance(window, int) and window > 0 else _ASSUMED_WINDOW,
        input_usd_per_mtok=_FREE,
        cached_input_usd_per_mtok=_FREE,
        output_usd_per_mtok=_FREE,
        cache_min_tokens=1,
        cache_ttl_s=_REMEMBERED_S,
        speculates=True,
        source="the model's own config.json; its speed is not measured (longroute runner profile)",
    )
    return replace(assumed, tokenizer=str(tokenizer)) if tokenizer.is_file() else assumed
