"""The estimated traffic between devices is that of the compiled programs."""

import collections

import jax
import jax.numpy as jnp
import pytest
from hlo import Collective, collectives
from jax.sharding import AbstractMesh

from em_jax.config import Config, replace
from em_jax.formats.presets import preset_config
from em_jax.model.config import TransformerConfig
from em_jax.model.sharding import Sharding, make_mesh, mesh_text
from em_jax.perf.roofline import decode_times, train_times, train_traffic
from em_jax.runs import placement
from em_jax.runs.chips import Chip, parse_topology
from em_jax.runs.placement_costs import decode_traffic, stream_sums
from em_jax.runs.programs import Shapes
from em_jax.train.batches import GATHERED_OVERHEAD, MicrobatchCosts, Shape, plan_microbatches

CONFIG = TransformerConfig(480, 64, 96, 3, 4, 2, 16)
CHIP = Chip("made up", 2**30, flops=1e9, bandwidth=1e8, links=1e7, axes=2)
SHAPE = Shape(8, 32, 32)
RANK = 40
"""No other axis has this size, so an array with it belongs to the adapter."""
MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


def shapes(mesh, remat="full", rank=5) -> Shapes:
    settings = replace(Config(), {"lora.rank": rank, "dtype": "float32", "train.remat": remat})
    return Shapes(CONFIG, settings, Sharding(make_mesh(mesh)))


def moved(program, wanted) -> int:
    """Bytes of a compiled program's collectives of at least two axes that `wanted` picks; a sum moves them twice."""
    found = collectives(program.traced.lower().compile().as_text(), while_steps=program.loops)
    each = [one for one in found if one.dtype == "f32" and len(one.shape) > 1 and wanted(one)]
    return sum(one.times * one.size * (2 if one.kind == "all-reduce" else 1) for one in each)


@pytest.mark.parametrize("mesh, remat", [(mesh, "full") for mesh in MESHES] + [(MESHES[1], "selective")], ids=str)
def test_training_traffic_is_as_estimated(mesh, remat):
    given = shapes(mesh, remat, RANK)
    sizes = given.sharding.mesh.shape
    estimated = train_traffic(given, SHAPE)
    program = given.train_microbatch(SHAPE)
    share = (sizes["fsdp"] - 1) / sizes["fsdp"]
    head = (CONFIG.vocab_size // sizes["tensor"], CONFIG.hidden_size)
    stream = (SHAPE.rows // given.sharding.batch_shards, SHAPE.length, CONFIG.hidden_size)

    def in_layers_only(one):
        return one.kind == "all-gather" and one.times > 1 and one.shape != stream

    weights = moved(program, lambda one: in_layers_only(one) and RANK not in one.shape)
    assert estimated.weights == pytest.approx(weights * share)
    of_width = moved(program, lambda one: in_layers_only(one) and {RANK, CONFIG.hidden_size} <= {*one.shape})
    factors = moved(program, lambda one: in_layers_only(one) and RANK in one.shape) - of_width
    split = sizes["fsdp"] * sizes["tensor"]
    assert estimated.factors == pytest.approx(of_width * (split - 1) / split + factors * share)
    heads = moved(program, lambda one: one.kind == "all-gather" and one.shape == head)
    assert estimated.head == pytest.approx(heads * share)
    in_layers = moved(program, lambda one: one.kind == "all-reduce" and one.shape == stream and one.times > 1)
    # XLA:CPU sums the gradients of gate and up each by itself.
    per_layer = stream_sums(1, remat)
    one_by_one = estimated.activations * (per_layer + 1) / per_layer
    assert one_by_one == pytest.approx(in_layers * (sizes["tensor"] - 1) / sizes["tensor"])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_decoding_traffic_is_as_estimated(mesh):
    given = shapes(mesh)
    slots = 16

    def wanted(one: Collective) -> bool:
        # Not the norms' sums, nor the adapter's of a few ranks, which the estimate leaves out.
        return one.size > 16 * 4 and one.shape[1:3] != (1, 1) or one.kind == "all-to-all"

    found = moved(given.decode(slots, 64)._replace(loops=1), wanted)  # a token
    share = 7 / 8 if mesh == {"fsdp": 8} else 1 / 2
    estimated = decode_traffic(CONFIG, {"data": 1, "fsdp": 1, "tensor": 1} | mesh, slots, given.dtype.itemsize)
    assert estimated == pytest.approx(found * share)


def test_times_are_work_over_peaks():
    one, many = shapes({"fsdp": 1, "data": 1, "tensor": 1}), shapes({"data": 2, "fsdp": 2, "tensor": 2})
    alone, spread = train_times(one, SHAPE, CHIP), train_times(many, SHAPE, CHIP)
    assert alone.collectives == 0 and alone.flops == spread.flops
    assert alone.matmuls == alone.flops / 1e9 == pytest.approx(8 * spread.matmuls)
    assert spread.least == max(spread[:3]) and spread.most == pytest.approx(sum(spread[:3]))
    token = decode_times(one, 16, 64, CHIP)
    # Every weight is read once and every key and value of the cache is.
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one.model))
    cache = one.cache_bytes(16, 64)
    assert token.memory * 1e8 > weights - 480 * 64 * 4 + cache
    assert token.memory * 1e8 < 1.6 * (weights + cache)
    assert jnp.isfinite(token.least)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["7b", "32b", "72b"])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5e:4x4", "v6e:2x4", "v5p:2x2x2"])
def test_no_mesh_is_a_tenth_faster_than_the_one_a_run_gets(model, topology):
    """By the traced programs' times, where the choice is by closed forms: over all divisors, of those that fit."""
    config, run = preset_config(f"qwen2.5-{model}"), placement.run_size(Config())
    chip, count = parse_topology(topology)
    seconds = {}
    for mesh in [
        placement.best_placements(config, chip, count, run)[0].mesh,
        *placement.even_meshes(count, config.dims),
    ]:
        each = placement.best_placements(config, chip, count, run, mesh)[0]
        fits = max(each.training_bytes, each.sampling_bytes) <= (1 - placement.SPARE) * chip.memory
        if seconds and (not fits or mesh_text(mesh) in seconds):
            continue
        settings = replace(Config(), {"train.remat": each.remat, "dtype": "bfloat16"})
        names, sizes = tuple(mesh), tuple(mesh.values())
        given = Shapes(config, settings, Sharding(AbstractMesh(sizes, names)))
        plan = plan_microbatches(
            run.examples,
            [range(i, i + run.batch_size) for i in range(0, len(run.examples), run.batch_size)],
            MicrobatchCosts(
                config.hidden_size,
                GATHERED_OVERHEAD,
                rows_per_pass=each.rows_per_pass,
                divide_by=given.sharding.batch_shards,
                row_multiple=placement.ROW_MULTIPLE,
            ),
        )
        passes = collections.Counter(shape for step in plan.steps for shape, _ in step)
        step = sum(times * train_times(given, shape, chip).least for shape, times in passes.items()) / len(plan.steps)
        token = decode_times(given, each.slots, run.capacity, chip).least
        seconds[mesh_text(mesh)] = run.steps * step + run.answer_tokens / each.slots * token
    chosen = next(iter(seconds.values()))
    assert min(seconds.values()) >= chosen / 1.1, seconds
