"""A proxy in process: the real application over an upstream that answers as it is told, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from longroute.router.proxy.app import App
from longroute.router.proxy.wire import Headers, Response

QUESTION = "Who is the warden of station 137?"
FACT = "The warden of station 137 is Mara Okafor, who took office in 1994."
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Mara Okafor."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 120, "completion_tokens": 4, "total_tokens": 124},
}


def long_text(stations: int = 400) -> str:
    """About 25,000 tokens of an invented register, one fact a paragraph."""
    names = ("Ada Lindqvist", "Tomas Varga", "Ines Moreau", "Piet Claassen", "Yuki Tanabe")
    extras = (
        "Its store is filled twice a year.",
        "The keeper, an old sailor, also rings the bell in fog, in snow and at weddings.",
        "Nobody remembers why its tower was painted green; some say by mistake, others in memory of a ship.",
        "There is a well, but no road.",
    )
    return "\n\n".join(
        FACT
        if number == 137
        else f"Station {number} lies on the northern line. Its warden is {names[number % 5]}, who took office in "
        f"{1950 + number % 60}. The station keeps {number % 9 + 2} boats and a register of passing ships. "
        + " ".join(extras[: number % 5])
        for number in range(stations)
    )


def chat(text: str = "", question: str = QUESTION, **fields: Any) -> bytes:
    content = f"{text or long_text()}\n\n{question}"
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": content}], **fields}).encode()


@dataclass
class Sent:
    """One request as it reached the upstream."""

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        content: str = self.json["messages"][-1]["content"]
        return content


class Told(Response):
    """A response made of pieces; an exception among them is raised in its place."""

    def __init__(
        self, status: int = 200, body: bytes | Sequence[bytes | Exception] = b"{}", headers: Headers | None = None
    ) -> None:
        self.status = status
        whole = isinstance(body, bytes)
        self.headers = headers or [(b"content-type", b"application/json")]
        if isinstance(body, bytes):
            self.headers = [*self.headers, (b"content-length", b"%d" % len(body))]
        self.reason = b""
        self._whole = body if whole else None
        self._pieces = iter([body] if isinstance(body, bytes) else body)
        self.closed = False

    @property
    def body_done(self) -> bool:
        return self._whole is not None

    @property
    def body(self) -> bytes:
        assert isinstance(self._whole, bytes)
        return self._whole

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


def completion(**changes: Any) -> Told:
    return Told(body=json.dumps(COMPLETION | changes).encode())


Answer = Callable[[Sent], Told | Exception]


@dataclass
class FakeUpstream:
    """Answers in place of a connection pool. `answer` may be changed at any time."""

    host: bytes = b"upstream.test"
    sent: list[Sent] = field(default_factory=list)
    answer: Answer = lambda sent: completion()

    async def send(
        self, method: bytes, target: bytes, headers: Headers, body: Any, *, timeouts: object = None
    ) -> Response:
        whole = b"".join([piece async for piece in body]) if isinstance(body, AsyncIterator) else body or b""
        self.sent.append(Sent(method.decode(), target.decode(), headers, whole))
        answer = self.answer(self.sent[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        pass


@dataclass
class Proxy:
    """The application, its upstreams, and a way to ask it."""

    app: App
    upstreams: list[FakeUpstream]

    @property
    def upstream(self) -> FakeUpstream:
        return self.upstreams[0]

    @property
    def sent(self) -> Sent:
        """The last request that reached the (first) upstream."""
        return self.upstream.sent[-1]

    def ask(
        self,
        body: bytes | None = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        return asyncio.run(self._ask(body, path, method, headers))

    async def _ask(
        self, body: bytes | None, path: str, method: str, headers: Mapping[str, str] | None
    ) -> httpx.Response:
        async with self.client() as client:
            typed = {"content-type": "application/json"} if body is not None else {}
            return await client.request(method, path, content=body, headers=typed | dict(headers or {}))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client

    def decision(self, response: httpx.Response, **options: Any) -> dict[str, Any]:
        id = response.headers["x-longroute-decision-id"]
        found: dict[str, Any] = self.ask(path=f"/v1/longroute/decisions/{id}", method="GET", **options).json()
        return found

    def metric(self, line: str) -> float:
        """A sample of the metrics, by its name and labels as Prometheus writes them; 0 where there is none."""
        samples = self.ask(path="/metrics", method="GET").text.splitlines()
        return next((float(s.rpartition(" ")[2]) for s in samples if s.rpartition(" ")[0] == line), 0.0)


MakeProxy = Callable[..., Proxy]
