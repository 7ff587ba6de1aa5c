"""From a name to an engine: a directory, a Hugging Face id, or the embedded organism."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from em_jax import runtime
from em_jax.errors import UsageError, UserError
from em_jax.model.config import Qwen2Config
from em_jax.model.sharding import Sharding, check_mesh, make_mesh, mesh_text
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

    `model` is a directory, a gs:// address, a Hugging Face id or "organism"; `adapter` a PEFT directory, then the
    default of every verb.
    `dtype` is float32 on a CPU and bfloat16 elsewhere unless given; `mesh` maps data, fsdp, tensor to sizes, by default
    all devices of an accelerator, or of several processes, on fsdp and one CPU. `scan_layers` stacks the layers (by
    default on accelerators); `quantization` "int8" keeps the projections of the blocks in eight bits. Of several
    processes each must call, with the same arguments, here and with every verb.
    """
    name = runtime.choose_dtype(dtype or "")
    if name not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, found {name!r}")
    made, processes = choose_mesh(mesh), jax.process_count()
    if processes > 1 and (used := made.size if made else 1) < jax.device_count():
        raise UsageError(
            f"mesh {mesh_text(mesh)} takes {used} of {jax.device_count()} devices; over {processes} processes it must "
            f"take all: sizes whose product is {jax.device_count()}"
        )
    sharding = Sharding(made)
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
    with local_files(directory) as files:
        tokenizer = ChatTokenizer.from_directory(files)
    if tokenizer.vocabulary > loaded.config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocabulary} tokens, the model {loaded.config.vocab_size}; "
            "they do not belong together"
        )
    ready = Engine(loaded, tokenizer, sharding=sharding, **engine)
    if adapter is not None:
        ready.add_adapter("default", adapter)
    return ready


def choose_mesh(mesh: Mapping[str, int] | None) -> Mesh | None:
    """The mesh asked for; else all devices of an accelerator, or of several processes, on fsdp; one CPU has none."""
    return make_mesh(mesh if mesh or runtime.platform() != "cpu" or jax.process_count() > 1 else {})


def find_model(model: str) -> pathlib.Path:
    """The directory of a checkpoint: a Hugging Face id is fetched into the user's cache, a gs:// address is not.

    Raises UserError if there is none.
    """
    directory = runtime.model_directory(model)
    if runtime.is_bucket(model):
        _check_bucket(directory)
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


def _check_bucket(directory: pathlib.Path) -> None:
    try:
        found = directory.is_dir()
    except Exception as error:  # a bucket raises what its client library raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory} cannot be reached ({reason}); gs:// needs the extra tpu (gcsfs) and leave to read there"
        ) from None
    if not found:
        raise UserError(f"no {directory}: expected a folder with a checkpoint in Hugging Face format")


@contextlib.contextmanager
def local_files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A checkpoint's directory as the tokenizer's library needs it: on this machine. The weights are left out."""
    if isinstance(directory, pathlib.Path):
        yield directory
        return
    with tempfile.TemporaryDirectory() as near:
        for path in directory.iterdir():
            if any(path.match(pattern) for pattern in FILES) and path.suffix != ".safetensors":
                (pathlib.Path(near) / path.name).write_bytes(path.read_bytes())
        yield pathlib.Path(near)
