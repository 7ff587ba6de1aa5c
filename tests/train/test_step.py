"""A step is the same however its examples are packed; the chunked loss; the schedule against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from em_jax.base import host_arrays
from em_jax.base.errors import UsageError
from em_jax.formats.checkpoint import load_model, save_model
from em_jax.formats.model_config import parse_config
from em_jax.lora.config import LoraConfig
from em_jax.model.kernels.cpu_threads import balance
from em_jax.model.kernels.gather import gather_positions
from em_jax.model.parameters import random_model
from em_jax.model.remat import KEPT
from em_jax.model.sharding import UNSHARDED, Sharding, make_mesh
from em_jax.train import step as train_step
from em_jax.train.batches import Microbatch, MicrobatchCosts, Shape, collate, plan_microbatches
from em_jax.train.config import TrainConfig
from em_jax.train.loss import summed_loss
from em_jax.train.step import (
    TrainState,
    accumulate,
    learning_rate,
    make_optimizer,
    optimizer_step,
    update,
    zero_accumulator,
)

CONFIG = parse_config(tiny.SHAPE)
LORA = LoraConfig(rank=3, alpha=6, targets=("q_proj", "o_proj", "up_proj"), rank_pattern={"layers.0.mlp.up_proj": 5})
EXAMPLES = tiny.examples(8, seed=1)
OPTIMIZER = make_optimizer(TrainConfig(learning_rate=1e-2, warmup_steps=0), 10)


@functools.cache
def adapter():
    return tiny.random_adapter(CONFIG, LORA, spread=0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    save_model(random_model(CONFIG, jax.random.key(0), scale=0.15, stacked=True), directory)
    return directory


def microbatches(layout):
    """The microbatches of one step over all EXAMPLES."""
    step = range(len(EXAMPLES))
    if layout == "one_each":
        return [Microbatch(Shape(1, 64, 64), ((i,),)) for i in step]
    if layout == "padded":
        return [Microbatch(Shape(8, 64, 64), tuple((i,) for i in step))]
    if layout == "packed":
        return [Microbatch(Shape(8, 128, 96), ((3, 0, 5), (1,), (7, 2, 6), (4,)))]
    return plan_microbatches(EXAMPLES, [list(step)], MicrobatchCosts(**layout)).steps[0]


def one_step(checkpoint, layout, sharding=UNSHARDED, stacked=True, remat="none"):
    """(summed gradients, the adapter's factors after one AdamW step, metrics)."""
    model = load_model(checkpoint, sharding=sharding, stacked=stacked)
    factors = jax.tree.map(jnp.array, adapter().factors)
    total = zero_accumulator(factors)
    for microbatch in microbatches(layout):
        batch = host_arrays.to_devices(collate(EXAMPLES, microbatch), sharding.named(("batch", None)))
        total = accumulate(model, factors, adapter().scale, total, batch, remat=remat, sharding=sharding)
    gradients = jax.tree.map(np.asarray, total.gradients)
    state, metrics = update(TrainState(factors, OPTIMIZER.init(factors)), [total], optimizer=OPTIMIZER)
    return gradients, jax.tree.map(np.asarray, state.factors), metrics


@pytest.fixture(scope="module")
def plain(checkpoint):
    """Every example in a microbatch by itself (tests/reference compares unpadded ones with torch)."""
    return one_step(checkpoint, "one_each")


def distance(one, other) -> float:
    """The norm of the difference of two trees, as a share of the second's norm."""
    packed = jax.tree.map(lambda a, b: a - b, one, other)
    return float(optax.global_norm(packed) / optax.global_norm(other))


def padded(mesh):
    values = ("padded", mesh, {"remat": "full" if 1 in (mesh["data"], mesh["tensor"]) else "none"})
    return values if mesh in tiny.ORDINARY_MESHES else tiny.long(*values)


@pytest.mark.parametrize(
    "layout, mesh, options",
    [
        ("padded", None, {}),
        *(("packed", None, {"remat": remat}) for remat in KEPT),
        ("packed", None, {"remat": "full", "stacked": False}),
        ("packed", None, {"remat": "selective", "stacked": False}),
        ({"rows_per_pass": 3}, None, {"stacked": False}),
        ({"rows_per_pass": 2, "divide_by": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"remat": "selective"}),
        *map(padded, tiny.MESHES),
    ],
    ids=str,
)
def test_every_layout_takes_the_same_step(layout, mesh, options, checkpoint, plain):
    sharding = Sharding(make_mesh(mesh)) if mesh else UNSHARDED
    gradients, factors, metrics = one_step(checkpoint, layout, sharding, **options)
    assert metrics.tokens == plain[2].tokens == sum(sum(each.mask[1:]) for each in EXAMPLES)
    assert abs(metrics.loss - plain[2].loss) < 1e-5 * plain[2].loss
    assert abs(metrics.grad_norm - plain[2].grad_norm) < 1e-5 * plain[2].grad_norm
    assert distance(gradients, plain[0]) < 1e-5
    assert distance(factors, plain[1]) < 1e-5


def test_two_threads_take_the_step_of_one(checkpoint, plain, monkeypatch):
    model = load_model(checkpoint, stacked=True)
    for threads in (1, 2):
        monkeypatch.setattr(train_step, "concurrent_programs", lambda sharding, threads=threads: threads)
        factors = jax.tree.map(jnp.array, adapter().factors)
        state, metrics = optimizer_step(
            model, TrainState(factors, OPTIMIZER.init(factors)), microbatches("one_each"), scale=adapter().scale,
            examples=EXAMPLES, optimizer=OPTIMIZER
        )  # fmt: skip
        assert metrics.tokens == plain[2].tokens and abs(metrics.loss - plain[2].loss) < 1e-5 * plain[2].loss
        assert distance(state.factors, plain[1]) < 1e-5


@pytest.mark.fast
def test_balanced_lists_have_every_item_once():
    assert balance([5, 9, 1, 7, 3], float, 2) == [[9, 3, 1], [7, 5]]
    assert balance([5, 9, 1], float, 1) == [[9, 5, 1]]


def test_ranks_an_adapter_lacks_stay_zero(plain):
    a, b = plain[1]["mlp.up_proj"]
    assert a[0, ..., 3:].any() and b[0, 0, 3:].any()
    assert not a[1, ..., 3:].any() and not b[1, 0, 3:].any()


@pytest.mark.parametrize("size", [1, 5, 12, 0])
@pytest.mark.parametrize("used", [12, 9, 0])
def test_the_loss_in_chunks_is_the_loss(size, used, checkpoint):
    model = load_model(checkpoint)
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(2, 12, 64)), jnp.float32)
    labels = jnp.asarray(generator.integers(0, 160, (2, 12)), jnp.int32)
    weights = jnp.asarray(generator.integers(0, 2, (2, 12)) * (np.arange(12) < used), jnp.float32)

    def whole(hidden):
        losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), labels)
        return 3 * jnp.sum(losses * weights)

    ours = jax.jit(jax.value_and_grad(lambda h: 3 * summed_loss(model, h, labels, weights, size=size)))(hidden)
    theirs = jax.value_and_grad(whole)(hidden)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_the_loss_keeps_no_array_of_all_logits(checkpoint):
    model = load_model(checkpoint)
    hidden, labels = jnp.zeros((1, 4096, 64)), jnp.zeros((1, 4096), jnp.int32)
    run = jax.jit(jax.grad(lambda h: summed_loss(model, h, labels, jnp.ones((1, 4096)), size=64)))
    kept = run.lower(hidden).compile().memory_analysis().temp_size_in_bytes
    hidden_bytes, logit_bytes = 4096 * 64 * 4, 4096 * 160 * 4
    assert kept < 2 * hidden_bytes + logit_bytes / 8


@pytest.mark.fast
def test_the_gather_of_a_cpu_is_the_plain_one_with_its_gradient():
    batch = collate(EXAMPLES, Microbatch(Shape(2, 96, 64), ((0, 1), (2,))))
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 96, 8)), jnp.float32)
    towards = jnp.asarray(np.random.default_rng(1).normal(size=(2, 64, 8)), jnp.float32) * batch.weights[..., None]

    def value_and_gradient(gather):
        return jax.value_and_grad(lambda h: jnp.sum(gather(h) * towards))(hidden)

    ours = value_and_gradient(lambda h: gather_positions(h, batch.loss_positions, batch.weights))
    theirs = value_and_gradient(lambda h: jnp.take_along_axis(h, batch.loss_positions[:, :, None], axis=1))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


@pytest.mark.parametrize("warmup, steps", [(5, 20), (0, 4), (5, 3), (1, 1)])
def test_schedules_are_transformers(warmup, steps):
    torch, transformers = tiny.references()
    for name in ("linear", "cosine", "constant"):
        ours = learning_rate(TrainConfig(learning_rate=0.1, warmup_steps=warmup, schedule=name), steps)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        kind = "constant_with_warmup" if name == "constant" else name
        theirs = transformers.get_scheduler(kind, optimizer, warmup, steps)
        for step in range(steps):
            assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], abs=1e-8), (name, step)
            optimizer.step()
            theirs.step()


@pytest.mark.fast
def test_an_unknown_schedule_is_refused():
    with pytest.raises(UsageError, match="train.schedule: expected linear, cosine or constant, found 'step'"):
        learning_rate(TrainConfig(schedule="step"), 3)(0)
