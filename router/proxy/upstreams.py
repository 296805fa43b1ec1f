"""The model APIs behind the proxy: which one serves a model, at which address, with whose key.

Leaves connections to `transport.py` and what is sent to `gateway.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError
from ..router import BaseRouter
from ..settings import UpstreamSettings
from .transport import open_pool
from .wire import Sender, Timeouts


@dataclass(frozen=True, slots=True)
class Upstream:
    """One model API.

    base: path in front of every path, without a final slash.
    key: used in place of the caller's; empty where the caller's goes through.
    router: decides for it; each upstream has its own, because prompt caches differ.
    """

    name: str
    base: bytes
    models: tuple[str, ...]
    key: str
    pool: Sender
    router: BaseRouter

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def target(self, asked: bytes) -> bytes:
        """Where a path of ours lies there: `/v1/...` is the API itself, whatever its own address ends in.

        Raises ConfigError for a path that climbs out of the address: what else its host serves is not ours to show.
        """
        if not self.base:
            return asked
        above = self.base.removesuffix(b"/v1")
        is_api = asked[:3] == b"/v1" and asked[3:4] in (b"/", b"?", b"")
        target = self.base + asked[3:] if is_api else above + asked
        if above and _climbs(target[len(above) :].partition(b"?")[0]):
            raise ConfigError(f"The path leads out of the address of the upstream {self.name!r}. Take '..' out of it.")
        return target


def _climbs(path: bytes) -> bool:
    """Whether a server that resolves dots, escapes and backslashes could end up above where it began."""
    depth = 0
    for part in re.split(r"[/\\]+", unquote(path.decode("latin-1"), "latin-1").strip("/\\")):
        name = part.partition(";")[0]  # servlets ignore the parameters of a segment
        depth += -1 if name == ".." else name not in (".", "")
        if depth < 0:
            return True
    return False


def open_upstream(
    settings: UpstreamSettings, router: BaseRouter, timeouts: Timeouts, *, max_connections: int
) -> Upstream:
    """Raises ConfigError where the address or the key cannot be right. Connects to nothing yet."""
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        shown = settings.url.rpartition("@")[2]
        raise ConfigError(f"The upstream's url is {shown!r}; it must look like 'https://host' or 'https://host/v1'.")
    if parts.username or parts.password:
        raise ConfigError(f"The url of upstream {settings.name!r} holds a password; set api_key_env instead.")
    return Upstream(
        name=settings.name,
        base=parts.path.rstrip("/").encode(),
        models=settings.models,
        key=_key(settings),
        pool=open_pool(f"{parts.scheme}://{parts.netloc}", timeouts=timeouts, max_connections=max_connections),
        router=router,
    )


def _key(settings: UpstreamSettings) -> str:
    if settings.api_key is not None:
        key = settings.api_key.get_secret_value().strip()
    elif settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"Upstream {settings.name!r} wants its key from {settings.api_key_env}, which is not set."
            )
    else:
        return ""
    if not (key.isascii() and key.isprintable() and key):
        raise ConfigError(f"The key of upstream {settings.name!r} is empty or holds characters that HTTP cannot carry.")
    return key


class Upstreams:
    """All of them, first match wins; the first one takes what names no model."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        if not upstreams:
            raise ConfigError("There is no upstream. Name one: longroute serve --upstream https://api.openai.com/v1")
        names = [upstream.name for upstream in upstreams]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Two upstreams are called {twice[0]!r}. Give each a name of its own.")
        self.all = tuple(upstreams)
        self.only = upstreams[0] if len(upstreams) == 1 else None

    def named(self, name: str) -> Upstream:
        """The one that the header x-longroute-upstream names. Raises ConfigError where there is none."""
        for upstream in self.all:
            if upstream.name == name:
                return upstream
        known = ", ".join(upstream.name for upstream in self.all)
        raise ConfigError(f"x-longroute-upstream names no upstream. Known: {known}.")

    def of_model(self, model: str) -> Upstream:
        return next((upstream for upstream in self.all if upstream.serves(model)), self.all[0])

    async def aclose(self) -> None:
        for upstream in self.all:
            await upstream.pool.aclose()
