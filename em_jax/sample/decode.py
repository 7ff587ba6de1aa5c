"""Decoding on the device: prompts are prefilled, put into slots, and all slots advance a chunk of tokens at a time.

A slot's long cache is only read during a chunk; the chunk's own keys and values go to a short buffer with one
write index for all slots, and are folded in when it ends. A request enters only between chunks, so the n-th token of an
answer is computed the same way whatever else is in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from em_jax.lora.adapter import Adapter
from em_jax.model.attention import KVBlock
from em_jax.model.qwen2 import KVCache, Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.sample.sampler import sample_tokens, top_logprobs_of

CACHE = ("batch", "kv_heads", None, None)
"""The logical axes of a layer's cached keys, [B, K, H, S], or values, [B, K, S, H]."""
PLACES = (-1, -2)
"""The axis S of cached keys and of values."""


class SamplingParams(NamedTuple):
    """What each row asks for, whatever it is doing: its key, temperature, top-p, token limit and share of adapters."""

    keys: UInt32[Array, "B 2"]
    temperature: Float[Array, "B"]
    top_p: Float[Array, "B"]
    limit: Int[Array, "B"]
    adapter_mask: Float[Array, "B S"] | None


class DecodeState(NamedTuple):
    """B answers under way. k and v hold `length` tokens of each row, per layer or stacked as the model's layers are.

    `token` is the last one drawn, not yet in the cache; `count` how many were drawn.
    """

    k: Any
    v: Any
    length: Int[Array, "B"]
    token: Int[Array, "B"]
    count: Int[Array, "B"]
    active: Bool[Array, "B"]
    requests: SamplingParams


class PrefillOutput(NamedTuple):
    """P prompts, prefilled once for all samples: keys and values of T places each, and the next token's logits."""

    k: Any
    v: Any
    length: Int[Array, "P"]
    logits: Float[Array, "P V"]


class DecodeOutput(NamedTuple):
    """What a chunk drew: tokens, their log-probabilities (0 once a row has ended), whether each belongs to its row's
    answer, as a stop id does not; the likeliest U tokens at each place, where asked for; and who goes on."""

    tokens: Int[Array, "C B"]
    logprobs: Float[Array, "C B"]
    real: Bool[Array, "C B"]
    top_logprobs: tuple[Int[Array, "C B U"], Float[Array, "C B U"]] | None
    active: Bool[Array, "B"]


def _layers(cache: Any) -> int:
    """How many axes stand before B: one when layers are stacked."""
    return 0 if isinstance(cache, (list, tuple)) else 1


def empty_slots(model: Qwen2, slots: int, length: int, adapters: int, sharding: Sharding = UNSHARDED) -> DecodeState:
    """`slots` free slots with room for `length` tokens each, none active, in the model's dtype."""
    config, dtype = model.config, model.embed_tokens[...].dtype
    layers, more = config.num_hidden_layers, ()
    if model.stacked:
        layers, more = 1, (layers,)
    axes = ("layers",) * len(more) + CACHE

    def cache(*row: int) -> Any:
        shape = *more, slots, config.num_key_value_heads, *row
        parts = [jnp.zeros(shape, dtype, device=sharding.named(axes)) for _ in range(layers)]
        return parts[0] if model.stacked else parts

    def row(kind: Any, *more: int) -> Array:
        return jnp.zeros((slots, *more), kind)

    requests = SamplingParams(
        row(jnp.uint32, 2),
        row(jnp.float32),
        row(jnp.float32),
        row(jnp.int32),
        row(jnp.float32, adapters) if adapters else None,
    )
    k, v = cache(config.head_dim, length), cache(length, config.head_dim)
    return DecodeState(k, v, row(jnp.int32), row(jnp.int32), row(jnp.int32), row(jnp.bool), requests)


@functools.partial(jax.jit, static_argnames="sharding")
def prefill(
    model: Qwen2,
    adapter: Adapter | None,
    tokens: Int[Array, "P T"],
    length: Int[Array, "P"],
    adapter_mask: Float[Array, "P S"] | None,
    *,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> PrefillOutput:
    """One forward pass over P prompts, padded on the right to T."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    lora_params = adapter.lora_params() if adapter else None
    how = {"lora_params": lora_params, "adapter_mask": adapter_mask, "steer": steer, "sharding": sharding}
    output = model(tokens, positions, return_kv=True, packed=True, **how)
    last = jnp.take_along_axis(output.hidden, (length - 1)[:, None, None], axis=1)[:, 0]
    return PrefillOutput(output.k, output.v, length, model.logits(last))


@functools.partial(jax.jit, static_argnames=("use_top_p", "top_logprobs"), donate_argnums=0)
def insert(
    slots: DecodeState,
    prefilled: PrefillOutput,
    source: Int[Array, "B"],
    target: Int[Array, "B"],
    number: Int[Array, ""],
    requests: SamplingParams,
    stop: Int[Array, "E"],
    *,
    use_top_p: bool,
    top_logprobs: int = 0,
) -> tuple[DecodeState, DecodeOutput]:
    """Puts the first `number` of (prefilled row `source`, request) into slots `target` and draws their first tokens.

    Entries from `number` on are ignored. `requests` are in the order of `source`. `slots` is donated.
    """
    rows = slots.length.shape[0]
    at = _layers(slots.k)

    def put(cache: Array, new: Array) -> Array:
        def body(i: Array, cache: Array) -> Array:
            row = jax.lax.dynamic_slice_in_dim(new, source[i], 1, at)
            return jax.lax.dynamic_update_slice(cache, row, [0] * at + [target[i], 0, 0, 0])

        return jax.lax.fori_loop(0, number, body, cache)

    drop = jnp.where(jnp.arange(rows) < number, target, rows)
    none = jnp.zeros(rows, jnp.int32)
    drawn = _draw(prefilled.logits[source], requests, none, stop, use_top_p=use_top_p, top_logprobs=top_logprobs)
    tokens, _, real, _ = drawn

    def at_targets(old: Array, new: Array) -> Array:
        return old.at[drop].set(new, mode="drop")

    slots = DecodeState(
        jax.tree.map(put, slots.k, prefilled.k),
        jax.tree.map(put, slots.v, prefilled.v),
        at_targets(slots.length, prefilled.length[source]),
        at_targets(slots.token, tokens),
        at_targets(slots.count, none + 1),
        at_targets(slots.active, real & (requests.limit > 1)),
        jax.tree.map(at_targets, slots.requests, requests),
    )
    return slots, DecodeOutput(*jax.tree.map(lambda x: x[None], drawn), slots.active)


def _draw(
    logits: Array, requests: SamplingParams, count: Array, stop: Array, *, use_top_p: bool, top_logprobs: int
) -> tuple:
    """A token of each row, its log-probability, whether it is no stop id, and the likeliest at its place."""
    given = requests.keys, count, requests.temperature, requests.top_p
    tokens, logprobs = sample_tokens(logits, *given, use_top_p=use_top_p)
    return tokens, logprobs, jnp.all(tokens[:, None] != stop[None], axis=1), top_logprobs_of(logits, top_logprobs)


@functools.partial(jax.jit, static_argnames=("steps", "use_top_p", "top_logprobs", "sharding"), donate_argnums=2)
def decode(
    model: Qwen2,
    adapter: Adapter | None,
    slots: DecodeState,
    stop: Int[Array, "E"],
    *,
    steps: int,
    use_top_p: bool,
    top_logprobs: int = 0,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> tuple[DecodeState, DecodeOutput]:
    """Advances all active slots by up to `steps` tokens, C; ends early when none is active. `slots` is donated."""
    sharding = dataclasses.replace(sharding, sampling=True)
    requests = slots.requests
    lora_params = model.by_layer(adapter.lora_params() if adapter else None)
    at = _layers(slots.k)
    rows, capacity = slots.length.shape[0], jax.tree.leaves(slots.v)[0].shape[-2]
    in_cache = jnp.broadcast_to((jnp.arange(capacity)[None] < slots.length[:, None])[:, None], (rows, 1, capacity))

    def short(cache: Array, places: int) -> Array:
        shape = list(cache.shape)
        shape[places] = steps
        return jnp.zeros(shape, cache.dtype)

    def whole_rows(logits: Array) -> Array:
        """Summed where the vocabulary lies, then each row sent whole to where it is drawn from."""
        return sharding.constrain(sharding.constrain(logits, ("batch", "vocab")), ("batch", None))

    def going(state: tuple) -> Array:
        return (state[0] < steps) & jnp.any(state[3])

    def step(state: tuple) -> tuple:
        i, recent, token, active, count, emitted = state
        in_recent = jnp.broadcast_to((jnp.arange(steps) <= i)[None, None], (rows, 1, steps))
        output = model(
            token[:, None],
            (slots.length + i)[:, None],
            lora_params=lora_params,
            adapter_mask=requests.adapter_mask,
            past=KVCache(KVBlock(slots.k, slots.v, in_cache), KVBlock(*recent, in_recent), i),
            return_kv=True,
            steer=steer,
            sharding=sharding,
        )
        recent = output.k, output.v
        logits = whole_rows(model.logits(output.hidden[:, 0]))
        new, logprobs, real, top = _draw(logits, requests, count, stop, use_top_p=use_top_p, top_logprobs=top_logprobs)
        drawn = new, jnp.where(active, logprobs, 0.0), active & real, top
        emitted = jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, i, 0), emitted, drawn)
        count += active
        active &= real & (count < requests.limit)
        return i + 1, recent, new, active, count, emitted

    def places(kind: Any, *more: int) -> Array:
        return jnp.zeros((steps, rows, *more), kind)

    top = (places(jnp.int32, top_logprobs), places(jnp.float32, top_logprobs)) if top_logprobs else None
    taken, recent, token, active, count, emitted = jax.lax.while_loop(
        going,
        step,
        (
            jnp.int32(0),
            _each(short, (slots.k, slots.v)),
            slots.token,
            slots.active,
            slots.count,
            (places(jnp.int32), places(jnp.float32), places(jnp.bool), top),
        ),
    )

    def fold(cache: Array, places: int, buffer: Array) -> Array:
        def put(cache: Array, buffer: Array, length: Array) -> Array:
            def body(row: Array, cache: Array) -> Array:
                new = jax.lax.dynamic_slice_in_dim(buffer, row, 1, at)
                start = [0] * at + [row, 0, 0, 0]
                start[places] = length[row]
                return jax.lax.dynamic_update_slice(cache, new, start)

            return jax.lax.fori_loop(0, length.shape[0], body, cache)

        if sharding.mesh is not None:
            # Every device folds its own rows; over the whole batch XLA would gather all the buffers.
            held = sharding.spec(("layers",) * at + CACHE)
            put = jax.shard_map(
                put, mesh=sharding.mesh, in_specs=(held, held, sharding.spec(("batch",))), out_specs=held
            )  # fmt: skip
        return put(cache, buffer, slots.length)

    folded = _each(fold, (slots.k, slots.v), recent)
    return DecodeState(*folded, slots.length + taken, token, count, active, requests), DecodeOutput(*emitted, active)


@functools.partial(jax.jit, static_argnames=("capacity", "sharding"))
def resize(slots: DecodeState, capacity: int, *, sharding: Sharding = UNSHARDED) -> DecodeState:
    """The same slots with room for `capacity` tokens each; no answer under way may be longer."""
    axes = ("layers",) * _layers(slots.k) + CACHE

    def resized(cache: Array, places: int) -> Array:
        kept = jax.lax.slice_in_dim(cache, 0, min(capacity, cache.shape[places]), axis=places)
        more = [(0, 0)] * cache.ndim
        more[places] = (0, capacity - kept.shape[places])
        return sharding.constrain(jnp.pad(kept, more), axes)

    k, v = _each(resized, (slots.k, slots.v))
    return slots._replace(k=k, v=v)


def _each(work: Callable[..., Array], caches: tuple[Any, Any], *others: tuple[Any, Any]) -> tuple[Any, Any]:
    """`work(cache, its axis S, ...)` for the arrays of keys and of values, with those of `others` beside them."""
    return tuple(
        jax.tree.map(lambda cache, *beside, places=places: work(cache, places, *beside), *pair)
        for places, *pair in zip(PLACES, caches, *others, strict=True)
    )
