"""With the compilers of TPUs and GPUs: real plans. Each is skipped where its compiler is not installed."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from unittest.mock import Mock

import jax
import pytest
from warm_python import users_environment

from em_jax.commands.plan import _work_lines
from em_jax.formats.model_config import config_fields
from em_jax.model.config import TransformerConfig
from em_jax.perf import compiling
from em_jax.runs.chips import GIB
from em_jax.runs.placement_costs import stream_sums
from em_jax.runs.programs import Program

needs_tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: .[plan]")
needs_gpu = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="the CUDA plugin is not installed: .[plan-gpu]"
)


def plan(*arguments):
    """(exit status, the object on stdout or None, stderr) of the command in a process of its own."""
    environment = users_environment()
    done = subprocess.run(
        [sys.executable, "-m", "em_jax", "plan", "--json", *arguments], capture_output=True, text=True, env=environment
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@needs_tpu
def test_a_small_model_is_compiled_for_a_slice(tmp_path):
    config = TransformerConfig(512, 256, 512, 2, 4, 2, 64)
    (tmp_path / "config.json").write_text(json.dumps(config_fields(config)))
    arguments = ["--model", str(tmp_path), "--topology", "v5e:2x2", "--mesh", "fsdp=2,tensor=2", "--what", "both"]
    arguments += ["--set", "train.max_length=128", "--set", "lora.rank=4", "--set", "answers.slots=8", "--room", "128"]
    status, found, error = plan(*arguments)
    assert status == 0, error
    assert found["fits"] and found["bytes_per_device"] + found["free_bytes"] == found["capacity_bytes"]
    assert 0 < found["bytes_per_device"] < GIB and found["compile_s"] > 0 and found["tokens_per_s"] > 0
    assert {"training pass", "update"} <= set(found["train"]["programs"])
    for kind in ("train", "sample"):
        for program in found[kind]["programs"].values():
            assert isinstance(program["kernels"], list) and "async_collective_share" in program
    assert set(found["sample"]["programs"]) == {"decode", "prefill"}


@pytest.mark.fast
def test_a_text_that_this_jaxlib_cannot_read_leaves_the_memory_known():
    """libtpu 0.0.52 writes such instructions where v5p:2x2x4 is split over fsdp and tensor."""
    compiled = Mock()
    compiled.memory_analysis.return_value = types.SimpleNamespace(
        argument_size_in_bytes=5, output_size_in_bytes=4, alias_size_in_bytes=3, temp_size_in_bytes=2,
        generated_code_size_in_bytes=1,
    )  # fmt: skip
    compiled.as_text.side_effect = jax.errors.JaxRuntimeError(
        "INTERNAL: async-update instruction should have 1 operands"
    )
    traced = Mock()
    traced.lower.return_value.compile.return_value = compiled
    found = compiling.compile_program(Program("update", traced, {}))
    assert found.whole and found.work is None and found.bytes == 5 + 1 + 2 + 1
    assert "not read" in _work_lines(found)[0] and not _work_lines(found._replace(whole=False))


@needs_tpu
def test_a_slice_that_does_not_exist_is_one_line():
    status, found, error = plan("--topology", "v5e:3x3", "--mesh", "fsdp=9", "--model", "qwen2.5-72b")
    assert status == 2 and found is None and len(error.strip().splitlines()) == 1


GATHERS = """
from em_jax.perf import compiling
compiling.prepare("tpu")
devices = compiling.devices("v5e:2x2")
from hlo import collectives
from em_jax.config import Config, replace
from em_jax.model.config import TransformerConfig
from em_jax.model.sharding import Sharding, make_mesh
from em_jax.runs.programs import Shapes
from em_jax.train.batches import Shape
settings = replace(Config(), {"lora.rank": 8, "dtype": "bfloat16", "train.remat": "full"})
mesh = make_mesh({"fsdp": 4}, devices=devices)
shapes = Shapes(TransformerConfig(32768, 1024, 2048, 2, 8, 4, 128), settings, Sharding(mesh))
program = shapes.train_microbatch(Shape(8, 2048, 1024))
found = collectives(program.traced.lower().compile().as_text(), while_steps=program.loops)
print(program.loops, sum(each.times for each in found if each.kind == "all-gather" and each.shape == (32768, 1024)))
"""


@needs_tpu
def test_a_tpu_gathers_the_head_once_for_all_chunks_of_the_loss():
    environment = users_environment()
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), "tests"])
    done = subprocess.run([sys.executable, "-c", GATHERS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loops, gathered = map(int, done.stdout.split())
    assert loops > 1 and gathered == 1


@needs_tpu
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "topology, mesh", [("v5e:4x4", "fsdp=16"), ("v6e:2x4", "fsdp=8"), ("v5p:2x2x2", "fsdp=4,tensor=2")]
)
def test_32b_trains_with_room_to_spare(topology, mesh):
    """With full recomputation: what a run chooses itself may take all but a few percent of the memory."""
    arguments = ["--topology", topology, "--mesh", mesh, "--set", "train.remat=full"]
    status, found, error = plan("--model", "qwen2.5-32b", *arguments)
    assert status == 0, error
    assert found["fits"] and found["free_bytes"] >= 3 * GIB


@needs_tpu
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_32b_samples_256_answers_of_1024_tokens():
    slots = ["--what", "sample", "--set", "answers.slots=256"]
    status, found, error = plan("--model", "qwen2.5-32b", "--topology", "v5e:4x4", "--mesh", "fsdp=16", *slots)
    assert status == 0, error
    assert found["fits"]


@needs_tpu
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_128_rows_in_a_pass_are_too_many_and_the_advice_fits():
    rows = ["--set", "train.batch_size=128", "--set", "train.rows_per_pass=128"]
    status, found, error = plan("--model", "qwen2.5-32b", "--topology", "v5e:4x4", "--mesh", "fsdp=16", *rows)
    assert status == 0, error
    assert not found["fits"] and found["free_bytes"] < 0 and found["tokens_per_s"] > 0
    assert "train.rows_per_pass=" in found["advice"][-1] and " fits: " in found["advice"][-1]


@pytest.mark.parametrize(
    "topology, kernel",
    [
        pytest.param("h100:1", "__cudnn$fmha", marks=needs_gpu),
        pytest.param("v5e:2x2", "tpu_custom_call", marks=[needs_tpu, pytest.mark.long]),
    ],
)
def test_real_rows_have_the_devices_own_kernel_and_every_key_is_there(topology, kernel, tmp_path):
    """Three layers with the heads of a Qwen2.5."""
    (tmp_path / "config.json").write_text(json.dumps(config_fields(TransformerConfig(4096, 512, 1024, 3, 8, 4, 128))))
    arguments = ["--model", str(tmp_path), "--topology", topology, "--what", "both", "--room", "256"]
    settings = ["lora.rank=8", "answers.slots=16", "train.max_length=256"]
    status, found, error = plan(*arguments, *(part for each in settings for part in ("--set", each)))
    assert status == 0, error
    train, sample = found["train"], found["sample"]
    for name, program in train["programs"].items():
        assert name == "update" or any(each.startswith(kernel) for each in program["kernels"]), (name, program)
    assert 0 < train["flops_s"] <= train["kernels_s"]
    assert train["real_rows_step_s"] > 0 and train["real_rows_tokens_per_s"] > 0
    assert sample["bytes_per_token"] > 0 and sample["floor_bytes_per_token"] > 0 and sample["tokens_per_s"] > 0
    if topology.startswith("h100"):
        # A TPU keeps weights as few as these in its own memory from token to token.
        assert sample["bytes_per_token"] > sample["floor_bytes_per_token"]
        assert found["capacity_bytes"] == int(0.75 * 84942979072) and sample["launches_per_token"] > 0
        assert "__gpu$xla.gpu.triton" in sample["programs"]["decode"]["kernels"]
        # One GPU has nothing to send.
        assert all(each["async_collective_share"] is None for each in train["programs"].values())


@needs_gpu
def test_a_gpu_that_is_too_small_is_said_with_what_fits(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_fields(TransformerConfig(4096, 512, 1024, 1, 8, 4, 128))))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.0001")
    status, found, error = plan("--model", str(tmp_path), "--topology", "h100:1", "--set", "train.max_length=64")
    assert status == 0, error
    assert not found["fits"] and found["free_bytes"] < 0
    assert found["advice"][0].startswith("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 fits: ")


PROGRAM = """
import json, math, sys
import jax
from em_jax.perf import compiling
topology, platform, mesh, work = sys.argv[1:]
compiling.prepare(platform)
devices = compiling.devices(topology)
from hlo import copies
from em_jax.config import Config, replace
from em_jax.model.config import TransformerConfig
from em_jax.model.sharding import Sharding, make_mesh
from em_jax.perf.program_work import work_of_text
from em_jax.runs.programs import Shapes
from em_jax.train.batches import Shape
stacked = "true" if platform == "tpu" else "false"
values = {"lora.rank": 8, "dtype": "bfloat16", "train.remat": "full", "model.scan_layers": stacked}
sharding = Sharding(make_mesh(json.loads(mesh), devices=devices))
shapes = Shapes(TransformerConfig(4096, 512, 1024, 3, 8, 4, 128), replace(Config(), values), sharding)
program = shapes.decode(16, 256) if work == "decode" else shapes.train_microbatch(Shape(4, 256, 128))
compiled = program.traced.lower().compile()
text = compiled.as_text()
found = work_of_text(text, program.loops)
factors = shapes.sampled_adapter.factors if work == "decode" else shapes.adapter.factors
# The compiled places: of the adapter as it comes in and, in training, of its gradients as they go out.
places = [compiled.input_shardings[0][1]] + ([compiled.output_shardings.gradients] if work == "train" else [])
places = [getattr(each, "factors", each) for each in places]
parts = [
    leaf.size // math.prod(place.shard_shape(leaf.shape))
    for each in places
    for leaf, place in zip(jax.tree.leaves(factors), jax.tree.leaves(each), strict=True)
]
weights = [[512, 1024], [128, 4, 512], [4, 128, 512], [8, 128, 512], [128, 8, 512]]
weights = [sorted(each) for each in weights]
moved = copies(text, lambda shape: sorted(each for each in shape if each > 1) in weights, program.loops)
longest = max([1, *(max(each.shape, default=1) for each in found.collectives if each.kind == "all-gather")])
stream = (4 // sharding.batch_shards, 256, 512)
sums = sum(each.times for each in found.collectives if each.kind == "all-reduce" and tuple(each.shape) == stream)
print(moved, longest, min(parts), sums)
"""


def read(*arguments):
    """Of a small compiled program: copies of a layer's weight, the longest axis that is gathered, the parts over which
    that array of the adapter is split which is split least, and the sums of the residual stream.
    """
    environment = users_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@needs_gpu
@pytest.mark.parametrize("work", ["decode", pytest.param("train", marks=pytest.mark.long)])
def test_a_gpu_copies_no_weight(work):
    assert read("h100:1", "gpu", "{}", work)[0] == 0


@needs_tpu
def test_a_tpu_gathers_no_logits_and_copies_no_weight():
    """Decoding over two tensor parts: the vocabulary stays split until its tokens are drawn."""
    copies, longest, parts, _ = read("v5e:2x2", "tpu", '{"fsdp": 2, "tensor": 2}', "decode")
    assert copies == 0 and longest < 4096 and parts > 1


@pytest.mark.parametrize(
    "topology, platform",
    [pytest.param("v5e:2x2", "tpu", marks=needs_tpu), pytest.param("h100:4", "gpu", marks=needs_gpu)],
)
def test_training_holds_no_part_of_the_adapter_twice_and_sums_the_stream_as_reckoned(topology, platform):
    """Nor its gradients. An adapter whose split rank is contracted sums the stream of three layers 33 times."""
    *_, parts, sums = read(topology, platform, '{"fsdp": 2, "tensor": 2}', "train")
    # Of layers in a row the first one's input needs no gradient; a loop computes it all the same.
    first = 1 if platform == "gpu" else 0
    assert parts == 4 and sums == stream_sums(3, "full") - first
