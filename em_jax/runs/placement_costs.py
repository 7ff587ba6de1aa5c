"""What a run's placement costs: bytes on a chip and seconds, in closed form.

A time is the least that a chip's published peaks allow: matmuls, memory and collectives each by itself, and the largest
counts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from em_jax.model.config import TransformerConfig
from em_jax.runs.chips import Chip
from em_jax.train.batches import Example, Shape


@dataclasses.dataclass(frozen=True)
class RunSize:
    """The numbers of a run that its placement depends on.

    `examples` are those of some optimizer steps, `batch_size` each; `steps` are all of them. `answer_tokens` are
    sampled in the whole run by `answers` answers, each in `capacity` tokens of cache. `itemsize` is that of the base's
    dtype, of which `int8` is an exception. Where `remat` is "auto", or `rows_per_pass` or `slots` 0, it is chosen.
    `excess` is how many times the bytes reckoned for activations and caches a compiler was seen to need.
    """

    examples: Sequence[Example]
    batch_size: int
    steps: int
    max_length: int
    answers: int
    answer_tokens: int
    capacity: int
    rank: int
    int8: bool
    itemsize: int
    remat: str
    rows_per_pass: int
    slots: int
    excess: float = 1.0

    @property
    def stored_itemsize(self) -> int:
        """The bytes of one number of the layers' matrices as they are stored."""
        return 1 if self.int8 else self.itemsize


# --- memory, bytes on a chip ---


class Sizes(NamedTuple):
    """Numbers of a model: a layer's matrices, one vocabulary table, and an adapter's A and B by the axis they have.

    `of_width` are the numbers of A and B with a width axis in all layers, `of_heads` those with heads or MLP.
    """

    layer: int
    table: int
    of_width: int
    of_heads: int

    @property
    def adapter(self) -> int:
        """All numbers of an adapter."""
        return self.of_width + self.of_heads


def sizes(config: TransformerConfig, rank: int) -> Sizes:
    """The sizes of a model and of an adapter on all seven matrices."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layers = config.num_hidden_layers
    return Sizes(
        layer=2 * d * (q + kv) + 3 * d * f,
        table=config.vocab_size * d,
        of_width=layers * rank * 7 * d,
        of_heads=layers * rank * (2 * (q + kv) + 3 * f),
    )


def base_bytes(config: TransformerConfig, mesh: Mapping[str, int], run: RunSize) -> float:
    """Bytes of the base on a chip."""
    size = sizes(config, run.rank)
    matrices = size.layer * config.num_hidden_layers * run.stored_itemsize
    tables = size.table * (1 if config.tie_word_embeddings else 2) * run.itemsize
    return (matrices + tables) / (mesh["fsdp"] * mesh["tensor"])


def training_bytes(config: TransformerConfig, mesh: Mapping[str, int], run: RunSize, remat: str, tokens: int) -> float:
    """Bytes of a training pass with so many tokens on a chip.

    The adapter with its gradient (twice, while it is added up) and moments; what the policy keeps of every layer; one
    layer's gathered weights; the head; and a layer's float32 activations and their gradients.
    """
    size, tensor = sizes(config, run.rank), mesh["tensor"]
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * h
    kept = {"full": d, "selective": 2 * d + heads / tensor}.get(remat, 2 * d + (heads + 2 * f) / tensor)
    kept *= 3 if remat == "none" else 1
    layer = size.layer * run.stored_itemsize / tensor if mesh["fsdp"] > 1 else 0
    chunk = 2 * 4 * min(512, tokens) * config.vocab_size / tensor
    return (
        base_bytes(config, mesh, run)
        + 6 * 4 * size.adapter / (mesh["fsdp"] * tensor)
        + layer
        + size.table * run.itemsize / tensor
        + run.excess * (tokens * (config.num_hidden_layers * kept * run.itemsize + 12 * d + 8 * f / tensor) + chunk)
    )


def sampling_bytes(config: TransformerConfig, mesh: Mapping[str, int], run: RunSize, slots: int) -> float:
    """Bytes of decoding: base, adapter (float32, and once more in the base's dtype), cache, logits."""
    size, fsdp, tensor = sizes(config, run.rank), mesh["fsdp"], mesh["tensor"]
    adapter = (4 + run.itemsize) * (size.of_width / fsdp + size.of_heads / tensor)
    cache = cache_bytes(config, slots * run.capacity, run.itemsize) / (mesh["data"] * fsdp * tensor)
    logits = 3 * 4 * slots / mesh["data"] * config.vocab_size / tensor
    return base_bytes(config, mesh, run) + adapter + run.excess * (1.1 * cache + logits)


def cache_bytes(config: TransformerConfig, tokens: float, itemsize: int) -> float:
    """Bytes of the keys and values of so many tokens, on all chips together."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * itemsize


# --- time, seconds ---


def remote(parts: int) -> float:
    """The share of an array over so many parts that is on other devices."""
    return (parts - 1) / parts


def stream_sums(layers: int, remat: str) -> int:
    """How often a training pass sums the residual stream over tensor.

    After attention and MLP, backward once for the matrices of each that read it, and once more where attention is
    recomputed.
    """
    return (4 + (remat == "full")) * layers


class Traffic(NamedTuple):
    """Bytes that a device receives: layers, adapter and head gathered, activations and gradients summed."""

    weights: float
    factors: float
    head: float
    activations: float
    gradients: float


def train_traffic(
    config: TransformerConfig, mesh: Mapping[str, int], run: RunSize, remat: str, shape: Shape
) -> Traffic:
    """The traffic of a training pass.

    Over fsdp the weights are gathered once forward and once backward (recomputation uses the latter), the head once for
    both. Of the adapter what has a width is gathered whole, the rest whole in its ranks. Over tensor the residual
    stream is summed, over all batch parts float32 gradients. A sum costs twice as much as gathering its result.
    """
    size, layers, fsdp, tensor = sizes(config, run.rank), config.num_hidden_layers, mesh["fsdp"], mesh["tensor"]
    parts = mesh["data"] * fsdp
    gathered = remote(fsdp) / tensor
    of_heads = size.of_heads / tensor
    factors = size.of_width * remote(fsdp * tensor) + of_heads * remote(fsdp)
    stream = shape.rows // parts * shape.length * config.hidden_size * run.itemsize
    return Traffic(
        weights=2 * gathered * layers * size.layer * run.stored_itemsize,
        factors=2 * factors * run.itemsize,
        head=gathered * size.table * run.itemsize,
        activations=2 * stream_sums(layers, remat) * stream * remote(tensor),
        gradients=2 * 4 * (size.of_width + of_heads) * remote(parts),
    )


def pass_s(
    config: TransformerConfig, chip: Chip, mesh: Mapping[str, int], run: RunSize, remat: str, shape: Shape
) -> float:
    """The least time of a training pass. The base is frozen: backward costs as much as forward."""
    size, layers, tensor = sizes(config, run.rank), config.num_hidden_layers, mesh["tensor"]
    parts = mesh["data"] * mesh["fsdp"]
    d, f = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    tokens = shape.rows // parts * shape.length
    again = {"full": size.layer - d * f, "selective": 2 * d * f}.get(remat, 0)
    attention = (3 + (remat == "full")) * 4 * shape.length * heads
    flops = tokens * (layers * (4 * size.layer + 2 * again + attention) + 6 * size.adapter)
    flops += shape.rows // parts * shape.labels * 4 * size.table
    activations = 2 * tokens * run.itemsize * layers * (7 * d + 2 * heads + 3 * f)
    memory = layers * run.stored_itemsize * (2 * size.layer + again) + 2 * size.table * run.itemsize + activations
    received = sum(train_traffic(config, mesh, run, remat, shape))
    return max(flops / tensor / chip.flops, memory / tensor / chip.bandwidth, received / (chip.links / 2))


def decode_traffic(config: TransformerConfig, mesh: Mapping[str, int], slots: int, itemsize: int) -> float:
    """Bytes that a device receives for one token in every slot; weights are not moved.

    Over fsdp the partial results of every projection are summed (float32 logits among them) and the inputs of the o and
    down projections gathered. Over tensor the residual stream is summed once, and twice a layer, and a row's logits go
    to the device that draws from it: one of all, or all of its tensor part where the slots do not divide by all.
    """
    fsdp, tensor, layers = mesh["fsdp"], mesh["tensor"], config.num_hidden_layers
    rows, row_logits = slots / mesh["data"], config.vocab_size * 4
    heads, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    inner = config.intermediate_size
    per_layer = (2 * (heads + 2 * keys + 2 * inner) + heads + inner) * itemsize
    over_fsdp = rows / tensor * (layers * per_layer + 2 * row_logits) * remote(fsdp)
    drawn = row_logits if slots % (mesh["data"] * fsdp * tensor) else row_logits / tensor
    stream = 2 * (2 * layers + 1) * config.hidden_size * itemsize
    over_tensor = rows / fsdp * (stream + drawn) * remote(tensor)
    return over_fsdp + over_tensor


def decode_s(config: TransformerConfig, chip: Chip, mesh: Mapping[str, int], run: RunSize, slots: int) -> float:
    """The least time of a token in every slot: weights and caches are read where they lie, activations are summed."""
    size, layers, tensor, fsdp = sizes(config, run.rank), config.num_hidden_layers, mesh["tensor"], mesh["fsdp"]
    devices = mesh["data"] * fsdp * tensor
    heads = config.num_attention_heads * config.head_dim
    weights = layers * size.layer * run.stored_itemsize + (size.table + size.adapter) * run.itemsize
    read = weights / (fsdp * tensor) + cache_bytes(config, slots * run.capacity, run.itemsize) / devices
    flops = 2 * slots * (layers * size.layer + size.table) + 4 * slots * run.capacity * heads * layers
    received = decode_traffic(config, mesh, slots, run.itemsize)
    return max(flops / devices / chip.flops, read / chip.bandwidth, received / (chip.links / 2))
