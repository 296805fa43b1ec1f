"""Our own endpoints, and who may use them."""

from __future__ import annotations

import asyncio
import json

import pytest

from longroute.router.errors import ConfigError
from longroute.router.proxy.app import check_bind
from longroute.router.proxy.dry_run import ProxyDecideOutput
from longroute.router.settings import ProxySettings
from longroute.tests.router.proxy.fakes import FACT, QUESTION, MakeProxy, Proxy, chat

DECIDE = "/v1/longroute/decide"
KEYS = {"client_keys": {"search": "key-search", "billing": "key-billing"}, "admin_key": "key-admin"}
SEARCH, BILLING = {"authorization": "Bearer key-search"}, {"authorization": "Bearer key-billing"}
ADMIN = {"authorization": "Bearer key-admin"}
CHEAP = {"x-longroute-prefer": "cheap"}


def test_a_dry_run_tells_everything_and_sends_nothing(proxy: Proxy) -> None:
    body = chat()
    said = ProxyDecideOutput.model_validate(proxy.ask(body, path=DECIDE, headers=CHEAP).json())
    assert not proxy.upstream.sent
    assert (said.strategy, said.question, said.api) == ("rag", QUESTION, "chat")
    text = json.loads(body)["messages"][0]["content"]
    [document] = said.documents
    assert document.path == ["messages", 0, "content"]
    located = text[document.start : document.end]
    assert any(FACT in located[passage.start : passage.end] for passage in said.passages)
    assert said.tokens_before is not None and said.tokens_after is not None
    assert said.tokens_after < said.tokens_before / 4
    assert said.decision is not None and {"full", "rag"} <= set(said.decision.estimates)
    assert {"parse", "locate", "decide", "prepare", "total"} <= said.timings_s.keys()


def test_a_dry_run_says_why_a_request_would_be_left_alone(proxy: Proxy) -> None:
    said = proxy.ask(chat("short"), path=DECIDE).json()
    assert (said["strategy"], said["decision"]) == ("off", None) and said["reason"]


@pytest.mark.parametrize(
    ("body", "query", "message"),
    [
        (b"nonsense", "", "not a JSON object"),
        (b"[]", "", "not a JSON object"),
        (chat(), "?api=soap", "api must be one of"),
        (chat(longroute={"prefer": "x"}), "", "prefer is 'x'"),
    ],
)
def test_a_dry_run_of_nonsense_is_a_clear_error(body: bytes, query: str, message: str, proxy: Proxy) -> None:
    answer = proxy.ask(body, path=DECIDE + query)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_dry_runs_are_bounded_like_everything_that_holds_a_body(proxy: Proxy) -> None:
    async def main() -> list[int]:
        async with proxy.client() as client:
            asked = [client.post(DECIDE, content=chat()) for _ in range(12)]
            return sorted(answer.status_code for answer in await asyncio.gather(*asked))

    assert asyncio.run(main()) == [200] * 8 + [503] * 4
    assert proxy.ask(chat(), path=DECIDE).status_code == 200


def test_the_api_of_a_dry_run_can_be_named(proxy: Proxy) -> None:
    said = proxy.ask(chat(max_tokens=5), path=f"{DECIDE}?api=messages", headers=CHEAP).json()
    assert said["api"] == "messages"


def test_each_client_sees_its_own_decisions_and_the_admin_all(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(**KEYS)
    answer = proxy.ask(chat(), headers=SEARCH | CHEAP)
    path = f"/v1/longroute/decisions/{answer.headers['x-longroute-decision-id']}"
    seen = [proxy.ask(path=path, method="GET", headers=who).status_code for who in (SEARCH, ADMIN, BILLING, {})]
    assert seen == [200, 200, 404, 401]
    assert len(proxy.ask(path="/v1/longroute/decisions", method="GET", headers=BILLING).json()["decisions"]) == 0


def test_metrics_are_for_the_admin_where_there_are_keys(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(**KEYS)
    seen = [proxy.ask(path="/metrics", method="GET", headers=who).status_code for who in (ADMIN, SEARCH, {})]
    assert seen == [200, 403, 401]
    assert proxy.ask(path="/healthz", method="GET").json() == {"status": "ok"}
    assert proxy.ask(path="/readyz", method="GET").json() == {"status": "warming up", "upstreams": ["upstream"]}
    assert proxy.ask(path="/longroute", method="GET").status_code == 200  # the page holds no data


def test_with_an_admin_key_alone_monitoring_is_closed_and_requests_are_open(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(admin_key="key-admin")
    answer = proxy.ask(chat())
    assert proxy.decision(answer)["id"] == answer.headers["x-longroute-decision-id"]
    assert proxy.ask(chat(), path=DECIDE).status_code == 200
    for path in ("/metrics", "/v1/longroute/decisions", "/v1/longroute/summary"):
        assert proxy.ask(path=path, method="GET").status_code == 401
    assert proxy.ask(path="/metrics", method="GET", headers=ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.test"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.evil.test"}, 403),
        ({"host": "127.0.0.2:8100"}, 200),
        ({"host": "LocalHost:8100"}, 200),
        ({"host": "evil.test:8100"}, 403),
        ({"host": "[::1]:8100"}, 200),
    ],
)
def test_web_pages_may_not_spend_the_proxys_own_keys(
    headers: dict[str, str], status: int, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(upstreams=[{"api_key": "sk-own"}])
    assert proxy.ask(b"{}", headers=headers).status_code == status


def test_callers_with_keys_of_their_own_may_come_from_anywhere(proxy: Proxy) -> None:
    assert proxy.ask(b"{}", headers={"origin": "https://app.test"}).status_code == 200


def test_an_address_that_strangers_reach_needs_client_keys() -> None:
    check_bind(ProxySettings.model_validate({"host": "127.0.0.2"}))
    check_bind(ProxySettings.model_validate({"host": "0.0.0.0", "client_keys": {"a": "b"}}))
    for host in ("0.0.0.0", "::", "192.168.1.2"):
        with pytest.raises(ConfigError, match="client_keys"):
            check_bind(ProxySettings.model_validate({"host": host}))


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ({"url": "u.test"}, "must look like"),
        ({"url": "http://u.test?x"}, "must look like"),
        ({"url": "http://me:pw@u.test"}, "holds a password"),
        ({"api_key": "  "}, "empty"),
        ({"api_key": "sk\u2013x"}, "cannot carry"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE, which is not set"),
    ],
)
def test_an_upstream_that_cannot_work_is_an_error_at_the_start(
    upstream: dict[str, str], message: str, make_proxy: MakeProxy
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_proxy(upstreams=[upstream])
    assert "pw" not in str(caught.value)


def test_no_upstream_or_two_of_one_name_are_errors(make_proxy: MakeProxy) -> None:
    with pytest.raises(ConfigError, match="no upstream"):
        make_proxy(upstreams=[])
    with pytest.raises(ConfigError, match="Two upstreams are called 'upstream'"):
        make_proxy(upstreams=[{}, {}])
