from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.core import Call, Message, Usage
from longroute.router.errors import BadReply
from longroute.router.proxy.calls import UsageReader, call_body, reply_of
from longroute.router.proxy.texts import Api
from longroute.router.replies import answers

CALL = Call((Message("system", "Be brief."), Message("user", "Hello")), model="m", max_output_tokens=7, stop=("END",))

ANSWERS: dict[Api, dict[str, Any]] = {
    "chat": {
        "model": "m-1",
        "choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    },
    "completions": {
        "model": "m-1",
        "choices": [{"text": "Hi", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    },
    "responses": {
        "model": "m-1",
        "status": "length",
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
        ],
        "usage": {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}},
    },
    "messages": {
        "model": "m-1",
        "content": [{"type": "thinking", "thinking": "..."}, {"type": "text", "text": "Hi"}],
        "stop_reason": "length",
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 2,
            "output_tokens": 2,
        },
    },
}

STREAMS: dict[Api, list[dict[str, Any]]] = {
    "chat": [
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "H"}}]},
        {"choices": [{"delta": {"content": "i"}, "finish_reason": "length"}]},
        {"choices": [], "usage": ANSWERS["chat"]["usage"]},
    ],
    "completions": [
        {"choices": [{"text": "Hi", "finish_reason": "length"}]},
        {"choices": [], "usage": ANSWERS["chat"]["usage"]},
    ],
    "responses": [
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": {"usage": ANSWERS["responses"]["usage"]}},
    ],
    "messages": [
        {"type": "message_start", "message": {"usage": ANSWERS["messages"]["usage"] | {"output_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "length"}, "usage": {"output_tokens": 2}},
    ],
}


USAGES = {api: Usage(9, 4, 2, written_tokens=2 if api == "messages" else 0) for api in ANSWERS}


def sse(events: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("api", ANSWERS)
def test_a_whole_answer_is_read_in_every_api(api: Api) -> None:
    reply = reply_of(api, json.dumps(ANSWERS[api]).encode())
    assert (reply.text, reply.usage, reply.finish_reason) == ("Hi", USAGES[api], "length")


@pytest.mark.parametrize("api", STREAMS)
def test_a_stream_is_read_in_every_api(api: Api) -> None:
    reply = reply_of(api, sse(STREAMS[api]), b"text/event-stream; charset=utf-8")
    assert (reply.text, reply.usage) == ("Hi", USAGES[api])


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_what_is_not_a_completion_is_an_error_that_does_not_quote_it(body: bytes) -> None:
    with pytest.raises(BadReply) as caught:
        reply_of("chat", body)
    assert "<html>" not in str(caught.value)


ASKS_FOR_A_TOOL: dict[Api, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}]},
    "responses": {"status": "completed", "output": [{"type": "function_call", "name": "f"}]},
    "messages": {"content": [{"type": "tool_use", "name": "f"}], "stop_reason": "tool_use"},
}
ASKS_FOR_A_TOOL_STREAMED: dict[Api, list[dict[str, Any]]] = {
    "chat": [
        {"choices": [{"delta": {"tool_calls": [{}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    ],
    "responses": [
        {"type": "response.output_item.done", "item": {"type": "function_call"}},
        {"type": "response.completed", "response": {}},
    ],
    "messages": [
        {"type": "content_block_start", "content_block": {"type": "tool_use"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    ],
}


@pytest.mark.parametrize("api", ASKS_FOR_A_TOOL)
def test_a_model_that_asks_for_a_tool_has_answered(api: Api) -> None:
    """A strategy hands that on instead of asking again (`self_route`)."""
    whole = reply_of(api, json.dumps(ASKS_FOR_A_TOOL[api]).encode())
    streamed = reply_of(api, sse(ASKS_FOR_A_TOOL_STREAMED[api]), b"text/event-stream")
    for reply in (whole, streamed):
        assert reply.text == "" and "tool" in reply.finish_reason


def test_a_model_that_must_ask_for_a_tool_has_answered_though_its_reason_is_stop() -> None:
    tool = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    for content in (None, ""):
        message = {"role": "assistant", "content": content, "tool_calls": tool}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        assert reply_of("chat", body).finish_reason == "tool_calls"
    deltas: list[dict[str, Any]] = [{"delta": {"tool_calls": tool}}, {"delta": {}, "finish_reason": "stop"}]
    streamed = sse([{"choices": [choice]} for choice in deltas])
    assert reply_of("chat", streamed, b"text/event-stream").finish_reason == "tool_calls"


REFUSED: dict[Api, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"content": None, "refusal": "I would rather not."}, "finish_reason": "stop"}]},
    "responses": {
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "I would rather not."}]}],
    },
    "messages": {"content": [{"type": "text", "text": "I would rather not."}], "stop_reason": "refusal"},
}
REFUSED_STREAMED: dict[Api, list[dict[str, Any]]] = {
    "chat": [
        {"choices": [{"delta": {"refusal": "I would "}}]},
        {"choices": [{"delta": {"refusal": "rather not."}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ],
    "responses": [
        {"type": "response.refusal.delta", "delta": "I would rather not."},
        {"type": "response.completed", "response": {}},
    ],
    "messages": [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "I would rather not."}},
        {"type": "message_delta", "delta": {"stop_reason": "refusal"}},
    ],
}


@pytest.mark.parametrize("api", REFUSED)
def test_a_model_that_will_not_answer_has_said_so(api: Api) -> None:
    whole = reply_of(api, json.dumps(REFUSED[api]).encode())
    streamed = reply_of(api, sse(REFUSED_STREAMED[api]), b"text/event-stream")
    for reply in (whole, streamed):
        assert (reply.text, reply.finish_reason) == ("I would rather not.", "refusal")
        assert not answers(reply)


def test_tokens_written_to_a_cache_are_read_by_the_name_that_gateways_use() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cache_write_tokens": 5}}
    assert reply_of("chat", json.dumps(ANSWERS["chat"] | {"usage": usage}).encode()).usage.written_tokens == 5


def test_a_text_in_parts_is_put_together_without_what_the_model_thought() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [thought, {"type": "text", "text": "Mara "}, {"type": "text", "text": "Okafor."}]
    body = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    assert reply_of("chat", body).text == "Mara Okafor."
    contents: list[Any] = [parts[:2], "Okafor."]
    streamed = sse([{"choices": [{"delta": {"content": content}}]} for content in contents])
    assert reply_of("chat", streamed, b"text/event-stream").text == "Mara Okafor."
    with pytest.raises(BadReply):
        reply_of("chat", json.dumps({"choices": [{"message": {"content": [thought, 7]}}]}).encode())


def test_a_call_takes_the_names_that_the_caller_uses_and_none_of_its_tools() -> None:
    body = json.loads(call_body("chat", {"model": "m", "max_tokens": 5, "tools": [1]}, CALL))
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "max_tokens": 7,
        "stop": ["END"],
    }
    assert "max_completion_tokens" in json.loads(call_body("chat", {}, CALL))


@pytest.mark.parametrize("model", ["m", "another"])
def test_what_a_caller_rules_out_for_a_text_is_ruled_out_for_its_parts(model: str) -> None:
    terms = {"provider": {"data_collection": "deny"}, "inference_geo": "us", "user": "u", "safety_identifier": "s"}
    body = json.loads(call_body("chat", {"model": "m", "stream": True, **terms}, replace(CALL, model=model)))
    assert body["model"] == model and "stream" not in body
    assert {name: body.get(name) for name in terms} == terms


def test_a_call_for_another_model_names_it_and_all_others_leave_the_callers_as_it_is() -> None:
    assert json.loads(call_body("chat", {"model": "large"}, replace(CALL, model="small")))["model"] == "small"
    assert json.loads(call_body("chat", {"model": "Org/large "}, replace(CALL, model="Org/large ")))["model"] == (
        "Org/large "
    )
    for unnamed in ({}, {"model": None}):  # a server of one model, or one that is named by the address
        body = json.loads(call_body("chat", unnamed, replace(CALL, model="")))
        assert body.get("model") is None and ("model" in body) == ("model" in unnamed)


def test_a_call_speaks_every_api() -> None:
    messages = json.loads(call_body("messages", {"model": "claude"}, CALL))
    assert messages["system"] == "Be brief."
    assert [message["role"] for message in messages["messages"]] == ["user"]
    assert messages["max_tokens"] == 7 and messages["stop_sequences"] == ["END"]
    responses = json.loads(call_body("responses", {}, CALL))
    assert responses["max_output_tokens"] == 7 and not responses["store"] and "stop" not in responses
    assert json.loads(call_body("completions", {}, CALL))["prompt"] == "Be brief.\n\nHello"


def usage_of(body: bytes, cuts: list[int], content_type: bytes, encoding: bytes = b"") -> Usage | None:
    reader = UsageReader(content_type, encoding)
    places = sorted(cut % (len(body) + 1) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(body)], strict=True):
        reader.feed(body[start:end])
    return reader.usage()


@given(cuts=st.lists(st.integers(0, 10_000), max_size=8), api=st.sampled_from(list(STREAMS)), gzipped=st.booleans())
def test_usage_does_not_depend_on_how_an_answer_is_cut(cuts: list[int], api: Api, gzipped: bool) -> None:
    encoding = b"gzip" if gzipped else b""
    stream, whole = sse(STREAMS[api]), json.dumps(ANSWERS[api]).encode()
    squeeze = gzip.compress if gzipped else bytes
    assert usage_of(squeeze(stream), cuts, b"text/event-stream", encoding) == USAGES[api]
    assert usage_of(squeeze(whole), cuts, b"application/json", encoding) == USAGES[api]


def test_usage_at_the_two_ends_of_a_long_stream_is_found() -> None:
    filler = [{"type": "content_block_delta", "delta": {"text": "x" * 1000}}] * 500
    events = [STREAMS["messages"][0], *filler, STREAMS["messages"][-1]]
    assert usage_of(sse(events), [5, 5000, 70_000], b"text/event-stream") == USAGES["messages"]


@pytest.mark.parametrize(
    ("body", "encoding"), [(b"{}", b""), (b"no json", b""), (b"not gzip", b"gzip"), (b"\x00", b"br"), (b"", b"")]
)
def test_an_answer_without_usage_has_an_unknown_one(body: bytes, encoding: bytes) -> None:
    assert usage_of(body, [1], b"application/json", encoding) is None
    assert usage_of(body, [1], b"text/event-stream", encoding) is None
