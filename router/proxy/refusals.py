"""What the proxy itself says no to, in the words of the API that was asked."""

from __future__ import annotations

import json

from .telemetry import Reason


class ClientGone(Exception):
    """The client has left, or its answer broke off: there is nobody to say anything to."""


class Refused(Exception):
    """Answered by the proxy itself. reason: for the metrics, None where the upstream is at fault."""

    def __init__(
        self, status: int, reason: Reason | None, message: str, *, retry_after_s: float | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.code = code or f"longroute_{reason or 'upstream'}"


class Unreachable(Refused):
    """No connection to the upstream came about, so it has not seen a byte of the request."""


_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error", 502: "server_error", 504: "server_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    503: "overloaded_error",
    504: "api_error",
}


def error_body(path: str, refusal: Refused) -> bytes:
    """JSON that the SDKs of the API at this path turn into their own errors."""
    message, error = f"longroute: {refusal}", {}
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(refusal.status, "invalid_request_error")
        error = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        kind = _OPENAI_TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
        error = {"error": {"message": message, "type": kind, "param": None, "code": refusal.code}}
    return json.dumps(error).encode()


def error_event(path: str, status: int, body: bytes) -> bytes:
    """An error within a stream that has begun, where status and headers can say it no more: the SDKs raise it, too.

    status, body: what the answer would have been without the stream.
    """
    try:
        told = json.loads(body)["error"]
        assert isinstance(told, dict)
    except (ValueError, LookupError, TypeError, AssertionError):  # a gateway's page, say
        message = f"longroute: the upstream failed (status {status})."
        told = {"message": message, "type": "server_error", "code": "longroute_upstream"}
    if path.startswith("/v1/messages"):
        return _event(b"error", {"type": "error", "error": told})
    if path.endswith("/responses"):
        spread = {name: told.get(name) for name in ("code", "message", "param")}
        return _event(b"error", {"type": "error", **spread, "sequence_number": 0, "error": told})
    return _event(b"", {"error": told})


def _event(name: bytes, data: object) -> bytes:
    return (b"event: %b\n" % name if name else b"") + b"data: %b\n\n" % json.dumps(data).encode()
