"""Loads an engine by name: a directory, a Hugging Face id, or the embedded organism."""

import os
import pathlib
from collections.abc import Mapping

import jax

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.config import DTYPES, Config, parse_mesh
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import load_model
from em_jax.formats.hub import find_model, local_files
from em_jax.formats.model_config import read_config
from em_jax.model.sharding import Sharding, make_mesh, mesh_text
from em_jax.runs import adapters, placement
from em_jax.runs.chips import chip_of
from em_jax.sample.engine import CHUNK, Engine

CAPACITY = 768
"""Tokens: the prompts that people type, and the 600 tokens of an answer that `generate` allows."""


def load(
    model: str | pathlib.Path,
    adapter: str | pathlib.Path | None = None,
    dtype: str | None = None,
    mesh: str | Mapping[str, int] | None = None,
    *,
    scan_layers: bool | None = None,
    quantization: str = "none",
    slots: int = 64,
    min_capacity: int = CAPACITY,
    chunk: int = CHUNK,
    pass_tokens: int | None = None,
    num_decode_batches: int | None = None,
) -> Engine:
    """Loads a model as an Engine.

    `model` is a directory, a gs:// address, a Hugging Face id or "organism"; `adapter` a PEFT directory or a Hugging
    Face id, the default of every method. `dtype` is by default float32 on a CPU and bfloat16 elsewhere. `mesh` maps
    data, fsdp and tensor to sizes, or is "data=1,fsdp=4"; by default it is the fastest that fits a run like the
    paper's, and a CPU has none.
    `scan_layers` stacks the layers (by default on a TPU); `quantization` "int8" keeps the projections of the
    blocks in eight bits. `slots` answers are decoded at once, each with room for `min_capacity` tokens at least:
    calls with another max_new_tokens that fit compile nothing new. The last three are as of Engine. Of several
    processes all must call this and every method with the same arguments.
    """
    runtime.configure_jax()
    name = runtime.choose_dtype(dtype or "")
    if name not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, found {name!r}")
    for argument, value in {"model": model, "adapter": adapter or ""}.items():
        if not isinstance(value, str | os.PathLike):
            raise UsageError(f"load: {argument} expects a directory or a Hugging Face id, found {value!r}")
    if quantization not in ("none", "int8"):
        raise UsageError(f"load: quantization expects none or int8, found {quantization!r}")
    if slots < 1:
        raise UsageError(f"load: slots expects 1 or more, found {slots}")
    given = adapters.find(os.fspath(adapter), "load: adapter") if adapter else None
    directory = find_model(os.fspath(model), asked="load: model")
    try:
        mesh = parse_mesh(mesh) if isinstance(mesh, str) else mesh
    except UsageError as error:
        raise UsageError(f"load: {str(error).removeprefix('--')}") from None
    processes, devices = jax.process_count(), jax.device_count()
    if not mesh and runtime.platform() != "cpu" and devices > 1:
        chip, run = chip_of(jax.devices()[0])[0], placement.run_size(Config())
        mesh = placement.best_placements(read_config(directory), chip, devices, run)[0].mesh
    # Several processes on CPUs have all their devices on fsdp.
    sharding = Sharding(make_mesh(mesh if mesh or processes > 1 else {}))
    used = sharding.mesh.size if sharding.mesh else 1
    if processes > 1 and used < devices:
        raise UsageError(
            f"mesh {mesh_text(mesh or {})} takes {used} of {devices} devices; over {processes} processes it must take "
            f"all: sizes whose product is {devices}"
        )
    if sharding.mesh is not None:
        placement.check_mesh(sharding.mesh.shape, read_config(directory).dims)
    loaded = load_model(
        directory,
        dtype=name,
        stacked=runtime.choose_scan("auto") == "true" if scan_layers is None else scan_layers,
        sharding=sharding,
        quantization=quantization,
    )
    with local_files(directory) as files:
        tokenizer = ChatTokenizer.from_directory(files)
    tokenizer.check_fits(loaded.config.vocab_size, str(directory))
    engine = Engine(
        loaded,
        tokenizer,
        slots=slots,
        chunk=chunk,
        pass_tokens=pass_tokens,
        num_decode_batches=num_decode_batches,
        min_capacity=min_capacity,
        sharding=sharding,
    )
    if given:
        engine.add_adapter("default", given)
    return engine
