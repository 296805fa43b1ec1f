"""The OpenAPI description of our own endpoints, from the models that they answer with.

The model APIs that the proxy carries are described by those who make them; here they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ... import __version__
from ..core import Prefer
from .dashboard.routes import MOST_ROWS, DecisionsOutput
from .dashboard.summary import SummaryOutput
from .records import RecordOutput
from .texts import Api

Json = dict[str, Any]

_KEYS: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "longrouteKey": {"type": "apiKey", "in": "header", "name": "x-longroute-key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_ERRORS = {
    400: "Something in the request is not understood; the message says what and what to send instead.",
    401: "A key is needed, or the one given is not known.",
    403: "The key does not reach this far, or a web page of another origin asks for what keys of the proxy pay for.",
    404: "Not among the decisions that are remembered and that the key may see.",
    413: "The body is longer than `max_inspected_mb`.",
    500: "A stage of deciding failed; the request itself would be sent as it came.",
    503: "Deciding took longer than `budget_s`, or too much is waiting already.",
}


def describe(decided: type[BaseModel], *, strategies: Sequence[str], client_keys: bool, admin_key: bool) -> Json:
    """An OpenAPI 3.1 document.

    decided: what `decide` answers with. strategies: what may be asked for by name.
    client_keys, admin_key: whether this proxy has them, and therefore asks for one.
    """
    any_key = client_keys or admin_key
    models = (decided, DecisionsOutput, RecordOutput, SummaryOutput)
    _, schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = schemas["$defs"] | {"Error": _error_schema()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "longroute proxy",
            "version": __version__,
            "description": "What the proxy decided, and what it would. All other paths are the upstream's.",
        },
        "paths": {
            "/v1/longroute/decide": {"post": _decide(decided, strategies, client_keys)},
            "/v1/longroute/decisions": {"get": _decisions(any_key)},
            "/v1/longroute/decisions/{id}": {"get": _decision(client_keys)},
            "/v1/longroute/summary": {
                "get": _operation(
                    "summary", "Tokens and money saved, and what else the dashboard shows.", _json(SummaryOutput),
                    needs_key=any_key,
                )
            },
            "/v1/longroute/openapi.json": {
                "get": _operation("openapi", "This description.", {"application/json": {"schema": {"type": "object"}}})
            },
            "/metrics": {
                "get": _operation("metrics", "For Prometheus; needs the admin's key.", _TEXT, needs_key=any_key)
            },
            "/longroute": {"get": _operation("dashboard", "The dashboard's page.", {"text/html": _TEXT["text/plain"]})},
            "/healthz": {"get": _operation("healthy", "Answers while the process lives.", _status("ok"))},
            "/readyz": {"get": _operation("ready", "Answers once requests are served.", _status("ready", "upstreams"))},
        },
        "components": {"schemas": schemas, "securitySchemes": _KEYS if any_key else {}},
    }  # fmt: skip


# ---- operations ------------------------------------------------------------------------------------------------------


def _decide(decided: type[BaseModel], strategies: Sequence[str], needs_key: bool) -> Json:
    choices = {"strategy": ["off", "auto", *strategies], "prefer": list(get_args(Prefer))}
    operation = _operation(
        "decide", "What would be done with a request, and why. Nothing is sent.", _json(decided),
        refusals=(400, 413, 500, 503), needs_key=needs_key,
    )  # fmt: skip
    api = {"type": "string", "enum": list(get_args(Api))}
    return operation | {
        "parameters": [
            _parameter("query", "api", api, "The API the body is written for; found out where it is not said."),
            *(
                _parameter("header", f"x-longroute-{name}", {"type": "string", "enum": values}, "As for the real one.")
                for name, values in choices.items()
            ),
        ],
        "requestBody": {
            "required": True,
            "description": "The request as it would be sent to the model, with a `longroute` field or without.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
    }


def _decisions(needs_key: bool) -> Json:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": 100}
    operation = _operation(
        "decisions", "The latest decisions, newest first.", _json(DecisionsOutput), refusals=(400,), needs_key=needs_key
    )
    operation["responses"]["200"]["links"] = {
        "latest": {"operationId": "decision", "parameters": {"id": "$response.body#/decisions/0/id"}}
    }
    return operation | {"parameters": [_parameter("query", "limit", limit, "How many at most.")]}


def _decision(needs_key: bool) -> Json:
    operation = _operation(
        "decision", "Everything that is remembered of one decision.", _json(RecordOutput),
        refusals=(404,), needs_key=needs_key,
    )  # fmt: skip
    where = _parameter("path", "id", {"type": "string", "minLength": 1}, "From the header `x-longroute-decision-id`.")
    return operation | {"parameters": [where]}


def _operation(
    name: str, summary: str, content: Json, *, refusals: tuple[int, ...] = (), needs_key: bool | None = None
) -> Json:
    """needs_key: None for what everyone may see."""
    statuses = sorted({*refusals, 403, *(() if needs_key is None else (401,))})
    described: Json = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "As asked.", "content": content}}
        | {str(status): _refusal(status) for status in statuses},
    }
    return described | {"security": [{key: []} for key in _KEYS]} if needs_key else described


def _refusal(status: int) -> Json:
    return {"description": _ERRORS[status], "content": {"application/json": {"schema": _ref("Error")}}}


# ---- pieces ----------------------------------------------------------------------------------------------------------

_TEXT: Json = {"text/plain": {"schema": {"type": "string"}}}


def _parameter(place: str, name: str, schema: Json, description: str) -> Json:
    return {"in": place, "name": name, "required": place == "path", "schema": schema, "description": description}


def _json(model: type[BaseModel]) -> Json:
    return {"application/json": {"schema": _ref(model.__name__)}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _status(word: str, *lists: str) -> Json:
    properties: Json = {"status": {"const": word}}
    properties |= {name: {"type": "array", "items": {"type": "string"}} for name in lists}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"application/json": {"schema": schema}}


def _error_schema() -> Json:
    fields = ("message", "type", "code")
    inner = {"type": "object", "properties": {name: {"type": "string"} for name in fields}, "required": list(fields)}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}
