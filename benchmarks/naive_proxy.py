"""The proxy that one would write in ten minutes, with httpx or with aiohttp: what ours is compared with.

python -m benchmarks.naive_proxy UPSTREAM_URL PORT [httpx | aiohttp]
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
NOT_PASSED_ON = ("transfer-encoding", "connection", "host")


def naive_httpx(upstream_url: str) -> Starlette:
    client = httpx.AsyncClient(base_url=upstream_url, timeout=600, limits=httpx.Limits(max_connections=None))

    async def forward(request: Request) -> StreamingResponse:
        headers = [(k, v) for k, v in request.headers.items() if k not in NOT_PASSED_ON]
        url = httpx.URL(path=request.url.path, query=request.url.query.encode() or None)
        sent = client.build_request(request.method, url, headers=headers, content=await request.body())
        answer = await client.send(sent, stream=True)
        kept = {k: v for k, v in answer.headers.items() if k not in NOT_PASSED_ON}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], lifespan=lifespan)


def naive_aiohttp(upstream_url: str) -> Starlette:
    aiohttp = importlib.import_module("aiohttp")  # a peer, no dependency of ours

    async def forward(request: Request) -> StreamingResponse:
        headers = [(k, v) for k, v in request.headers.items() if k not in NOT_PASSED_ON]
        url = f"{request.url.path}?{request.url.query}".removesuffix("?")
        answer = await request.state.session.request(
            request.method, url, headers=headers, data=await request.body(), allow_redirects=False
        )
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in NOT_PASSED_ON}
        closing = BackgroundTask(answer.release)
        return StreamingResponse(answer.content.iter_any(), answer.status, kept, background=closing)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, object]]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(upstream_url, connector=connector, auto_decompress=False) as session:
            yield {"session": session}

    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], lifespan=lifespan)


if __name__ == "__main__":
    make = naive_aiohttp if sys.argv[3:] == ["aiohttp"] else naive_httpx
    uvicorn.run(make(sys.argv[1]), port=int(sys.argv[2]), log_level="error", access_log=False)
