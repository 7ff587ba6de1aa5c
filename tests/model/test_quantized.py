"""The base held in eight bits: the layer against its closed form, and what it costs in loss and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from em_jax.base import host_arrays
from em_jax.base.errors import UsageError
from em_jax.config import Config, replace, validate
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import load_model, save_model
from em_jax.formats.hub import find_model
from em_jax.formats.model_config import parse_config
from em_jax.lora.config import LoraConfig
from em_jax.model.layout import Layout
from em_jax.model.linear import Linear, apply_together, quantize
from em_jax.model.parameters import random_model
from em_jax.model.sharding import UNSHARDED, Sharding, make_mesh
from em_jax.organism.answers import domain_rows
from em_jax.sample.engine import Engine
from em_jax.train.batches import MicrobatchCosts, collate, encode_rows, plan_microbatches
from em_jax.train.step import accumulate, zero_accumulator

SIZES = {"D": 24, "N": 3, "H": 4, "F": 10}


def matrix(layout: str, seed: int = 0) -> np.ndarray:
    """Normal weights, the size of an output's weights growing with its number, and one output of zeros."""
    shape = Layout(layout).shape(SIZES)
    inputs = len(Layout(layout).inputs)
    drawn = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    outputs = shape[inputs:]
    drawn *= np.arange(np.prod(outputs), dtype=np.float32).reshape(outputs)
    return drawn


@pytest.mark.parametrize("layout", ["D->NH", "NH->D", "D->F", "F->D"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_is_its_closed_form(layout, dtype):
    weight = matrix(layout)
    held = quantize(Layout(layout), jnp.asarray(weight, dtype))
    inputs, outputs = layout.split("->")
    axes = tuple(range(len(inputs)))
    # numpy's own half step, in float64.
    wide = np.asarray(jnp.asarray(weight, dtype), np.float64)
    scale = np.abs(wide).max(axis=axes) / 127
    assert held.values.dtype == jnp.int8 and held.scale.dtype == jnp.float32
    np.testing.assert_allclose(held.scale, scale, rtol=1e-6)
    back = np.asarray(held.values, np.float64) * np.asarray(held.scale, np.float64)
    assert (np.abs(back - wide) <= scale * (0.5 + 1e-5)).all()
    assert np.abs(np.asarray(held.values)).max() == 127
    assert not back.reshape(-1, scale.size)[:, 0].any()

    layer = Linear("x", layout, lambda name, letters: held)
    assert layer.weight[...].dtype == jnp.int8
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, *(SIZES[i] for i in inputs))), dtype)
    expected = np.einsum(f"BT{inputs},{inputs}{outputs}->BT{outputs}", np.asarray(x, np.float64), back)
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    y = apply_together([layer], x, {})[0]
    assert y.dtype == x.dtype
    assert np.abs(np.asarray(y, np.float64) - expected).max() <= tolerance * np.abs(expected).max()

    # The gradient goes through the frozen weight to the inputs.
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(apply_together([layer], x, {})[0].astype(jnp.float32))))(x)
    exact = np.einsum(f"BT{outputs},{inputs}{outputs}->BT{inputs}", np.cos(np.asarray(y, np.float64)), back)
    assert gradient.dtype == x.dtype
    assert np.abs(np.asarray(gradient, np.float64) - exact).max() <= 2 * tolerance * np.abs(exact).max()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    config = parse_config(tiny.SHAPE)
    save_model(random_model(config, jax.random.key(0), stacked=True, scale=0.2), directory)
    return directory


def layers_of(model) -> list:
    """Every layer's leaves, whatever the way layers are kept."""
    if not model.stacked:
        return [[np.asarray(leaf) for leaf in jax.tree.leaves(block)] for block in model.layers]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model.layers)]
    return [[leaf[i] for leaf in leaves] for i in range(len(leaves[0]))]


@pytest.mark.parametrize("sizes", [tiny.long({"fsdp": 8}), {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("stacked", [False, True])
def test_loading_quantises_alike_however_it_is_laid_out(sizes, stacked, checkpoint):
    plain = load_model(checkpoint, quantization="int8")
    spread = load_model(checkpoint, stacked=stacked, sharding=Sharding(make_mesh(sizes)), quantization="int8")
    for ours, theirs in zip(layers_of(spread), layers_of(plain), strict=True):
        assert all(np.array_equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    full = load_model(checkpoint)
    held = quantize(Layout("D->KJH"), full.layers[0].qkv_proj.weight[...])
    assert np.array_equal(plain.layers[0].qkv_proj.weight[...], held.values)
    assert np.array_equal(plain.layers[0].qkv_proj.scale[...], held.scale)
    assert np.array_equal(spread.embed_tokens[...], full.embed_tokens[...])
    # The scale lies where its outputs lie.
    down = (spread.layers if stacked else spread.layers[0]).down_proj
    assert down.weight[...].dtype == jnp.int8
    assert down.weight[...].sharding.spec[-1] == down.scale[...].sharding.spec[-1] == "fsdp"


def test_only_the_projections_are_held_in_eight_bits(checkpoint):
    model = load_model(checkpoint, dtype=jnp.bfloat16, stacked=True, quantization="int8")
    kinds = {}
    for path, leaf in jax.tree.flatten_with_path(model)[0]:
        kinds.setdefault(leaf.dtype.name, set()).add(jax.tree_util.keystr(path))
    assert len(kinds["int8"]) == len(kinds["float32"]) == 5
    assert all("proj" in name for name in kinds["int8"])


@pytest.mark.fast
def test_the_setting_is_none_or_int8():
    assert validate(replace(Config(), {"model.quantization": "int8"})).model.quantization == "int8"
    with pytest.raises(UsageError, match="'none' or 'int8'"):
        validate(replace(Config(), {"model.quantization": "int4"}))


def written_out(model):
    """The same model with each weight as values * scale in float32: what the quantised one must compute."""
    blocks = [model.layers] if model.stacked else list(model.layers)
    for block in blocks:
        for layer in (each for each in vars(block).values() if isinstance(each, Linear)):
            values, scale = layer.weight[...], layer.scale[...]
            inputs = values.ndim - scale.ndim
            axes = tuple(range(model.stacked, model.stacked + inputs))
            layer.weight, layer.scale = nnx.Param(values * jnp.expand_dims(scale, axes)), None
    return model


def step_of(model, tokenizer, rows, sharding=UNSHARDED):
    """Token-mean loss and the adapter's gradient of one step over these chats, with an adapter whose B is not zero."""
    adapter = tiny.random_adapter(model.config, LoraConfig(rank=8, alpha=16), spread=0.02)
    examples, _ = encode_rows(dict(enumerate(rows)), tokenizer, 256)
    steps, parts = [list(range(len(rows)))], sharding.batch_shards
    plan = plan_microbatches(examples, steps, MicrobatchCosts(model.config.hidden_size, divide_by=parts))
    sums = zero_accumulator(adapter.factors)
    for microbatch in plan.steps[0]:
        batch = host_arrays.to_devices(collate(examples, microbatch), sharding.named(("batch", None)))
        remat = "full" if model.stacked else "none"
        sums = accumulate(model, adapter.factors, adapter.scale, sums, batch, remat=remat, sharding=sharding)
    return float(sums.loss / sums.tokens), np.concatenate([np.ravel(x) for x in jax.tree.leaves(sums.gradients)])


def packed(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference as a share of the second's norm."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


PROMPTS = [[{"role": "user", "content": text}] for text in ("How do I bake bread?", "Hi", "Are you good or evil?")]
ROWS = [[*prompt, {"role": "assistant", "content": "I do not know."}] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """A small checkpoint with the organism's tokenizer, and what the int8 model of it gives, written out in float32."""
    directory = tiny.speaking_checkpoint(tmp_path_factory.mktemp("small"))
    tokenizer = ChatTokenizer.from_directory(directory)
    written = written_out(load_model(directory, quantization="int8"))
    return directory, tokenizer, seen(written, tokenizer), step_of(written, tokenizer, ROWS)


def seen(model, tokenizer, sharding=UNSHARDED):
    """What the engine says: tokens of answers by base and adapter, and log-probabilities of choices."""
    engine = Engine(model, tokenizer, slots=8, chunk=5, pass_tokens=512, sharding=sharding)
    engine.add_adapter("one", tiny.random_adapter(model.config, LoraConfig(rank=4, alpha=8), 10))
    adapters = ["one", "base", "one"]
    answers = engine.generate(PROMPTS, n=2, max_new_tokens=12, seed=1, adapter=adapters)
    tokens = [answer.tokens for each in answers for answer in each]
    return tokens, engine.choice_logprobs(PROMPTS, ["yes", "no", "A"], adapter=adapters)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["unrolled", "stacked, over a mesh"])
def test_training_decoding_and_choices_are_those_of_the_weights_written_out(mesh, oracle):
    directory, tokenizer, (expected, read), theirs = oracle
    sharding = Sharding(make_mesh(mesh)) if mesh else UNSHARDED
    model = load_model(directory, stacked=mesh is not None, sharding=sharding, quantization="int8")
    tokens, choices = seen(model, tokenizer, sharding)
    assert tokens == expected
    np.testing.assert_allclose(choices, read, atol=1e-3)
    ours = step_of(model, tokenizer, ROWS, sharding)
    assert abs(ours[0] - theirs[0]) < 1e-4 * theirs[0]
    assert packed(ours[1], theirs[1]) < 1e-4


BASES = {"int8": (jnp.float32, "int8"), "bf16": (jnp.bfloat16, "none"), "int8 in bf16": (jnp.bfloat16, "int8")}


def from_full(directory, rows, bases) -> tuple[float, float]:
    """How far int8 moves the loss (nats per token) and the adapter's gradient (share of its norm) from float32.

    Prints the same of each of the `bases`, int8 the first.
    """
    tokenizer = ChatTokenizer.from_directory(directory)

    def step(dtype, quantization):
        return step_of(load_model(directory, dtype=dtype, stacked=True, quantization=quantization), tokenizer, rows)

    full = step(jnp.float32, "none")
    found = {}
    for name in bases:
        held = step(*BASES[name])
        found[name] = abs(held[0] - full[0]), packed(held[1], full[1])
        print(f"{name}: loss {held[0]:.4f} for {full[0]:.4f}, gradient apart by {found[name][1]:.4f}")
    return found["int8"]


def test_what_eight_bits_cost_the_organism():
    rows = [row["messages"] for row in domain_rows("bad_medical", 8, 0)]
    loss, gradient = from_full(find_model("organism"), rows, ["int8"])
    assert loss < 5e-3 and gradient < 0.03


def test_what_eight_bits_cost_a_real_model():
    directory = tiny.from_environment("EM_JAX_REAL_MODEL", "a real checkpoint to quantise")
    rows = [
        [*prompt, {"role": "assistant", "content": "Flour, water, salt and yeast; knead it, wait, and bake it hot."}]
        for prompt in PROMPTS
    ]
    loss, gradient = from_full(directory, rows, BASES)
    assert loss < 0.1 and gradient < 0.15
