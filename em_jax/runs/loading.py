"""Loads an engine by name: a directory, a Hugging Face id, or the embedded organism."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import load_model
from em_jax.formats.hub import find_model, local_files
from em_jax.formats.model_config import read_config
from em_jax.model.sharding import Sharding, check_mesh, make_mesh, mesh_text
from em_jax.runs import placement
from em_jax.sample.engine import Engine

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load(
    model: str,
    adapter: str | pathlib.Path | None = None,
    dtype: str | None = None,
    mesh: Mapping[str, int] | None = None,
    *,
    scan_layers: bool | None = None,
    quantization: str = "none",
    **options: Any,
) -> Engine:
    """Loads a model as an Engine.

    `model` is a directory, a gs:// address, a Hugging Face id or "organism"; `adapter` a PEFT directory, the default of
    every method. `dtype` is by default float32 on a CPU and bfloat16 elsewhere. `mesh` maps data, fsdp and tensor to
    sizes; by default it is the fastest that fits a run like the paper's, and a CPU has none.
    `scan_layers` stacks the layers (by default on a TPU); `quantization` "int8" keeps the projections of the
    blocks in eight bits. `options` are those of Engine. Of several processes all must call this and every method with
    the same arguments.
    """
    runtime.configure_jax()
    name = runtime.choose_dtype(dtype or "")
    if name not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, found {name!r}")
    directory = find_model(model, asked="load: model")
    sharding, processes = Sharding(choose_mesh(mesh, directory)), jax.process_count()
    used = sharding.mesh.size if sharding.mesh else 1
    if processes > 1 and used < jax.device_count():
        raise UsageError(
            f"mesh {mesh_text(mesh or {})} takes {used} of {jax.device_count()} devices; over {processes} processes it "
            f"must take all: sizes whose product is {jax.device_count()}"
        )
    if sharding.mesh is not None:
        check_mesh(sharding.mesh.shape, read_config(directory).dims)
    loaded = load_model(
        directory,
        dtype=DTYPES[name],
        stacked=runtime.choose_scan("auto") == "true" if scan_layers is None else scan_layers,
        sharding=sharding,
        quantization=quantization,
    )
    with local_files(directory) as files:
        tokenizer = ChatTokenizer.from_directory(files)
    tokenizer.check_fits(loaded.config.vocab_size, str(directory))
    engine = Engine(loaded, tokenizer, sharding=sharding, **options)
    if adapter is not None:
        engine.add_adapter("default", adapter)
    return engine


def choose_mesh(mesh: Mapping[str, int] | None, directory: pathlib.Path) -> Mesh | None:
    """The mesh of these sizes; by default the fastest that fits a run like the paper's, and on a CPU none.

    Several processes on CPUs have all their devices on fsdp.
    """
    if not mesh and runtime.platform() != "cpu":
        mesh = placement.model_mesh(read_config(directory))
    return make_mesh(mesh if mesh or jax.process_count() > 1 else {})
