"""Our own endpoints as they are served, against our own description of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import jsonschema
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from longroute.benchmarks.scripted_models import ScriptedModels, listening, proxied
from longroute.router.proxy.app import make_app
from longroute.router.proxy.openapi import describe
from longroute.router.proxy.stopwatch import Stopwatch
from longroute.router.proxy.texts import Api
from longroute.router.settings import load_settings

KEYS = {"LONGROUTE_PROXY__CLIENT_KEYS": '{"ada":"key-of-ada"}', "LONGROUTE_PROXY__ADMIN_KEY": "key-of-admin"}
ADMIN = {"authorization": "Bearer key-of-admin"}
LONG = " ".join(f"In {year} nothing happened in the town of Velm." for year in range(1000, 2000))
UPSTREAMS = [{"url": "http://127.0.0.1:9"}]
ASKED = {"model": "ada-1", "messages": [{"role": "user", "content": f"{LONG}\n\nWhat happened in 1500?"}]}


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    """With keys, and with a decision to show."""
    with listening(ScriptedModels()) as upstream:
        settings = KEYS | {"LONGROUTE_EMBEDDING_MODEL": "none", "LONGROUTE_ALLOWED": '["full", "rag", "compressed"]'}
        with proxied("--upstream", upstream, settings=settings) as address:
            answer = httpx.post(f"{address}/v1/chat/completions", json=ASKED, headers=ADMIN)
            assert answer.headers["x-longroute-strategy"] == "rag"
            yield address


def test_every_endpoint_of_ours_holds_what_its_description_says(proxy: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    arguments = [
        "--checks",
        "all",
        "--max-examples",
        "8",
        "--seed",
        "1",
        "-H",
        f"Authorization: {ADMIN['authorization']}",
    ]
    done = subprocess.run(
        [program, "--no-color", "run", f"{proxy}/v1/longroute/openapi.json", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "No issues found" in done.stdout


def test_answers_are_what_the_description_says(proxy: str) -> None:
    description = httpx.get(f"{proxy}/v1/longroute/openapi.json").json()

    def validate(model: str, answer: httpx.Response) -> dict[str, object]:
        schema = {"$ref": f"#/components/schemas/{model}", "components": description["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
        assert answer.status_code == 200
        body: dict[str, object] = answer.json()
        return body

    with httpx.Client(base_url=proxy, headers=ADMIN) as client:
        decided = validate("ProxyDecideOutput", client.post("/v1/longroute/decide", json=ASKED))
        assert (decided["strategy"], bool(decided["passages"])) == ("rag", True)
        validate("DecisionsOutput", client.get("/v1/longroute/decisions"))
        latest = client.get("/v1/longroute/decisions").json()["decisions"][0]["id"]
        record = validate("RecordOutput", client.get(f"/v1/longroute/decisions/{latest}"))
        assert record["citations"]
        validate("SummaryOutput", client.get("/v1/longroute/summary"))


def test_a_body_in_chunks_may_not_be_longer_than_what_is_inspected(proxy: str) -> None:
    with httpx.Client(base_url=proxy, headers=ADMIN) as client:
        refused = client.post("/v1/longroute/decide", content=(bytes(1 << 20) for _ in range(40)))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


def test_a_failure_while_deciding_names_the_stage_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object, watch: Stopwatch, **more: object) -> None:
        watch.enter("locate")
        raise ValueError("the document says so")

    monkeypatch.setattr("longroute.router.proxy.dry_run.consider", fails)
    client = TestClient(make_app(load_settings(proxy={"upstreams": UPSTREAMS})))
    refused = client.post("/v1/longroute/decide", json=ASKED)
    assert (refused.status_code, refused.json()["error"]["message"]) == (500, "locate failed (ValueError).")


def test_a_path_of_ours_that_is_none_is_refused_in_json(proxy: str) -> None:
    refused = httpx.get(f"{proxy}/v1/longroute/nothing", headers=ADMIN)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_such_endpoint")
    assert httpx.get(f"{proxy}/v1/longroute/decide", headers=ADMIN).headers["allow"] == "POST"


def test_the_description_names_the_strategies_and_apis_of_this_proxy() -> None:
    class Decided(BaseModel):
        strategy: str

    described = describe(Decided, strategies=["full", "rag"], client_keys=False, admin_key=False)
    parameters = described["paths"]["/v1/longroute/decide"]["post"]["parameters"]
    choices = {parameter["name"]: parameter["schema"]["enum"] for parameter in parameters}
    assert choices["api"] == list(get_args(Api))
    assert choices["x-longroute-strategy"] == ["off", "auto", "full", "rag"]


@pytest.mark.parametrize(("client_keys", "admin_key"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_description_asks_for_a_key_where_the_proxy_does(client_keys: bool, admin_key: bool) -> None:
    keys: dict[str, Any] = {"client_keys": {"ada": "key-of-ada"}} if client_keys else {}
    keys |= {"admin_key": "key-of-admin"} if admin_key else {}
    client = TestClient(make_app(load_settings(proxy={"upstreams": UPSTREAMS, **keys})))
    for path, methods in client.get("/v1/longroute/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            refused = client.request(method, path, json={}).status_code == 401
            assert refused == ("security" in operation), path
