from __future__ import annotations

from longroute.router.proxy.headers import ours, read_request, read_response, with_key, with_length

CHAT = [
    (b"host", b"proxy"),
    (b"connection", b"keep-alive, X-Trace"),
    (b"keep-alive", b"timeout=5"),
    (b"x-trace", b"1"),
    (b"te", b"trailers"),
    (b"authorization", b"Bearer sk-1"),
    (b"openai-organization", b"org"),
    (b"accept", b"a"),
    (b"accept", b"b"),
    (b"content-length", b"12"),
    (b"x-longroute-strategy", b" rag "),
]


def test_what_belongs_to_the_connection_stays_and_the_rest_travels_in_order() -> None:
    head = read_request(CHAT)
    assert head.forwarded == [CHAT[5], CHAT[6], CHAT[7], CHAT[8], CHAT[9]]
    assert (head.length, head.ours) == (12, {"strategy": "rag"})


def test_a_signed_body_is_recognised() -> None:
    assert read_request([(b"content-md5", b"x")]).signed
    assert read_request([(b"authorization", b"AWS4-HMAC-SHA256 Credential=x")]).signed
    assert not read_request(CHAT).signed


def test_responses_keep_case_order_and_duplicates() -> None:
    headers = [(b"Set-Cookie", b"a"), (b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"Set-Cookie", b"b")]
    assert read_response(headers) == [(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]


def test_a_new_length_replaces_the_old_one() -> None:
    assert with_length(read_request(CHAT).forwarded, 7)[-1] == (b"content-length", b"7")
    assert sum(name == b"content-length" for name, _ in with_length(read_request(CHAT).forwarded, 7)) == 1


def test_a_key_of_ours_takes_the_place_of_the_callers_in_the_same_dialect() -> None:
    bearer, bare = (b"authorization", b"Bearer sk-up"), (b"x-api-key", b"sk-up")
    assert with_key([(b"authorization", b"Bearer x")], "sk-up") == [bearer]
    assert with_key([(b"authorization", b"Bearer x")], "sk-up", anthropic=True) == [bearer]
    assert with_key([(b"x-api-key", b"x")], "sk-up") == [bare]
    assert with_key([], "sk-up", anthropic=True) == [bare]
    assert with_key([], "sk-up") == [bearer]
    assert with_key([(b"x-api-key", b"x"), (b"authorization", b"Bearer x")], "") == []


def test_our_headers_are_one_line_of_ascii_whatever_they_are_told() -> None:
    [(name, value)] = ours(reason="λ = 0.1 – a\r\nset-cookie: x…", tokens_before=None)
    assert name == b"x-longroute-reason"
    assert value == b"lambda = 0.1 - a??set-cookie: x..."
