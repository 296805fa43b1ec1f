"""Who may come in, and how often: client keys, the admin's key, a rate for each client. Knows header values only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ConfigError
from ..settings import ProxySettings
from .headers import RequestHead

_CLIENTS_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """name: of the client's key in the settings, empty where none is asked for. admin: may see everyone's decisions.

    key_in: the header that held our key and must not travel on, empty where none did.
    """

    name: str = ""
    admin: bool = False
    key_in: bytes = b""


class Doorkeeper:
    """Compares keys in constant time: every key is looked at, through a digest, so neither length nor place shows."""

    def __init__(self, settings: ProxySettings) -> None:
        if "admin" in settings.client_keys:
            raise ConfigError("A client may not be called 'admin': records and limits would mistake it for the admin.")
        self._keys = [(name, _digest(key.get_secret_value().encode())) for name, key in settings.client_keys.items()]
        self._admin = _digest(settings.admin_key.get_secret_value().encode()) if settings.admin_key else None
        self.open = not self._keys

    def caller(self, head: RequestHead) -> Caller | None:
        """None where a key is needed and none of the given ones is right."""
        if self.open and self._admin is None:
            return Caller(admin=True)
        found = Caller() if self.open else None
        for header, shown in _shown(head):
            digest = _digest(shown)
            for name, key in self._keys:
                if hmac.compare_digest(digest, key):
                    found = Caller(name, key_in=header)
            if self._admin is not None and hmac.compare_digest(digest, self._admin):
                found = Caller("admin", admin=True, key_in=header)
        return found


def _shown(head: RequestHead) -> list[tuple[bytes, bytes]]:
    shown = [(b"x-longroute-key", head.ours["key"].encode("latin-1"))] if "key" in head.ours else []
    kind, _, value = head.authorization.partition(b" ")
    if kind.lower() == b"bearer":
        shown.append((b"authorization", value.strip()))
    elif kind.lower() == b"basic":  # what a browser sends after asking for a password
        with suppress(binascii.Error):
            shown.append((b"authorization", base64.b64decode(value).partition(b":")[2]))
    if head.api_key:
        shown.append((b"x-api-key", head.api_key))
    return shown


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32).digest()


class RateLimit:
    """A bucket of tokens for each client: `per_minute` requests at once at most, refilled evenly.

    clock: seconds from any fixed moment.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, at

    def wait_s(self, client: str) -> float:
        """0 where the request may go on (and counts), else the seconds until the next one may."""
        if self._per_minute is None:
            return 0.0
        now = self._clock()
        tokens, at = self._buckets.pop(client, (float(self._per_minute), now))
        tokens = min(self._per_minute, tokens + (now - at) * self._per_minute / 60)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _CLIENTS_REMEMBERED:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) * 60 / self._per_minute
