"""The ASGI application: routes, access and limits."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from em_jax.sample.engine import Engine
from em_jax.serve.batcher import Batcher
from em_jax.serve.completions import Completion, Limits
from em_jax.serve.requests import Refusal, read_chat

BODY_SECONDS = 30.0
"""The time in which a body must arrive."""


def make_app(
    engine: Engine, models: Mapping[str, str], limits: Limits, key: str = "", hosts: list[str] | None = None
) -> Starlette:
    """The application that serves `models`: the engine's adapters by name, each with a notice of what it is.

    `app.state.close(seconds)` refuses new requests and ends those under way after so many seconds.
    With a `key` every path but /health requires it as a bearer token. `hosts` are the names accepted in the Host
    header, None accepts all: otherwise a web page could reach a server on loopback under a name of its own.
    """
    batcher = Batcher(engine, limits.queue)
    created = int(time.time())
    described = {
        name: {"id": name, "object": "model", "created": created, "owned_by": "em_jax", "description": notice}
        for name, notice in models.items()
    }

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    def model(name: str) -> dict[str, Any]:
        """Raises Refusal where there is no model of that name."""
        if name not in described:
            raise Refusal(404, f"no model {name[:100]!r}; there are {', '.join(models)}", "model", "model_not_found")
        return described[name]

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(described.values())})

    async def one_model(request: Request) -> Response:
        return JSONResponse(model(request.path_params["name"]))

    async def health(request: Request) -> Response:
        state = batcher.state()
        return JSONResponse({"status": state, "answers": batcher.num_answers}, 200 if state == "ok" else 503)

    async def complete(request: Request) -> ASGIApp:
        chat = read_chat(await _body(request, limits.body_bytes), limits.n)
        model(chat.model)
        return _respond(await Completion.begin(engine, batcher, chat, limits, _client(request)), chat.stream)

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        middleware=[Middleware(AccessControl, hosts=hosts, key=key)],
        exception_handlers=dict.fromkeys((Refusal, HTTPException, Exception), _failed),
        lifespan=lifespan,
    )
    app.state.close = batcher.close
    return app


class AccessControl:
    """Refuses requests whose Host is none of `hosts`, whatever the port, and requests without the key.

    /health needs no key. Keys are compared in constant time and never quoted.
    """

    def __init__(self, app: ASGIApp, hosts: list[str] | None, key: str):
        self._app, self._hosts = app, hosts
        self._digest = hashlib.sha256(f"Bearer {key}".encode()).digest() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self._refusal(scope) if scope["type"] == "http" else None
        await (response or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts and re.sub(r":\d*$", "", host).strip("[]").lower() not in self._hosts:
            message = f"this server is called {' or '.join(self._hosts)}, found {host[:100]!r} as the Host"
            return _response(Refusal(400, message, None, "invalid_host"))
        if self._digest and scope["path"] != "/health":
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            digest = hashlib.sha256(scheme.capitalize() + b" " + key).digest()
            if not hmac.compare_digest(digest, self._digest):
                refusal = Refusal(401, "expected the server's key as a bearer token", None, "invalid_api_key")
                return _response(refusal, {"WWW-Authenticate": "Bearer"})
        return None


def _respond(completion: Completion, stream: bool) -> ASGIApp:
    """What sends a completion, whole or as server-sent events. A client that leaves ends it, which frees its slots."""

    async def close_when_gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        completion.close()

    async def events() -> AsyncIterator[str]:
        try:
            async for event in completion.events():
                yield f"data: {json.dumps(event)}\n\n"
        except Refusal as refusal:
            yield f"data: {json.dumps(refusal.body())}\n\n"
        yield "data: [DONE]\n\n"

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(close_when_gone(receive))
        try:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            answer = StreamingResponse(events(), headers=headers) if stream else JSONResponse(await completion.whole())
            await answer(scope, receive, send)
        finally:
            watcher.cancel()
            completion.close()

    return respond


def _client(request: Request) -> str:
    """Whose request it is, for a fair share of the slots: the peer's address, key and program.

    A connection tells nothing: a client with hundreds of requests has hundreds of them.
    """
    address = request.client.host if request.client else ""
    return "\n".join([address, *(request.headers.get(name, "") for name in ("authorization", "user-agent"))])


async def _body(request: Request, max_bytes: int) -> bytes:
    """A request's JSON body. Raises Refusal where it is too long, too slow or of another type."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # A web page may send any other type to any address without asking.
        raise Refusal(415, "expected Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise Refusal(413, f"the body is longer than {max_bytes} bytes", None, "request_too_large")
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise Refusal(499, "the client has left") from None
    return bytes(body)


async def _failed(request: Request, error: Exception) -> Response:
    """The response to a request that ended in an error."""
    if isinstance(error, Refusal):
        return _response(error)
    if not isinstance(error, HTTPException):
        return _response(Refusal(500, "the server failed; its own log says why"))
    path, method = request.url.path[:100], request.method[:20]
    messages = {
        404: f"no {path}; there are /v1/models and /v1/chat/completions",
        405: f"{path} takes {(error.headers or {}).get('Allow')}, found {method}",
    }
    return _response(Refusal(error.status_code, messages.get(error.status_code, error.detail)), error.headers)


def _response(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    retry = {"Retry-After": "1"} if refusal.status == 429 else {}
    # The rest of a body that is too long or too slow is not read.
    close = {"Connection": "close"} if refusal.status in (408, 413, 415) else {}
    return JSONResponse(refusal.body(), refusal.status, {**retry, **close, **(headers or {})})
