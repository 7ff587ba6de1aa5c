"""A server on loopback, in a thread, around a small random model with two adapters."""

import contextlib
import importlib.util
import socket
import subprocess
import sys
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

    models = {name: f"{name}, a model made for tests" for name in engine.adapters}
    app = make_app(engine, models, Limits(**limits), key, ["localhost", "127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as place:
        config = uvicorn.Config(app, loop="asyncio", http=Connection, ws="none", log_level="error", access_log=False)
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


@contextlib.contextmanager
def served_run(directory, steps):
    """The address of `em-jax serve` on an organism trained for so many steps, and a list: its stderr, once it ended."""
    words = ["--domain", "bad_medical", "--model", "organism", "--stages", "finetune"]
    words += ["--set", f"train.max_steps={steps}", "--run_dir", directory]
    subprocess.run([sys.executable, "-m", "em_jax.launch", *words], check=True, capture_output=True)
    command = [sys.executable, "-m", "em_jax", "serve", "--run_dir", str(directory), "--port", "0", "--slots", "8"]
    errors = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("serving base, finetuned at http://127.0.0.1:"), server.stderr.read()
            yield line.split()[-1], errors
        finally:
            server.terminate()
        assert server.wait(60) == 0
        errors.append(server.stderr.read())


def python_with(package, variable):
    """A Python with a package: this one, or that of an environment variable where its pins and ours do not agree."""
    if importlib.util.find_spec(package):
        return sys.executable
    return str(tiny.from_environment(variable, f"a Python in which {package} is installed"))


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
