"""What the readers of OpenAI's APIs take from a body, and that nothing in a body makes them fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.openai import read_chat, read_completion, read_responses
from longroute.router.proxy.texts import Conversation, LeftAlone, Text

Reader = Callable[[object], Conversation | LeftAlone]

NAMES = st.sampled_from(
    [
        "messages",
        "input",
        "prompt",
        "instructions",
        "role",
        "content",
        "type",
        "text",
        "output",
        "name",
        "longroute",
        "tools",
        "n",
        "stream",
        "max_tokens",
    ]
)
WORDS = st.sampled_from(
    ["user", "system", "tool", "text", "input_text", "function_call_output", "message", "document", "question", "keep"]
) | st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=20
)


def read(reader: Reader, body: object) -> Conversation:
    conversation = reader(body)
    assert isinstance(conversation, Conversation)
    return conversation


def value_at(body: object, path: tuple[str | int, ...]) -> object:
    for key in path:
        body = body[key]  # type: ignore[index]
    return body


@pytest.mark.parametrize("reader", [read_chat, read_completion, read_responses])
@given(body=JSON)
def test_any_json_is_read_without_failing_and_each_text_stands_at_its_path(reader: Reader, body: object) -> None:
    conversation = reader(body)
    if isinstance(conversation, Conversation):
        assert all(value_at(body, text.path) == text.text for text in conversation.texts)
        for mark in conversation.marks:
            value_at(body, mark)


@pytest.mark.parametrize("reader", [read_chat, read_completion, read_responses])
def test_a_body_without_text_is_left_alone(reader: Reader) -> None:
    assert isinstance(reader({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), LeftAlone)


def test_chat_texts_come_in_prompt_order_with_their_roles() -> None:
    conversation = read(
        read_chat,
        {
            "model": "gpt-4o",
            "messages": [
                {"role": "developer", "content": "rules"},
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "hello"}],
                },
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "content": "found", "tool_call_id": "1", "name": "search"},
            ],
            "max_tokens": 7,
            "max_completion_tokens": 9,
            "tools": [{}],
            "n": 3,
            "stream": True,
        },
    )
    assert conversation.texts == (
        Text(("messages", 0, "content"), "rules", "system", 0),
        Text(("messages", 1, "content", 1, "text"), "hello", "user", 1),
        Text(("messages", 3, "content"), "found", "tool", 3, "tool_result", "search"),
    )
    assert (conversation.max_output_tokens, conversation.n, conversation.stream) == (9, 3, True)
    assert (conversation.has_tools, conversation.last_role, conversation.model) == (True, "tool", "gpt-4o")


def test_marks_and_options_are_found_with_their_paths() -> None:
    conversation = read(
        read_chat,
        {
            "longroute": {"strategy": "rag"},
            "messages": [
                {"role": "user", "longroute": "keep", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "b", "longroute": "document"}]},
                {"role": "user", "content": "c", "longroute": "nonsense"},
            ],
        },
    )
    assert [text.mark for text in conversation.texts] == ["keep", "document", ""]
    assert conversation.options == {"strategy": "rag"}
    assert conversation.marks == (
        ("longroute",),
        ("messages", 0, "longroute"),
        ("messages", 1, "content", 0, "longroute"),
        ("messages", 2, "longroute"),
    )


def test_a_cache_mark_covers_the_texts_before_it() -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    assert read(read_chat, {"messages": [{"role": "user", "content": parts}]}).cached_until == 0


@pytest.mark.parametrize("prompt", ["text", ["text"]])
def test_a_completion_has_one_prompt(prompt: object) -> None:
    (text,) = read(read_completion, {"prompt": prompt}).texts
    assert (text.text, text.role) == ("text", "user")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2, 3]},
        {"prompt": "a", "echo": True},
        {"prompt": "a", "suffix": "b"},
        {"prompt": ""},
    ],
)
def test_completions_whose_prompt_matters_as_it_is_are_left_alone(body: object) -> None:
    assert isinstance(read_completion(body), LeftAlone)


def test_responses_hold_instructions_messages_and_what_functions_returned() -> None:
    conversation = read(
        read_responses,
        {
            "instructions": "rules",
            "input": [
                {"role": "user", "content": "hello"},
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "more"}]},
                {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
                {"type": "function_call_output", "call_id": "1", "output": "found"},
            ],
            "max_output_tokens": 5,
        },
    )
    assert conversation.texts == (
        Text(("instructions",), "rules", "system", -1),
        Text(("input", 0, "content"), "hello", "user", 0),
        Text(("input", 2, "content", 0, "text"), "more", "user", 2),
        Text(("input", 4, "output"), "found", "tool", 4, "tool_result"),
    )
    assert (conversation.max_output_tokens, conversation.last_role) == (5, "tool")


def test_the_input_of_responses_may_be_a_string() -> None:
    assert read(read_responses, {"input": "hello"}).texts == (Text(("input",), "hello", "user", 0),)


@pytest.mark.parametrize("name", ["previous_response_id", "conversation"])
def test_conversations_that_the_server_keeps_are_left_alone(name: str) -> None:
    assert isinstance(read_responses({"input": "hello", name: "id_1"}), LeftAlone)


@pytest.mark.parametrize("value", [True, 0, -1, 2.5, "3", None])
def test_a_count_that_is_none_is_not_taken_for_one(value: object) -> None:
    conversation = read(read_chat, {"messages": [{"role": "user", "content": "a"}], "max_tokens": value, "n": value})
    assert (conversation.max_output_tokens, conversation.n) == (None, 1)
