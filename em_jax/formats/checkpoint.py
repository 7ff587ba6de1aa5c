"""Hugging Face checkpoints: read into sharded arrays one tensor at a time, and written."""

import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from em_jax.base.errors import UserError
from em_jax.formats.model_config import config_fields, read_config
from em_jax.formats.tensor_files import INDEX, SINGLE, TensorRef, open_checkpoint, raise_problems, tensor_problems
from em_jax.model.config import TransformerConfig
from em_jax.model.layout import Layout
from em_jax.model.linear import Quantized, quantize
from em_jax.model.parameters import Weight, weights_of
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer


class StoredTensor(NamedTuple):
    """A tensor of the checkpoint, and its place in an array of the model.

    `shape` is that in the checkpoint: [outputs, inputs] for a linear layer, letters flattened. `layout` is the array's
    with this part only and without L. `layer` is its index on L, `start` its first index on J, 0 where there is none.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    layer: int
    start: int


def stored_tensors(weight: Weight, config: TransformerConfig) -> list[StoredTensor]:
    """The checkpoint's tensors that make up an array of the model: one for each layer and each part."""
    prefix, *_, kind = weight.name.rsplit(".", 3)
    stored = []
    for layer in range(config.num_hidden_layers if weight.layout.stacked else 1):
        start = 0
        for part in weight.layout.parts or (None,):
            name = f"{prefix}.{part.name}.{kind}" if part else weight.name
            layout = Layout(weight.layout.text, parts=(part,) if part else ())
            sizes = dict(zip(layout.letters, layout.shape(config.dims)))
            groups = layout.outputs if layout.text == "VD" else (layout.outputs, layout.inputs)
            shape = tuple(math.prod(sizes[letter] for letter in group) for group in groups if group)
            stored.append(StoredTensor(name.replace("*", str(layer)), shape, layout, layer, start))
            start += sizes.get("J", 0)
    return stored


def load_model(
    directory: pathlib.Path,
    *,
    dtype: Any = jnp.float32,
    stacked: bool = False,
    sharding: Sharding = UNSHARDED,
    quantization: str = "none",
) -> Transformer:
    """Reads a Hugging Face checkpoint into (sharded) arrays of `dtype`, one tensor at a time.

    `directory` is a path, or an etils.epath.Path in a bucket. Each byte is read once, by one process. Beside its arrays
    a host holds its own stripe of one tensor; the devices (on a CPU, in the host's memory) hold up to eight copies of
    their parts of it while they exchange and transpose them.
    With `quantization` "int8" each matrix of a layer becomes a `Quantized` before the next one is read.

    Raises UserError listing every tensor that is missing, extra, duplicate, of the wrong shape or of an unknown dtype,
    and where a tied head differs from the embedding (only where the checkpoint has both are they read twice).
    """
    config, tensors = check_checkpoint(directory)
    if (directory / SINGLE).exists() and (directory / INDEX).exists():
        print(f"{directory} holds two sets of weights: {SINGLE} is used, {INDEX} is not", file=sys.stderr)

    quantized = quantization == "int8"

    def zeros(layout: Layout, dtype: Any) -> jax.Array:
        shape = layout.shape(config.dims)
        return jnp.zeros(shape, dtype, device=sharding.weight(layout.letters, shape, layout.text))

    def init(name: str, layout: Layout) -> jax.Array | Quantized:
        parts = stored_tensors(Weight(name, layout), config)
        # Raises an error that names a tensor.
        sharding.weight(layout.letters, layout.shape(config.dims), parts[-1].name)
        whole = None
        for stored in parts:
            stripes, arrange = _arranged(stored.layout, config, jnp.dtype(dtype), quantized, sharding)
            # Wait: a host that reads ahead of its devices would accumulate what it has read.
            array = jax.block_until_ready(arrange(_read(tensors[stored.name], stripes)))
            if stored.layout == layout:
                return array
            whole = _each(layout, dtype, quantized, zeros) if whole is None else whole
            whole = _put(whole, array, jnp.int32(stored.layer), jnp.int32(stored.start), layout=layout)
        return whole

    return Transformer(config, init, stacked=stacked)


def save_model(model: Transformer, directory: pathlib.Path) -> None:
    """Writes config.json and model.safetensors as Hugging Face reads them; a tied head is not written."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    tensors: dict[str, np.ndarray] = {}
    for weight, array in zip(weights_of(config, stacked=model.stacked), jax.tree.leaves(model), strict=True):
        for stored in stored_tensors(weight, config):
            end = stored.start + sum(part.size for part in stored.layout.parts)
            place = {"L": stored.layer, "J": slice(stored.start, end)}
            tensor = np.asarray(array[tuple(place.get(letter, slice(None)) for letter in weight.layout.letters)])
            if inputs := len(weight.layout.inputs):
                tensor = tensor.reshape(math.prod(tensor.shape[:inputs]), -1).T
            tensors[stored.name] = np.ascontiguousarray(tensor.reshape(stored.shape))
    safetensors.numpy.save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
    (directory / SINGLE).chmod(0o644)  # the library makes it readable by its owner only
    fields = {**config_fields(config), "torch_dtype": jax.tree.leaves(model)[0].dtype.name}
    (directory / "config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")


@functools.lru_cache(maxsize=64)
def _arranged(
    layout: Layout, config: TransformerConfig, dtype: np.dtype, quantized: bool, sharding: Sharding
) -> tuple[NamedSharding | None, Callable[[jax.Array], Any]]:
    """How a tensor of this layout is read in stripes, and the program that makes a weight of it."""
    shape = layout.shape(config.dims)
    place = sharding.weight(layout.letters, shape, layout.text)
    quantized = quantized and bool(layout.inputs)

    def arrange(stored: jax.Array) -> jax.Array | Quantized:
        """Moves each stripe's columns to their devices, drops the rows that fill it up, and orders the axes."""
        if place is not None:
            # One exchange along one axis at a time: otherwise XLA gives every device the whole tensor.
            rows, columns, _ = _mesh_axes(layout, place)
            for spec in ((rows + columns,), (rows, columns)[: stored.ndim]):
                stored = jax.lax.with_sharding_constraint(stored, NamedSharding(place.mesh, PartitionSpec(*spec)))
        weight = stored[: math.prod(shape) // math.prod(stored.shape[1:])]
        weight = (weight.T if layout.inputs else weight).reshape(shape)
        return quantize(layout, weight) if quantized else weight.astype(dtype)

    def placed(layout: Layout, _: Any) -> NamedSharding | None:
        return sharding.weight(layout.letters, layout.shape(config.dims), layout.text)

    stripes = None if place is None else NamedSharding(place.mesh, PartitionSpec(sum(_mesh_axes(layout, place), ())))
    return stripes, jax.jit(arrange, out_shardings=_each(layout, dtype, quantized, placed))


def _each(layout: Layout, dtype: Any, quantized: bool, create: Callable[[Layout, Any], Any]) -> Any:
    """`create` of a weight's layout and dtype, or of those of a quantised matrix's two arrays."""
    if quantized and layout.inputs:
        return Quantized(create(layout, jnp.int8), create(layout.scale, jnp.float32))
    return create(layout, dtype)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="layout")
def _put(whole: Any, part: Any, layer: jax.Array, start: jax.Array, *, layout: Layout) -> Any:
    """`whole`, of this layout, with a tensor's array at its layer and its start along J."""

    def put(layout: Layout, whole: jax.Array, part: jax.Array) -> jax.Array:
        starts = [{"L": layer, "J": start}.get(letter, 0) for letter in layout.letters]
        return jax.lax.dynamic_update_slice(whole, part[None] if layout.stacked else part, starts)

    layouts = Quantized(layout, layout.scale) if isinstance(whole, Quantized) else layout
    return jax.tree.map(put, layouts, whole, part)


def _mesh_axes(layout: Layout, place: NamedSharding) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The mesh axes over the rows of the stored tensor, over its columns, and those along which it is replicated."""
    each = [(entry,) if isinstance(entry, str) else entry or () for entry in place.spec]
    # Only the first letter of a group is ever sharded, so a shard is whole rows and columns of the stored matrix.
    split = len(layout.inputs) or 1
    first, second = sum(each[:split], ()), sum(each[split:], ())
    rows, columns = (second, first) if layout.inputs else (first, second)
    return rows, columns, tuple(axis for axis in place.mesh.axis_names if axis not in rows + columns)


def _read(tensor: TensorRef, stripes: NamedSharding | None) -> jax.Array:
    """A tensor as stored, split into stripes of rows, one per device; the last stripes are filled up with zeros.

    Every process reads its own stripes, so each byte is read once by one process, and the devices then exchange parts.
    To read a matrix sharded by columns directly would take a thousand short reads.
    """
    if stripes is None:
        return jnp.asarray(tensor.rows(0, tensor.shape[0]))
    rows, *rest = tensor.shape
    padded = -(-rows // stripes.mesh.size) * stripes.mesh.size

    def stripe(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(padded)
        part = tensor.rows(min(start, rows), min(stop, rows))
        return np.pad(part, [(0, stop - start - len(part))] + [(0, 0)] * len(rest)) if stop > rows else part

    return jax.make_array_from_callback((padded, *rest), stripes, stripe)


def check_checkpoint(directory: pathlib.Path) -> tuple[TransformerConfig, dict[str, TensorRef]]:
    """The config and the tensors of a checkpoint, by its headers alone. Raises as `load_model`.

    RoPE's frequencies, which older versions of transformers stored as buffers, are ignored by their name.
    """
    config = read_config(directory)
    tensors, problems = open_checkpoint(directory)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".rotary_emb.inv_freq")}
    if config.num_hidden_layers > len(tensors):
        raise UserError(f"{directory}: num_hidden_layers is {config.num_hidden_layers}, found {len(tensors)} tensors")
    expected: dict[str, tuple[int, ...]] = {}
    for weight in weights_of(config, stacked=True):
        expected |= {stored.name: stored.shape for stored in stored_tensors(weight, config)}
    has_tied_head = config.tie_word_embeddings and "lm_head.weight" in tensors
    if has_tied_head:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    problems += tensor_problems(tensors, expected, "this model")
    if not problems and has_tied_head:
        head, table = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
        blocks = [(i, min(i + 4096, config.vocab_size)) for i in range(0, config.vocab_size, 4096)]
        if any(not np.array_equal(head.rows(*block), table.rows(*block)) for block in blocks):
            problems.append("lm_head.weight differs from the embedding although tie_word_embeddings is true")
    raise_problems(str(directory), problems)
    return config, tensors
