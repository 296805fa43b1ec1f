from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longroute.router.errors import ConfigError
from longroute.router.runner.asked import ChatAsked, Speculative, TextAsked, read_body
from longroute.router.runner.generation import SamplingOptions
from longroute.router.runner.laws import Law
from longroute.router.runner.refusal import Refusal
from longroute.router.runner.speculative import Speculation

USUAL = Speculation(Law("rapid", eta=40.0), draft_tokens=6)


def test_what_a_request_leaves_out_is_as_the_runner_was_set_up() -> None:
    assert Speculative(draft="Who?").speculation(USUAL) == USUAL
    changed = Speculative(draft="Who?", mode="exact", least_confidence=0.5).speculation(USUAL)
    assert changed == Speculation(Law("exact", eta=40.0), draft_tokens=6, least_confidence=0.5)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="eta"):
        Speculative(draft="Who?", eta=-1.0).speculation(USUAL)


FIELDS = sorted({*ChatAsked.model_fields, *TextAsked.model_fields, "tools", "user", "echo", "no_such_field"})
KEYS = st.sampled_from(["role", "content", "draft", "speculative", "type", "text", "1"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["user", "rapid"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_body_is_understood_or_refused(body: dict[str, Any]) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "Who?"}], **body}
    with contextlib.suppress(Refusal, ConfigError):
        asked = read_body(ChatAsked, chat)
        asked.sampling(SamplingOptions(), asked.choices)
        assert all(isinstance(message["content"], str) for message in asked.shown())
        assert asked.speculative is None or asked.shown_to_drafter()
    with contextlib.suppress(Refusal, ConfigError):
        assert read_body(TextAsked, {"model": "m", "prompt": "Ada", **body}).prompts


def test_the_most_likely_token_and_all_tokens_can_be_asked_for_in_the_usual_ways() -> None:
    messages = [{"role": "user", "content": "Who?"}]
    asked = read_body(ChatAsked, {"model": "m", "messages": messages, "top_p": 0, "top_k": -1, "seed": 5})
    sampling = asked.sampling(SamplingOptions(top_k=20, min_p=0.1), 2)
    assert (sampling.is_greedy, sampling.top_k, sampling.min_p, sampling.seed) == (True, 0, 0.1, 7)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 15), st.integers(0, 15))
def test_choices_have_seeds_of_their_own_whatever_the_sign(seed: int, one: int, other: int) -> None:
    asked = read_body(ChatAsked, {"model": "m", "messages": [{"role": "user", "content": "Who?"}], "seed": seed})
    seeds = [asked.sampling(SamplingOptions(), choice).seed for choice in (one, other)]
    assert all(found is not None and found >= 0 for found in seeds)  # random.Random takes -1 for 1
    assert (seeds[0] == seeds[1]) == (one == other)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"longroute": {"speculative": {"draft": []}}}, "longroute.speculative.draft"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages.0.role"),
    ],
)
def test_the_field_at_fault_is_named_as_clients_wrote_it(body: dict[str, Any], field: str) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "Who?"}], **body}
    with pytest.raises(Refusal) as caught:
        read_body(ChatAsked, chat)
    assert caught.value.param == field


def test_a_developer_speaks_as_the_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    messages = [{"role": "developer", "content": parts}, {"role": "assistant", "content": None}]
    shown = read_body(ChatAsked, {"model": "m", "messages": messages}).shown()
    assert shown == [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": ""}]


def test_a_text_for_the_drafter_takes_the_place_of_the_last_user_message() -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    body = {"model": "m", "messages": messages, "longroute": {"speculative": {"draft": "Who?"}}}
    shown = read_body(ChatAsked, body).shown_to_drafter()
    assert [message["content"] for message in shown] == ["system", "user", "assistant", "Who?"]
    with pytest.raises(Refusal, match="no user message"):
        read_body(ChatAsked, body | {"messages": messages[:1]}).shown_to_drafter()
