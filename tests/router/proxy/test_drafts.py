"""Strategy `speculative` behind the proxy: the caller's own request whole, and beside it what drafts are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longroute.tests.router.proxy.fakes import FACT, QUESTION, MakeProxy, Proxy, Sent, Told, chat, completion, long_text

BY = {"x-longroute-strategy": "speculative"}
RUNNER = "my-runner"


@pytest.fixture
def proxy(make_proxy: MakeProxy, tmp_path: Path) -> Proxy:
    models = tmp_path / "models.json"
    profile = {"context_window": 131_072, "speculates": True, "cache_min_tokens": 1, "cache_ttl_s": 600}
    models.write_text(json.dumps({RUNNER: profile}))
    settings = {"allowed": (), "models_file": models, "speculative_context_tokens": 512}
    return make_proxy(settings=settings, min_document_tokens=500)


def asked(proxy: Proxy, body: bytes, **options: Any) -> tuple[bytes, Any]:
    """What was sent before the extension, and the draft in it."""
    answer = proxy.ask(body, headers=BY, **options)
    assert answer.status_code == 200 and answer.headers["x-longroute-strategy"] == "speculative"
    head, _, extension = proxy.sent.body.rpartition(b',"longroute":')
    return head, json.loads(extension[:-1])["speculative"]["draft"]


def test_a_runner_gets_the_request_as_it_came_with_the_draft_behind_it(proxy: Proxy) -> None:
    body = chat(model=RUNNER, temperature=0.5, tools=[])
    head, [message] = asked(proxy, body)
    assert head == body[:-1]
    assert message["role"] == "user" and message["content"].endswith(QUESTION)
    assert FACT in message["content"] and len(message["content"]) < len(long_text()) / 8


def test_our_own_fields_are_taken_out_before_the_draft_is_added(proxy: Proxy) -> None:
    head, _ = asked(proxy, chat(model=RUNNER, longroute={"strategy": "speculative"}))
    assert head == chat(model=RUNNER)[:-1]


def test_the_draft_of_a_plain_completion_is_a_text(proxy: Proxy) -> None:
    prompt = f"{long_text()}\n\n{QUESTION}"
    proxy.upstream.answer = lambda sent: completion(choices=[{"index": 0, "text": "Mara", "finish_reason": "stop"}])
    body = json.dumps({"model": RUNNER, "prompt": [prompt]}).encode()
    head, draft = asked(proxy, body, path="/v1/completions")
    assert head == body[:-1] and isinstance(draft, str) and FACT in draft and draft.endswith(QUESTION)


def test_a_model_that_takes_no_drafts_gets_the_original_and_the_caller_the_reason(proxy: Proxy) -> None:
    answer = proxy.ask(chat(), headers=BY)
    assert proxy.sent.body == chat()
    assert answer.headers["x-longroute-strategy"] != "speculative"


def test_an_upstream_that_refuses_the_draft_gets_the_original(proxy: Proxy) -> None:
    def answer(sent: Sent) -> Told:
        return Told(400, b'{"error": {"message": "no"}}') if b"longroute" in sent.body else completion()

    proxy.upstream.answer = answer
    response = proxy.ask(chat(model=RUNNER), headers=BY)
    assert response.status_code == 200 and proxy.sent.body == chat(model=RUNNER)


def test_what_was_read_whole_is_known_to_be_in_the_prompt_cache(proxy: Proxy) -> None:
    usage = {"prompt_tokens": 20_000, "completion_tokens": 4, "total_tokens": 20_004}
    proxy.upstream.answer = lambda sent: completion(usage=usage)
    proxy.ask(chat(model=RUNNER), headers=BY)
    record = proxy.decision(proxy.ask(chat(model=RUNNER), headers=BY))
    assert record["estimates"]["full"]["cached_tokens"] > 15_000
    assert record["tokens_after"] > record["tokens_before"]  # both prompts are read
    assert record["citations"] == []
