"""Which collectives the compiled steps hold, on eight host devices: no more weights than a layer's, no base gradients.

docs/collectives.md holds the lists; where one differs the test prints the new one.
"""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from hlo import collectives, table

from em_jax.config import Config, replace
from em_jax.model.config import TransformerConfig
from em_jax.model.sharding import Sharding, make_mesh, mesh_text
from em_jax.runs.programs import Shapes
from em_jax.train.batches import Shape

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = TransformerConfig(960, 256, 320, 3, 4, 2, 16)
MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
SLOTS = 8
STEPS = ("training", "prefill", "decoding")
TABLE_SIZE = CONFIG.vocab_size * CONFIG.hidden_size
LARGEST = CONFIG.hidden_size * CONFIG.intermediate_size
SMALLEST = CONFIG.hidden_size * CONFIG.num_key_value_heads * CONFIG.head_dim
"""Numbers in the vocabulary's table, and in a layer's largest and smallest matrix."""


@functools.cache
def compiled(step: str, mesh: str, quantization: str = "none") -> str:
    """The HLO of a step over a mesh; a row of 8 tokens for every batch part keeps activations small."""
    sizes = {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", mesh)}
    settings = replace(Config(), {"lora.rank": 2, "dtype": "float32", "train.remat": "full"})
    settings = replace(settings, {"model.quantization": quantization})
    shapes = Shapes(CONFIG, settings, Sharding(make_mesh(sizes)))
    if step == "training":
        program = shapes.train_microbatch(Shape(shapes.sharding.batch_shards, 8, 8))
    elif step == "prefill":
        program = shapes.prefill(8, 16, 32, SLOTS)
    else:
        program = shapes.decode(SLOTS, 32)
    return program.traced.lower().compile().as_text()


def step_collectives(step: str, mesh: str, quantization: str = "none"):
    """The collectives of a step over a mesh."""
    return collectives(compiled(step, mesh, quantization))


def numbers(each) -> int:
    return math.prod(each.shape)


def lines(step: str, mesh: dict) -> list[str]:
    return [f"{step}, {mesh_text(mesh)}:"] + [f"  {line}" for line in table(step_collectives(step, mesh_text(mesh)))]


@pytest.mark.parametrize("mesh", MESHES, ids=mesh_text)
def test_training_gathers_one_weight_at_a_time_and_sums_no_base_gradient(mesh):
    parts = mesh.get("tensor", 1)
    once = 0
    # Twice through the loss's chunks.
    for each in collectives(compiled("training", mesh_text(mesh)), while_steps=2):
        if each.kind == "all-gather" and each.times > 1:
            assert numbers(each) <= LARGEST // parts, each
        elif each.kind == "all-gather" and numbers(each) > LARGEST // parts:
            assert numbers(each) == TABLE_SIZE // parts, each  # the head, for both of its products
            once += 1
        elif each.kind in ("all-reduce", "reduce-scatter"):
            assert numbers(each) < SMALLEST // parts, each
    assert once == 1


@pytest.mark.parametrize("mesh", MESHES, ids=mesh_text)
def test_prefill_gathers_one_weight_at_a_time(mesh):
    each, parts = step_collectives("prefill", mesh_text(mesh)), mesh.get("tensor", 1)
    assert each and max(numbers(one) for one in each if one.times > 1) <= LARGEST // parts
    assert [numbers(one) for one in each if one.times == 1 and numbers(one) > LARGEST // parts] == [TABLE_SIZE // parts]


@pytest.mark.parametrize("mesh", MESHES, ids=mesh_text)
def test_decoding_moves_no_weight(mesh):
    each = step_collectives("decoding", mesh_text(mesh))
    assert each and max(numbers(one) for one in each) < SMALLEST // mesh.get("tensor", 1)
    assert not [one for one in each if one.shape[:1] == (CONFIG.hidden_size,)]
    # Logits go to the rows' devices, and nowhere else.
    assert not [one for one in each if one.kind == "all-gather" and one.shape[-1:] == (CONFIG.vocab_size,)]


@pytest.mark.parametrize("mesh", MESHES, ids=mesh_text)
def test_an_int8_base_travels_as_int8_and_is_never_whole_in_float(mesh):
    smallest, in_float = SMALLEST // mesh.get("tensor", 1), step_collectives("training", mesh_text(mesh))
    gathers = [each for each in in_float if each.kind == "all-gather" and each.times > 1]
    shapes = {each.shape for each in gathers if numbers(each) >= smallest}
    in_int8 = step_collectives("training", mesh_text(mesh), "int8")
    gathered = [each for each in in_int8 if each.shape in shapes and each.times > 1]
    assert gathered and {each.dtype for each in gathered} == {"s8"}
    assert max(numbers(one) for one in step_collectives("decoding", mesh_text(mesh), "int8")) < SMALLEST // mesh.get(
        "tensor", 1
    )
    # Cast before the loop over layers, or over tokens, the stack would stand there once more in four bytes a number.
    layers, width, hidden = CONFIG.num_hidden_layers, CONFIG.hidden_size, CONFIG.intermediate_size
    part = mesh["fsdp"], mesh.get("tensor", 1)
    stacks = f"[{layers},{width // part[0]},{hidden // part[1]}]", f"[{layers},{hidden // part[1]},{width // part[0]}]"
    for step in ("training", "decoding"):
        text = compiled(step, mesh_text(mesh), "int8")
        assert any("s8" + stack in text for stack in stacks) and not any("f32" + stack in text for stack in stacks)


def test_the_document_lists_them():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f"jax=={jax.__version__}\n" not in pins:
        pytest.skip(f"the list is that of the pinned jax, this is {jax.__version__}")
    wanted = "\n".join(line for step in STEPS for mesh in MESHES for line in lines(step, mesh))
    page = ROOT / "docs" / "collectives.md"
    assert wanted in page.read_text(encoding="utf-8"), f"docs/collectives.md should hold:\n{wanted}"


def test_the_reader_of_hlo_counts_loops():
    sharding = Sharding(make_mesh({"fsdp": 8}))
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding.named(("batch", None)))

    def program(x):
        body = lambda total, _: (total + jnp.sum(jnp.sin(x * total[None]), axis=0), None)  # noqa: E731
        return jax.lax.scan(body, jnp.zeros(128), None, length=5)[0]

    (one,) = collectives(jax.jit(lambda x: program(x)).lower(x).compile().as_text())
    assert (one.kind, one.dtype, one.shape, one.times) == ("all-reduce", "f32", (128,), 5)
