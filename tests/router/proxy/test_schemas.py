"""What the proxy hands on and makes is what OpenAI's published schema says; what it refuses, the SDKs understand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest

from longroute.benchmarks.data import data_directory
from longroute.benchmarks.scripted_models import SAID, ScriptedModels, listening, proxied
from longroute.benchmarks.targets import free_port

KEYS = {name: f"key-of-{name}" for name in ("ada", "bob", "greedy", "busy")}
PER_MINUTE = 60
Validate = Callable[[str, object], None]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def validate() -> Validate:
    """Raises where a value is not what the named schema says."""
    data = data_directory()
    path = data and data / "openapi" / "openai_chat.json"
    if path is None or not path.exists():
        pytest.skip(
            "OpenAI's published schema is not here: set LONGROUTE_DATA to a folder with openapi/openai_chat.json"
        )
    components = with_null(json.loads(path.read_text())["components"])

    def check(name: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        jsonschema.Draft202012Validator(schema).validate(value)

    return check


def with_null(schema: Any) -> Any:
    """The description says 3.1, but in places still `nullable`, which is 3.0."""
    if isinstance(schema, list):
        return [with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: with_null(part) for name, part in schema.items()}
    return {"anyOf": [parts, {"type": "null"}]} if schema.get("nullable") is True else parts


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    """In front of two model APIs and of one that is gone, with keys and tight limits."""
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(listening(ScriptedModels(models))) for models in (("ada-1", "ada-2"), ("bob-1",))
        )
        upstreams = [
            {"name": "second", "url": second, "models": ["bob-*"]},
            {"name": "gone", "url": f"http://127.0.0.1:{free_port()}", "models": ["gone-*"]},
            {"name": "first", "url": first},
        ]
        limits = {"MAX_BODY_MB": 1, "REQUESTS_PER_MINUTE": PER_MINUTE, "FIRST_BYTE_S": 1.5, "MAX_CONCURRENCY": 4}
        settings = {f"LONGROUTE_PROXY__{name}": str(value) for name, value in limits.items()} | {
            "LONGROUTE_PROXY__UPSTREAMS": json.dumps(upstreams),
            "LONGROUTE_PROXY__CLIENT_KEYS": json.dumps(KEYS),
            "LONGROUTE_EMBEDDING_MODEL": "none",
            "LONGROUTE_ALLOWED": '["full", "rag", "compressed"]',
        }
        yield stack.enter_context(proxied(settings=settings))


@pytest.fixture
def http(proxy: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy, headers={"authorization": f"Bearer {KEYS['ada']}"}) as client:
        yield client


# ---- answers ---------------------------------------------------------------------------------------------------------

SHORT = "Who wrote the notes?"
LONG = " ".join(f"In {year} nothing happened in the town of Velm." for year in range(1000, 2000)) + f"\n\n{SHORT}"
TOOL_PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}}


def chat(content: str) -> Json:
    return {"model": "ada-1", "messages": [{"role": "user", "content": content}]}


def tool(flat: bool) -> Json:
    function = {"name": "weather", "parameters": TOOL_PARAMETERS}
    return {"type": "function"} | (function if flat else {"function": function})


def answered(http: httpx.Client, path: str, body: Json, routed: bool) -> Json:
    answer = http.post(path, json=body)
    assert answer.status_code == 200
    assert ("x-longroute-tokens-after" in answer.headers) == routed
    whole: Json = answer.json()
    return whole


def events(http: httpx.Client, path: str, body: Json) -> list[Json]:
    lines = http.post(path, json=body | {"stream": True}).text.split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("content", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("more", [{}, {"tools": [tool(flat=False)]}], ids=["text", "tool"])
def test_chat_answers_are_valid(http: httpx.Client, validate: Validate, content: str, more: Json) -> None:
    body = chat(content) | more
    validate("CreateChatCompletionResponse", answered(http, "/v1/chat/completions", body, content == LONG))
    chunks = events(http, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    assert len(chunks) > 3
    for chunk in chunks:
        validate("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("content", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("more", [{}, {"tools": [tool(flat=True)]}], ids=["text", "tool"])
def test_responses_are_valid(http: httpx.Client, validate: Validate, content: str, more: Json) -> None:
    body = {"model": "ada-1", "input": content, "store": False} | more
    validate("Response", answered(http, "/v1/responses", body, content == LONG))
    streamed = events(http, "/v1/responses", body)
    assert streamed[-1]["type"] == "response.completed"
    for event in streamed:
        validate("ResponseStreamEvent", event)


def test_embeddings_are_valid(http: httpx.Client, validate: Validate) -> None:
    validate("CreateEmbeddingResponse", http.post("/v1/embeddings", json={"model": "ada-1", "input": SHORT}).json())


def test_the_models_of_all_upstreams_are_one_valid_list(http: httpx.Client, validate: Validate) -> None:
    answer = http.get("/v1/models")
    validate("ListModelsResponse", answer.json())
    assert sorted(model["id"] for model in answer.json()["data"]) == ["ada-1", "ada-2", "bob-1"]
    assert answer.headers["x-longroute-missing-upstreams"] == "gone"


def test_the_schema_tells_a_wrong_answer(validate: Validate) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate("ListModelsResponse", {"object": "list", "data": [{"id": "ada-1"}]})


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["openai", "anthropic"])
def ask(request: pytest.FixtureRequest, proxy: str) -> Iterator[Callable[..., str]]:
    """Asks through an SDK, with the key of a client."""
    name: str = request.param
    message: Any = {"role": "user", "content": SHORT}
    with (
        openai.OpenAI(base_url=f"{proxy}/v1", api_key="-", max_retries=0) as gpt,
        anthropic.Anthropic(base_url=proxy, api_key="-", max_retries=0) as claude,
    ):

        def send(model: str = "ada-1", key: str = KEYS["bob"], content: str = SHORT, **headers: str) -> str:
            messages = [message | {"content": content}]
            if name == "openai":
                chat = gpt.with_options(api_key=key).chat.completions
                return str(
                    chat.create(model=model, messages=messages, extra_headers=headers).choices[0].message.content
                )
            told: Any = claude.with_options(api_key=key).messages.create(
                model=model, max_tokens=9, messages=messages, extra_headers=headers
            )
            return str(told.content[0].text)

        yield send


# What is asked, and the answer: status, classes of the two SDKs, message.
REFUSALS: dict[str, tuple[Json, int, type[Exception], type[Exception], str]] = {
    "key": ({"key": "no"}, 401, openai.AuthenticationError, anthropic.AuthenticationError, "asks for a key"),
    "strategy": (
        {"x-longroute-strategy": "no"}, 400, openai.BadRequestError, anthropic.BadRequestError, "names no strategy",
    ),
    "body": ({"content": "x" * (1 << 20)}, 413, openai.APIStatusError, anthropic.APIStatusError, "longer than 1 MB"),
    "gone": ({"model": "gone-1"}, 502, openai.InternalServerError, anthropic.InternalServerError, "cannot be reached"),
    "hangs": ({"model": "hangs"}, 504, openai.InternalServerError, anthropic.InternalServerError, "answer in time"),
}  # fmt: skip


SdkError = openai.APIStatusError | anthropic.APIStatusError


def refusal(ask: Callable[..., str], times: int = 1, **how: Any) -> SdkError:
    """The first error in so many requests."""
    try:
        for _ in range(times):
            assert ask(**how) == SAID
    except (openai.APIStatusError, anthropic.APIStatusError) as refused:
        return refused
    pytest.fail("nothing was refused")


def assert_told(
    error: SdkError,
    status: int,
    gpt: type[Exception],
    claude: type[Exception],
    said: str,
) -> None:
    of_anthropic = isinstance(error, anthropic.APIStatusError)
    assert error.status_code == status
    assert isinstance(error, claude if of_anthropic else gpt)
    assert "longroute: " in error.message
    assert said in error.message
    body: Any = error.body
    assert (body["error"] if of_anthropic else body)["type"]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_an_error_of_the_sdk(ask: Callable[..., str], name: str) -> None:
    how, status, gpt, claude, said = REFUSALS[name]
    assert_told(refusal(ask, **how), status, gpt, claude, said)


def test_too_many_requests_are_an_error_of_the_sdk_that_says_when_to_come_back(ask: Callable[..., str]) -> None:
    refused = refusal(ask, 2 * PER_MINUTE, key=KEYS["greedy"])
    assert_told(refused, 429, openai.RateLimitError, anthropic.RateLimitError, "too many requests")
    assert int(refused.response.headers["retry-after"]) >= 1


def test_too_many_at_once_are_an_error_of_the_sdk(ask: Callable[..., str], proxy: str) -> None:
    with ExitStack() as stack:
        busy = stack.enter_context(openai.OpenAI(base_url=f"{proxy}/v1", api_key=KEYS["busy"]))
        for _ in range(4):
            stream = busy.chat.completions.create(
                model="stalls", messages=[{"role": "user", "content": "?"}], stream=True
            )
            stack.enter_context(stream)
        assert_told(refusal(ask), 503, openai.InternalServerError, anthropic.InternalServerError, "under way")
