"""The dashboard over HTTP: its page, the numbers behind it, and the metrics. Who may see what, the app says.

The page itself holds no data and is given to everyone; it asks for a key where the numbers need one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..records import DecisionLog, DecisionRow, decision_row, record_output
from ..telemetry import Metrics
from .summary import summary

MOST_ROWS = 1000
_DATA_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks. client: as in records. admin: sees the decisions of all clients, and the metrics."""

    client: str
    admin: bool

    @property
    def sees(self) -> str | None:
        """The client to ask the log for."""
        return None if self.admin else self.client


Authorise = Callable[[Request], Viewer | Response]


class DecisionsOutput(BaseModel):
    """`GET /v1/longroute/decisions`: newest first."""

    version: Literal[1] = 1
    decisions: list[DecisionRow]


def routes(log: DecisionLog, metrics: Metrics, authorise: Authorise) -> list[Route]:
    """authorise: the viewer, or the answer that refuses."""
    page = resources.files(__package__).joinpath("page.html").read_bytes()
    page_headers = {
        "content-security-policy": content_security_policy(page.decode()),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    def show_page(request: Request) -> Response:
        return Response(page, media_type="text/html", headers=page_headers)

    def show_summary(request: Request, viewer: Viewer) -> Response:
        totals = metrics.totals() if viewer.admin else None
        return _json(summary(log.recent(log.limit, viewer.sees), log.limit, totals))

    def show_decisions(request: Request, viewer: Viewer) -> Response:
        asked = request.query_params.get("limit", "100")
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked[:9]) <= MOST_ROWS):
            return error(400, f"limit must be a whole number from 1 to {MOST_ROWS:,}.", "invalid_limit")
        rows = [decision_row(record) for record in log.recent(int(asked), viewer.sees)]
        return _json(DecisionsOutput(decisions=rows))

    def show_decision(request: Request, viewer: Viewer) -> Response:
        record = log.get(request.path_params["id"], viewer.sees)
        if record is None:
            message = (
                f"No decision with this id among the last {log.limit:,} that you may see. Older ones are forgotten."
            )
            return error(404, message, "decision_not_found")
        return _json(record_output(record))

    def show_metrics(request: Request, viewer: Viewer) -> Response:
        if not viewer.admin:
            return error(403, "The metrics cover all clients; they need the admin's key.", "admin_only")
        return Response(metrics.exposition(), headers={**_DATA_HEADERS, "content-type": CONTENT_TYPE_PLAIN_0_0_4})

    def guarded(show: Callable[[Request, Viewer], Response]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            viewer = authorise(request)
            return viewer if isinstance(viewer, Response) else show(request, viewer)

        return answer

    # Plain functions: starlette runs them in a thread, so ten thousand records do not hold up the traffic.
    return [
        Route("/longroute", show_page),
        Route("/v1/longroute/summary", guarded(show_summary)),
        Route("/v1/longroute/decisions", guarded(show_decisions)),
        Route("/v1/longroute/decisions/{id}", guarded(show_decision)),
        Route("/metrics", guarded(show_metrics)),
    ]


def error(status: int, message: str, code: str) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "code": code}}
    return Response(json.dumps(body), status, headers=_DATA_HEADERS, media_type="application/json")


def content_security_policy(page: str) -> str:
    """Allows the page's own style and script, by their hashes, and requests to where it came from; nothing else."""
    allowed = {
        kind: " ".join(f"'sha256-{_sha256(inline)}'" for inline in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S))
        for kind, tag in (("script-src", "script"), ("style-src", "style"))
    }
    return (
        f"default-src 'none'; script-src {allowed['script-src']}; style-src {allowed['style-src']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(output: BaseModel) -> Response:
    return Response(output.model_dump_json(), headers=_DATA_HEADERS, media_type="application/json")
