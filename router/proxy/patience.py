"""How much the calls of one request may fail and wait, all together, whoever tries again. Pure: times are passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Patience:
    """Of one request, for its strategy's calls and those that are tried again.

    retries: failed calls that are borne in any case; beyond them, as many as have succeeded.
    wait_s: left for waiting where the upstream names a time to come back at; negative where it asks for more.
    """

    retries: int
    wait_s: float
    succeeded: int = 0
    failed: int = 0
    _until: float = 0.0

    def failure(self, now: float, retry_after_s: float | None) -> None:
        """A call has failed. Waits that overlap, of calls side by side, count once."""
        self.failed += 1
        until = now + (retry_after_s or 0.0)
        self.wait_s -= max(0.0, until - max(now, self._until))
        self._until = max(until, self._until)

    def delay_s(self, now: float) -> float:
        """Seconds until the next call may be sent, whichever it is."""
        return max(0.0, self._until - now)

    @property
    def ended(self) -> bool:
        return self.wait_s < 0 or self.failed > max(self.retries, self.succeeded)
