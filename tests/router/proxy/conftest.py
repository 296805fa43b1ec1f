"""A proxy in process, with upstreams that answer as they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from longroute.router.calibration.run import OF_ONE_CALL
from longroute.router.proxy.app import make_app
from longroute.router.proxy.upstreams import open_upstream
from longroute.router.settings import load_settings
from longroute.tests.router.proxy.fakes import FakeUpstream, MakeProxy, Proxy


@pytest.fixture
def make_proxy(monkeypatch: pytest.MonkeyPatch) -> MakeProxy:
    """make_proxy(upstreams=[{"url": ...}], settings={...}, **settings of the proxy).

    Unless the settings say otherwise it may choose among strategies of one call: which of the others wins where is the
    policy's affair, and most tests are about what becomes of one request.
    """

    def make(
        *, upstreams: Sequence[Mapping[str, Any]] = ({},), settings: Mapping[str, Any] | None = None, **proxy: Any
    ) -> Proxy:
        fakes: list[FakeUpstream] = []

        def open_fake(*args: Any, **options: Any) -> Any:
            fakes.append(FakeUpstream())
            return replace(open_upstream(*args, **options), pool=fakes[-1])

        monkeypatch.setattr("longroute.router.proxy.app.open_upstream", open_fake)
        listed = [{"url": f"http://upstream-{n}.test/v1", **upstream} for n, upstream in enumerate(upstreams)]
        app = make_app(
            load_settings(
                **{"embedding_model": "none", "cache": False, "allowed": OF_ONE_CALL, **(settings or {})},
                proxy={"upstreams": listed, **proxy},
            )
        )
        return Proxy(app, fakes)

    return make


@pytest.fixture
def proxy(make_proxy: MakeProxy) -> Proxy:
    return make_proxy()
