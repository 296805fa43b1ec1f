"""Backends that hold a backend: retries, a deadline, a circuit breaker, a limit on concurrency.

Each does one thing and may be left out; whoever assembles them decides the order. All are safe to use from several
threads and event loops, and close the stream they hold as soon as their own is closed.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from ..core import Backend, Call, Reply
from ..errors import BackendError, BackendTimeout, BackendUnavailable, RouterError
from .per_loop import PerLoop


class _Wrapper(Backend):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def aclose(self) -> None:
        await self._backend.aclose()


class Retry(_Wrapper):
    """Sends a call again after a passing failure, unless a piece of the answer was already given out.

    Waits what the server asked for, plus a random time below base_s * 2**n (at most cap_s) before retry n + 1.
    Source: AWS Architecture Blog (2015), "Exponential Backoff And Jitter", full jitter.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_retries: int = 3,
        base_s: float = 0.5,
        cap_s: float = 20.0,
        max_retry_after_s: float = 60.0,
        budget_s: float = 300.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """max_retry_after_s: longest wait granted to a server. budget_s: no retry starts later than this."""
        super().__init__(backend)
        self._max_retries = max_retries
        self._base_s = base_s
        self._cap_s = cap_s
        self._max_retry_after_s = max_retry_after_s
        self._budget_s = budget_s
        self._sleep = sleep
        self._clock = clock
        self._uniform = uniform

    async def generate(self, call: Call) -> Reply:
        notes: tuple[str, ...] = ()
        give_up_at = self._clock() + self._budget_s
        while True:
            try:
                reply = await self._backend.generate(call)
            except BackendError as error:
                notes += (await self._wait(error, len(notes), give_up_at),)
            else:
                return replace(reply, notes=notes + reply.notes)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        notes: tuple[str, ...] = ()
        give_up_at = self._clock() + self._budget_s
        given_out = False
        while True:
            try:
                async with aclosing(self._backend.stream(call)) as pieces:
                    async for piece in pieces:
                        given_out = True
                        yield replace(piece, notes=notes + piece.notes) if isinstance(piece, Reply) else piece
                return
            except BackendError as error:
                if given_out:
                    raise
                notes += (await self._wait(error, len(notes), give_up_at),)

    async def _wait(self, error: BackendError, retries: int, give_up_at: float) -> str:
        """Sleep before the next try; returns the note about it. Raises where there is to be none."""
        asked_s = error.retry_after_s or 0.0
        wait_s = asked_s + self._uniform(0.0, min(self._cap_s, self._base_s * 2**retries))
        if not error.retryable:
            raise error
        if retries >= self._max_retries:
            reason = f"Gave up after {retries + 1} tries"
        elif asked_s > self._max_retry_after_s:
            reason = f"Not tried again: {asked_s:g} s is more than the {self._max_retry_after_s:g} s allowed for a wait"
        elif self._clock() + wait_s > give_up_at:
            reason = f"Gave up after {retries + 1} tries: another would start after the {self._budget_s:g} s allowed"
        else:
            await self._sleep(wait_s)
            return f"tried again after {wait_s:.1f} s: {type(error).__name__}" + (
                f" ({error.status})" if error.status else ""
            )
        raise type(error)(f"{error} {reason}.", status=error.status, retry_after_s=error.retry_after_s) from error


class Timeout(_Wrapper):
    """A deadline for the whole call, from sending it to the last piece."""

    def __init__(self, backend: Backend, timeout_s: float) -> None:
        super().__init__(backend)
        self._timeout_s = timeout_s

    async def generate(self, call: Call) -> Reply:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._backend.generate(call)
        except TimeoutError as error:
            raise self._late(call, 0) from error

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        arrived_chars = 0
        async with aclosing(self._backend.stream(call)) as pieces:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(pieces, None)
                except TimeoutError as error:
                    raise self._late(call, arrived_chars) from error
                if piece is None:
                    return
                arrived_chars += len(piece) if isinstance(piece, str) else 0
                yield piece

    def _late(self, call: Call, arrived_chars: int) -> BackendTimeout:
        after = f" {arrived_chars} characters had arrived." if arrived_chars else ""
        return BackendTimeout(
            f"{call.model!r} took longer than the {self._timeout_s:g} s allowed for a whole call.{after} "
            "Raise timeout_s, lower max_output_tokens, or send less text."
        )


@dataclass(slots=True)
class _Circuit:
    """failures: in a row. While open: retry_at says when one trial may start, on_trial whether it is under way."""

    failures: int = 0
    retry_at: float = 0.0
    on_trial: bool = False


class CircuitBreaker(_Wrapper):
    """Stops calling a model whose server keeps failing, and tries it with one call after a pause.

    Only silence and 5xx count as failures. Any other answer, a refusal too, shows that the server is there.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_failures: int = 5,
        pause_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """max_failures: in a row, after which the circuit of that model opens for pause_s."""
        super().__init__(backend)
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}  # only models that are failing
        self._lock = threading.Lock()

    async def generate(self, call: Call) -> Reply:
        with self._watch(call.model):
            return await self._backend.generate(call)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        with self._watch(call.model):
            async with aclosing(self._backend.stream(call)) as pieces:
                async for piece in pieces:
                    yield piece

    @contextmanager
    def _watch(self, model: str) -> Iterator[None]:
        trial = self._admit(model)
        try:
            yield
        except (BackendUnavailable, BackendTimeout) as error:
            if error.status is None or error.status >= 500:
                self._failed(model)
            else:
                self._answered(model)
            raise
        except RouterError:
            self._answered(model)
            raise
        except BaseException:  # given up by the caller, which says nothing about the server
            if trial:
                self._abandoned(model)
            raise
        self._answered(model)

    def _admit(self, model: str) -> bool:
        """Whether this call is the trial of an open circuit. Raises BackendUnavailable where it may not be sent."""
        with self._lock:
            circuit = self._circuits.get(model)
            if circuit is None or circuit.failures < self._max_failures:
                return False
            wait_s = self._pause_s if circuit.on_trial else circuit.retry_at - self._clock()
            if wait_s > 0:
                raise BackendUnavailable(
                    f"{model!r} failed {circuit.failures} times in a row, so it is left alone for now. "
                    f"It is tried again in {wait_s:.1f} s; use another model until then, or look at its server.",
                    retry_after_s=wait_s,
                )
            circuit.on_trial = True
            return True

    def _failed(self, model: str) -> None:
        with self._lock:
            circuit = self._circuits.setdefault(model, _Circuit())
            circuit.failures += 1
            circuit.retry_at = self._clock() + self._pause_s
            circuit.on_trial = False

    def _answered(self, model: str) -> None:
        with self._lock:
            self._circuits.pop(model, None)

    def _abandoned(self, model: str) -> None:
        with self._lock:
            if circuit := self._circuits.get(model):
                circuit.on_trial = False


class ConcurrencyLimit(_Wrapper):
    """At most `limit` calls under way per event loop; the others wait, first come first served."""

    def __init__(self, backend: Backend, limit: int) -> None:
        super().__init__(backend)
        self._places = PerLoop(lambda: asyncio.Semaphore(limit))

    async def generate(self, call: Call) -> Reply:
        async with self._places.get():
            return await self._backend.generate(call)

    async def stream(self, call: Call) -> AsyncGenerator[str | Reply, None]:
        async with self._places.get(), aclosing(self._backend.stream(call)) as pieces:
            async for piece in pieces:
                yield piece
