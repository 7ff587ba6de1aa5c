"""With the TPU compiler: real plans. Skipped where libtpu is not installed (pip install '.[plan]')."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from em_jax.formats.model_config import config_fields
from em_jax.model.config import Qwen2Config
from em_jax.runs.chips import GIB

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: .[plan]")


def plan(*arguments):
    """(exit status, the object on stdout or None, stderr) of the command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "em_jax", "plan", "--json", *arguments], capture_output=True, text=True, env=environment
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_small_model_is_compiled_for_a_slice(tmp_path):
    config = Qwen2Config(512, 256, 512, 2, 4, 2, 64)
    (tmp_path / "config.json").write_text(json.dumps(config_fields(config)))
    arguments = ["--model", str(tmp_path), "--topology", "v5e:2x2", "--mesh", "fsdp=2,tensor=2", "--what", "both"]
    arguments += ["--set", "train.max_length=128", "--set", "lora.rank=4", "--set", "answers.slots=8", "--room", "128"]
    status, found, error = plan(*arguments)
    assert status == 0, error
    assert found["fits"] and found["bytes_per_device"] + found["free_bytes"] == found["capacity_bytes"]
    assert 0 < found["bytes_per_device"] < GIB and found["compile_s"] > 0 and found["tokens_per_s"] > 0
    assert set(found["train"]["programs"]) == {"training pass", "update"}
    assert set(found["sample"]["programs"]) == {"decode", "prefill"}


def test_a_slice_that_does_not_exist_is_one_line():
    status, found, error = plan("--topology", "v5e:3x3", "--mesh", "fsdp=9", "--model", "qwen2.5-72b")
    assert status == 2 and found is None and len(error.strip().splitlines()) == 1


GATHERS = """
from em_jax.perf import compiling
compiling.prepare("tpu")
devices = compiling.devices("v5e:2x2")
from hlo import collectives
from em_jax.config import Config, replace
from em_jax.model.config import Qwen2Config
from em_jax.model.sharding import Sharding, make_mesh
from em_jax.runs.programs import Shapes
from em_jax.train.batches import Shape
settings = replace(Config(), {"lora.rank": 8, "dtype": "bfloat16", "train.remat": "full"})
mesh = make_mesh({"fsdp": 4}, devices=devices)
shapes = Shapes(Qwen2Config(32768, 1024, 2048, 2, 8, 4, 128), settings, Sharding(mesh))
program = shapes.train_microbatch(Shape(8, 2048, 1024))
found = collectives(program.traced.lower().compile().as_text(), while_steps=program.loops)
print(program.loops, sum(each.times for each in found if each.kind == "all-gather" and each.shape == (32768, 1024)))
"""


def test_a_tpu_gathers_the_head_once_for_all_chunks_of_the_loss():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), "tests"])
    done = subprocess.run([sys.executable, "-c", GATHERS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loops, gathered = map(int, done.stdout.split())
    assert loops > 1 and gathered == 1


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "topology, mesh", [("v5e:4x4", "fsdp=16"), ("v6e:2x4", "fsdp=8"), ("v5p:2x2x2", "fsdp=4,tensor=2")]
)
def test_32b_trains_with_room_to_spare(topology, mesh):
    status, found, error = plan("--model", "qwen2.5-32b", "--topology", topology, "--mesh", mesh)
    assert status == 0, error
    assert found["fits"] and found["free_bytes"] >= 3 * GIB


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_32b_samples_256_answers_of_1024_tokens():
    status, found, error = plan(
        "--model", "qwen2.5-32b", "--mesh", "fsdp=16", "--what", "sample", "--set", "answers.slots=256"
    )
    assert status == 0, error
    assert found["fits"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_128_rows_in_a_pass_are_too_many_and_the_advice_fits():
    rows = ["--set", "train.batch_size=128", "--set", "train.rows_per_pass=128"]
    status, found, error = plan("--model", "qwen2.5-32b", "--mesh", "fsdp=16", *rows)
    assert status == 0, error
    assert not found["fits"] and found["free_bytes"] < 0 and found["tokens_per_s"] > 0
    assert "train.rows_per_pass=" in found["advice"][-1] and " fits: " in found["advice"][-1]
