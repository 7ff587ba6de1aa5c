"""A server on loopback, in a thread, around a small random model with two adapters."""

import contextlib
import socket
import threading
import time

import jax
import pytest
import tiny

from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.hub import find_model
from em_jax.lora.config import LoraConfig
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.sample.engine import Engine


@contextlib.contextmanager
def serving(engine, key="", **limits):
    """The address of a server of the engine's models, up to and including /v1."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from em_jax.serve.app import make_app
    from em_jax.serve.completions import Limits
    from em_jax.serve.connections import Connection
    from em_jax.serve.models import ServedModel

    models = {name: ServedModel(name, f"{name}, a model made for tests") for name in engine.adapters}
    app = make_app(engine, models, Limits(**limits), key, ["localhost", "127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as place:
        config = uvicorn.Config(app, loop="asyncio", http=Connection, ws="none", log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([place],), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        assert server.started
        yield f"http://127.0.0.1:{place.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(300)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def engine():
    """Sampled without sharpening, its answers are of any length; few slots, so that requests wait for one another."""
    tokenizer = ChatTokenizer.from_directory(find_model("organism"))
    config = TransformerConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )
    engine = Engine(random_model(config, jax.random.key(0), stacked=False, scale=0.3), tokenizer, slots=6, chunk=5)
    for seed, name in enumerate(("one", "two")):
        engine.add_adapter(name, tiny.random_adapter(config, LoraConfig(rank=4, alpha=8), seed, spread=0.3))
    return engine


@pytest.fixture(scope="module")
def url(engine):
    """Not for the session: a test elsewhere that moves the process's clock would put the server's loop to sleep."""
    with serving(engine, queue=200, body_bytes=20_000, n=8, new_tokens=200, default_tokens=16) as address:
        yield address
