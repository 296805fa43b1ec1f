from __future__ import annotations

import base64

import pytest

from longroute.router.errors import ConfigError
from longroute.router.proxy.access import Caller, Doorkeeper, RateLimit
from longroute.router.proxy.headers import RequestHead, read_request
from longroute.router.settings import ProxySettings

KEYS = {"client_keys": {"search": "key-search", "billing": "key-billing"}, "admin_key": "key-admin"}


def doorkeeper(**settings: object) -> Doorkeeper:
    return Doorkeeper(ProxySettings.model_validate(settings))


def head(**headers: str) -> RequestHead:
    return read_request([(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()])


def test_without_keys_everyone_is_let_in() -> None:
    assert doorkeeper().caller(head()) == Caller(admin=True)


def test_a_client_is_known_by_its_key_in_any_of_the_usual_places() -> None:
    door = doorkeeper(**KEYS)
    basic = base64.b64encode(b"anyone:key-search").decode()
    assert door.caller(head(authorization="Bearer key-search")) == Caller("search", key_in=b"authorization")
    assert door.caller(head(x_api_key="key-billing")) == Caller("billing", key_in=b"x-api-key")
    assert door.caller(head(x_longroute_key="key-billing")) == Caller("billing", key_in=b"x-longroute-key")
    assert door.caller(head(authorization=f"Basic {basic}")) == Caller("search", key_in=b"authorization")


def test_a_wrong_or_missing_key_is_refused() -> None:
    door = doorkeeper(**KEYS)
    for wrong in (head(), head(authorization="Bearer key-"), head(authorization="Basic ???"), head(x_api_key="")):
        assert door.caller(wrong) is None


def test_the_admin_is_told_from_clients() -> None:
    caller = doorkeeper(**KEYS).caller(head(authorization="Bearer key-admin"))
    assert caller is not None and caller.admin


def test_with_only_an_admin_key_requests_are_open_and_monitoring_is_not() -> None:
    door = doorkeeper(admin_key="key-admin")
    assert door.caller(head(authorization="Bearer sk-upstream")) == Caller()
    assert door.caller(head(authorization="Bearer key-admin")) == Caller("admin", admin=True, key_in=b"authorization")


def test_a_rate_fills_again_evenly_and_for_each_client_alone() -> None:
    now = [0.0]
    rate = RateLimit(2, clock=lambda: now[0])
    assert [rate.wait_s("a"), rate.wait_s("a")] == [0, 0]
    assert rate.wait_s("a") == 30
    assert rate.wait_s("b") == 0
    now[0] = 30
    assert rate.wait_s("a") == 0
    assert rate.wait_s("a") == 30


def test_without_a_rate_nobody_waits() -> None:
    rate = RateLimit(None)
    assert not any(rate.wait_s("a") for _ in range(1000))


def test_a_client_may_not_be_called_admin() -> None:
    with pytest.raises(ConfigError, match="admin"):
        doorkeeper(client_keys={"admin": "x"})
