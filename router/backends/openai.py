"""The OpenAI chat API, as spoken by OpenAI, vLLM, SGLang, Ollama, llama.cpp, TGI and many others.

Turns a Call into a request body, and a body or a stream into a Reply. Leaves the wire to `http.py`, prices to whoever
knows them, and retries, limits and deadlines to `wrappers.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import httpx
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from ..core import Backend, Call, Reply, Usage
from ..errors import BackendUnavailable, BadReply
from .complaint import Complaint, complaint_from
from .http import MAX_REPLY_BYTES, Endpoint, Timeouts
from .sse import EventParser

# These count reasoning into the limit, under a new name, and refuse a temperature.
_REASONING_MODEL = re.compile(r"(^|/)(o\d|gpt-[5-9])([-.]|$)")
_REFUSED = re.compile(
    r"unsupported|not support|unrecognized|unknown|unexpected|not permitted|not allowed", re.IGNORECASE
)
_DRAIN_S = 0.5


class OpenAI(Backend):
    """A server that speaks the OpenAI chat API."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        key_name: str = "api_key",
    ) -> None:
        """base_url: up to and including `/v1`. headers: sent with every request.

        key_name: where the key comes from, for error messages (`OPENAI_API_KEY`).
        """
        api_key = (api_key or "").strip()  # keys read from files end in a line break
        extra = {name.lower(): value for name, value in (headers or {}).items()}
        authorization = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._endpoint = Endpoint(
            base_url,
            authorization | extra,
            key=key_name if api_key else f"{key_name} (none was sent)",
            secrets=(api_key, *extra.values()),
            timeouts=timeouts or Timeouts(),
        )
        self._refused: dict[str, frozenset[str]] = {}  # per model: fields its server did not accept

    async def generate(self, call: Call) -> Reply:
        response, notes = await self._open(call, stream=False)
        async with aclosing(response):
            return await self._whole(response, call, notes)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        response, notes = await self._open(call, stream=True)
        async with aclosing(response):
            media_type = response.headers.get("content-type", "").partition(";")[0]
            if media_type in ("application/json", "text/html"):  # a server that does not stream, or a gateway
                reply = await self._whole(response, call, notes)
                if reply.text:
                    yield reply.text
                yield reply
                return
            assembly = _Assembly(self._endpoint, call, notes)
            async with aclosing(self._pieces(response, assembly)) as pieces:
                async for piece in pieces:
                    yield piece
            yield assembly.reply()

    async def aclose(self) -> None:
        await self._endpoint.aclose()

    async def _open(self, call: Call, *, stream: bool) -> tuple[httpx.Response, tuple[str, ...]]:
        """A response that says yes, and what had to be left out to get it."""
        while True:
            refused = self._refused.get(call.model, frozenset())
            body = request_body(call, stream=stream, refused=refused)
            response = await self._endpoint.post("chat/completions", body)
            if response.is_success:
                wanted = {"temperature": call.temperature is not None, "longroute": call.draft is not None}
                left_out = [name for name, is_wanted in wanted.items() if is_wanted and name not in body]
                return response, tuple(f"{name} left out: {call.model!r} does not accept it" for name in left_out)
            complaint = await self._endpoint.read_complaint(response)
            error = self._endpoint.refusal(response.status_code, complaint, call, response.headers)
            field = refused_field(complaint, body, refused) if response.status_code in (400, 422) else None
            if field is None:
                raise error
            self._refused[call.model] = refused | {field}

    async def _whole(self, response: httpx.Response, call: Call, notes: tuple[str, ...]) -> Reply:
        assembly = _Assembly(self._endpoint, call, notes)
        assembly.add(await self._endpoint.read_reply(response))
        return assembly.reply()

    async def _pieces(self, response: httpx.Response, assembly: _Assembly) -> AsyncGenerator[str, None]:
        """Reads to the very end, beyond `[DONE]`, because only then the connection can be used again."""
        allowed = self._endpoint.timeouts
        limit_s = allowed.first_text_s
        done = False
        chunks = response.aiter_bytes()
        parser = EventParser()
        chunk: bytes | None = b""
        try:
            while chunk is not None:
                async with asyncio.timeout(limit_s):
                    chunk = await anext(chunks, None)
                for event in parser.finish() if chunk is None else parser.feed(chunk):
                    if done or event.data == "[DONE]":
                        done, limit_s = True, _DRAIN_S
                    elif piece := assembly.add(event.data):
                        limit_s = allowed.stall_s
                        yield piece
        except (httpx.HTTPError, TimeoutError) as error:
            if not (done or assembly.finish_reason):
                raise self._endpoint.failure(error, arrived_chars=assembly.chars) from error
        if not (done or assembly.finish_reason):
            raise BackendUnavailable(
                f"{self._endpoint.name} ended the stream after {assembly.chars} characters of the answer without "
                "saying that it was complete. Try again; if it stays so, look at proxies in between."
            )


def request_body(call: Call, *, stream: bool, refused: frozenset[str] = frozenset()) -> dict[str, object]:
    """The JSON to send. refused: fields the server does not accept, to be left out or replaced."""
    reasoning = _REASONING_MODEL.search(call.model) is not None
    by_age = ("max_completion_tokens", "max_tokens") if reasoning else ("max_tokens", "max_completion_tokens")
    limit = next((name for name in by_age if name not in refused), by_age[0])
    body: dict[str, object] = {
        "model": call.model,
        "messages": [{"role": message.role, "content": message.content} for message in call.messages],
        limit: call.max_output_tokens,
    }
    if call.temperature is not None and not reasoning and "temperature" not in refused:
        body["temperature"] = call.temperature
    if call.stop:
        body["stop"] = list(call.stop)
    if call.draft is not None and "longroute" not in refused:  # the extension of longroute's own runner
        draft = [{"role": message.role, "content": message.content} for message in call.draft.messages]
        body["longroute"] = {"speculative": {"draft": draft}}
    if stream:
        body["stream"] = True
        if "stream_options" not in refused:
            body["stream_options"] = {"include_usage": True}
    return body


def refused_field(complaint: Complaint, body: Mapping[str, object], refused: frozenset[str]) -> str | None:
    """The field of body that the server does not know and that the call can do without or has another name for."""
    if not _REFUSED.search(f"{complaint.message} {' '.join(complaint.codes)}"):
        return None
    dispensable = ["stream_options", "temperature", "longroute"]
    if not refused & {"max_tokens", "max_completion_tokens"}:
        dispensable += ["max_tokens", "max_completion_tokens"]
    for field in dispensable:
        if field in body and (complaint.param == field or re.search(rf"\b{field}\b", complaint.message)):
            return field
    return None


# ---- what comes back. Any field may be missing or null: one server or another does it. -------------------------------


class _Part(BaseModel):
    text: str | None = None
    refusal: str | None = None


class _Said(BaseModel):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: list[object] | None = None

    @property
    def text(self) -> str:
        """What is to be read, which may be why the model does not answer."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content) or self.refusal or ""
        return self.content or self.refusal or ""

    @property
    def refuses(self) -> bool:
        parts = self.content if isinstance(self.content, list) else []
        return bool(self.refusal) or any(part.refusal for part in parts)


class _Choice(BaseModel):
    said: _Said | None = Field(None, validation_alias=AliasChoices("message", "delta"))
    finish_reason: str | None = None


class _PromptDetails(BaseModel):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None  # OpenAI, OpenRouter, LiteLLM


class _CompletionDetails(BaseModel):
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cache_creation_input_tokens: int | None = None  # Anthropic's name for it, which some gateways keep

    def as_ours(self) -> Usage:
        """Cached and written tokens are parts of the prompt here, whatever a server says of them."""
        prompt, details = self.prompt_tokens or 0, self.prompt_tokens_details or _PromptDetails()
        cached = min(details.cached_tokens or 0, prompt)
        written = details.cache_write_tokens or self.cache_creation_input_tokens or 0
        return Usage(prompt, cached, self.completion_tokens or 0, written_tokens=min(written, prompt - cached))


class _Completion(BaseModel):
    """A whole completion or one chunk of a stream: they differ only in what they call the message."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: object = None


class _Assembly:
    """A reply in the making, from one completion or from many chunks."""

    def __init__(self, endpoint: Endpoint, call: Call, notes: tuple[str, ...]) -> None:
        self.chars = 0
        self._chosen = False
        self.finish_reason = ""
        self._endpoint = endpoint
        self._call = call
        self._notes = notes
        self._pieces: list[str] = []
        self._refusal = False
        self._tool = False
        self._model = ""
        self._usage: _Usage | None = None

    def add(self, data: bytes | str) -> str:
        """Take in one JSON text; returns the text it adds to the answer. Raises BackendError or ContextTooLong."""
        try:
            completion = _Completion.model_validate_json(data)
        except ValidationError as error:
            # From None: pydantic's own message repeats the input.
            raise BadReply(f"{self._endpoint.name} sent {_described(data, error)}.") from None
        if completion.error:
            complaint = complaint_from(completion.error)
            raise self._endpoint.refusal(complaint.status or 500, complaint, self._call, {})
        self._model = completion.model or self._model
        self._usage = completion.usage or self._usage
        if not completion.choices:
            return ""
        choice = completion.choices[0]
        said = choice.said or _Said()
        self._chosen = True
        self.finish_reason = choice.finish_reason or self.finish_reason
        self._refusal |= said.refuses
        self._tool |= bool(said.tool_calls)
        piece = said.text
        self._pieces.append(piece)
        self.chars += len(piece)
        if self.chars > MAX_REPLY_BYTES:
            raise BadReply(f"{self._endpoint.name} sent more than {MAX_REPLY_BYTES} characters; is it looping?")
        return piece

    def reply(self) -> Reply:
        """The whole. Raises BadReply where the model stopped for a reason other than having nothing to say."""
        if not self._chosen:
            raise BadReply(f"{self._endpoint.name} answered without any choice. Is base_url an OpenAI-compatible API?")
        reason = self.finish_reason or "stop"
        if not self.chars and (self._tool or reason != "stop"):
            cause = "a call of a tool it was not given" if self._tool else f"no text (finish_reason {reason!r})"
            advice = " Raise max_output_tokens: reasoning counts too." if reason == "length" else ""
            raise BadReply(f"{self._call.model!r} at {self._endpoint.name} answered with {cause}.{advice}")
        notes = self._notes
        if self._refusal:
            notes += ("the model refused to answer",)
        if self._usage is None:
            notes += ("the server reported no usage",)
        usage = self._usage or _Usage()
        details = usage.completion_tokens_details
        if self._call.draft is not None and details is not None:
            accepted, rejected = details.accepted_prediction_tokens or 0, details.rejected_prediction_tokens or 0
            notes += (f"{accepted} of {accepted + rejected} drafted tokens were kept",)
        return Reply(
            "".join(self._pieces),
            usage.as_ours(),
            finish_reason=reason,
            model=self._model or self._call.model,
            answered=not self._refusal,
            notes=notes,
        )


def _described(data: bytes | str, error: ValidationError) -> str:
    """What arrived instead of a completion, without quoting it."""
    start = data[:256].lstrip()
    text = start.decode(errors="replace") if isinstance(start, bytes) else start
    if text[:1] == "<":
        return "a web page instead of JSON; check that base_url points at the API (most end in /v1)"
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f"something that is not a completion ({fault['type']}{f' at {where}' if where else ''}, {len(data)} long)"
