"""What is compiled while a model loads is what training asks for: then nothing is compiled again."""

import subprocess
import sys

import pytest

from em_jax.base.errors import UserError
from em_jax.config import Config, replace
from em_jax.runs import placement, precompile, programs, series, sources

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


def test_a_run_without_a_placement_is_compiled_for_the_one_that_it_gets(monkeypatch):
    """The runs of a study have none: on several accelerators programs of one device were compiled for nothing."""
    placed = {"mesh": "fsdp=2", "train.remat": "full"}
    monkeypatch.setattr(placement, "decided", lambda config, rows=None, mesh=None: (replace(config, placed), []))

    def shapes(model, config, sharding):
        raise UserError(f"{sharding.mesh.size} devices, {config.train.remat}")

    monkeypatch.setattr(programs, "Shapes", shapes)
    config = series.resolve(replace(Config(domain="bad_medical"), {"model.name": "organism"}))
    with pytest.raises(UserError, match="2 devices, full"):
        precompile.compile_microbatches(config, sources.rows(config)[:8])
