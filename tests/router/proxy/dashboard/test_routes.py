from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from longroute.router.proxy.dashboard.routes import Viewer, error, routes
from longroute.router.proxy.records import DecisionLog, Record
from longroute.router.proxy.telemetry import Metrics

DATA = ("/v1/longroute/summary", "/v1/longroute/decisions", "/v1/longroute/decisions/1", "/metrics")


def authorise(request: Request) -> Viewer | Response:
    """The key is the client's name."""
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    return Viewer(key, key == "admin") if key else error(401, "A key is needed.", "no_key")


def record(id: str, client: str) -> Record:
    return Record(
        id=id, at=float(id), upstream="u", api="chat", model="m", strategy="rag", client=client, eligible=True
    )


@pytest.fixture
def client() -> TestClient:
    log = DecisionLog()
    for id, name in (("1", "ada"), ("2", "bob"), ("3", "ada")):
        log.add(record(id, name))
    metrics = Metrics()
    metrics.passed("u", "chat", 200)
    return TestClient(Starlette(routes=routes(log, metrics, authorise)))


def get(client: TestClient, path: str, key: str = "") -> Response:
    answer = client.get(path, headers={"authorization": f"Bearer {key}"} if key else {})
    return Response(answer.content, answer.status_code, dict(answer.headers))


def ids(client: TestClient, path: str, key: str) -> list[str]:
    return [row["id"] for row in client.get(path, headers={"authorization": f"Bearer {key}"}).json()["decisions"]]


def test_no_number_is_shown_to_those_who_are_refused(client: TestClient) -> None:
    for path in DATA:
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "no_key"), path


def test_the_admin_sees_all_and_a_client_its_own(client: TestClient) -> None:
    assert ids(client, "/v1/longroute/decisions", "admin") == ["3", "2", "1"]
    assert ids(client, "/v1/longroute/decisions", "ada") == ["3", "1"]
    assert ids(client, "/v1/longroute/decisions?limit=1", "ada") == ["3"]
    assert client.get("/v1/longroute/summary", headers={"authorization": "Bearer bob"}).json()["decisions"] == 1
    assert get(client, "/v1/longroute/decisions/1", "ada").status_code == 200
    assert get(client, "/v1/longroute/decisions/1", "bob").status_code == 404


def test_totals_and_metrics_of_all_clients_are_for_the_admin_alone(client: TestClient) -> None:
    def totals(key: str) -> object:
        return client.get("/v1/longroute/summary", headers={"authorization": f"Bearer {key}"}).json()["totals"]

    assert totals("ada") is None
    assert totals("admin") == {"requests": 1, "in_flight": 0, "rejected": {}, "upstream_errors": {}}
    assert get(client, "/metrics", "ada").status_code == 403
    text = bytes(get(client, "/metrics", "admin").body).decode()
    assert "longroute_requests" in {family.name for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "", "1e2", "²", "9" * 5000])
def test_a_limit_that_is_none_is_refused(client: TestClient, limit: str) -> None:
    answer = client.get("/v1/longroute/decisions", params={"limit": limit}, headers={"authorization": "Bearer admin"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_limit"
    assert "1,000" in answer.json()["error"]["message"]


def test_numbers_are_never_cached(client: TestClient) -> None:
    for path in DATA:
        assert get(client, path, "admin").headers["cache-control"] == "no-store", path


# ---- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What the page loads and what it is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.inline: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in ("style", "script"):
            self.inline[self._open] = self.inline.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def test_the_page_holds_no_data_so_everyone_gets_it(client: TestClient) -> None:
    answer = client.get("/longroute")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_the_page_may_run_its_own_style_and_script_and_nothing_else(client: TestClient) -> None:
    answer = client.get("/longroute")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    page = Page(answer.text)
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inline[tag].encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    handlers_and_styles = [found for found in page.attributes if found[1].startswith("on") or found[1] == "style"]
    assert handlers_and_styles == []  # the policy would not run them


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = Page(client.get("/longroute").text)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action")]
    assert links == ["data:,", "v1/longroute/summary", "v1/longroute/decisions", "metrics"]
    elsewhere = re.findall(r"(?:https?:)?//[\w.]+", page.inline["style"] + page.inline["script"])
    assert set(elsewhere) <= {"http://www.w3.org"}  # the name of SVG, which is not fetched


def test_the_page_writes_what_it_is_told_as_text_only(client: TestClient) -> None:
    script = Page(client.get("/longroute").text).inline["script"]
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way_in not in script


def test_every_element_that_the_script_asks_for_is_there(client: TestClient) -> None:
    page = Page(client.get("/longroute").text)
    there = {value for _, name, value in page.attributes if name == "id"}
    assert set(re.findall(r'\$\("([\w-]+)"\)', page.inline["script"])) <= there
    named = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert named <= there
