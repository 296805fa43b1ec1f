from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longroute.router.backends.complaint import Complaint, parse_complaint, retry_after_s
from longroute.router.core import Call, Message
from longroute.router.errors import (
    BackendRejected,
    BackendUnavailable,
    ContextTooLong,
    RateLimited,
    RouterError,
)

CALL = Call((Message("system", "Be brief."), Message("user", "The patient, Ada Lovelace, is 36 years old.")), "m")


def error(status: int, message: str = "", *codes: str, secrets: tuple[str, ...] = ()) -> RouterError:
    complaint = Complaint(message, frozenset(codes))
    return complaint.error(status, CALL, server="http://s/v1", key="SOME_KEY", secrets=secrets)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),  # vLLM
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),  # SGLang
        (400, "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it"),  # llama.cpp
        (500, "Context size has been exceeded."),  # llama.cpp, other days
        (400, "the request exceeds the available context size. try increasing the context size"),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000"),  # TGI
        (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),  # Gemini
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),  # Anthropic
        (400, "the input length exceeds the context length"),  # Ollama
    ],
)
def test_every_server_is_understood_when_the_prompt_does_not_fit(status: int, message: str) -> None:
    assert isinstance(error(status, message), ContextTooLong)


@pytest.mark.parametrize("code", ["context_length_exceeded", "exceed_context_size_error"])
def test_a_code_for_a_long_prompt_is_enough(code: str) -> None:
    assert isinstance(error(400, "no", code), ContextTooLong)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, BackendRejected),
        (400, BackendRejected),
        (401, BackendRejected),
        (402, BackendRejected),
        (403, BackendRejected),
        (404, BackendRejected),
        (408, BackendUnavailable),
        (409, BackendUnavailable),
        (413, BackendRejected),
        (422, BackendRejected),
        (425, BackendUnavailable),
        (429, RateLimited),
        (500, BackendUnavailable),
        (503, BackendUnavailable),
        (529, BackendUnavailable),
    ],
)
def test_the_status_decides_the_kind_of_error(status: int, kind: type[RouterError]) -> None:
    raised = error(status, "no")
    assert type(raised) is kind
    assert str(status) in str(raised)
    assert "http://s/v1" in str(raised)


def test_an_empty_quota_is_not_a_passing_limit() -> None:
    raised = error(429, "You exceeded your current quota", "insufficient_quota")
    assert isinstance(raised, BackendRejected)
    assert "billing" in str(raised)


def test_a_call_above_the_limit_per_minute_is_not_a_passing_limit() -> None:
    raised = error(429, "Request too large for m on tokens per min (TPM): Limit 10000, Requested 50000", "tokens")
    assert isinstance(raised, BackendRejected)
    assert "'rag'" in str(raised)


def test_refused_credentials_name_their_source_and_quote_nothing() -> None:
    text = str(error(401, "Incorrect API key provided: sk-abc***xyz"))
    assert "SOME_KEY" in text
    assert "sk-abc" not in text


def test_secrets_are_masked_where_the_server_repeats_them() -> None:
    assert "s3cr3t" not in str(error(403, "key s3cr3t may not do this", secrets=("s3cr3t", "")))


def test_a_message_that_repeats_the_prompt_is_not_quoted() -> None:
    text = str(error(400, "cannot parse 'patient, Ada Lovelace, is 36'"))
    assert "Lovelace" not in text
    assert "repeats the prompt" in text


def test_a_short_prompt_is_recognised_as_well() -> None:
    assert "brief" not in str(error(400, "cannot parse 'Be brief.'"))


def test_line_breaks_do_not_hide_that_the_prompt_is_repeated() -> None:
    table = "Ada; 36\nBob; 41\nEve; 29\nJoe; 54"
    for echo in table, repr(table), " ".join(table.split()):
        text = str(Complaint(f"bad: {echo}").error(400, Call((Message("user", table),), "m"), server="s", key="k"))
        assert "Bob" not in text


def test_a_message_can_always_be_printed() -> None:
    assert str(error(400, "a\ud800\x1b[31m\nb")).encode().isascii()


@given(st.text(min_size=16, max_size=60), st.text(max_size=30), st.integers(0, 300))
def test_no_stretch_of_the_prompt_gets_into_a_message(secret: str, before: str, pad: int) -> None:
    call = Call((Message("user", "x" * pad + secret),), "m")
    text = str(Complaint(before + secret).error(400, call, server="s", key="k"))
    quoted = text.partition('It said: "')[2].rpartition('"')[0]
    assert not any(secret[i : i + 16] in quoted for i in range(len(secret) - 15))


def test_long_messages_are_cut() -> None:
    assert len(str(error(400, "n" * 10_000))) < 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no", "code": "c", "type": "t", "param": "p"}}', "no"),
        (b'{"type": "error", "error": {"type": "t", "message": "no"}}', "no"),
        (b'[{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}]', "no"),
        (b'{"error": "no", "error_type": "validation"}', "no"),
        (b'{"object": "error", "message": "no", "code": 400}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"detail": [{"loc": ["body", "stop"], "msg": "no", "input": "the prompt"}]}', "body.stop: no"),
        (b'{"detail": [{"loc": null}, 3]}', ": "),
        (b"<html><style>p {}</style><body><h1>no</h1></body></html>", "no"),
        (b"no", "no"),
        (b'{"error": {"message": "cut o', '{"error": {"message": "cut o'),
        (b"[" * 60_000, "[" * 60_000),
        (b"", ""),
        (b"\xff", "\ufffd"),
        (b"3", ""),
        (b'{"error": null}', ""),
    ],
)
def test_any_body_yields_what_the_server_said(body: bytes, said: str) -> None:
    assert parse_complaint(body).message == said


@given(st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.sampled_from(
    ["error", "message", "detail", "code", "type", "param", "loc", "msg", "status"]), s)))  # fmt: skip
def test_no_json_is_too_strange_to_parse(data: object) -> None:
    assert isinstance(parse_complaint(json.dumps(data).encode()), Complaint)


def test_code_type_param_and_status_are_kept() -> None:
    body = {"error": {"message": "no", "code": 503, "type": "overloaded", "param": "stop"}}
    assert parse_complaint(json.dumps(body).encode()) == Complaint("no", frozenset(["overloaded"]), "stop", 503)


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "?", "retry-after": "1"}, 1.0),
        ({"retry-after": format_datetime(NOW.replace(minute=2), usegmt=True)}, 120.0),
        ({"retry-after": format_datetime(NOW.replace(year=2025), usegmt=True)}, 0.0),
    ],
)
def test_the_wish_to_wait_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW.timestamp()) == seconds
