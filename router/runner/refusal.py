"""What a client is told when the runner says no: a status and a body in OpenAI's shape. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BackendError, BackendUnavailable, ConfigError, ContextTooLong, RateLimited

_COME_BACK_S = 1  # requests end all the time, so room may be there soon; clients back off by themselves


@dataclass(eq=False)
class Refusal(Exception):
    """Raised where a request is read.

    status: of HTTP. code: for programs. param: the field of the request that is to blame, where one is.
    """

    status: int
    code: str
    message: str
    param: str | None = None

    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        # `status` is no part of OpenAI's errors; inside a stream it is the only place to say it.
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code, "status": self.status}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(_COME_BACK_S)} if self.status == 503 else {}


def refusal_of(error: Exception) -> Refusal:
    """Never quotes a prompt; neither do the errors that it is made of."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextTooLong):
        return Refusal(400, "context_length_exceeded", str(error), "messages")
    if isinstance(error, ConfigError):
        return Refusal(400, "invalid_value", str(error))
    if isinstance(error, RateLimited):
        return Refusal(503, "queue_full", str(error))
    if isinstance(error, BackendUnavailable):
        return Refusal(503, "unavailable", str(error))
    if isinstance(error, BackendError):
        return Refusal(500, "model_failed", str(error))
    return Refusal(500, "internal_error", f"The runner failed: {type(error).__name__}. Its log has the details.")
