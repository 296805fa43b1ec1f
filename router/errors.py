"""Every error longroute raises on purpose, as one tree.

    RouterError
    ├── ConfigError          a setting, option or argument is missing or wrong
    ├── DocumentError        a document cannot be read
    ├── ContextTooLong       no allowed strategy fits the model's context window
    ├── NoFeasibleStrategy   hard limits rule out every allowed strategy
    ├── MissingExtra         an optional package is needed; the message names the extra to install
    ├── CalibrationError     a calibration set cannot be read, or is too small to conclude from
    └── BackendError         the model server failed
        ├── BackendTimeout       no answer in time
        ├── BackendUnavailable   could not connect, connection lost, 5xx, or the circuit is open
        ├── RateLimited          429; `retry_after_s` says when to come back
        ├── BackendRejected      the server understood and refused (other 4xx): retrying cannot help
        └── BadReply             the server answered with something that is not an answer

Messages say what happened, with which value, and what to do next. They never hold document text or credentials.
"""


class RouterError(Exception):
    """Base of all errors raised by longroute."""


class ConfigError(RouterError):
    """A setting, option or argument is missing or wrong; the message names it."""


class DocumentError(RouterError):
    """A document cannot be read; the message names the file and the reason."""


class ContextTooLong(RouterError):
    """The text does not fit the model's context window by any allowed strategy."""


class NoFeasibleStrategy(RouterError):
    """The request's hard limits rule out every allowed strategy."""


class MissingExtra(RouterError):
    """A package of an optional extra is not installed; the message says how to install it."""


class CalibrationError(RouterError):
    """A calibration set cannot be read, or is too small to conclude from."""


class BackendError(RouterError):
    """The model server failed.

    status: HTTP status code, or None where no response arrived.
    retryable: whether the same call may be sent again without harm and with some hope.
    retry_after_s: the server's own wish, in seconds, or None.
    """

    retryable = False

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class BackendTimeout(BackendError):
    """No answer within the time allowed."""

    retryable = True


class BackendUnavailable(BackendError):
    """The server could not be reached, dropped the connection, answered 5xx, or its circuit is open."""

    retryable = True


class RateLimited(BackendError):
    """The server asked to slow down (429)."""

    retryable = True


class BackendRejected(BackendError):
    """The server understood the call and refused it; sending it again cannot help."""


class BadReply(BackendError):
    """The server answered with something that is not a completion."""


def worth_another_try(outcome: object) -> bool:
    """Whether a plan may ask the same again: after what passes, and after what was no answer, as models vary."""
    return isinstance(outcome, BadReply) or (isinstance(outcome, BackendError) and outcome.retryable)
