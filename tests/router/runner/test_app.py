"""The openai client against the runner's application on a real socket, in this process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from longroute.router.backends.complaint import parse_complaint
from longroute.router.core import Call
from longroute.router.errors import ContextTooLong
from longroute.router.runner.app import make_app
from longroute.router.runner.engine import Engine, EngineOptions
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.local_model import LocalModel, LocalOptions
from longroute.router.runner.model import LanguageModel
from longroute.router.runner.tokenizer import Tokenizer

torch.set_num_threads(1)
ASK: Any = [{"role": "user", "content": "Who wrote it?"}]
NO_END = {"1": -100, "2": -100}  # what ends the toy's answers: without it they are as long as they may be
PATIENCE_S = 20.0


@contextmanager
def listening(model: LocalModel, **options: Any) -> Iterator[str]:
    """The base address, up to and including /v1."""
    config = uvicorn.Config(make_app(model, **options), port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def tiny(model_folder: Path) -> LocalModel:
    return LocalModel.load(model_folder, LocalOptions("cpu"))


@pytest.fixture(scope="module")
def address(tiny: LocalModel) -> Iterator[str]:
    with listening(tiny, names=["its/path"]) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as made:
        yield made


def said(client: openai.OpenAI, **options: Any) -> str:
    options = {"model": "tiny", "messages": ASK, "max_tokens": 12} | options
    return str(client.chat.completions.create(**options).choices[0].message.content)


def metric(address: str, name: str) -> float:
    lines = httpx.get(address.replace("/v1", "/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"longroute_runner_{name} "))


# ---- answers ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 30), st.floats(0, 2))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_is_the_whole_answer_in_pieces(
    client: openai.OpenAI, seed: int, max_tokens: int, temperature: float
) -> None:
    options: Any = {"model": "tiny", "messages": ASK, "seed": seed, "max_tokens": max_tokens}
    options |= {"temperature": temperature}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens - 1  # asked a moment ago


def test_an_answer_ends_before_a_stop_text(client: openai.OpenAI) -> None:
    text = said(client, seed=5, max_tokens=40, logit_bias=NO_END)
    stop = text[7:9]
    assert said(client, seed=5, max_tokens=40, logit_bias=NO_END, stop=stop) == text[: text.index(stop)]
    assert said(client, seed=5, max_tokens=40, logit_bias=NO_END, stop=["never said", stop]) == text[: text.index(stop)]


def test_a_seed_repeats_an_answer_and_choices_differ(client: openai.OpenAI) -> None:
    one, other = (
        [choice.message.content for choice in answer.choices]
        for answer in (
            client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12, seed=seed, n=3) for seed in (1, 1)
        )
    )
    assert one == other
    assert len(set(one)) == 3
    assert said(client, seed=2) == one[1]


def test_a_bias_forces_a_token(client: openai.OpenAI, tiny: LocalModel) -> None:
    (token, *_) = tiny.tokenizer.text_ids("Vienna")
    assert said(client, logit_bias={str(token): 100}, max_tokens=3) == tiny.tokenizer.spelled(token) * 3


def test_log_probabilities_come_with_their_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, logit_bias=NO_END
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert len(content) == 6
    for token in content:
        best = [top.logprob for top in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert token.logprob <= best[0] <= 0
        assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_plain_completions_take_several_prompts_of_text_or_tokens(client: openai.OpenAI, tiny: LocalModel) -> None:
    options: Any = {"model": "tiny", "max_tokens": 5, "temperature": 0, "logprobs": 1}
    texts = client.completions.create(prompt=["Ada", "The rent"], **options)
    ids = client.completions.create(prompt=[list(tiny.tokenizer.text_ids(t)) for t in ("Ada", "The rent")], **options)
    assert [choice.text for choice in texts.choices] == [choice.text for choice in ids.choices]
    assert [choice.index for choice in texts.choices] == [0, 1]
    streamed = client.completions.create(prompt="Ada", **options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == texts.choices[0].text


def test_sixteen_at_once_get_what_they_get_alone(address: str, client: openai.OpenAI) -> None:
    questions: Any = [[{"role": "user", "content": f"Who wrote {i}?"}] for i in range(16)]
    alone = [said(client, messages=question, temperature=0, max_tokens=20) for question in questions]
    with ThreadPoolExecutor(17) as pool:
        bad = pool.submit(said, client, messages=[{"role": "user", "content": "Ada " * 9000}])
        together = pool.map(lambda question: said(client, messages=question, temperature=0, max_tokens=20), questions)
        assert list(together) == alone
        with pytest.raises(openai.BadRequestError):
            bad.result()


def test_speculation_keeps_the_greedy_answer_and_tells_what_it_drafted(client: openai.OpenAI) -> None:
    def ask(**speculative: Any) -> Any:
        body = {"longroute": {"speculative": {"mode": "exact", "draft_tokens": 3, **speculative}}}
        return client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=20, temperature=0, logit_bias=NO_END, extra_body=body
        )

    plain = said(client, max_tokens=20, temperature=0, logit_bias=NO_END)
    by_text = ask(draft="Who?")
    by_messages = ask(draft=[{"role": "user", "content": "Who?"}])
    for answer in (by_text, by_messages):
        assert answer.choices[0].message.content == plain
        details = answer.usage.completion_tokens_details
        assert details.accepted_prediction_tokens + details.rejected_prediction_tokens >= 3
    for wrong in ({"eta": -1}, {"mode": "fast"}, {"draft_tokens": 0}):
        with pytest.raises(openai.BadRequestError):
            ask(draft="Who?", **wrong)
    with pytest.raises(openai.BadRequestError, match="repetition_penalty"):
        client.chat.completions.create(
            model="tiny",
            messages=ASK,
            extra_body={"repetition_penalty": 1.1, "longroute": {"speculative": {"draft": "Who?"}}},
        )


def test_the_model_is_listed_under_its_name_and_found_under_others(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("its/path").id == "tiny"
    assert said(client, model="its/path", max_tokens=1, temperature=0) == said(client, max_tokens=1, temperature=0)
    with pytest.raises(openai.NotFoundError, match="tiny"):
        said(client, model="gpt-4o")


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_is_refused_in_words_that_the_router_understands(address: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Ada " * 9000}]}
    answer = httpx.post(f"{address}/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "8192" in answer.json()["error"]["message"]
    error = parse_complaint(answer.content).error(400, Call((), "tiny"), server=address, key="")
    assert isinstance(error, ContextTooLong)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        ({"messages": ASK}, "model"),
        ({"model": "tiny"}, "messages"),
        ({"model": "tiny", "messages": []}, "messages"),
        ({"model": "tiny", "messages": ASK, "temperature": 3}, "temperature"),
        ({"model": "tiny", "messages": ASK, "n": 0}, "n"),
        ({"model": "tiny", "messages": ASK, "tools": [{}]}, "tools"),
        ({"model": "tiny", "messages": ASK, "max_tokns": 3}, "max_tokns"),
        ({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"model": "tiny", "messages": ASK, "logit_bias": {"99999": 1}}, None),
        ({"model": "tiny", "messages": ASK, "stop": ""}, "stop"),
        ({"model": "tiny", "messages": ASK, "stop": ["a"] * 17}, "stop"),
        ({"model": "tiny", "messages": ASK, "stop": "a" * 1001}, "stop"),
        ({"model": "tiny", "messages": ASK, "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"model": "tiny", "messages": ASK, "logit_bias": {"-1": 1}}, "logit_bias"),
        ({"model": "tiny", "messages": ASK, "logit_bias": {"Ada": 1}}, "logit_bias"),
        ({"model": "tiny", "messages": ASK, "n": 17}, "n"),
        ({"model": "tiny", "messages": ASK, "n": True}, "n"),
        ({"model": "tiny", "messages": ASK, "temperature": "0.5"}, "temperature"),
        ({"model": "tiny", "messages": ASK, "max_tokens": 10**30}, "max_tokens"),
        ({"model": "tiny", "messages": ASK, "seed": 2**63}, "seed"),
        ({"model": "tiny", "messages": ASK, "best_of": 2}, "best_of"),
        ({"model": "tiny", "messages": ASK, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"model": "tiny", "messages": ASK, "top_logprobs": 2}, "top_logprobs"),
        ({"model": "tiny", "messages": ASK, "response_format": {"type": "json_object"}}, "response_format"),
        (b"[" * 100_000, None),
        (b'{"model": "\xff"}', None),
        ({"model": "tiny", "messages": ASK, "longroute": {"speculative": {"eta": 1}}}, "draft"),
        ({"model": "tiny", "messages": ASK, "longroute": {"strategy": "rag"}}, "longroute.strategy"),
    ],
)
def test_what_cannot_be_served_is_a_400_that_names_the_field(address: str, body: Any, param: str | None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    error = httpx.post(f"{address}/chat/completions", content=content)
    assert error.status_code == 400
    named = error.json()["error"]["param"]
    assert named is None if param is None else param in named


def test_more_answers_than_may_wait_are_refused_before_any_is_begun(address: str, tiny: LocalModel) -> None:
    before = tiny.engine.metrics().submitted
    answer = httpx.post(f"{address}/completions", json={"model": "tiny", "prompt": ["Ada"] * 129, "n": 2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_answers")
    assert "256" in answer.json()["error"]["message"]
    assert tiny.engine.metrics().submitted == before


def test_choices_of_a_negative_seed_differ_and_repeat(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": ASK, "max_tokens": 12, "seed": -1, "n": 3, "logit_bias": NO_END}
    texts, again = ([c.message.content for c in client.chat.completions.create(**options).choices] for _ in range(2))
    assert texts == again
    assert len(set(texts)) == 3


SHARES = st.floats(0, 1) | st.sampled_from([0, 1, 1e-9, 1e-300])
TEXTS = st.text(max_size=4) | st.sampled_from(["Ada", "</s>", "\ue0000\ue000", "user"])
WRONG = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
SPECULATIVE = st.fixed_dictionaries(
    {"draft": TEXTS},
    optional={
        "mode": st.sampled_from(["exact", "rapid", "rapid_consistent", "ensemble"]),
        "eta": st.floats(0, 1e308),
        "draft_tokens": st.integers(1, 32),
        "least_confidence": SHARES | WRONG,
    },
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("tiny"), "messages": st.just(ASK), "prompt": TEXTS | st.lists(st.integers(-1, 600), max_size=4)},
    optional={
        "max_tokens": st.integers(0, 8),
        "n": st.integers(0, 3),
        "stop": TEXTS | st.lists(TEXTS, max_size=17),
        "temperature": st.floats(0, 2) | WRONG,
        "top_p": SHARES | WRONG,
        "min_p": SHARES,
        "top_k": st.integers(-1, 2**70),
        "seed": st.integers(-(2**63), 2**63) | WRONG,
        "logit_bias": st.dictionaries(st.integers(-1, 600).map(str), st.floats(-100, 101), max_size=3),
        "stream": st.booleans(),
        "logprobs": WRONG,
        "top_logprobs": st.integers(0, 21),
        "longroute": st.fixed_dictionaries({"speculative": SPECULATIVE}),
        "chat_template_kwargs": st.dictionaries(TEXTS, WRONG, max_size=2),
    },
)


@given(st.booleans(), BODIES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_body_gets_an_answer_or_a_400_that_says_why(tiny: LocalModel, chat: bool, body: dict[str, Any]) -> None:
    unknown = {"prompt"} if chat else {"messages", "top_logprobs", "chat_template_kwargs"}
    body = {"max_tokens": 4} | {name: value for name, value in body.items() if name not in unknown}

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(tiny))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            path = "/v1/chat/completions" if chat else "/v1/completions"
            return await asyncio.wait_for(http.post(path, content=json.dumps(body)), PATIENCE_S)

    answer = asyncio.run(post())
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["message"]
    else:
        assert b'"error":{' not in answer.content  # in the middle of a stream


def test_fields_that_change_no_answer_are_ignored(client: openai.OpenAI) -> None:
    body = {"metadata": {"a": "b"}, "user": "u", "tool_choice": "none", "tools": [], "presence_penalty": 0}
    assert said(client, temperature=0, extra_body=body) == said(client, temperature=0)


def test_other_paths_and_methods_are_told_so(address: str) -> None:
    assert httpx.get(f"{address}/embeddings").json()["error"]["code"] == "no_such_endpoint"
    assert httpx.get(f"{address}/chat/completions").status_code == 405
    assert httpx.get(address.replace("/v1", "/healthz")).json() == {"status": "ok", "model": "tiny"}


def test_an_answer_ends_where_the_chat_template_ends_a_turn(model_folder: Path) -> None:
    model = own(model_folder)
    model.end_ids |= {ord("A")}  # as a template's own token would be; any id will do
    with listening(model) as url, openai.OpenAI(base_url=url, api_key="x") as client:
        answer = client.chat.completions.create(
            model="tiny", messages=ASK, logit_bias={str(ord("A")): 100}, logprobs=True, max_tokens=9
        )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content == []


class Fatal(LanguageModel):
    """Takes the engine's thread down with it when the client's prompt comes."""

    def forward(self, tokens: Tensor, cache: Any, *, logits: Any = "last") -> Tensor:
        if tokens.shape[1] > 10:  # longer than what a model is tried with when it is loaded
            raise SystemExit
        return super().forward(tokens, cache, logits=logits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_ends_its_requests_and_fails_the_health_check(model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder)
    engine = Engine(Fatal.load(model_folder, "cpu"), tokenizer.decode)
    with listening(LocalModel("tiny", tokenizer, engine, SamplingOptions())) as url:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Who wrote it, and when was that?"}]}
        for _ in range(2):  # under way when the engine dies, and after
            answer = httpx.post(f"{url}/chat/completions", json=body, timeout=PATIENCE_S)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        health = httpx.get(url.replace("/v1", "/healthz"))
        assert (health.status_code, health.json()) == (503, {"status": "dead", "model": "tiny"})


# ---- clients that leave ----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_a_stream_frees_its_slot(address: str, client: openai.OpenAI) -> None:
    before = metric(address, "cancelled_total")
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=8000,
        stream=True,
        logit_bias=NO_END,
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: metric(address, "running") == 0)
    assert metric(address, "cancelled_total") == before + 1


def test_a_client_that_leaves_before_its_whole_answer_frees_its_slot(tiny: LocalModel) -> None:
    body = {"model": "tiny", "messages": ASK, "max_tokens": 8000, "logit_bias": NO_END}
    incoming = [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        """Nobody is there."""

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    before = tiny.engine.metrics()
    asyncio.run(make_app(tiny)(scope, receive, send))
    after = tiny.engine.metrics()
    assert after.cancelled == before.cancelled + 1
    assert after.running == 0


# ---- too much at once ------------------------------------------------------------------------------------------------


class Short(LanguageModel):
    """Runs out of memory on every text of exactly these lengths, and in decoding behind so many tokens."""

    fails_at: frozenset[int] = frozenset()

    def forward(self, tokens: Tensor, cache: Any, *, logits: Any = "last") -> Tensor:
        if tokens.shape[1] + cache.n_tokens in self.fails_at:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(tokens, cache, logits=logits)


def own(folder: Path, fails_at: Sequence[int] = (), **options: Any) -> LocalModel:
    model = Short.load(folder, "cpu")
    assert isinstance(model, Short)
    model.fails_at = frozenset(fails_at)
    tokenizer = Tokenizer.load(folder)
    return LocalModel("tiny", tokenizer, Engine(model, tokenizer.decode, EngineOptions(**options)), SamplingOptions())


def test_out_of_memory_is_a_503_for_one_request_and_the_server_lives_on(model_folder: Path) -> None:
    with listening(own(model_folder, fails_at=[24, 60])) as url, openai.OpenAI(base_url=url, api_key="x") as client:
        client = client.with_options(max_retries=0)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="ran out of memory") as caught:
                said(client, stream=stream)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "1"
        other: Any = [{"role": "user", "content": "Who wrote this one?"}]
        assert said(client, messages=other, temperature=0)
        with pytest.raises(openai.APIError, match="ran out of memory"):  # in the middle of a stream
            list(
                client.chat.completions.create(
                    model="tiny",
                    messages=other,
                    max_tokens=60,
                    stream=True,
                    logit_bias=NO_END,
                )
            )
        assert said(client, messages=other, temperature=0)
        assert metric(url, "running") == 0


def test_what_can_never_fit_the_memory_is_refused_with_the_numbers(model_folder: Path) -> None:
    with listening(own(model_folder, cache_bytes=1 << 20)) as url:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Ada " * 3000}], "max_tokens": 10}
        answer = httpx.post(f"{url}/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "MiB" in answer.json()["error"]["message"]
        assert httpx.post(f"{url}/chat/completions", json=body | {"messages": ASK}).status_code == 200


def test_a_full_queue_is_a_503_with_a_time_to_come_back(model_folder: Path) -> None:
    model = own(model_folder, slots=1, queue_limit=1)
    with listening(model) as url, openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        long = {"model": "tiny", "messages": ASK, "max_tokens": 8000, "stream": True, "logit_bias": NO_END}
        running = client.chat.completions.create(**long)
        next(iter(running))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(said, client, max_tokens=1)
            wait_until(lambda: model.engine.metrics().waiting == 1)
            with pytest.raises(openai.InternalServerError, match="1 requests wait") as caught:
                said(client)
            assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "1")
            running.close()
            waiting.result()


def test_a_key_is_asked_for_where_there_is_one(model_folder: Path) -> None:
    with listening(own(model_folder), api_key="right") as url:
        for shown, status in (("Bearer wrong", 401), ("Basic right", 401), ("bearer right", 200)):
            answer = httpx.get(f"{url}/models", headers={"authorization": shown})
            assert answer.status_code == status
        assert httpx.get(url.replace("/v1", "/healthz")).status_code == 200


@pytest.mark.parametrize(
    "header", [("host", "evil.example:8200"), ("origin", "https://evil.example"), ("origin", "null")]
)
def test_web_pages_from_elsewhere_may_not_use_a_runner_without_a_key(address: str, header: tuple[str, str]) -> None:
    answer = httpx.get(f"{address}/models", headers=dict([header]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert httpx.get(f"{address}/models", headers={"origin": "http://localhost:3000"}).status_code == 200
