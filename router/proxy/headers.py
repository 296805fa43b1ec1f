"""HTTP headers on their way through: which ones travel, which are for us, which we add. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .wire import Headers

# RFC 9110, 7.6.1: about one connection, not about the message. `Expect` is answered by our own server.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    )
)
# The body is signed or hashed in one of these, so not a byte of it may change.
_SIGNED = frozenset((b"content-md5", b"digest", b"content-digest", b"signature", b"x-amz-content-sha256"))
_OURS = b"x-longroute-"


@dataclass(slots=True)
class RequestHead:
    """What the headers of a request say. Everything for the upstream is in `forwarded`, lower-cased, in order.

    ours: headers meant for the proxy, without their prefix.
    length: of the body, None where it is not told in advance. signed: the body may not be changed.
    coded: for the way, in more than chunks, which our server does not undo.
    """

    forwarded: Headers
    ours: dict[str, str]
    length: int | None = None
    authorization: bytes = b""
    api_key: bytes = b""
    content_type: bytes = b""
    content_encoding: bytes = b""
    origin: bytes = b""
    host: bytes = b""
    websocket: bool = False
    coded: bool = False
    signed: bool = False


def read_request(headers: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """headers: names in lower case, as ASGI gives them."""
    forwarded: Headers = []
    head = RequestHead(forwarded, {})
    named_hops: bytes = b""
    for item in headers:
        name, value = item
        if name in _HOP_BY_HOP:
            if name == b"connection":
                named_hops += b"," + value.lower()
            elif name == b"transfer-encoding":
                head.coded = head.coded or value.strip(b" \t").lower() != b"chunked"
            elif name == b"upgrade":
                head.websocket = value.lower() == b"websocket"  # others (h2c) are offers, which may be ignored
            continue
        if name == b"host":
            head.host = value
            continue
        if name.startswith(_OURS):
            head.ours[name[len(_OURS) :].decode("latin-1")] = value.decode("latin-1").strip()
            continue
        forwarded.append(item)
        if name == b"content-length":
            head.length = int(value)
        elif name == b"content-type":
            head.content_type = value
        elif name == b"authorization":
            head.authorization = value
            head.signed = head.signed or value.startswith(b"AWS4-")
        elif name == b"x-api-key":
            head.api_key = value
        elif name == b"content-encoding":
            head.content_encoding = value
        elif name == b"origin":
            head.origin = value
        elif name in _SIGNED:
            head.signed = True
    if named_hops and named_hops not in (b",keep-alive", b",close"):
        named = {name.strip() for name in named_hops.split(b",")}
        forwarded[:] = [item for item in forwarded if item[0] not in named]
    return head


def with_length(headers: Headers, length: int) -> Headers:
    """The same with another body length."""
    return [*(item for item in headers if item[0] != b"content-length"), (b"content-length", b"%d" % length)]


def for_own_call(headers: Headers, length: int) -> Headers:
    """The same for a call that the client did not make, whose answer must be read here.

    Of encodings gzip only, where the client takes it; and no key by which a server knows a request that it has had.
    """
    kept = [item for item in with_length(headers, length) if item[0] != b"idempotency-key"]
    return [
        (name, b"gzip" if b"gzip" in value.lower() else b"identity") if name == b"accept-encoding" else (name, value)
        for name, value in kept
    ]


def unpacked(headers: Headers) -> Headers:
    """The same for an answer that goes into a stream without an encoding."""
    return [*(item for item in headers if item[0] != b"accept-encoding"), (b"accept-encoding", b"identity")]


def with_key(headers: Headers, key: str, *, anthropic: bool = False) -> Headers:
    """The same with this key in place of the caller's, in the caller's dialect; without any key where it is empty.

    anthropic: the dialect, where the caller has shown none.
    """
    names = {name for name, _ in headers}
    bare = [item for item in headers if item[0] not in (b"authorization", b"x-api-key")]
    if not key:
        return bare
    value = key.encode("ascii")
    if b"x-api-key" in names or (anthropic and b"authorization" not in names):
        return [*bare, (b"x-api-key", value)]
    return [*bare, (b"authorization", b"Bearer " + value)]


def read_response(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """What travels on to the client: everything but what belongs to the connection with the upstream."""
    named_hops = b""
    kept: Headers = []
    for item in headers:
        name = item[0].lower()
        if name in _HOP_BY_HOP:
            if name == b"connection":
                named_hops += b"," + item[1].lower()
            continue
        kept.append(item)
    if named_hops and named_hops not in (b",keep-alive", b",close"):
        named = {name.strip() for name in named_hops.split(b",")}
        kept = [item for item in kept if item[0].lower() not in named]
    return kept


def ours(**values: object) -> Headers:
    """Response headers of ours; what is None is left out. Always one line of printable ASCII."""
    return [
        (_OURS + name.replace("_", "-").encode(), _one_line(value))
        for name, value in values.items()
        if value is not None
    ]


def value_of(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first header of that (lower-case) name, or nothing."""
    return next((value for key, value in headers if key.lower() == name), b"")


def _one_line(value: object) -> bytes:
    plain = str(value).replace("λ", "lambda").replace("…", "...").replace("–", "-")
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in plain)[:1000].encode("ascii")
