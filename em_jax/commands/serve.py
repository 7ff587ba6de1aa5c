"""`em-jax serve --run_dir RUN`: serve a run's base and fine-tuned model by OpenAI's protocol."""

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from em_jax.base.cli import Parser, Stopped, count_flag, whole
from em_jax.base.errors import UsageError, UserError

KEY = "EM_JAX_API_KEY"
FINISH_SECONDS = 4
"""The time that answers under way have to finish once the server is asked to stop."""


def main(arguments: Sequence[str]) -> None:
    """Loads the models, then answers requests until the process is asked to stop."""
    flags = _flags(arguments)
    key = os.environ.get(KEY, "").strip()
    from em_jax.base import runtime
    from em_jax.serve import models

    runs = models.open_runs(flags.run_dir)
    models.runs_by_name(runs)
    with _listening_socket(flags.host, flags.port) as listener:
        loopback = _is_loopback(listener.getsockname()[0])
        if not loopback and not key:
            raise UsageError(f"{flags.host or 'every address'} can be reached from other machines: set a key in {KEY}")
        runtime.configure_jax()
        engine, served = models.load(runs, flags.slots)
        _compile(engine)
        for name, notice in served.items():
            print(f"{name}: {notice}", file=sys.stderr)
        _run(engine, served, flags, key, listener, loopback)
    print("stopped", file=sys.stderr)


def _compile(engine: Any) -> None:
    """Compiles the programs of the first request, so that it need not wait for them."""
    scheduler = engine.scheduler()
    ids = engine.encode([{"role": "user", "content": "Hi"}])
    scheduler.submit(engine.sample_requests(0, ids, [0], "base", temperature=1.0, top_p=1.0, max_new_tokens=2, seed=0))
    while scheduler.busy:
        scheduler.collect()
        scheduler.dispatch()


def _run(engine: Any, served: Any, flags: Any, key: str, listener: socket.socket, loopback: bool) -> None:
    import uvicorn

    from em_jax.serve import connections
    from em_jax.serve.app import make_app
    from em_jax.serve.completions import Limits

    limits = Limits(
        body_bytes=flags.max_body_bytes,
        prompt_tokens=flags.max_prompt_tokens,
        new_tokens=flags.max_tokens,
        n=min(flags.max_n, flags.max_queue),
        queue=flags.max_queue,
    )
    hosts = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", flags.host.lower()])) if loopback else None
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    class Requests(connections.Connection):
        most = flags.max_queue + 256

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"serving {', '.join(served)} at {address}", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.close(FINISH_SECONDS)
            await super().shutdown(sockets)

    app = make_app(engine, served, limits, key, hosts)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Requests,
        ws="none",
        lifespan="on",
        log_level="error",  # what clients cause is a warning, and would fill a log
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FINISH_SECONDS + 2,
    )
    with contextlib.suppress(KeyboardInterrupt, Stopped):  # how a server usually ends
        Server(config).run([listener])


def _listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address; it is opened before the models are loaded, so that a used port fails at once."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        # It listens at once: bound alone, another that is loading too could take the same port.
        return socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=family == socket.AF_INET6)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: without IPv6
        raise UserError(f"nothing can be served at {host}:{port}: {error}; name another --host or --port") from None


def _is_loopback(address: str) -> bool:
    """Whether a bound address, however it was spelled, is reached from this machine alone."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _flags(arguments: Sequence[str]) -> Any:
    parser = Parser(
        prog="em-jax serve",
        description="Serve a run's models by OpenAI's protocol (/v1/chat/completions, /v1/models), for any harness. "
        'They are named "base" and "finetuned"; with several runs each is named as its directory. Clients must bring '
        f"the key in {KEY}, where it is set.",
    )
    add = parser.add_argument
    add("--run_dir", metavar="RUN", action="append", required=True, help="a run, or a directory of runs; repeatable")
    add("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine alone)")
    add("--port", type=whole(0, 65535), metavar="N", default=8000, help="0 takes a free one (default 8000)")
    add("--slots", type=whole(1), metavar="N", help="answers under way at once (default the run's answers.slots)")
    add("--max_prompt_tokens", **count_flag(8192, 1, "of a request"))
    add("--max_tokens", **count_flag(4096, 1, "of an answer"))
    add("--max_n", **count_flag(128, 1, "answers of a request"))
    add("--max_queue", **count_flag(1024, 1, "answers waiting or under way"))
    add("--max_body_bytes", **count_flag(1 << 20, 1, "of a request"))
    return parser.parse_args(arguments)
