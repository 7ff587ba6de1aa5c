"""What is compiled while a model loads is what training asks for: then nothing is compiled again."""

import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, pathlib, sys
import jax
cache, out = map(pathlib.Path, sys.argv[1:3])
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from em_jax.runs import components, precompile, series, sources
from em_jax.config import Config, replace
from em_jax.base.progress import Progress

small = {"model.name": "organism", "train.batch_size": 8, "lora.rank": 4, "mesh": sys.argv[3]}
config = series.resolve(replace(Config(domain="bad_medical"), small))
rows = sources.rows(config)[:24]
shapes = precompile.compile_microbatches(config, rows)
passes = lambda: {path.name for path in cache.iterdir() if path.name.startswith("jit_accumulate-")}
before = passes()
assert len({name.removesuffix("-cache").removesuffix("-atime") for name in before}) == shapes >= 1, (shapes, before)
components.finetune(components.load(config), rows, config, out, Progress("", 3, "step", silent=True))
assert passes() == before, passes() - before
print("compiled ahead:", shapes)
"""


@pytest.mark.parametrize("mesh", ["", "fsdp=2,tensor=2"])
def test_training_compiles_no_pass_that_was_compiled_ahead(mesh, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache"), str(tmp_path / "run"), mesh]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "compiled ahead: " in done.stdout, done.stderr[-2000:]
