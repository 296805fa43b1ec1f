"""What the reader of Anthropic's API takes from a body, and that nothing in a body makes it fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.proxy.anthropic import read_messages
from longroute.router.proxy.texts import Conversation, LeftAlone, Text

NAMES = st.sampled_from(
    [
        "messages",
        "system",
        "role",
        "content",
        "type",
        "text",
        "source",
        "data",
        "title",
        "citations",
        "enabled",
        "cache_control",
        "longroute",
    ]
)
WORDS = st.sampled_from(
    ["user", "assistant", "text", "document", "tool_result", "search_result", "thinking", "content", "keep"]
) | st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=20
)


def read(body: object) -> Conversation:
    conversation = read_messages(body)
    assert isinstance(conversation, Conversation)
    return conversation


@given(body=JSON | st.fixed_dictionaries({"messages": st.lists(st.fixed_dictionaries({"content": JSON}), max_size=3)}))
def test_any_json_is_read_without_failing_and_each_text_stands_at_its_path(body: object) -> None:
    conversation = read_messages(body)
    if isinstance(conversation, Conversation):
        for text in conversation.texts:
            value = body
            for key in text.path:
                value = value[key]  # type: ignore[index]
            assert value == text.text


def test_documents_nested_without_end_are_read_two_deep() -> None:
    block: dict[str, object] = {"type": "text", "text": "deep"}
    for _ in range(5000):
        block = {"type": "document", "source": {"type": "content", "content": [block]}}
    assert isinstance(read_messages({"messages": [{"role": "user", "content": [block]}]}), LeftAlone)


def test_blocks_become_texts_with_what_they_are() -> None:
    cited = {"enabled": True}
    conversation = read(
        {
            "system": [{"type": "text", "text": "rules"}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "document", "title": "a.txt", "source": {"type": "text", "data": "one"}},
                        {
                            "type": "document",
                            "source": {"type": "content", "content": [{"type": "text", "text": "two"}]},
                            "citations": cited,
                        },
                        {"type": "document", "source": {"type": "base64", "data": "AAAA"}},
                        {"type": "search_result", "title": "s", "content": [{"type": "text", "text": "three"}]},
                        {"type": "text", "text": "four", "longroute": "question"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "content": "five"},
                        {"type": "tool_result", "content": [{"type": "text", "text": "six"}]},
                    ],
                },
            ],
            "max_tokens": 10,
        }
    )
    at = ("messages", 0, "content")
    assert conversation.texts == (
        Text(("system", 0, "text"), "rules", "system", -1),
        Text((*at, 0, "source", "data"), "one", "user", 0, "document", "a.txt"),
        Text((*at, 1, "source", "content", 0, "text"), "two", "user", 0, "document", fixed=True),
        Text((*at, 3, "content", 0, "text"), "three", "user", 0, "document", "s"),
        Text((*at, 4, "text"), "four", "user", 0, mark="question"),
        Text(("messages", 2, "content", 0, "content"), "five", "tool", 2, "tool_result"),
        Text(("messages", 2, "content", 1, "content", 0, "text"), "six", "tool", 2, "tool_result"),
    )
    assert conversation.marks == ((*at, 4, "longroute"),)
    assert (conversation.max_output_tokens, conversation.last_role) == (10, "user")


def test_the_last_cache_mark_counts_and_one_on_the_request_covers_everything() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    body = {
        "system": [{"type": "text", "text": "a", **mark}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "b", **mark}, {"type": "text", "text": "c"}]}
        ],
    }
    assert read(body).cached_until == 1
    assert read({**body, **mark}).cached_until == 2


def test_a_prefill_is_the_last_role() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]
    assert read({"messages": messages}).last_role == "assistant"
