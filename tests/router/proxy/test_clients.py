"""Clients that people use, changed in nothing but base_url, through `longroute serve` to a scripted model API.

`clients.mjs` is the same for the npm package. What is byte-identical is left to the wire suite.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.utils.utils import convert_to_secret_str
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from longroute.benchmarks.scripted_models import (
    JSON_SAID,
    RETRY_AFTER_MS,
    SAID,
    Asked,
    ScriptedModels,
    listening,
    proxied,
)

PATIENCE_S = 10
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
QUESTION = "Where does the silver compass of Captain Ysolde lie?"
EVIDENCE = "The silver compass of Captain Ysolde lies under the lighthouse of Merrow."


class Author(BaseModel):
    name: str
    year: int


ADA = Author(name="Ada", year=1843)
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Today's weather.", "parameters": PARAMETERS, "strict": True}
CHAT_TOOL: Any = {"type": "function", "function": FUNCTION}
RESPONSES_TOOL: Any = {"type": "function", **FUNCTION}
MESSAGES_TOOL: Any = {"name": "weather", "description": "Today's weather.", "input_schema": PARAMETERS}


def long_text() -> str:
    """About 60,000 characters of a chronicle that never was, with one sentence that matters in the middle."""
    draw = random.Random(4)
    lines = [
        f"In {draw.randint(1200, 1800)} {draw.choice(('Orla', 'Bram', 'Dunja'))} brought {draw.randint(2, 90)} "
        f"{draw.choice(('lanterns', 'barrels of salt', 'bells'))} to the town of {draw.choice(('Velm', 'Osk'))}."
        for _ in range(1150)
    ]
    return " ".join([*lines[:600], EVIDENCE, *lines[600:]])


LONG = f"{long_text()}\n\n{QUESTION}"


@pytest.fixture(scope="module")
def models() -> ScriptedModels:
    return ScriptedModels()


@pytest.fixture(scope="module")
def proxy(models: ScriptedModels) -> Iterator[str]:
    settings = {"LONGROUTE_EMBEDDING_MODEL": "none", "LONGROUTE_ALLOWED": '["full", "rag", "compressed"]'}
    with listening(models) as upstream, proxied("--upstream", f"{upstream}/v1", settings=settings) as address:
        yield address


@pytest.fixture
def asked(models: ScriptedModels) -> list[Asked]:
    models.asked.clear()
    return models.asked


@pytest.fixture
def gpt(proxy: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{proxy}/v1", api_key="sk-none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def claude(proxy: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=proxy, api_key="sk-none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def assert_shortened(asked: Asked, sent: Any, *path: str | int) -> None:
    """The upstream saw what was sent, but for a much shorter text at the path that still holds what matters."""
    seen = asked.body
    *outer, last = path
    for body in (before := {"root": json.loads(json.dumps(sent))}, after := {"root": json.loads(json.dumps(seen))}):
        place: Any = body["root"]
        for step in outer:
            place = place[step]
        body["text"] = place[last]
        place[last] = ""
    assert after["root"] == before["root"]
    text = str(after["text"])
    assert QUESTION in text
    assert EVIDENCE in text
    assert len(text) < 0.4 * len(before["text"])


# ---- openai ----------------------------------------------------------------------------------------------------------


def test_openai_answers(gpt: openai.OpenAI) -> None:
    chat = gpt.chat.completions.create(model="ada-1", messages=user("Who?"))
    assert (chat.choices[0].message.content, chat.usage and chat.usage.total_tokens) == (SAID, 16)
    assert gpt.responses.create(model="ada-1", input="Who?").output_text == SAID
    # Strict validation refuses the SDK's own default of base64.
    vectors = gpt.embeddings.create(model="ada-1", input=["a", "b"], encoding_format="float")
    assert vectors.data[1].embedding == [0.25, -0.5, 1.0]
    assert [model.id for model in gpt.models.list()] == ["ada-1"]


def test_openai_streams(gpt: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(gpt.chat.completions.create(model="ada-1", messages=user("?"), stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    assert chunks[-1].usage is not None
    with gpt.responses.stream(model="ada-1", input="Who?") as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert (said, stream.get_final_response().output_text) == (SAID, SAID)


def test_openai_streams_side_by_side(proxy: str) -> None:
    async def ask(client: openai.AsyncOpenAI) -> str:
        chunks = await client.chat.completions.create(model="ada-1", messages=user("Who?"), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="sk-none") as client:
            return await asyncio.gather(*(ask(client) for _ in range(20)))

    assert asyncio.run(ask_all()) == [SAID] * 20


def test_openai_calls_tools(gpt: openai.OpenAI) -> None:
    messages = user("Weather in Ulm?")
    reply = gpt.chat.completions.create(model="ada-1", messages=messages, tools=[CHAT_TOOL]).choices[0].message
    assert reply.tool_calls
    result: Any = {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "Rain."}
    told = gpt.chat.completions.create(model="ada-1", messages=[*messages, reply, result], tools=[CHAT_TOOL])  # type: ignore[list-item]
    assert told.choices[0].message.content == SAID
    with gpt.chat.completions.stream(model="ada-1", messages=messages, tools=[CHAT_TOOL]) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls
    assert calls[0].function.parsed_arguments == {"place": "Ulm"}
    with gpt.responses.stream(model="ada-1", input=messages, tools=[RESPONSES_TOOL]) as responses:
        item = responses.get_final_response().output[0]
    assert item.type == "function_call"
    assert item.parsed_arguments == {"place": "Ulm"}


def test_openai_reads_structured_output(gpt: openai.OpenAI) -> None:
    chat = gpt.chat.completions.parse(model="ada-1", messages=user("Who?"), response_format=Author)
    assert chat.choices[0].message.parsed == ADA
    assert gpt.responses.parse(model="ada-1", input="Who?", text_format=Author).output_parsed == ADA


def test_openai_sends_pictures(gpt: openai.OpenAI, asked: list[Asked]) -> None:
    url = f"data:image/png;base64,{PIXEL * 1000}"  # longer than any text that would be looked at
    chat = user([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}])
    gpt.chat.completions.create(model="ada-1", messages=chat)
    responses = user([{"type": "input_image", "image_url": url, "detail": "low"}, {"type": "input_text", "text": "?"}])
    gpt.responses.create(model="ada-1", input=responses)
    assert (asked[0].body["messages"], asked[1].body["input"]) == (chat, responses)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_openai_raises_its_errors(gpt: openai.OpenAI, status: int, kind: type[openai.APIStatusError]) -> None:
    with pytest.raises(kind, match=f"scripted {status}") as refused:
        gpt.chat.completions.create(model=f"status-{status}", messages=user("Who?"))
    assert (refused.value.code, refused.value.request_id) == ("scripted", "req-1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_openai_tries_again_when_the_upstream_says(
    gpt: openai.OpenAI, asked: list[Asked], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    with caplog.at_level(logging.INFO, "openai"):
        chat = gpt.with_options(max_retries=1).chat.completions.create(model=f"once-{status}", messages=user("Who?"))
    assert chat.choices[0].message.content == SAID
    assert asked[0].raw == asked[1].raw
    assert f"in {RETRY_AFTER_MS / 1000:f} seconds" in caplog.text


def test_a_client_that_gives_up_waiting_ends_the_upstream_call(gpt: openai.OpenAI, asked: list[Asked]) -> None:
    with pytest.raises(openai.APITimeoutError):
        gpt.with_options(timeout=1.0).chat.completions.create(model="hangs", messages=user("Who?"))
    assert asked[0].gone.wait(PATIENCE_S)


def test_a_stream_that_is_left_ends_the_upstream_call(gpt: openai.OpenAI, asked: list[Asked]) -> None:
    with gpt.chat.completions.create(model="stalls", messages=user("Who?"), stream=True) as stream:
        assert next(stream).choices[0].delta.role == "assistant"
        assert not asked[0].gone.is_set()
    assert asked[0].gone.wait(PATIENCE_S)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_chat_about_a_long_text_is_shortened(gpt: openai.OpenAI, asked: list[Asked], stream: bool) -> None:
    sent: Any = {
        "model": "ada-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            *user("Good morning."),
            {"role": "assistant", "content": "Good morning."},
            *user(LONG),
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS, "strict": True}},
        "seed": 7,
    } | ({"stream": True} if stream else {})
    raw = gpt.chat.completions.with_raw_response.create(**sent)
    said = "".join(c.choices[0].delta.content or "" for c in raw.parse()) if stream else _content(raw.parse())
    assert said == JSON_SAID
    assert raw.headers["x-longroute-strategy"] == "rag"
    assert int(raw.headers["x-longroute-tokens-after"]) < 0.4 * int(raw.headers["x-longroute-tokens-before"])
    assert_shortened(asked[-1], sent, "messages", 3, "content")


def _content(chat: Any) -> str:
    return str(chat.choices[0].message.content)


def test_openai_tools_beside_a_long_text_stay(gpt: openai.OpenAI, asked: list[Asked]) -> None:
    sent: Any = {"model": "ada-1", "messages": user(LONG), "tools": [CHAT_TOOL], "tool_choice": "auto"}
    raw = gpt.chat.completions.with_raw_response.create(**sent)
    assert raw.parse().choices[0].message.tool_calls
    assert raw.headers["x-longroute-strategy"] == "rag"
    assert_shortened(asked[-1], sent, "messages", 0, "content")


@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses_about_a_long_text_are_shortened(gpt: openai.OpenAI, asked: list[Asked], stream: bool) -> None:
    sent: Any = {
        "model": "ada-1",
        "instructions": "Be brief.",
        "input": LONG,
        "tools": [RESPONSES_TOOL],
        "store": False,
    }
    raw = gpt.responses.with_raw_response.create(**sent, stream=stream)
    answer: Any = raw.parse()
    item = list(answer)[-1].response.output[0] if stream else answer.output[0]
    assert item.type == "function_call"
    assert raw.headers["x-longroute-strategy"] == "rag"
    assert_shortened(asked[-1], sent | {"stream": stream}, "input")


def test_a_long_text_is_left_alone_where_the_client_says_so(gpt: openai.OpenAI, asked: list[Asked]) -> None:
    sent: Any = {"model": "ada-1", "messages": user(LONG)}
    off = gpt.chat.completions.with_raw_response.create(**sent, extra_headers={"x-longroute-strategy": "off"})
    assert _content(off.parse()) == SAID
    assert asked[-1].body == sent


def test_a_shortened_request_that_is_refused_raises_like_any_other(gpt: openai.OpenAI) -> None:
    for status, kind in ((401, openai.AuthenticationError), (429, openai.RateLimitError)):
        with pytest.raises(kind, match=f"scripted {status}"):
            gpt.chat.completions.create(model=f"status-{status}", messages=user(LONG))


# ---- anthropic -------------------------------------------------------------------------------------------------------


def test_anthropic_answers(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="ada-1", max_tokens=9, messages=user("Who?"))
    assert (message.content[0].type, _said(message), message.usage.output_tokens) == ("text", SAID, 5)
    assert claude.messages.count_tokens(model="ada-1", messages=user("Who?")).input_tokens == 11


def _said(message: Any) -> str:
    return str(message.content[0].text)


def test_anthropic_streams(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="ada-1", max_tokens=9, messages=user("Who?")) as stream:
        assert "".join(stream.text_stream) == SAID
    assert stream.get_final_message().stop_reason == "end_turn"


def test_anthropic_calls_tools(claude: anthropic.Anthropic) -> None:
    messages = user("Weather in Ulm?")
    with claude.messages.stream(model="ada-1", max_tokens=9, messages=messages, tools=[MESSAGES_TOOL]) as stream:
        use = stream.get_final_message().content[0]
    assert use.type == "tool_use"
    assert use.input == {"place": "Ulm"}
    turns: Any = [
        *messages,
        {"role": "assistant", "content": [use.model_dump(include={"type", "id", "name", "input"})]},
        *user([{"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}]),
    ]
    assert _said(claude.messages.create(model="ada-1", max_tokens=9, messages=turns, tools=[MESSAGES_TOOL])) == SAID


def test_anthropic_reads_structured_output(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(model="ada-1", max_tokens=9, messages=user("Who?"), output_format=Author)
    assert message.parsed_output == ADA


def test_anthropic_sends_pictures(claude: anthropic.Anthropic, asked: list[Asked]) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL * 1000}
    messages = user([{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}])
    claude.messages.create(model="ada-1", max_tokens=9, messages=messages)
    assert asked[0].body["messages"] == messages


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
def test_anthropic_raises_its_errors(
    claude: anthropic.Anthropic, status: int, kind: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(kind, match=f"scripted {status}") as refused:
        claude.messages.create(model=f"status-{status}", max_tokens=9, messages=user("Who?"))
    assert refused.value.request_id == "req-1"


@pytest.mark.parametrize("status", [429, 529])
def test_anthropic_tries_again_when_the_upstream_says(
    claude: anthropic.Anthropic, asked: list[Asked], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    again = claude.with_options(max_retries=1)
    with caplog.at_level(logging.INFO, "anthropic"):
        assert _said(again.messages.create(model=f"once-{status}", max_tokens=9, messages=user("Who?"))) == SAID
    assert asked[0].raw == asked[1].raw
    assert f"in {RETRY_AFTER_MS / 1000:f} seconds" in caplog.text


def test_an_anthropic_client_that_gives_up_waiting_ends_the_upstream_call(
    claude: anthropic.Anthropic, asked: list[Asked]
) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        claude.with_options(timeout=1.0).messages.create(model="hangs", max_tokens=9, messages=user("Who?"))
    assert asked[0].gone.wait(PATIENCE_S)


def test_an_anthropic_stream_that_is_left_ends_the_upstream_call(
    claude: anthropic.Anthropic, asked: list[Asked]
) -> None:
    with claude.messages.create(model="stalls", max_tokens=9, messages=user("Who?"), stream=True) as stream:
        assert next(iter(stream)).type == "message_start"
    assert asked[0].gone.wait(PATIENCE_S)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_messages_about_a_long_text_are_shortened(
    claude: anthropic.Anthropic, asked: list[Asked], stream: bool
) -> None:
    sent: Any = {
        "model": "ada-1",
        "max_tokens": 99,
        "system": "Be brief.",
        "messages": user([{"type": "text", "text": LONG}]),
        "tools": [MESSAGES_TOOL],
        "stream": stream,
    }
    raw = claude.messages.with_raw_response.create(**sent)
    answer: Any = raw.parse()
    kinds = (
        [e.content_block.type for e in answer if e.type == "content_block_start"]
        if stream
        else [answer.content[0].type]
    )
    assert kinds == ["tool_use"]
    assert raw.headers["x-longroute-strategy"] == "rag"
    assert_shortened(asked[-1], sent, "messages", 0, "content", 0, "text")


# ---- langchain -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["chat", "responses", "anthropic"])
def langchain(request: pytest.FixtureRequest, proxy: str) -> Callable[..., Any]:
    """Makes a chat model."""
    common: Any = {"api_key": convert_to_secret_str("sk-none"), "max_retries": 0}
    if request.param == "anthropic":
        return lambda model="ada-1": ChatAnthropic(model_name=model, base_url=proxy, max_tokens_to_sample=9, **common)
    responses = request.param == "responses"
    return lambda model="ada-1": ChatOpenAI(
        model=model,
        base_url=f"{proxy}/v1",
        use_responses_api=responses,
        store=False,
        include_response_headers=True,
        **common,
    )


def test_langchain_answers_and_streams(langchain: Callable[..., Any]) -> None:
    assert langchain().invoke("Who?").text == SAID
    assert "".join(chunk.text for chunk in langchain().stream("Who?")) == SAID


def test_langchain_calls_tools(langchain: Callable[..., Any]) -> None:
    calls = langchain().bind_tools([CHAT_TOOL]).invoke("Weather in Ulm?").tool_calls
    assert [(call["name"], call["args"]) for call in calls] == [("weather", {"place": "Ulm"})]


def test_langchain_reads_structured_output(langchain: Callable[..., Any]) -> None:
    assert langchain().with_structured_output(Author, method="json_schema").invoke("Who?") == ADA


def test_langchain_sends_pictures(langchain: Callable[..., Any], asked: list[Asked]) -> None:
    picture = {"type": "image", "base64": PIXEL, "mime_type": "image/png"}
    langchain().invoke([HumanMessage(content=[{"type": "text", "text": "What is this?"}, picture])])
    assert PIXEL.encode() in asked[0].raw


def test_langchain_raises_errors(langchain: Callable[..., Any]) -> None:
    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError), match="scripted 429"):
        langchain("status-429").invoke("Who?")


def test_a_langchain_stream_that_is_left_ends_the_upstream_call(
    langchain: Callable[..., Any], asked: list[Asked]
) -> None:
    stream = langchain("stalls").stream("Who?")
    next(stream)
    stream.close()
    assert asked[0].gone.wait(PATIENCE_S)


def test_langchain_about_a_long_text_is_shortened(langchain: Callable[..., Any], asked: list[Asked]) -> None:
    answer = langchain().invoke(LONG)
    assert answer.text == SAID
    headers = answer.response_metadata.get("headers", {})  # langchain-anthropic shows none
    assert headers.get("x-longroute-strategy", "rag") == "rag"
    assert headers or isinstance(langchain(), ChatAnthropic)
    body = asked[-1].body
    place = "messages" if "messages" in body else "input"
    assert_shortened(asked[-1], body | {place: [body[place][0] | {"content": LONG}]}, place, 0, "content")


def test_langchain_embeds(proxy: str) -> None:
    embeddings = OpenAIEmbeddings(
        model="ada-1",
        base_url=f"{proxy}/v1",
        api_key=convert_to_secret_str("sk-none"),
        check_embedding_ctx_length=False,  # its token counter would ask the network
    )
    assert embeddings.embed_documents(["a", "b"]) == [[0.25, -0.5, 1.0]] * 2


# ---- the llm command line --------------------------------------------------------------------------------------------


@pytest.fixture
def llm(proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `llm`. The model `ada` speaks chat, `ada-responses` the other API."""
    common = {"api_base": f"{proxy}/v1", "supports_schema": True, "supports_tools": True, "vision": True}
    known = [
        {"model_id": "ada", "model_name": "ada-1", **common},
        {"model_id": "ada-responses", "model_name": "ada-1", "responses": True, **common},
        {"model_id": "ada-refused", "model_name": "status-401", **common},
    ]
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(known))  # JSON is YAML

    def run(model: str, *arguments: str, given: str = "") -> str:
        command = [str(Path(sys.executable).with_name("llm")), "-m", model, "--key", "sk-none", *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else f"failed: {done.stderr}"

    return run


# A process takes a second to start, so each does as much as it can.


def test_llm_streams_after_a_tool_has_answered(llm: Callable[..., str], asked: list[Asked]) -> None:
    weather = "def weather(place: str) -> str:\n    return 'Rain in ' + place"
    assert llm("ada", "Weather in Ulm?", "--functions", weather).strip() == SAID
    assert b"Rain in Ulm" in asked[-1].raw


def test_llm_reads_structured_output_about_a_picture(
    llm: Callable[..., str], asked: list[Asked], tmp_path: Path
) -> None:
    picture = tmp_path / "pixel.png"
    picture.write_bytes(base64.b64decode(PIXEL))
    said = llm("ada-responses", "Who is this?", "--no-stream", "--schema", "name, year int", "-a", str(picture))
    assert json.loads(said) == json.loads(JSON_SAID)
    assert PIXEL.encode() in asked[-1].raw


@pytest.mark.parametrize("model", ["ada", "ada-responses"])
def test_llm_about_a_file_it_is_piped_is_shortened(llm: Callable[..., str], asked: list[Asked], model: str) -> None:
    assert llm(model, QUESTION, given=long_text() + "\n").strip() == SAID
    assert EVIDENCE.encode() in asked[-1].raw
    assert len(asked[-1].raw) < 0.4 * len(LONG)


def test_llm_shows_errors(llm: Callable[..., str]) -> None:
    assert "scripted 401" in llm("ada-refused", "Who?")


# ---- the openai npm package ------------------------------------------------------------------------------------------


@pytest.mark.network
def test_the_npm_package_works(proxy: str, asked: list[Asked], tmp_path: Path) -> None:
    if not (npm := shutil.which("npm")):
        pytest.skip("npm is not installed")
    script = tmp_path / "clients.mjs"
    shutil.copy(Path(__file__).with_name("clients.mjs"), script)
    installed = subprocess.run([npm, "install", "openai"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    if installed.returncode:
        pytest.skip(f"npm cannot install openai here: {installed.stderr[-200:]}")
    given = json.dumps({"base_url": f"{proxy}/v1", "long": LONG, "said": SAID, "json": JSON_SAID, "pixel": PIXEL})
    done = subprocess.run(["node", str(script)], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["all", "hold"]
    stalled = next(request for request in asked if b'"stalls"' in request.raw)
    assert stalled.gone.wait(PATIENCE_S)
    shortened = [request for request in asked if EVIDENCE.encode() in request.raw]
    assert len(shortened) == 2
    assert all(len(request.raw) < 0.4 * len(LONG) for request in shortened)
