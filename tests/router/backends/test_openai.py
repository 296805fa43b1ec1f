"""Against a real server on loopback, so `http.py` too. What each refusal means is tested in test_complaint.py."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from longroute.router.backends.http import MAX_REPLY_BYTES, Timeouts
from longroute.router.backends.openai import OpenAI, request_body
from longroute.router.backends.wrappers import Retry
from longroute.router.core import Backend, Call, Draft, Message, Reply, Usage
from longroute.router.errors import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BadReply,
    ConfigError,
    ContextTooLong,
    RateLimited,
    RouterError,
)

if TYPE_CHECKING:
    from .conftest import FlakyServer

T = TypeVar("T")

KEY = "sk-test-0123456789abcdef"
PROMPT = "The vault of Gringolf opens with the word marzipan."
CALL = Call((Message("system", "Answer briefly."), Message("user", PROMPT)), "some-model", max_output_tokens=64)
QUICK = Timeouts(connect_s=2, write_s=2, first_text_s=0.6, stall_s=0.15, pool_s=2)
DONE = b"data: [DONE]\n\n"


def completion(text: object = "hello", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": "some-model-01", "choices": [choice | more.pop("choice", {})], **more}


def chunk(text: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    said = ({} if text is None else {"content": text}) | delta
    return {"model": "some-model-01", "choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


def using(server: FlakyServer, use: Callable[[OpenAI], Awaitable[T]], timeouts: Timeouts | None = None) -> T:
    """Run `use` with a backend for the server; nothing may take longer than five seconds."""

    async def main() -> T:
        async with aclosing(OpenAI(server.url, KEY, timeouts=timeouts)) as backend:
            return await asyncio.wait_for(use(backend), 5)

    return asyncio.run(main())


def generate(server: FlakyServer, call: Call = CALL, timeouts: Timeouts | None = None) -> Reply:
    return using(server, lambda backend: backend.generate(call), timeouts)


async def collect(backend: Backend, into: list[str | Reply], call: Call = CALL) -> None:
    async with aclosing(backend.stream(call)) as pieces:
        async for piece in pieces:
            into.append(piece)  # noqa: PERF401  what came before an error counts too


def stream(server: FlakyServer, call: Call = CALL, timeouts: Timeouts | None = None) -> list[str | Reply]:
    got: list[str | Reply] = []
    using(server, lambda backend: collect(backend, got, call), timeouts)
    return got


def failure(ask: Callable[[], object]) -> RouterError:
    """The error that ask raises; it must neither hold the key nor the prompt."""
    with pytest.raises(RouterError) as caught:
        ask()
    text = f"{caught.value}{caught.value!r}"
    assert KEY not in text
    assert "marzipan" not in text
    return caught.value


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_a_call_becomes_a_request_with_key_and_model(server: FlakyServer) -> None:
    server.then_send(completion())
    generate(server, Call(CALL.messages, "some-model", 64, temperature=0.0, stop=("END",)))
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.bodies == [
        {
            "model": "some-model",
            "messages": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": PROMPT}],
            "max_tokens": 64,
            "temperature": 0.0,
            "stop": ["END"],
        }
    ]


def test_extra_headers_are_sent_and_no_key_sends_no_authorization(server: FlakyServer) -> None:
    server.then_send(completion())

    async def main() -> None:
        async with aclosing(OpenAI(server.url, headers={"X-Team": "blue"})) as backend:
            await backend.generate(CALL)

    asyncio.run(main())
    assert server.headers[0]["x-team"] == "blue"
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5.1-mini", "openai/gpt-5"])
def test_reasoning_models_get_the_new_limit_and_no_temperature(model: str) -> None:
    body = request_body(Call((), model, 9, temperature=0.0), stream=False)
    assert body["max_completion_tokens"] == 9
    assert not {"max_tokens", "temperature"} & set(body)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1", "gpt-oss-120b", "olmo-2", "Qwen/Qwen3-8B", "my-gpt-5x"])
def test_other_models_get_the_old_limit_and_the_temperature(model: str) -> None:
    body = request_body(Call((), model, 9, temperature=0.0), stream=False)
    assert (body["max_tokens"], body["temperature"]) == (9, 0.0)


def test_text_that_utf8_cannot_carry_is_sent_with_question_marks(server: FlakyServer) -> None:
    server.then_send(completion())
    generate(server, Call((Message("user", "a\ud800b ü 漢"),), "m"))
    assert server.bodies[0]["messages"][0]["content"] == "a?b ü 漢"


# ---- whole replies ---------------------------------------------------------------------------------------------------


def test_a_completion_becomes_a_reply_with_usage(server: FlakyServer) -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 64}}
    server.then_send(completion("hello", usage=usage))
    assert generate(server) == Reply("hello", Usage(90, 64, 5), model="some-model-01")


def test_nulls_and_missing_fields_do_no_harm(server: FlakyServer) -> None:
    server.then_send({"choices": [{"message": {"content": "hi"}, "finish_reason": None}], "model": None, "usage": None})
    assert generate(server) == Reply("hi", model="some-model", notes=("the server reported no usage",))


def test_content_in_parts_is_joined(server: FlakyServer) -> None:
    server.then_send(completion([{"type": "thinking", "thinking": []}, {"type": "text", "text": "hello"}]))
    assert generate(server).text == "hello"


def test_a_refusal_is_an_answer_that_does_not_answer(server: FlakyServer) -> None:
    server.then_send(completion(choice={"message": {"content": None, "refusal": "I would rather not."}}))
    reply = generate(server)
    assert (reply.text, reply.answered) == ("I would rather not.", False)


def test_a_refusal_in_a_part_of_the_content_is_one_too(server: FlakyServer) -> None:
    server.then_send(completion([{"type": "refusal", "refusal": "I would rather not."}]))
    reply = generate(server)
    assert (reply.text, reply.answered) == ("I would rather not.", False)


@pytest.mark.parametrize(
    "told",
    [{"prompt_tokens_details": {"cache_write_tokens": 5}}, {"cache_creation_input_tokens": 5}],
)
def test_tokens_written_to_the_cache_are_told_apart(server: FlakyServer, told: dict[str, object]) -> None:
    server.then_send(completion("hello", usage={"prompt_tokens": 9, "completion_tokens": 1, **told}))
    assert generate(server).usage.written_tokens == 5


def test_a_cut_off_answer_is_still_an_answer(server: FlakyServer) -> None:
    server.then_send(completion("hel", choice={"finish_reason": "length"}))
    reply = generate(server)
    assert (reply.text, reply.finish_reason) == ("hel", "length")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{]", "json_invalid"),
        (b"", "json_invalid"),
        (b"[]", "model_type"),
        (b"[" * 100_000, "not a completion"),
        (b"<!DOCTYPE html><html><body>Welcome to nginx</body></html>", "web page"),
        ({}, "without any choice"),
        ({"choices": []}, "without any choice"),
        ({"choices": "marzipan"}, "choices"),
        (completion(None, choice={"finish_reason": "length"}), "Raise max_output_tokens"),
        (completion(None, choice={"finish_reason": "content_filter"}), "'content_filter'"),
        (completion(choice={"message": {"content": None, "tool_calls": [{"id": "1"}]}}), "tool"),
    ],
)
def test_what_is_not_an_answer_is_a_bad_reply_whole_and_streamed(server: FlakyServer, body: object, says: str) -> None:
    server.then_send(body)
    server.then_send(body)
    for error in failure(lambda: generate(server)), failure(lambda: stream(server)):
        assert isinstance(error, BadReply)
        assert says in str(error)


def test_an_error_inside_a_success_is_an_error(server: FlakyServer) -> None:
    server.then_send({"error": {"message": "overloaded", "code": 503}})
    error = failure(lambda: generate(server))
    assert isinstance(error, BackendUnavailable)
    assert error.status == 503


def test_an_endless_success_body_is_not_read_to_the_end(server: FlakyServer) -> None:
    piece = b" " * 2**20
    pieces = [piece] * (MAX_REPLY_BYTES // len(piece) + 1)
    server.then(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", *pieces, "hang")
    assert isinstance(failure(lambda: generate(server)), BadReply)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_its_own_error(server: FlakyServer) -> None:
    server.then_send({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400)
    assert isinstance(failure(lambda: generate(server)), ContextTooLong)


def test_a_refused_key_names_where_it_comes_from(server: FlakyServer) -> None:
    server.then_send({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401)

    async def main() -> None:
        async with aclosing(OpenAI(server.url, KEY, key_name="SOME_API_KEY")) as backend:
            await backend.generate(CALL)

    error = failure(lambda: asyncio.run(main()))
    assert isinstance(error, BackendRejected)
    assert "SOME_API_KEY" in str(error)


def test_an_unknown_model_is_named(server: FlakyServer) -> None:
    server.then_send({"error": {"message": "nope", "code": "model_not_found"}}, 404)
    assert "'some-model'" in str(failure(lambda: generate(server)))


def test_a_server_that_repeats_key_and_prompt_is_not_quoted(server: FlakyServer) -> None:
    server.then_send({"error": {"message": f"bad header {KEY}"}}, 400)
    server.then_send({"detail": [{"loc": ["body"], "msg": "bad", "input": PROMPT}]}, 422)
    server.then_send({"message": f"cannot process: {PROMPT}"}, 500)
    for _ in range(3):
        failure(lambda: generate(server))  # which looks for both


def test_an_oversized_error_body_is_left_unread(server: FlakyServer) -> None:
    head = b"HTTP/1.1 500 X\r\ncontent-length: 52428800\r\n\r\n"
    server.then(head, b'{"message": "' + b"x" * 100_000, "hang")  # hangs unless the client leaves by itself
    error = failure(lambda: generate(server))
    assert isinstance(error, BackendUnavailable)
    assert len(str(error)) < 400


def test_an_error_whose_body_breaks_off_keeps_its_status(server: FlakyServer) -> None:
    server.then(b"HTTP/1.1 403 X\r\ncontent-length: 500\r\n\r\nno ac", "reset")
    error = failure(lambda: generate(server))
    assert isinstance(error, BackendRejected)
    assert error.status == 403


def test_retry_after_is_handed_on(server: FlakyServer) -> None:
    server.then_send({"error": {"message": "slow down"}}, 429, retry_after="7")
    error = failure(lambda: generate(server))
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 7


# ---- fields a server does not know -----------------------------------------------------------------------------------


def unsupported(field: str) -> dict[str, Any]:
    return {"error": {"message": f"Unsupported parameter: '{field}'", "param": field, "code": "unsupported_parameter"}}


def test_stream_options_are_dropped_where_refused_and_stay_dropped(server: FlakyServer) -> None:
    server.then_send({"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}, 422)
    server.then_stream(chunk("hi", "stop"), DONE)
    server.then_stream(chunk("hi", "stop"), DONE)

    async def twice(backend: OpenAI) -> None:
        for _ in range(2):
            got: list[str | Reply] = []
            await collect(backend, got)
            assert got[-1] == Reply("hi", model="some-model-01", notes=("the server reported no usage",))

    using(server, twice)
    assert ["stream_options" in body for body in server.bodies] == [True, False, False]


def test_the_limit_goes_under_its_other_name_where_refused(server: FlakyServer) -> None:
    message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    server.then_send({"error": {"message": message, "code": "invalid_request_body"}}, 400)
    server.then_send(completion())
    generate(server)
    assert server.bodies[1]["max_completion_tokens"] == 64
    assert "max_tokens" not in server.bodies[1]


def test_a_refused_temperature_is_left_out_and_noted(server: FlakyServer) -> None:
    server.then_send(unsupported("temperature"), 400)
    server.then_send(completion())
    reply = generate(server, Call(CALL.messages, "alias", temperature=0.0))
    assert "temperature" not in server.bodies[1]
    assert "temperature left out: 'alias' does not accept it" in reply.notes


def test_a_server_that_refuses_both_limits_is_not_asked_forever(server: FlakyServer) -> None:
    server.then_send(unsupported("max_tokens"), 400)
    server.then_send(unsupported("max_completion_tokens"), 400)
    assert isinstance(failure(lambda: generate(server)), BackendRejected)


def test_a_limit_that_is_too_high_is_not_mistaken_for_an_unknown_field(server: FlakyServer) -> None:
    server.then_send({"error": {"message": "max_tokens is too large: 64. At most 32.", "param": "max_tokens"}}, 400)
    assert "too large" in str(failure(lambda: generate(server)))


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_gives_pieces_and_then_the_reply(server: FlakyServer) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    server.then_stream(chunk("", role="assistant"), chunk("hel"), chunk("lo"), chunk(finish="length"), usage, DONE)
    assert stream(server) == ["hel", "lo", Reply("hello", Usage(9, 0, 2), "length", "some-model-01")]
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_pieces_come_before_the_stream_has_ended(server: FlakyServer) -> None:
    server.then_stream(chunk("hel"), "hang")

    async def first(backend: OpenAI) -> str | Reply:
        async with aclosing(backend.stream(CALL)) as pieces:
            return await anext(pieces)

    assert using(server, first) == "hel"
    assert server.left.wait(5)


def test_comments_crlf_missing_spaces_and_lines_of_data_are_understood(server: FlakyServer) -> None:
    pretty = json.dumps(chunk("lo", "stop"), indent=1).replace("\n", "\r\ndata:")
    server.then_stream(
        b": ping\r\n\r\n", f"data:{json.dumps(chunk('hel'))}\r\n\r\ndata:{pretty}\r\n\r\n".encode(), DONE
    )
    assert stream(server)[:-1] == ["hel", "lo"]


def test_a_character_split_between_packets_arrives_whole(server: FlakyServer) -> None:
    wire = b"data: " + json.dumps(chunk("漢字 ü", "stop"), ensure_ascii=False).encode() + b"\n\n"
    server.then_stream(*(wire[i : i + 1] for i in range(len(wire))))
    assert stream(server)[0] == "漢字 ü"


def test_the_connection_is_used_again_after_a_stream(server: FlakyServer) -> None:
    server.then_stream(chunk("a", "stop"), DONE)
    server.then_stream(chunk("b", "stop"), DONE)
    got: list[str | Reply] = []

    async def twice(backend: OpenAI) -> None:
        await collect(backend, got)
        await collect(backend, got)

    using(server, twice)
    assert [piece for piece in got if isinstance(piece, str)] == ["a", "b"]
    assert server.connections == 1


@pytest.mark.parametrize("ending", [(), (DONE,), (DONE, "hang"), ("reset",), (DONE, "reset")])
def test_a_finished_answer_survives_whatever_comes_after_it(server: FlakyServer, ending: tuple[Any, ...]) -> None:
    server.then_stream(chunk("hello", "stop"), *ending)
    assert [type(piece) for piece in stream(server)] == [str, Reply]


def test_done_without_a_finish_reason_is_enough(server: FlakyServer) -> None:
    server.then_stream(chunk("hello"), DONE)
    assert stream(server)[0] == "hello"


@pytest.mark.parametrize("ending", [(), ("reset",)])
def test_a_stream_cut_short_says_how_much_had_arrived(server: FlakyServer, ending: tuple[Any, ...]) -> None:
    server.then_stream(chunk("hello"), *ending)
    error = failure(lambda: stream(server))
    assert isinstance(error, BackendUnavailable)
    assert "after 5 characters" in str(error)


def test_a_stream_of_nothing_is_no_answer(server: FlakyServer) -> None:
    server.then_stream(DONE)
    assert isinstance(failure(lambda: stream(server)), BadReply)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"error": {"message": "boom"}}, BackendUnavailable),
        ({"error": "boom"}, BackendUnavailable),
        ({"error": {"message": "boom", "code": 400}}, BackendRejected),
        ({"error": {"message": "slow", "code": 429}}, RateLimited),
        ({"error": {"code": 500, "message": "n", "type": "exceed_context_size_error"}}, ContextTooLong),
        (b"event: error\ndata: {\"error\": {\"message\": \"boom\"}}\n\n", BackendUnavailable),
        (b"data: marzipan\n\n", BadReply),
    ],
)  # fmt: skip
def test_an_error_event_ends_the_stream_as_an_error(server: FlakyServer, event: Any, kind: type[RouterError]) -> None:
    server.then_stream(chunk("hel"), event, DONE)
    assert type(failure(lambda: stream(server))) is kind


def test_a_server_that_does_not_stream_gives_its_whole_answer_as_one_piece(server: FlakyServer) -> None:
    server.then_send(completion("hello"))
    piece, reply = stream(server)
    assert piece == "hello"
    assert isinstance(reply, Reply)


def test_a_refusal_is_streamed_as_text(server: FlakyServer) -> None:
    server.then_stream(chunk(refusal="Rather "), chunk(refusal="not."), chunk(finish="stop"), DONE)
    *pieces, reply = stream(server)
    assert pieces == ["Rather ", "not."]
    assert isinstance(reply, Reply)
    assert not reply.answered


# ---- silence, broken wires, cancelling -------------------------------------------------------------------------------


def test_a_server_that_says_nothing_times_out(server: FlakyServer) -> None:
    for ask in generate, stream:
        server.then("hang")
        error = failure(lambda ask=ask: ask(server, timeouts=QUICK))  # type: ignore[misc]
        assert isinstance(error, BackendTimeout)
        assert "first_text_s" in str(error)


def test_a_stream_that_only_keeps_alive_times_out(server: FlakyServer) -> None:
    pings: list[bytes | float] = [b": ping\n\n", 0.05] * 3
    server.then_stream(*pings, "hang")
    assert isinstance(failure(lambda: stream(server, timeouts=QUICK)), BackendTimeout)


def test_a_stream_that_stalls_says_how_much_had_arrived(server: FlakyServer) -> None:
    server.then_stream(chunk("hello"), "hang")
    error = failure(lambda: stream(server, timeouts=QUICK))
    assert isinstance(error, BackendTimeout)
    assert "stall_s" in str(error)
    assert "after 5 characters" in str(error)
    assert server.left.wait(5)


def test_the_first_text_may_take_longer_than_later_pieces(server: FlakyServer) -> None:
    server.then_stream(chunk("", role="assistant"), 0.25, chunk("hello", "stop"), DONE)
    assert stream(server, timeouts=QUICK)[0] == "hello"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{"])
@pytest.mark.parametrize("ending", [(), ("reset",)])
def test_a_connection_that_breaks_is_unavailable(server: FlakyServer, sent: bytes, ending: tuple[Any, ...]) -> None:
    server.then(sent, *(ending or (b"", "reset")))
    assert isinstance(failure(lambda: generate(server)), BackendUnavailable)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    async def main() -> None:
        async with aclosing(OpenAI("http://127.0.0.1:9/v1", KEY)) as backend:
            await backend.generate(CALL)

    error = failure(lambda: asyncio.run(main()))
    assert isinstance(error, BackendUnavailable)
    assert "127.0.0.1:9" in str(error)


def test_a_body_that_does_not_decompress_is_a_bad_reply(server: FlakyServer) -> None:
    server.then_send(b"not gzip", content_encoding="gzip")
    assert isinstance(failure(lambda: generate(server)), BadReply)


@pytest.mark.parametrize("streaming", [False, True])
def test_cancelling_closes_the_connection_at_once(server: FlakyServer, streaming: bool) -> None:
    server.then("hang")

    async def cancelled(backend: OpenAI) -> None:
        task = asyncio.ensure_future(collect(backend, []) if streaming else backend.generate(CALL))
        assert await asyncio.to_thread(server.asked.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.left.wait, 5)  # before the backend is closed

    using(server, cancelled)


# ---- retried over the wire -------------------------------------------------------------------------------------------


def test_passing_failures_are_retried_until_an_answer_comes(server: FlakyServer) -> None:
    server.then_send({"error": {"message": "slow down"}}, 429, retry_after="0.01")
    server.then_send(b"<html>bad gateway</html>", 502)
    server.then(b"", "reset")
    server.then_send(completion("hello"))
    reply = using(server, lambda backend: Retry(backend, base_s=0.001).generate(CALL))
    assert reply.text == "hello"
    assert [note.partition(": ")[2] for note in reply.notes[:3]] == [
        "RateLimited (429)",
        "BackendUnavailable (502)",
        "BackendUnavailable",
    ]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_refusals_are_not_retried(server: FlakyServer, status: int) -> None:
    server.then_send({"error": {"message": "no"}}, status)
    failure(lambda: using(server, lambda backend: Retry(backend, base_s=0.001).generate(CALL)))
    assert len(server.bodies) == 1


def test_a_stream_is_not_retried_once_text_has_been_given_out(server: FlakyServer) -> None:
    server.then_stream(chunk("hello"), "reset")
    got: list[str | Reply] = []
    failure(lambda: using(server, lambda backend: collect(Retry(backend, base_s=0.001), got)))
    assert got == ["hello"]
    assert len(server.bodies) == 1


# ---- loops, keys, configuration --------------------------------------------------------------------------------------


def test_one_backend_serves_several_loops_one_after_another(server: FlakyServer) -> None:
    backend = OpenAI(server.url, KEY)
    for _ in range(3):
        server.then_send(completion(), connection="close")
        assert asyncio.run(backend.generate(CALL)).text == "hello"


def test_closing_from_one_loop_closes_the_connections_of_a_running_other(server: FlakyServer) -> None:
    server.then_send(completion())
    server.then_send(completion())
    backend = OpenAI(server.url, KEY)
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    async def main() -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(backend.generate(CALL), other))
        await backend.generate(CALL)
        await backend.aclose()
        await backend.aclose()
        # The close was sent to the other loop before this, so it has begun; it ends within a few turns.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), other))

    try:
        asyncio.run(main())
    finally:
        other.call_soon_threadsafe(other.stop)
        thread.join()
        other.close()  # a connection still open would warn here, and warnings are errors
    assert server.connections == 2


def test_the_key_is_not_in_the_repr() -> None:
    assert KEY not in repr(OpenAI("http://localhost/v1", KEY))


def test_a_key_read_with_its_line_break_works(server: FlakyServer) -> None:
    server.then_send(completion())

    async def main() -> None:
        async with aclosing(OpenAI(server.url, f" {KEY}\n")) as backend:
            await backend.generate(CALL)

    asyncio.run(main())
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"“{KEY}”"])
def test_a_key_that_cannot_be_a_header_is_refused_without_showing_it(key: str) -> None:
    assert isinstance(failure(lambda: OpenAI("http://localhost/v1", key)), ConfigError)


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAI(url)


def test_a_password_in_the_address_stays_out_of_messages(server: FlakyServer) -> None:
    server.then_send({}, 500)
    with_password = server.url.replace("http://", f"http://user:{KEY}@")

    async def main() -> None:
        async with aclosing(OpenAI(with_password)) as backend:
            await backend.generate(CALL)

    assert isinstance(failure(lambda: asyncio.run(main())), BackendError)


# ---- drafts ----------------------------------------------------------------------------------------------------------

DRAFTED = replace(CALL, draft=Draft((Message("user", "The vault opens."),)))


def test_a_draft_goes_along_in_the_extension_field_and_the_reply_says_what_was_kept(server: FlakyServer) -> None:
    details = {"accepted_prediction_tokens": 9, "rejected_prediction_tokens": 3}
    server.then_send(completion(usage={"prompt_tokens": 9, "completion_tokens_details": details}))
    reply = using(server, lambda backend: backend.generate(DRAFTED))
    draft = [{"role": "user", "content": "The vault opens."}]
    assert server.bodies[0]["longroute"] == {"speculative": {"draft": draft}}
    assert reply.notes == ("9 of 12 drafted tokens were kept",)


def test_a_server_that_knows_no_drafts_answers_without(server: FlakyServer) -> None:
    complaint = {"message": "Unrecognized request argument supplied: longroute", "param": None}
    server.then_send({"error": complaint}, 400)
    server.then_send(completion(usage={"prompt_tokens": 9}))
    reply = using(server, lambda backend: backend.generate(DRAFTED))
    assert "longroute" not in server.bodies[1]
    assert reply.notes == ("longroute left out: 'some-model' does not accept it",)
