"""The programs of a run as shapes: what is traced, counted and compiled, with no array behind it."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em_jax.config import Config
from em_jax.lora.adapter import Adapter, init_adapter, shardings_of
from em_jax.model.attention import CACHE_AXES
from em_jax.model.config import TransformerConfig
from em_jax.model.layout import Layout
from em_jax.model.linear import Quantized
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.runs.placement_costs import cache_bytes
from em_jax.sample.decode import decode, init_decode_state, prefill
from em_jax.sample.engine import CHUNK
from em_jax.train.batches import Batch, Shape, round_up
from em_jax.train.loss import chunk_size
from em_jax.train.step import (
    GradAccumulator,
    TrainState,
    accumulate,
    make_optimizer,
    state_shardings,
    update,
    zero_accumulator,
)


class Program(NamedTuple):
    """A jitted function's trace, bytes per device that stay beside its arguments, and the turns of its while loop."""

    name: str
    traced: Any
    beside: dict[str, int]
    loops: int = 1


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A model, its settings and a mesh, from which every program's arguments follow."""

    config: TransformerConfig
    settings: Config
    sharding: Sharding = UNSHARDED

    @property
    def dtype(self) -> Any:
        """The base's dtype: bfloat16 unless the settings say otherwise."""
        return jnp.dtype(self.settings.dtype or "bfloat16")

    @functools.cached_property
    def model(self) -> Transformer:
        """The base, its layers stacked unless the settings say otherwise, its projections in int8 where they do."""
        quantized = self.settings.model.quantization == "int8"

        def make(name: str, layout: Layout) -> jax.ShapeDtypeStruct | Quantized:
            def array(layout: Layout, dtype: Any) -> jax.ShapeDtypeStruct:
                shape = layout.shape(self.config.dims)
                place = self.sharding.weight(layout.letters, shape, name)
                return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

            if not (quantized and layout.inputs):
                return array(layout, self.dtype)
            return Quantized(array(layout, jnp.int8), array(layout.scale, jnp.float32))

        return Transformer(self.config, make, stacked=self.settings.model.scan_layers != "false")

    @functools.cached_property
    def adapter(self) -> Adapter:
        """One adapter as the settings want it, as training splits it."""
        return self._adapter(self.sharding)

    def _adapter(self, sharding: Sharding) -> Adapter:
        adapter = jax.eval_shape(lambda: init_adapter(self.config, self.settings.lora, jax.random.key(0)))
        factors = placed(adapter.factors, shardings_of(self.config, adapter.factors, sharding))
        return Adapter(factors, self._on(adapter.scale))

    @functools.cached_property
    def sampled_adapter(self) -> Adapter:
        """The same adapter as sampling splits it."""
        return self._adapter(dataclasses.replace(self.sharding, sampling=True))

    @property
    def rows(self) -> int:
        """Rows of a training pass: rows_per_pass, or a whole step of one example a row, rounded up to the mesh."""
        train = self.settings.train
        return round_up(train.rows_per_pass or train.batch_size, self.sharding.batch_shards)

    def _on(self, tree: Any, axes: tuple[str | None, ...] = ()) -> Any:
        """The shapes split along these axes, by default on every device."""
        place = self.sharding.named(axes)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    def _batch(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return self._on(jax.ShapeDtypeStruct(shape, dtype), ("batch",))

    def train_microbatch(self, shape: Shape) -> Program:
        """One pass of a step: gradients of the adapter, added up. The moments wait beside it."""
        sums = self._sums()
        by_position, by_label = (shape.rows, shape.length), (shape.rows, shape.labels)
        batch = Batch(  # type: ignore[call-arg]  # of the three below the checker counts any number
            *(self._batch(by_position, jnp.int32) for _ in range(3)),
            self._batch(by_label, jnp.int32),
            self._batch(by_label, jnp.int32),
            self._batch(by_label, jnp.float32),
        )
        traced = accumulate.trace(
            self.model, self.adapter.factors, self.adapter.scale, sums, batch,
            remat=self.settings.train.remat, sharding=self.sharding
        )  # fmt: skip
        loops = -(-shape.labels // chunk_size(shape.rows, shape.labels, self.sharding))
        return Program("training pass", traced, {"optimizer moments": 2 * tree_bytes(self.adapter.factors)}, loops)

    def train_update(self) -> Program:
        """AdamW on the adapter. The base waits beside it."""
        optimizer = make_optimizer(self.settings.train, 1000)
        factors = self.adapter.factors
        state = TrainState(factors, jax.eval_shape(optimizer.init, factors))
        state = placed(state, state_shardings(self.config, state, optimizer, self.sharding))
        traced = update.trace(state, [self._sums()], optimizer=optimizer)
        return Program("update", traced, {"base": tree_bytes(self.model)})

    def _sums(self) -> GradAccumulator:
        sums = jax.eval_shape(zero_accumulator, self.adapter.factors)
        return GradAccumulator(self.adapter.factors, *self._on(sums[1:]))

    def prefill(self, rows: int, length: int, capacity: int, slots: int) -> Program:
        """Prompts' keys and values. The slots' caches wait beside it."""
        tokens, lengths = self._batch((rows, length), jnp.int32), self._batch((rows,), jnp.int32)
        adapter_mask = self._batch((rows, 1), jnp.float32)
        traced = prefill.trace(self.model, self.sampled_adapter, tokens, lengths, adapter_mask, sharding=self.sharding)
        return Program("prefill", traced, {"key/value cache": self.cache_bytes(slots, capacity)})

    def decode(self, slots: int, capacity: int) -> Program:
        """A chunk of tokens in every slot."""
        held = jax.eval_shape(lambda model: init_decode_state(model, slots, capacity, 1), self.model)
        axes = ("layers",) * self.model.stacked + CACHE_AXES
        held = self._on(held)._replace(k=self._on(held.k, axes), v=self._on(held.v, axes))
        stop = self._on(jax.ShapeDtypeStruct((2,), jnp.int32))
        occupied = self._on(jax.ShapeDtypeStruct((slots,), jnp.bool))
        top_p = self.settings.answers.top_p < 1
        traced = decode.trace(
            self.model, self.sampled_adapter, held, occupied, stop, steps=CHUNK, use_top_p=top_p, sharding=self.sharding
        )
        return Program("decode", traced, {}, loops=CHUNK)

    def cache_bytes(self, slots: int, capacity: int) -> int:
        """Bytes of the key/value cache on one device."""
        return int(cache_bytes(self.config, slots * capacity, self.dtype.itemsize)) // self.sharding.size


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with their places; None leaves an array's place open."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        shardings,
        is_leaf=lambda x: x is None,
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""

    def held(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape) if getattr(x, "sharding", None) else x.shape
        return x.dtype.itemsize * math.prod(shape)

    return sum(held(x) for x in jax.tree.leaves(tree))
