"""On an NVIDIA GPU: training, decoding and int8 give what the CPU gives, on one device and over meshes of one and of 8.

Attention by itself is in tests/model/test_kernels.py. Run with `pytest -m gpu -n 0`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em_jax.formats.checkpoint import load_model, save_model
from em_jax.lora.adapter import init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.model.sharding import UNSHARDED, Sharding, make_mesh
from em_jax.perf.bench_workload import IdTokenizer
from em_jax.sample.engine import Engine
from em_jax.train.batches import Example, MicrobatchCosts, plan_microbatches
from em_jax.train.config import TrainConfig
from em_jax.train.step import TrainState, make_optimizer, optimizer_step

pytestmark = pytest.mark.gpu

CONFIG = TransformerConfig(512, 256, 512, 2, 8, 8, 64)
"""Its heads divide over eight devices, and cuDNN takes them."""
LORA = LoraConfig(rank=8)
STEPS = 3


def accelerator():
    """The device under test."""
    return jax.devices()[0]


def reference():
    """The device whose results are right."""
    return jax.devices("cpu")[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    with jax.default_device(reference()):
        save_model(random_model(CONFIG, jax.random.key(0), scale=0.05), folder)
    return folder


def on_cpu():
    """A mesh of the reference device alone: without one, kernels are chosen for jax's default backend."""
    return Sharding(make_mesh({"fsdp": 1}, devices=[reference()]))


@pytest.fixture(params=[0, 1, 8], ids=["no mesh", "mesh of one", "mesh of eight"])
def sharding(request):
    if not request.param:
        return UNSHARDED
    if len(jax.devices()) < request.param:
        pytest.skip(f"needs {request.param} devices, found {len(jax.devices())}")
    return Sharding(make_mesh({"fsdp": request.param}, devices=jax.devices()))


def examples():
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 60, 16 * STEPS)
    return [Example(generator.integers(3, 512, n).tolist(), [i >= n // 2 for i in range(n)]) for n in lengths]


def trained(checkpoint, device, dtype, sharding=UNSHARDED):
    """(losses of some steps, the adapter's change) with the weights on a device."""
    rows = examples()
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        model = load_model(checkpoint, dtype=dtype, sharding=sharding)
        adapter = init_adapter(CONFIG, LORA, jax.random.key(1))
        first = jax.tree.map(np.asarray, adapter.factors)
        optimizer = make_optimizer(TrainConfig(learning_rate=1e-3, warmup_steps=0), 100)
        factors = jax.tree.map(jnp.copy, adapter.factors)
        state = TrainState(factors, optimizer.init(factors))
        steps = [list(range(i, i + 16)) for i in range(0, len(rows), 16)]
        plan = plan_microbatches(rows, steps, MicrobatchCosts(divide_by=max(sharding.batch_shards, 1)))
        losses = []
        for microbatches in plan.steps:
            result = optimizer_step(
                model, state, microbatches, scale=adapter.scale, examples=rows, optimizer=optimizer, sharding=sharding
            )
            assert result
            state, metrics = result
            losses.append(float(metrics.loss))
        change = jax.tree.map(lambda after, before: np.asarray(after) - before, state.factors, first)
    return losses, np.concatenate([x.ravel() for x in jax.tree.leaves(change)])


@pytest.mark.parametrize("dtype, loss, change", [(jnp.float32, 1e-4, 2e-2), (jnp.bfloat16, 2e-2, 0.3)])
def test_training_steps_are_those_of_the_cpu(checkpoint, sharding, dtype, loss, change):
    expected = trained(checkpoint, reference(), jnp.float32, on_cpu())
    found = trained(checkpoint, accelerator(), dtype, sharding)
    np.testing.assert_allclose(found[0], expected[0], rtol=loss)
    assert np.linalg.norm(found[1] - expected[1]) < change * np.linalg.norm(expected[1])


def engine(checkpoint, device, sharding=UNSHARDED, **options):
    with jax.default_device(device):
        made = Engine(load_model(checkpoint, sharding=sharding, **options), IdTokenizer(), slots=8, sharding=sharding)
        adapter = init_adapter(CONFIG, LORA, jax.random.key(1))
        made.add_adapter("default", adapter)
        return made


def test_greedy_answers_are_those_of_the_cpu_to_the_token(checkpoint, sharding):
    chats = [[{"role": "user", "content": " ".join(map(str, range(3, 3 + n)))}] for n in (5, 17, 30)]
    texts = []
    for device, placed in ((reference(), on_cpu()), (accelerator(), sharding)):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            answers = engine(checkpoint, device, placed).generate(chats, temperature=0.0, max_new_tokens=32)
        texts.append([each.tokens for (each,) in answers])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_logits_are_those_of_the_cpu(checkpoint, sharding, quantization):
    tokens = np.random.default_rng(1).integers(3, 512, (8, 40))
    found = []
    for device, placed in ((reference(), on_cpu()), (accelerator(), sharding)):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            made = engine(checkpoint, device, placed, quantization=quantization)
            found.append(np.asarray(made.logits(tokens)))
    assert np.abs(found[0] - found[1]).max() < 1e-3 * np.ptp(found[0])
