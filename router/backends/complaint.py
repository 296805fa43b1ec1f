"""What a model server says when it refuses, and which of our errors that is. Pure: no network, no clock.

Servers agree on status codes far more than on bodies, so any body is understood: the OpenAI and Anthropic envelopes,
FastAPI's `detail`, plain text, an HTML page of a gateway.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from ..core import Call
from ..errors import (
    BackendRejected,
    BackendUnavailable,
    ContextTooLong,
    RateLimited,
    RouterError,
)

QUOTED_CHARS = 200
_ECHO_CHARS = 16

# vLLM, SGLang, llama.cpp, TGI, OpenAI, Gemini, Mistral, Ollama, Anthropic: no two say it alike.
_TOO_LONG = re.compile(
    r"maximum context length|max(imum)? model length|context[ _](length|size|window)[ _]*(has been )?exceeded"
    r"|exceeds? (the )?(\w+ ){0,3}context|longer than the model's context|prompt is too long|input is too long"
    r"|input token count \W?\d+\W? exceeds|`inputs` tokens \+ `max_new_tokens`",
    re.IGNORECASE,
)
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error"}

_ADVICE = {
    402: "The account cannot pay for it; top it up.",
    403: "Check that {key} may use {model!r} here.",
    404: "Check that it serves the model {model!r} and that base_url is complete (most servers want it to end in /v1).",
    413: "Send less text (strategy 'rag' or 'compressed'), or raise the server's limit on request size.",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """A refusal in the server's own words.

    codes: its `code` and `type`, which servers use interchangeably; param: the request field it names.
    status: an HTTP status named inside the body, which is all there is when a stream has already begun with 200.
    """

    message: str = ""
    codes: frozenset[str] = frozenset()
    param: str = ""
    status: int | None = None

    def error(
        self,
        status: int,
        call: Call,
        *,
        server: str,
        key: str,
        secrets: Sequence[str] = (),
        retry_after_s: float | None = None,
    ) -> RouterError:
        """The error to raise.

        server, key: how a person knows the server and its credentials (`http://…/v1`, `OPENAI_API_KEY`).
        secrets: strings that must not be quoted even where the server repeats them.
        """
        said = self.quoted(call, secrets)
        if status in (400, 413, 422, 500) and (self.codes & _TOO_LONG_CODES or _TOO_LONG.search(self.message)):
            return ContextTooLong(
                f"The prompt does not fit the window of {call.model!r} at {server}. {said} "
                "Use strategy 'rag' or 'compressed', lower max_output_tokens, or choose a model with a longer window."
            )
        if status == 401:  # what the server says here tends to repeat part of the key
            return BackendRejected(f"{server} refused the credentials (401). Check {key}.", status=status)
        if status == 429 and "insufficient_quota" in self.codes:
            advice = f"The quota behind {key} is used up, so waiting does not help: check its plan and billing."
            return BackendRejected(f"{server} refused the call (429). {said} {advice}", status=status)
        if status == 429 and "request too large" in self.message.lower():
            advice = "One call asks for more tokens than the limit per minute: use strategy 'rag' or 'compressed'."
            return BackendRejected(f"{server} refused the call (429). {said} {advice}", status=status)
        if status == 429:
            wait = "" if retry_after_s is None else f" and asks to wait {retry_after_s:g} s"
            message = f"{server} limits the rate of calls (429){wait}. {said} Send fewer at once, or try again later."
            return RateLimited(message, status=status, retry_after_s=retry_after_s)
        if status in (408, 409, 425) or status >= 500:
            message = f"{server} failed ({status}). {said} Try again; if it stays so, look at the server."
            return BackendUnavailable(message, status=status, retry_after_s=retry_after_s)
        if 300 <= status < 400:
            advice = "It redirects elsewhere; set base_url to the final address."
        else:
            advice = _ADVICE.get(status, "").format(key=key, model=call.model)
        return BackendRejected(f"{server} refused the call ({status}). {said} {advice}".rstrip(), status=status)

    def quoted(self, call: Call, secrets: Sequence[str] = ()) -> str:
        """A sentence with its first QUOTED_CHARS characters, or without where they repeat the prompt."""
        text = _plain(self.message)
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        text = text[:QUOTED_CHARS]
        if not text:
            return "It gave no reason."
        if _repeats_prompt(text, call):
            return "Its message repeats the prompt, so it is not shown."
        return f'It said: "{"".join(c if c.isprintable() else "?" for c in text)}"'


def _repeats_prompt(text: str, call: Call) -> bool:
    """Whether text shares a stretch of 16 characters, or a whole shorter message, with the prompt."""
    windows = {text[i : i + _ECHO_CHARS] for i in range(len(text) - _ECHO_CHARS + 1)}
    for message in call.messages:
        content = _plain(message.content)
        if any(window in content for window in windows) or (4 <= len(content) < _ECHO_CHARS and content in text):
            return True
    return False


def _plain(text: str) -> str:
    """One line of it; servers repeat prompts with their line breaks kept, dropped or escaped."""
    return " ".join(re.sub(r"\\[nrt]", " ", text).split())


def parse_complaint(body: bytes) -> Complaint:
    """From the body of an error response, which may be cut off."""
    text = body.decode(errors="replace")
    try:
        return complaint_from(json.loads(text))
    except (ValueError, RecursionError):
        return Complaint(re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text).strip())


def complaint_from(data: object) -> Complaint:
    """From decoded JSON: the whole body, or the value of its `error`."""
    if isinstance(data, list) and data:  # Gemini wraps its error in a list
        return complaint_from(data[0])
    if not isinstance(data, dict):
        return Complaint(data if isinstance(data, str) else "")
    inner = data.get("error")
    if isinstance(inner, dict):
        return complaint_from(inner)
    detail = data.get("detail")
    if isinstance(detail, list):  # FastAPI: each has `loc` and `msg`, and an `input` that repeats the prompt
        faults = [fault for fault in detail if isinstance(fault, dict)]
        places = [fault.get("loc") for fault in faults]
        fields = [".".join(map(str, place)) if isinstance(place, list) else "" for place in places]
        said = "; ".join(f"{field}: {fault.get('msg', '')}" for field, fault in zip(fields, faults, strict=True))
    else:
        said = next((value for value in (data.get("message"), inner, detail) if isinstance(value, str)), "")
    code, kind, param = data.get("code"), data.get("type") or data.get("error_type"), data.get("param")
    status = next((c for c in (code, data.get("status")) if isinstance(c, int) and 400 <= c < 600), None)
    return Complaint(
        said,
        frozenset(value for value in (code, kind) if isinstance(value, str)),
        param if isinstance(param, str) else "",
        status,
    )


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """The server's wish from its lower-case headers: `retry-after-ms`, or `retry-after` as seconds or an HTTP date.

    now: seconds since the epoch. Returns seconds >= 0, or None where there is no wish or it cannot be read.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(wait):
            return max(0.0, wait)
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except ValueError:
        return None
