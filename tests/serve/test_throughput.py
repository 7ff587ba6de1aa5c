"""How much of the engine's own throughput 32 clients get, in paired rounds. Prints it: pytest -m long -s."""

import pathlib
import subprocess
import sys

import jax
import pytest
from serve.clients import CLIENTS, TOKENS, prompt
from serve.conftest import serving

import em_jax
from em_jax.bench.paired import paired
from em_jax.lora.adapter import init_adapter
from em_jax.lora.config import LoraConfig


@pytest.mark.long
def test_throughput_of_32_clients_beside_the_engines():
    engine = em_jax.load("organism")
    engine.tokenizer.stop_ids = (-1, -1)  # every answer runs to its full length
    for seed, name in enumerate(("one", "two")):
        engine.add_adapter(name, init_adapter(engine.model.config, LoraConfig(), jax.random.key(seed)))
    models = engine.adapters
    asked = [[{"role": "user", "content": prompt(i)}] for i in range(CLIENTS)]
    names = [models[i % len(models)] for i in range(CLIENTS)]

    def theirs(number: int) -> int:
        answers = engine.generate(asked, n=2, seed=number, max_new_tokens=TOKENS, adapter=names)
        return sum(len(answer.tokens) for each in answers for answer in each)

    with serving(engine) as address:
        words = [sys.executable, pathlib.Path(__file__).with_name("clients.py"), address, *models]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:

            def ours(number: int) -> int:
                print(number, file=clients.stdin, flush=True)
                return int(clients.stdout.readline())

            assert ours(99) == theirs(99)
            print(paired("server", ours, theirs, 3))
            clients.stdin.close()
