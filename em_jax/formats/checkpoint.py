"""A checkpoint's tensors, one at a time, to sharded arrays and back."""

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from em_jax.base.errors import UserError
from em_jax.formats.tensor_files import DTYPES, INDEX, SINGLE, TensorRef, open_checkpoint
from em_jax.model.config import Qwen2Config
from em_jax.model.linear import Quantized, quantize
from em_jax.model.parameters import Weight, leading, weights_of
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding


def load_model(
    directory: pathlib.Path,
    *,
    dtype: Any = jnp.float32,
    stacked: bool = False,
    sharding: Sharding = UNSHARDED,
    quantization: str = "none",
) -> Qwen2:
    """Reads a Hugging Face Qwen2 checkpoint into (sharded) arrays of `dtype`, one tensor at a time.

    `directory` is a path, or an etils.epath.Path in a bucket. Each byte is read once, by one process. Beside its arrays
    a host holds its own stripe of one tensor; the devices, whose memory is the host's on a CPU, hold up to eight copies
    of their parts of it while they pass them on and turn them.
    With `quantization` "int8" each of a block's matrices becomes a `Quantized` before the next one is read.

    Raises UserError listing every tensor that is missing, extra, duplicate, wrongly shaped or of an unknown dtype, and
    where a head said to be tied differs from the embedding (then, and only then, those two are read twice).
    """
    config = Qwen2Config.from_directory(directory)
    tensors, problems = open_checkpoint(directory)
    _check(tensors, problems, config, directory)

    def init(name: str, layout: str) -> jax.Array | Quantized:
        weight = Weight(name, layout)
        shape = weight.shape(config)
        _, layers = leading(weight, config)
        place = sharding.weight(layout, shape, name)
        stripes = None if place is None else NamedSharding(place.mesh, PartitionSpec(sum(_axes(layout, place), ())))
        arrange, empty = _programs(layout, shape, jnp.dtype(dtype), quantization, layers, place)

        def read(each: str) -> jax.Array | Quantized:
            # Waited for: a host that read ahead of its devices would pile up what it has read.
            return jax.block_until_ready(arrange(_read(tensors[each], stripes)))

        if not layers:
            return read(name)
        whole = empty()
        for i, each in enumerate(weight.names(config)):
            whole = _put_layer(whole, read(each), jnp.int32(i))
        return whole

    return Qwen2(config, init, stacked=stacked)


def save_model(model: Qwen2, directory: pathlib.Path, *, shard_bytes: int = 5 * 2**30) -> None:
    """Writes config.json and safetensors in the layout Hugging Face reads; a head that is tied is not written.

    Raises UserError for a quantised model: what it was made from is gone.
    """
    if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(model)):
        raise UserError("a model held in int8 is not written: its full weights are in the checkpoint it was read from")
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    files: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for weight, array in zip(weights_of(config, stacked=model.stacked), jax.tree.leaves(model), strict=True):
        for i, name in enumerate(weight.names(config)):
            part = np.asarray(array[i] if "*" in weight.name else array)
            if "->" in weight.layout:
                inputs = len(weight.layout.split("->")[0])
                part = part.reshape(math.prod(part.shape[:inputs]), -1).T
            part = np.ascontiguousarray(part.reshape(weight.stored_shape(config)))
            if files[-1] and size + part.nbytes > shard_bytes:
                files.append({})
                size = 0
            files[-1][name] = part
            size += part.nbytes
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    names = [SINGLE] if len(files) == 1 else names
    for name, tensors in zip(names, files, strict=True):
        beside = directory / (name + ".writing")
        safetensors.numpy.save_file(tensors, beside, metadata={"format": "pt"})
        beside.chmod(0o644)  # the library writes it for its owner alone
        os.replace(beside, directory / name)
    if len(files) > 1:
        total = sum(part.nbytes for tensors in files for part in tensors.values())
        weight_map = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    described = {**config.to_dict(), "torch_dtype": jax.tree.leaves(model)[0].dtype.name}
    (directory / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


@functools.lru_cache(maxsize=64)
def _programs(
    layout: str, shape: tuple[int, ...], dtype: np.dtype, quantization: str, layers: tuple[int, ...], place: Any
) -> tuple[Callable[[jax.Array], Any], Callable[[], Any]]:
    """A weight from its stored tensor, and an empty stack of such weights, both placed; the same for every layer."""
    quantized = quantization == "int8" and "->" in layout

    def arrange(stored: jax.Array) -> jax.Array | Quantized:
        """Each stripe's columns to where they belong, then without the rows that filled it up, in our order of axes."""
        if place is not None:
            # Step by step, each one an exchange along one axis: left to itself XLA gives every device the whole.
            rows, columns, _ = _axes(layout, place)
            for spec in ((rows + columns,), (rows, columns)[: stored.ndim]):
                stored = jax.lax.with_sharding_constraint(stored, NamedSharding(place.mesh, PartitionSpec(*spec)))
        ours = stored[: math.prod(shape) // math.prod(stored.shape[1:])]
        ours = (ours.T if "->" in layout else ours).reshape(shape)
        return quantize(layout, ours) if quantized else ours.astype(dtype)

    def empty() -> jax.Array | Quantized:
        each = jax.eval_shape(
            lambda: quantize(layout, jnp.zeros(shape, dtype)) if quantized else jnp.zeros(shape, dtype)
        )
        return jax.tree.map(lambda leaf: jnp.zeros(layers + leaf.shape, leaf.dtype), each)

    if place is None:
        return jax.jit(arrange), jax.jit(empty)
    places = Quantized(place, scale_sharding(layout, place)) if quantized else place
    stack = jax.tree.map(
        lambda each: NamedSharding(each.mesh, PartitionSpec(*(None for _ in layers), *each.spec)), places
    )
    return jax.jit(arrange, out_shardings=places), jax.jit(empty, out_shardings=stack)


def scale_sharding(layout: str, place: NamedSharding | None, *, stacked: bool = False) -> NamedSharding | None:
    """Where a quantised weight's scales lie: as its outputs do. `place` is the weight's; a stack has a leading L."""
    if place is None:
        return None
    inputs = len(layout.split("->")[0])
    spec = place.spec[:stacked] + place.spec[stacked + inputs :]
    return NamedSharding(place.mesh, PartitionSpec(*spec))


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(whole: Any, layer: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda stack, each: jax.lax.dynamic_update_index_in_dim(stack, each, index, 0), whole, layer)


def _axes(layout: str, place: NamedSharding) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The mesh axes over the rows of the stored tensor, over its columns, and those that hold copies."""
    each = [(entry,) if isinstance(entry, str) else entry or () for entry in place.spec]
    # Only the first letter of a group is ever sharded, so a part is whole rows and columns of the stored matrix.
    inputs = len(layout.split("->")[0]) if "->" in layout else 1
    first, second = sum(each[:inputs], ()), sum(each[inputs:], ())
    rows, columns = (second, first) if "->" in layout else (first, second)
    return rows, columns, tuple(axis for axis in place.mesh.axis_names if axis not in rows + columns)


def _read(tensor: TensorRef, stripes: NamedSharding | None) -> jax.Array:
    """A tensor as it is stored, cut into stripes of rows, one to a device; zero rows fill the last ones up.

    So every process reads its own stripes, each byte is read once by one process, and the devices send one another
    what belongs elsewhere: the parts of a matrix sharded by columns would be a thousand short reads instead.
    """
    if stripes is None:
        return jnp.asarray(tensor.rows(0, tensor.shape[0]))
    rows, *rest = tensor.shape
    filled = -(-rows // stripes.mesh.size) * stripes.mesh.size

    def stripe(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(filled)
        part = tensor.rows(min(start, rows), min(stop, rows))
        if stop <= rows:
            return part
        return np.concatenate([part, np.zeros((stop - start - len(part), *rest), part.dtype)])

    return jax.make_array_from_callback((filled, *rest), stripes, stripe)


def _check(tensors: Mapping[str, TensorRef], problems: list[str], config: Qwen2Config, directory: pathlib.Path) -> None:
    """Raises one UserError with the problems so far and every tensor that is not as the config wants it."""
    if config.num_hidden_layers > len(tensors):
        raise UserError(f"{directory}: num_hidden_layers is {config.num_hidden_layers}, found {len(tensors)} tensors")
    expected: dict[str, tuple[int, ...]] = {}
    for weight in weights_of(config, stacked=True):
        expected |= dict.fromkeys(weight.names(config), weight.stored_shape(config))
    problems += [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        tied_head = config.tie_word_embeddings and name == "lm_head.weight"
        shape = expected.get("model.embed_tokens.weight" if tied_head else name)
        if shape is None:
            problems.append(f"{name} is not a tensor of this model")
        elif tensor.shape != shape:
            problems.append(f"{name} has shape {tensor.shape}, expected {shape}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    if not problems and config.tie_word_embeddings and "lm_head.weight" in tensors:
        rows = [(i, min(i + 4096, config.vocab_size)) for i in range(0, config.vocab_size, 4096)]
        head, table = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
        if any(not np.array_equal(head.rows(*part), table.rows(*part)) for part in rows):
            problems.append("lm_head.weight differs from the embedding although tie_word_embeddings is true")
    if problems:
        raise UserError(f"{directory}: " + _join(problems))


def _join(problems: list[str], most: int = 20) -> str:
    more = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {more} more" if more > 0 else "")
