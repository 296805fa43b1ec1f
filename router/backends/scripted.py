"""A backend that says what it was told to say, for tests and examples. No model, no network."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable

from ..core import Backend, Call, Reply
from ..errors import BackendRejected


class Scripted(Backend):
    """Answers from a list, in order, or from a function of the call.

    An exception in the list is raised. `calls` holds every call that was made. Streams come word by word.
    """

    def __init__(
        self, script: Iterable[str | Reply | Exception] | Callable[[Call], str | Reply], *, latency_s: float = 0.0
    ) -> None:
        """latency_s: before each reply."""
        self.calls: list[Call] = []
        self.latency_s = latency_s
        self._answer = script if callable(script) else self._from_list(script)

    async def generate(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.sleep(self.latency_s)
        said = self._answer(call)
        return Reply(said, model=call.model) if isinstance(said, str) else said

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        reply = await self.generate(call)
        for word in re.findall(r"\s*\S+|\s+$", reply.text):
            yield word
        yield reply

    async def aclose(self) -> None:
        pass

    def _from_list(self, script: Iterable[str | Reply | Exception]) -> Callable[[Call], str | Reply]:
        left = deque(script)  # its popleft is atomic, and calls may come from several threads

        def answer(call: Call) -> str | Reply:
            try:
                said = left.popleft()
            except IndexError:
                raise BackendRejected(
                    f"The script has no reply left for call {len(self.calls)} (purpose {call.purpose!r}). Add one."
                ) from None
            if isinstance(said, Exception):
                raise said
            return said

        return answer
