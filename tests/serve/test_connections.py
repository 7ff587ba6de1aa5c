"""Clients that do not finish, do not read or are too many cost nobody else a place."""

import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest
from serve.conftest import serving

pytest.importorskip("uvicorn")

from em_jax.serve import app, connections
from em_jax.serve.connections import Connection

HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture
def short(monkeypatch):
    """Deadlines of a test's length, and room for eight connections."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(connections, "READ_SECONDS", 1.0)
    monkeypatch.setattr(app, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(Connection, "most", 8)


def connect(address, sent, **options):
    place = urlsplit(address)
    connection = socket.socket()
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.connect((place.hostname, place.port))
    connection.settimeout(10)
    connection.sendall(sent)
    return connection


def left_alone(connection):
    """What a server says before it closes; b"" where it hangs up without a word."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            said += part
    return said


UNFINISHED = {
    "nothing": b"",
    "half a header": HEAD[:-10],
    "no end of headers": HEAD,
    "a second request begun": HEAD + b"\r\n" + HEAD,
    "half a body": b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 50\r\n\r\n{",
}


def test_what_does_not_finish_is_closed_and_others_are_served_at_once(engine, short):
    with serving(engine) as address:
        health = address.replace("/v1", "/health")
        held = [connect(address, sent) for sent in UNFINISHED.values() for _ in range(3)]
        began = time.monotonic()
        assert httpx.get(health).status_code == 200 and time.monotonic() - began < 1.0
        # As many again and none too many wait for their deadline.
        said = dict(
            zip(UNFINISHED, map(left_alone, [connect(address, sent) for sent in UNFINISHED.values()]), strict=True)
        )
        assert said["nothing"] == said["half a header"] == said["no end of headers"] == b""
        assert said["a second request begun"].count(b"200 OK") == 1 and b"408" in said["half a body"]
        assert time.monotonic() - began < 8
        for connection in held:
            left_alone(connection)


def test_a_body_that_goes_on_after_its_refusal_has_a_deadline(engine, short):
    head = b"POST /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
    with serving(engine) as address, connect(address, head) as connection:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 6:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_a_stream_that_nobody_reads_has_a_deadline(engine, short, monkeypatch):
    monkeypatch.setattr(socket, "create_server", small_buffers(socket.create_server))
    ended = []
    lost = Connection.connection_lost

    def connection_lost(self, error):
        ended.append(error)
        lost(self, error)

    monkeypatch.setattr(Connection, "connection_lost", connection_lost)
    asked = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "n": 8, "max_tokens": 200}
    body = json.dumps(asked | {"stream": True, "logprobs": True, "top_logprobs": 20, "seed": 1}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with serving(engine, queue=8, n=8, new_tokens=200) as address:
        with connect(address, head + b"Content-Length: %d\r\n\r\n" % len(body) + body, SO_RCVBUF=4096):
            until = time.monotonic() + 60
            while not ended and time.monotonic() < until:
                time.sleep(0.1)
            assert ended, "the server holds a client that does not read"
            found = httpx.post(f"{address}/chat/completions", json=asked | {"max_tokens": 2}, timeout=60)
            assert found.status_code == 200


def small_buffers(create):
    def created(*arguments, **options):
        place = create(*arguments, **options)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return place

    return created
