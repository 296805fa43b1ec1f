from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from longroute.router.assemble import Router, make_backend, make_policy
from longroute.router.backends.local import Local, profile_of_folder
from longroute.router.backends.wrappers import Timeout
from longroute.router.core import Backend, Call, Draft, Message, ModelProfile, Reply
from longroute.router.errors import BackendTimeout, ConfigError, ContextTooLong
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.local_model import LocalModel, LocalOptions
from longroute.router.settings import load_settings

DOCUMENT = "Ada wrote it in Vienna. The rent is 900 euros. " * 30


@pytest.fixture(scope="module")
def tiny(model_folder: Path) -> Iterator[LocalModel]:
    with LocalModel.load(model_folder, LocalOptions("cpu")) as model:
        yield model


def call(text: str = "Who wrote it?", **options: Any) -> Call:
    return Call((Message("user", text),), "local:tiny", **{"max_output_tokens": 10, "temperature": 0.0, **options})


async def pieces(backend: Local, asked: Call) -> list[str | Reply]:
    async with aclosing(backend.stream(asked)) as stream:
        return [piece async for piece in stream]


def test_an_answer_is_the_same_whole_and_in_pieces(tiny: LocalModel) -> None:
    async def main() -> None:
        backend = Local(lambda: tiny)
        whole = await backend.generate(call())
        *texts, last = await pieces(backend, call())
        assert isinstance(last, Reply)
        assert "".join(map(str, texts)) == whole.text == last.text
        assert (last.finish_reason, last.usage.completion_tokens) == ("length", 10)
        assert last.usage.cost_usd == 0
        assert last.usage.cached_tokens == last.usage.prompt_tokens - 1
        assert whole.text.startswith((await backend.generate(call(stop=(whole.text[4:6],)))).text)

    asyncio.run(main())


def test_a_penalty_that_only_the_models_authors_asked_for_does_not_forbid_drafts(model_folder: Path) -> None:
    with LocalModel.load(model_folder, LocalOptions("cpu")) as model:
        model.sampling = SamplingOptions(repetition_penalty=1.05)  # as Qwen 2.5's generation_config.json has it
        asked = call(draft=Draft((Message("user", "Who?"),)))
        reply = asyncio.run(Local(lambda: model).generate(asked))
    assert "drafted tokens were kept" in reply.notes[0]


def test_what_does_not_fit_is_told_with_numbers(tiny: LocalModel) -> None:
    with pytest.raises(ContextTooLong, match="8192"):
        asyncio.run(Local(lambda: tiny).generate(call("Ada " * 9000)))


def test_who_leaves_early_frees_the_slot(tiny: LocalModel) -> None:
    async def running(wanted: int) -> None:
        while tiny.engine.metrics().running != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def main() -> None:
        before = tiny.engine.metrics().cancelled
        backend = Local(lambda: tiny)
        async with aclosing(backend.stream(call(max_output_tokens=8000))) as stream:
            await anext(stream)
        await running(0)
        task = asyncio.create_task(backend.generate(call("What else?", max_output_tokens=8000)))
        await running(1)
        task.cancel()
        await running(0)
        assert tiny.engine.metrics().cancelled == before + 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_model_is_loaded_once_and_again_after_it_was_closed(model_folder: Path) -> None:
    loaded: list[LocalModel] = []

    def load() -> LocalModel:
        loaded.append(LocalModel.load(model_folder, LocalOptions("cpu")))
        return loaded[-1]

    async def main() -> None:
        backend = Local(load)
        await asyncio.gather(*(backend.generate(call()) for _ in range(3)))
        assert len(loaded) == 1
        await backend.aclose()
        await backend.aclose()
        await backend.generate(call())
        assert len(loaded) == 2
        await backend.aclose()

    asyncio.run(main())


def test_a_deadline_holds_for_calls_and_not_for_loading(tiny: LocalModel) -> None:
    def slowly() -> LocalModel:
        time.sleep(0.3)
        return tiny

    def hurried(backend: Backend) -> Timeout:
        return Timeout(backend, 0.2)

    asyncio.run(Local(slowly, hurried).generate(call(max_output_tokens=1)))
    with pytest.raises(BackendTimeout):
        asyncio.run(Local(slowly, hurried).generate(call("At length?", max_output_tokens=8000)))


def test_a_router_answers_with_a_folder(model_folder: Path) -> None:
    router = Router(
        model=f"local:{model_folder}", allowed=("full",), max_output_tokens=8, cache=False, embedding_model="none"
    )
    asked = ("Who wrote it?", [DOCUMENT])
    answer = router.answer(*asked)
    assert answer.usage.cost_usd == 0
    assert answer.usage.completion_tokens <= 8
    *_, streamed = router.stream("How much is the rent?", [DOCUMENT])
    assert not isinstance(streamed, str)
    assert streamed.usage.cached_tokens > streamed.usage.prompt_tokens / 2  # the document was read for the first one


def test_a_prompt_that_is_counted_too_short_is_rescued(model_folder: Path) -> None:
    """The window of the models file is a lie, so `full` is tried, refused by the engine, and done with less."""
    lie = ModelProfile("lie", 100_000)
    router = Router(
        model=f"local:{model_folder}",
        allowed=("full", "rag"),
        policy=make_policy("fixed:full"),
        max_output_tokens=8,
        cache=False,
        embedding_model="none",
        profile_of=lambda name: lie,
    )
    answer = router.answer("Who wrote it?", [DOCUMENT * 30])
    assert answer.strategy == "rag"
    assert any("full" in note for note in answer.notes)


def test_one_model_serves_all_calls_of_its_name(model_folder: Path) -> None:
    backend = make_backend(load_settings(embedding_model="none"))
    asked = Call((Message("user", "Who?"),), f"local:{model_folder}", max_output_tokens=2)

    async def main() -> None:
        await asyncio.gather(backend.generate(asked), backend.generate(asked))
        await backend.aclose()

    asyncio.run(main())


# ---- what is known beforehand ----------------------------------------------------------------------------------------


def test_a_folder_tells_its_window_and_tokenizer(model_folder: Path) -> None:
    profile = profile_of_folder("local:x", model_folder, {})
    assert (profile.name, profile.context_window) == ("local:x", 8192)
    assert profile.output_usd_per_mtok == 0
    assert profile.tokenizer == str(model_folder / "tokenizer.json")
    measured = ModelProfile("tiny", 4096, prefill_tokens_per_s=10.0)
    found = profile_of_folder("local:x", model_folder, {"tiny": measured, "local:y": ModelProfile("y", 1)})
    assert (found.name, found.context_window, found.prefill_tokens_per_s) == ("local:x", 4096, 10.0)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        profile_of_folder("local:x", tmp_path, {})
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Router(model=f"local:{tmp_path}", cache=False).decide("Who?", ["Ada."])
