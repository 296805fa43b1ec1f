"""The chat model for local models, under LangChain's own interface."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser

from longroute.router.errors import ConfigError, ContextTooLong
from longroute.router.langchain import LongrouteChatModel


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LongrouteChatModel:
    return LongrouteChatModel(model=str(model_folder), max_tokens=12, temperature=0)


def test_every_way_to_ask_gives_the_same_answer(model: LongrouteChatModel) -> None:
    asked = [SystemMessage("Be brief."), HumanMessage("Who?"), AIMessage("Ada."), HumanMessage("When?")]
    answer = model.invoke(asked)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.response_metadata["finish_reason"] == "length"
    pieces = [chunk.text for chunk in model.stream(asked)]
    assert len(pieces) > 5
    assert "".join(pieces) == answer.text

    async def main() -> None:
        assert (await model.ainvoke(asked)).text == answer.text
        assert "".join([chunk.text async for chunk in model.astream(asked)]) == answer.text
        assert [message.text for message in await model.abatch([asked, asked])] == [answer.text] * 2

    asyncio.run(main())


def test_options_can_be_bound_and_stop_texts_given(model: LongrouteChatModel) -> None:
    text = model.invoke("Who?").text
    assert text.startswith(model.bind(max_tokens=3).invoke("Who?").text)
    stop = text[5:7]
    assert model.invoke("Who?", stop=[stop]).text == text[: text.index(stop)]
    seeded = model.bind(temperature=1.0, seed=3, top_p=0.9)
    assert (seeded | StrOutputParser()).invoke("Who?") == seeded.invoke("Who?").text


def test_an_option_that_there_is_not_is_named(model: LongrouteChatModel) -> None:
    with pytest.raises(ConfigError, match=r"'frequency_penalty'.*repetition_penalty"):
        model.invoke("Who?", frequency_penalty=1.0)


def test_callbacks_hear_every_piece(model: LongrouteChatModel) -> None:
    class Listening(BaseCallbackHandler):
        heard = ""

        def on_llm_new_token(self, token: str | list[str | dict[str, Any]], **kwargs: Any) -> None:
            self.heard += str(token)

    listening = Listening()
    answer = model.invoke("Who?", config={"callbacks": [listening]})
    assert listening.heard == answer.text


def test_whoever_leaves_a_stream_frees_its_slot(model: LongrouteChatModel) -> None:
    engine = model.local.engine
    before = engine.metrics().cancelled
    stream = model.bind(max_tokens=8000, temperature=1.0).stream("Who?")
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    engine.submit(model._generation([HumanMessage("Who?")], None, {})).result()  # a step later it has ended
    assert engine.metrics().cancelled == before + 1


def test_what_cannot_be_shown_is_refused(model: LongrouteChatModel) -> None:
    with pytest.raises(ContextTooLong, match="8192"):
        model.invoke("Ada " * 9000)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(ConfigError, match="other than text"):
        model.invoke([HumanMessage([image])])
