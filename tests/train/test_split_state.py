"""Adapter, gradients and moments are split over a mesh with what they belong to, and train as on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from em_jax.base import host_arrays
from em_jax.formats.model_config import parse_config
from em_jax.lora.config import LoraConfig
from em_jax.model.parameters import random_model
from em_jax.model.sharding import UNSHARDED, Sharding, make_mesh
from em_jax.train.batches import Microbatch, Shape, collate
from em_jax.train.config import TrainConfig
from em_jax.train.step import (
    TrainState,
    accumulate,
    make_optimizer,
    state_shardings,
    update,
    zero_accumulator,
)

CONFIG = parse_config(tiny.SHAPE)
EXAMPLES = tiny.examples(8, seed=1)
STEPS = 5
MICROBATCH = Microbatch(Shape(8, 128, 96), ((3, 0, 5), (1,), (7, 2, 6), (4,)))
OPTIMIZER = make_optimizer(TrainConfig(learning_rate=1e-2, warmup_steps=0), 2 * STEPS)


def steps(rank, sharding):
    """(The adapter's change, losses, the arrays that were held) of five steps."""
    model = random_model(CONFIG, jax.random.key(0), scale=0.15, stacked=True, sharding=sharding)
    adapter = tiny.random_adapter(CONFIG, LoraConfig(rank=rank, alpha=rank), spread=0.1)
    state = TrainState(jax.tree.map(jnp.array, adapter.factors), OPTIMIZER.init(adapter.factors))
    if sharding.mesh is not None:
        state = host_arrays.to_devices(state, state_shardings(CONFIG, state, OPTIMIZER, sharding))
    start = jax.tree.map(np.asarray, state.factors)
    losses = []
    for _ in range(STEPS):
        batch = host_arrays.to_devices(collate(EXAMPLES, MICROBATCH), sharding.named(("batch", None)))
        sums = zero_accumulator(state.factors)
        sums = accumulate(model, state.factors, adapter.scale, sums, batch, remat="full", sharding=sharding)
        state, metrics = update(state, [sums], optimizer=OPTIMIZER)
        losses.append(float(metrics.loss))
    held = {"factors": state.factors, "moments": state.optimizer, "gradients": sums.gradients}
    return jax.tree.map(lambda new, old: np.asarray(new) - old, state.factors, start), losses, held


@pytest.fixture(scope="module")
def alone():
    return steps(8, UNSHARDED)


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 4, "tensor": 2}, pytest.param({"fsdp": 8}, marks=pytest.mark.long)], ids=str
)
def test_nothing_of_the_adapter_is_held_twice_and_five_steps_are_those_of_one_device(sizes, alone):
    change, losses, held = steps(8, Sharding(make_mesh(sizes)))
    for kind, tree in held.items():
        arrays = [x for x in jax.tree.leaves(tree) if x.ndim > 1]
        assert len(arrays) == (28 if kind == "moments" else 14)
        for array in arrays:
            on_one = array.addressable_shards[0].data.size
            assert on_one * 8 == array.size, (kind, array.shape, array.sharding.spec)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    apart = optax.global_norm(jax.tree.map(lambda a, b: a - b, change, alone[0]))
    assert apart < 1e-3 * optax.global_norm(alone[0])


@pytest.mark.fast
def test_a_width_or_rank_that_does_not_divide_is_split_less():
    sharding = Sharding(make_mesh({"fsdp": 4, "tensor": 2}))
    assert sharding.factor("LDSR", (2, 64, 1, 3)).spec == jax.P(None, ("fsdp", "tensor"))
    assert sharding.factor("LDSR", (2, 68, 1, 3)).spec == jax.P(None, "fsdp")
    assert sharding.factor("LSRNH", (2, 1, 8, 4, 16)).spec == jax.P(None, None, "fsdp", "tensor")
    assert sharding.factor("LSRNH", (2, 1, 3, 4, 16)).spec == jax.P(None, None, None, "tensor")
    sampling = Sharding(sharding.mesh, sampling=True)
    assert sampling.factor("LDSR", (2, 64, 1, 8)).spec == jax.P(None, "fsdp")
