"""The ASGI application: routes, who may ask, and how much."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from em_jax.sample.engine import Engine
from em_jax.serve.batcher import Batcher
from em_jax.serve.completions import Completion, Limits
from em_jax.serve.models import Served
from em_jax.serve.refusals import Refusal
from em_jax.serve.requests import read_chat

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
GONE = 499
"""The status of an answer that nobody waits for any more; only a log would see it."""


def make_app(
    engine: Engine, models: Mapping[str, Served], limits: Limits, key: str = "", hosts: list[str] | None = None
) -> Starlette:
    """The application that serves `models` by name.

    With a `key` every path but /health wants it as a bearer token. `hosts` are the names by which it may be called, all
    of them where None: a page in a browser could otherwise reach a server on loopback by a name of its own.
    """
    batcher = Batcher(engine, limits.queue)
    created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "em_jax",
            "description": models[name].notice,
        }

    def known(name: str) -> str:
        if name not in models:
            raise Refusal(404, f"no model {name[:100]!r}; there are {', '.join(models)}", "model", "model_not_found")
        return name

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in models]})

    async def one_model(request: Request) -> Response:
        return JSONResponse(described(known(request.path_params["name"])))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def complete(request: Request) -> Response:
        chat = read_chat(await _body(request, limits.body_bytes), limits.n)
        adapter = models[known(chat.model)].adapter
        completion = await Completion.begin(engine, batcher, adapter, chat, limits)
        if chat.stream:
            return EventStream(completion)
        try:
            found = await _unless_gone(request.receive, completion.whole)
        finally:
            completion.close()
        return Response(status_code=GONE) if found is None else JSONResponse(found)

    # By Starlette's types every handler takes any exception; it gives each its own kind.
    handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _http_error, Exception: _unexpected}
    handlers[ClientDisconnect] = _gone
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        middleware=[
            *([Middleware(Called, hosts=hosts)] if hosts else []),
            *([Middleware(Bearer, key=key)] if key else []),
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )


class Called:
    """Refuses who calls the server by a name that is none of `hosts`, whatever the port: a tunnel may have its own."""

    def __init__(self, app: ASGIApp, hosts: list[str]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = re.sub(r":\d*$", "", header).strip("[]").lower()
            if name not in self._hosts:
                called = f"this server is called {' or '.join(self._hosts)}, found {header[:100]!r} as the Host"
                await _answer(Refusal(400, called, None, "invalid_host"))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Bearer:
    """Refuses, but for /health, who does not bring the key: compared in constant time, and never said."""

    def __init__(self, app: ASGIApp, key: str):
        self._app, self._wanted = app, hashlib.sha256(f"Bearer {key}".encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            given = scheme.capitalize() + b" " + key
            if not hmac.compare_digest(hashlib.sha256(given).digest(), self._wanted):
                refusal = Refusal(401, "expected the server's key as a bearer token", None, "invalid_api_key")
                await _answer(refusal, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)


class EventStream(Response):
    """A completion as server-sent events. A client that leaves ends it, and its slots become free."""

    def __init__(self, completion: Completion):
        super().__init__(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(line: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {line}\n\n".encode(), "more_body": more})

        async def stream() -> bool:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for event in self._completion.events():
                    await say(json.dumps(event))
            except Refusal as refusal:
                await say(json.dumps(refusal.body()))
            await say("[DONE]", more=False)
            return True

        try:
            await _unless_gone(receive, stream)
        finally:
            self._completion.close()


async def _unless_gone(receive: Receive, work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` gives, or None where the client leaves before it is done."""
    result = None
    refusal: Refusal | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            result = await work()
        except Refusal as error:  # the group would wrap it
            refusal = error
        group.cancel_scope.cancel()
    if refusal is not None:
        raise refusal
    return result


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, of JSON, no longer and no slower than allowed."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # A page in a browser may send anything else to any address without asking.
        raise Refusal(415, "expected Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise Refusal(413, f"the body is longer than {most} bytes", None, "request_too_large")
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    return bytes(body)


def _answer(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(refusal.body(), refusal.status, headers)


async def _refused(request: Request, refusal: Refusal) -> Response:
    again = {"Retry-After": "1"} if refusal.status == 429 else {}
    # What is left of a body that is too long, or too slow, is not waited for.
    close = {"Connection": "close"} if refusal.status in (408, 413, 415) else {}
    return _answer(refusal, again | close)


async def _http_error(request: Request, error: HTTPException) -> Response:
    said = {
        404: f"no {request.url.path[:100]}; there are /v1/models and /v1/chat/completions",
        405: f"{request.url.path[:100]} takes {(error.headers or {}).get('Allow')}, found {request.method[:20]}",
    }
    return _answer(Refusal(error.status_code, said.get(error.status_code, error.detail)), error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=GONE)


async def _unexpected(request: Request, error: Exception) -> Response:
    return _answer(Refusal(500, "the server failed; its own log says why"))
