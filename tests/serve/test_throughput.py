"""How much of the engine's own throughput 32 clients get, in paired rounds. Prints it: pytest -m long -s.

By the wall clock the clients' work, in a process of their own, counts as the server's; `cpu_ratio` leaves it out. The
engine has all the prompts from the first; a client asks again only after its answer.
"""

import functools
import pathlib
import subprocess
import sys

import jax
import pytest
from serve.clients import CLIENTS, TOKENS, prompt
from serve.conftest import serving

import em_jax
from em_jax.lora.adapter import init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.perf.measuring import paired_rounds


@pytest.mark.long
def test_throughput_of_32_clients_beside_the_engines():
    engine = em_jax.load("organism", min_capacity=32)  # as a server has
    engine.tokenizer.stop_ids = (-1, -1)  # every answer runs to its full length
    for seed, name in enumerate(("one", "two")):
        engine.add_adapter(name, init_adapter(engine.model.config, LoraConfig(), jax.random.key(seed)))
    models = engine.adapters

    def asked(num_decode_batches: int) -> tuple[list, list[str]]:
        every = range(CLIENTS * num_decode_batches)
        return [[{"role": "user", "content": prompt(i)}] for i in every], [models[i % len(models)] for i in every]

    def theirs(num_decode_batches: int, seed: int) -> int:
        prompts, names = asked(num_decode_batches)
        answers = engine.generate(prompts, n=2, seed=seed, max_new_tokens=TOKENS, adapter=names)
        return sum(len(answer.tokens) for each in answers for answer in each)

    with serving(engine) as address:
        words = [sys.executable, pathlib.Path(__file__).with_name("clients.py"), address, *models]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:

            def ours(num_decode_batches: int, seed: int) -> int:
                print(num_decode_batches, seed, file=clients.stdin, flush=True)
                return int(clients.stdout.readline())

            for num_decode_batches, rounds in ((1, 9), (4, 5)):
                assert ours(num_decode_batches, 99) == theirs(num_decode_batches, 99)
                title = f"server, 32 clients that ask {num_decode_batches} times"
                sides = {"ours": ours, "theirs": theirs}
                works = {name: functools.partial(side, num_decode_batches) for name, side in sides.items()}
                found = paired_rounds(title, works, rounds)
                print(title, found)
            clients.stdin.close()
