"""Requests whose long text is the conversation itself: retrieved as turns, each in its own place."""

from __future__ import annotations

import json
from typing import Any

from longroute.router.assemble import Router
from longroute.router.proxy.routing import Considered, consider
from longroute.router.proxy.stopwatch import Stopwatch

TURNS = [
    f"Turn {number}. We talked about nothing in particular here, the weather and the neighbours, as on any other day."
    for number in range(120)
]
TURNS[60] = "Where did we say that the spare key is kept when nobody is at home?"
TURNS[61] = "Under the third flower pot."


def considered(strategy: str) -> tuple[Considered, list[dict[str, Any]], list[dict[str, Any]]]:
    """What becomes of a long chat, with its messages before and after."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(TURNS)]
    messages.append({"role": "user", "content": "Where is the spare key kept?"})
    raw = json.dumps({"model": "gpt-4o", "messages": messages, "longroute": {"strategy": strategy}}).encode()
    router = Router(cache=False, embedding_model="none", rag_budget_tokens=300)
    result = consider(raw, "chat", router, watch=Stopwatch(), min_document_tokens=1000)
    return result, messages, json.loads(result.body)["messages"]


def test_the_answer_to_a_turn_that_is_found_is_kept_with_it() -> None:
    result, before, after = considered("rag")
    assert result.located is not None
    assert result.located.shape == "conversation"
    assert [message["role"] for message in after] == [message["role"] for message in before]
    assert after[60:62] == before[60:62]  # `Under the third flower pot.` shares no word with the question
    assert after[-5:] == before[-5:]


def test_turns_that_were_not_chosen_take_next_to_nothing() -> None:
    result, _, after = considered("rag")
    left_out = [message["content"] for message in after if message["content"] == "[…]"]
    assert len(left_out) > 90
    assert "marks what was left out" in after[0]["content"]
    assert result.tokens_before is not None
    assert result.tokens_after is not None
    assert result.tokens_after < 0.4 * result.tokens_before


def test_a_compressed_chat_keeps_every_turn_in_its_place() -> None:
    _, before, after = considered("compressed")
    assert [message["role"] for message in after] == [message["role"] for message in before]
    longer = [n for n, old in enumerate(before) if len(after[n]["content"]) > len(old["content"])]
    assert len(longer) <= 1  # the one with the note
    assert after[-5:] == before[-5:]
    assert sum(len(message["content"]) for message in after) < 0.7 * sum(len(message["content"]) for message in before)
