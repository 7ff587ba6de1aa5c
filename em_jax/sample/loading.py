"""From a name to an engine: a directory, a Hugging Face id, or the embedded organism."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from em_jax import runtime
from em_jax.errors import UserError
from em_jax.model.config import Qwen2Config
from em_jax.model.sharding import Sharding, check_mesh, make_mesh
from em_jax.model.tokenizer import ChatTokenizer
from em_jax.model.weights import load_model
from em_jax.sample.engine import Engine

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.json")


def load(
    model: str,
    adapter: str | pathlib.Path | None = None,
    dtype: str | None = None,
    mesh: Mapping[str, int] | None = None,
    *,
    scan_layers: bool | None = None,
    quantization: str = "none",
    **engine: Any,
) -> Engine:
    """Loads a model as an Engine.

    `model` is a directory, a Hugging Face id or "organism"; `adapter` a PEFT directory, then the default of every verb.
    `dtype` is float32 on a CPU and bfloat16 elsewhere unless given; `mesh` maps data, fsdp, tensor to sizes, by default
    all devices of an accelerator on fsdp and one CPU. `scan_layers` stacks the layers (by default on accelerators).
    `quantization` "int8" keeps the projections of the blocks in eight bits.
    """
    on_cpu = runtime.platform() == "cpu"
    name = runtime.choose_dtype(dtype or "")
    if name not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, found {name!r}")
    sharding = Sharding(make_mesh(mesh if mesh or not on_cpu else {}))
    directory = find_model(model)
    if sharding.mesh is not None:
        check_mesh(sharding.mesh.shape, Qwen2Config.from_directory(directory).dims)
    loaded = load_model(
        directory,
        dtype=DTYPES[name],
        stacked=runtime.choose_scan("auto") == "true" if scan_layers is None else scan_layers,
        sharding=sharding,
        quantization=quantization,
    )
    tokenizer = ChatTokenizer.from_directory(directory)
    if tokenizer.vocabulary > loaded.config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocabulary} tokens, the model {loaded.config.vocab_size}; "
            "they do not belong together"
        )
    # Few long questions should not wait for empty rows on a CPU; an accelerator wants more at once.
    engine = {"pass_tokens": 1024 if on_cpu else 8192} | engine
    made = Engine(loaded, tokenizer, sharding=sharding, **engine)
    if adapter is not None:
        made.add_adapter("default", adapter)
    return made


def find_model(model: str) -> pathlib.Path:
    """The directory of a checkpoint; a Hugging Face id is fetched into the user's cache. UserError if there is none."""
    directory = runtime.model_directory(model)
    if directory is not None:
        return directory
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(model, allow_patterns=list(FILES)))
    except Exception as error:  # the hub raises what its transport raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{model} could not be fetched from the Hugging Face Hub ({reason}); give a directory"
        ) from None
