"""Counted operations are those of the formulas."""

import json

import jax
import jax.numpy as jnp
import pytest

from em_jax.config import Config, replace
from em_jax.formats.model_config import config_fields, named_config
from em_jax.formats.presets import PRESETS
from em_jax.model.config import TransformerConfig
from em_jax.perf.roofline import Work, work_of
from em_jax.runs.placement_costs import sizes
from em_jax.runs.programs import Shapes
from em_jax.train.batches import Shape

pytestmark = pytest.mark.fast

D, F, L, N, K, H, V = 64, 96, 3, 4, 2, 16, 160
CONFIG = TransformerConfig(V, D, F, L, N, K, H)
ROWS, LENGTH, PLACES, RANK = 2, 32, 8, 4
INPUTS_AND_OUTPUTS = (D, N * H), (D, K * H), (D, K * H), (N * H, D), (D, F), (D, F), (F, D)
"""Of the seven matrices of a layer, all with an adapter."""


def shapes(**changes):
    values = {"lora.rank": RANK, "dtype": "float32"} | {name.replace("__", "."): v for name, v in changes.items()}
    return Shapes(CONFIG, replace(Config(), values))


def test_loops_branches_and_derivatives_are_followed():
    x = jnp.ones((8, 4))

    def body(total, _):
        return total + jnp.sum(x @ x.T), None

    def program(flag):
        total, _ = jax.lax.scan(body, 0.0, None, length=5)
        total += jax.lax.cond(flag, lambda: jnp.sum(x.T @ x), lambda: 0.0)
        return jax.lax.while_loop(lambda t: t < 9, lambda t: t + jax.jit(lambda: jnp.sum(x @ x.T))(), total)

    once = 2 * 8 * 4 * 8
    found = work_of(jax.make_jaxpr(program)(True), while_steps=7)
    assert found.flops == 5 * once + 2 * 4 * 8 * 4 + 7 * once
    assert work_of(jax.make_jaxpr(lambda x: x @ x.T)(x)) == Work(once, 4 * (32 + 32 + 64))


def test_an_operand_that_was_cast_is_read_as_it_was():
    x, weight = jnp.ones((8, 4)), jnp.ones((4, 16), jnp.int8)
    whole = jax.jit(lambda x, weight: jnp.einsum("bd,df->bf", x, weight.astype(jnp.float32)))
    assert work_of(jax.make_jaxpr(whole)(x, weight)).bytes == 4 * 32 + 64 + 4 * 128
    # Of a decoded token nearly all that is read are weights, so int8 reads a little more than a quarter of float32.
    tokens = [shapes(model__quantization=kind).decode(1, 16).traced.jaxpr for kind in ("none", "int8")]
    full, held = (work_of(each, while_steps=1).bytes for each in tokens)
    layers = CONFIG.num_hidden_layers * sizes(CONFIG, rank=0).layer
    assert full - held == 3 * layers


@pytest.mark.parametrize("remat", ["none", "elementwise", "selective", "full"])
@pytest.mark.parametrize("scan", ["true", "false"])
def test_a_training_pass_is_the_closed_form(remat, scan):
    """The base has no gradient of its own, so backward costs as much as forward; an adapter's costs twice."""
    tokens, places = ROWS * LENGTH, ROWS * PLACES
    program = shapes(train__remat=remat, model__scan_layers=scan).train_microbatch(Shape(ROWS, LENGTH, PLACES))
    found = work_of(program.traced.jaxpr, while_steps=program.loops)
    base = sum(2 * tokens * inputs * outputs for inputs, outputs in INPUTS_AND_OUTPUTS)
    low = sum(2 * tokens * RANK * (inputs + outputs) for inputs, outputs in INPUTS_AND_OUTPUTS)
    product = 2 * ROWS * N * LENGTH * LENGTH * H
    forward = base + low + 2 * product
    # Backward: scores again, and the gradients of values, weights, keys and queries.
    backward = base + 2 * low + 5 * product
    # Logits, and the gradient of the hidden states.
    head = 2 * 2 * places * D * V
    # What a layer's recomputation need not give is its last matmul; `selective` keeps the ranks' own numbers.
    full = forward - 2 * tokens * F * D - 2 * tokens * RANK * D
    again = {"full": full, "selective": 2 * 2 * tokens * (D + RANK) * F}.get(remat, 0)
    # Layer by layer it shows that nobody asks for the gradient of what the first one's projections read.
    unasked = 2 * tokens * D * (N * H + 2 * K * H) if scan == "false" else 0
    assert found.flops == L * (forward + backward + again) + head - unasked


def test_decoding_is_the_closed_form():
    slots, capacity, chunk = 3, 64, 16
    program = shapes().decode(slots, capacity)
    found = work_of(program.traced.jaxpr, while_steps=program.loops)
    base = sum(2 * slots * inputs * outputs for inputs, outputs in INPUTS_AND_OUTPUTS)
    low = sum(2 * slots * RANK * (inputs + outputs) for inputs, outputs in INPUTS_AND_OUTPUTS)
    attended = 2 * 2 * slots * N * H * (capacity + chunk)
    assert found.flops == chunk * (L * (base + low + attended) + 2 * slots * D * V)


def test_every_qwen_has_the_parameters_its_report_states():
    """Non-embedding parameters in billions (arXiv:2412.15115 and the model cards)."""
    stated = {"0.5b": 0.36, "1.5b": 1.31, "3b": 2.77, "7b": 6.53, "14b": 13.1, "32b": 31.0, "72b": 70.0}
    assert {f"qwen2.5-{size}" for size in stated} == {name for name in PRESETS if name.startswith("qwen2.5-")}
    for size, billions in stated.items():
        config = named_config(f"Qwen/Qwen2.5-{size.upper()}-Instruct")
        layers = config.num_hidden_layers * sizes(config, rank=0).layer
        assert layers / 1e9 == pytest.approx(billions, rel=0.02), size


def test_a_checkpoint_is_a_model_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_fields(CONFIG)))
    assert named_config(str(tmp_path)) == CONFIG
