"""Decoding on the device: prompts are prefilled, inserted into slots, and all slots advance by chunks of tokens.

During a chunk a slot's long cache is only read; new keys and values go to a buffer of the chunk, with one write index
for all slots, and are copied to the cache at its end. A request enters only between chunks, so the n-th token of an
answer is computed the same way whatever else is in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from em_jax.lora.adapter import Adapter, adapted
from em_jax.model.attention import CACHE_AXES, KVCache
from em_jax.model.kernels.append import append_rows, copy_rows
from em_jax.model.kernels.joined import joined
from em_jax.model.kernels.per_device import per_device
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.sample.sampler import sample_tokens, top_logprobs_of


class SamplingParams(NamedTuple):
    """The settings of B requests; those of one request have no axis B.

    keys: see `request_key`.
    temperature: 0 takes the most probable token.
    top_p: 1 keeps all tokens.
    max_new_tokens: the most tokens of an answer.
    adapter_mask: 1 for the adapter of a request among the S of the stack; all 0 is the base.
    """

    keys: UInt32[Array, "B 2"]
    temperature: Float[Array, "B"]
    top_p: Float[Array, "B"]
    max_new_tokens: Int[Array, "B"]
    adapter_mask: Float[Array, "B S"]


class DecodeState(NamedTuple):
    """B slots, each with the state of an answer.

    k, v: the cache, in the model's dtype: an array [B, K, H, S] or [B, K, S, H] for each layer, or one [L, ...].
    length: how many tokens of a slot are in the cache.
    token: the token last sampled, not yet in the cache.
    count: how many tokens have been sampled.
    active: whether more tokens are to be sampled.
    params: the settings of each slot's request.
    """

    k: Any
    v: Any
    length: Int[Array, "B"]
    token: Int[Array, "B"]
    count: Int[Array, "B"]
    active: Bool[Array, "B"]
    params: SamplingParams


class PrefillOutput(NamedTuple):
    """P prompts padded to T: keys and values as in DecodeState, the prompts' lengths, and their next token's logits."""

    k: Any
    v: Any
    length: Int[Array, "P"]
    logits: Float[Array, "P V"]


class DecodeOutput(NamedTuple):
    """The C tokens sampled in each of B slots. `_sample` gives one token a slot, without the axis C.

    tokens: token ids.
    logprobs: their log-probabilities at temperature 1, 0 once an answer has ended.
    in_answer: whether a token belongs to its answer: it has not ended, and the token is no stop id.
    top_logprobs: the ids of the U most probable tokens and their log-probabilities.
    """

    tokens: Int[Array, "C B"]
    logprobs: Float[Array, "C B"]
    in_answer: Bool[Array, "C B"]
    top_logprobs: tuple[Int[Array, "C B U"], Float[Array, "C B U"]]


class SamplingState(NamedTuple):
    """The carry of `decode`'s loop.

    step: how many tokens of the chunk have been sampled, int32[].
    slots: the slots, with the chunk's keys and values instead of the cache, C for S.
    output: what has been sampled so far.
    """

    step: Int[Array, ""]
    slots: DecodeState
    output: DecodeOutput


def init_decode_state(
    model: Transformer, slots: int, capacity: int, adapters: int, sharding: Sharding = UNSHARDED
) -> DecodeState:
    """Inactive slots with room for `capacity` tokens each."""
    config, dtype = model.config, model.embed_tokens[...].dtype
    layers = (config.num_hidden_layers,) if model.stacked else ()
    device = sharding.named(("layers",) * len(layers) + CACHE_AXES)

    def cache(*shape: int) -> Any:
        shape = *layers, slots, config.num_key_value_heads, *shape
        caches = [jnp.zeros(shape, dtype, device=device) for _ in range(1 if layers else config.num_hidden_layers)]
        return caches[0] if layers else caches

    def zeros(dtype: Any, *shape: int) -> Array:
        return jnp.zeros((slots, *shape), dtype, device=sharding.named(()))

    params = SamplingParams(
        zeros(jnp.uint32, 2), zeros(jnp.float32), zeros(jnp.float32), zeros(jnp.int32), zeros(jnp.float32, adapters)
    )
    k, v = cache(config.head_dim, capacity), cache(capacity, config.head_dim)
    return DecodeState(k, v, zeros(jnp.int32), zeros(jnp.int32), zeros(jnp.int32), zeros(jnp.bool), params)


@functools.partial(jax.jit, static_argnames="sharding")
def prefill(
    model: Transformer,
    adapter: Adapter | None,
    tokens: Int[Array, "P T"],
    length: Int[Array, "P"],
    adapter_mask: Float[Array, "P S"],
    *,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> PrefillOutput:
    """One forward pass over P prompts, padded on the right to T."""
    options = adapted(adapter, adapter_mask)
    output = model(tokens, return_kv=True, packed=True, steer=steer, sharding=sharding, **options)
    last = jnp.take_along_axis(output.hidden, (length - 1)[:, None, None], axis=1)[:, 0]
    return PrefillOutput(output.k, output.v, length, model.logits(last))


@functools.partial(jax.jit, static_argnames=("use_top_p", "top_logprobs"), donate_argnums=0)
def insert(
    state: DecodeState,
    prompts: PrefillOutput,
    source: Int[Array, "B"],
    target: Int[Array, "B"],
    number: Int[Array, ""],
    params: SamplingParams,
    stop: Int[Array, "E"],
    *,
    use_top_p: bool,
    top_logprobs: int = 0,
) -> tuple[DecodeState, DecodeOutput]:
    """Copies row source[i] of `prompts` to slot target[i] for each i < `number` and samples its first token.

    `params` and the output, whose C is 1, are in the order of `source`. `stop` are the E stop ids. `state` is donated.
    """
    slots = len(state.length)
    zeros = jnp.zeros(slots, jnp.int32)
    output = _sample(prompts.logits[source], params, zeros, stop, use_top_p=use_top_p, top_logprobs=top_logprobs)
    # Rows of padding get a slot out of range, which `mode="drop"` ignores.
    slot = jnp.where(jnp.arange(slots) < number, target, slots)

    def update(old: Array, new: Array) -> Array:
        return old.at[slot].set(new, mode="drop")

    copy = functools.partial(copy_rows, source=source, target=target, start=zeros, number=number)
    k, v = _map_kv(copy, (state.k, state.v), (prompts.k, prompts.v))
    active = output.in_answer & (params.max_new_tokens > 1)
    new = prompts.length[source], output.tokens, zeros + 1, active, params
    state = DecodeState(k, v, *jax.tree.map(update, tuple(state[2:]), new))
    return state, jax.tree.map(lambda x: x[None], output)


@functools.partial(jax.jit, static_argnames=("steps", "use_top_p", "top_logprobs", "sharding"), donate_argnums=2)
def decode(
    model: Transformer,
    adapter: Adapter | None,
    state: DecodeState,
    occupied: Bool[Array, "B"],
    stop: Int[Array, "E"],
    *,
    steps: int,
    use_top_p: bool,
    top_logprobs: int = 0,
    steer: Float[Array, "L D"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> tuple[DecodeState, DecodeOutput]:
    """Samples up to `steps` tokens, C, in all active slots that are occupied; ends early when none is active.

    `stop` are the E stop ids. `state` is donated.
    """
    sharding = dataclasses.replace(sharding, sampling=True)
    # Outside the loop: this casts the adapters, joins what is multiplied together and splits them by layer.
    lora_params = model.unstack_lora_params(joined(adapter.lora_params(), model, sharding) if adapter else None)
    rows, active = len(state.length), state.active & occupied
    # A slot that is done or given up gets length 0: it attends to nothing and does not grow past its cache.
    state = state._replace(length=jnp.where(active, state.length, 0), active=active)

    def unfinished(loop: SamplingState) -> Array:
        return (loop.step < steps) & jnp.any(loop.slots.active)

    def sample_next(loop: SamplingState) -> SamplingState:
        slots = loop.slots
        output = model(
            slots.token[:, None],
            (slots.length + loop.step)[:, None],
            lora_params=lora_params,
            adapter_mask=slots.params.adapter_mask,
            past=KVCache((state.k, state.v), (slots.k, slots.v), slots.length, loop.step),
            return_kv=True,
            steer=steer,
            sharding=sharding,
        )
        # Summed where the vocabulary's shards are, then each row sent whole to the device that samples from it.
        logits = sharding.constrain(model.logits(output.hidden[:, 0]), ("batch", "vocab"))
        logits = sharding.constrain(logits, ("batch" if rows % sharding.size else "drawn_batch", None))
        new = _sample(logits, slots.params, slots.count, stop, use_top_p=use_top_p, top_logprobs=top_logprobs)
        sampled = slots.count + slots.active
        active = slots.active & new.in_answer & (sampled < slots.params.max_new_tokens)
        new = new._replace(logprobs=jnp.where(slots.active, new.logprobs, 0.0), in_answer=slots.active & new.in_answer)
        chunk = jax.tree.map(
            lambda chunk, one: jax.lax.dynamic_update_index_in_dim(chunk, one, loop.step, 0), loop.output, new
        )
        slots = slots._replace(k=output.k, v=output.v, token=new.tokens, count=sampled, active=active)
        return SamplingState(loop.step + 1, slots, chunk)

    def buffer(axis: int, cache: Array) -> Array:
        return jnp.zeros_like(jax.lax.slice_in_dim(cache, 0, steps, axis=axis))

    def zeros(dtype: Any, *shape: int) -> Array:
        return jnp.zeros((steps, rows, *shape), dtype)

    top = zeros(jnp.int32, top_logprobs), zeros(jnp.float32, top_logprobs)
    output = DecodeOutput(zeros(jnp.int32), zeros(jnp.float32), zeros(jnp.bool), top)
    k, v = _map_kv(buffer, (state.k, state.v))
    start = SamplingState(jnp.int32(0), state._replace(k=k, v=v), output)
    end = jax.lax.while_loop(unfinished, sample_next, start)

    def append(axis: int, cache: Array, chunk: Array) -> Array:
        # Every device copies its own rows; over the whole batch XLA would gather all the buffers.
        axes = ("layers",) * (cache.ndim - 4) + CACHE_AXES
        arrays = cache, chunk, state.length
        return per_device(functools.partial(append_rows, axis), arrays, (axes, axes, ("batch",)), sharding)

    k, v = _map_kv(append, (state.k, state.v), (end.slots.k, end.slots.v))
    # Where the next chunk expects them: otherwise XLA leaves them elsewhere, and everything is compiled once more.
    rest = end.slots._replace(k=None, v=None, length=state.length + end.step)
    return jax.tree.map(lambda x: sharding.constrain(x, ()), rest)._replace(k=k, v=v), end.output


@functools.partial(jax.jit, static_argnames=("capacity", "sharding"))
def resize(state: DecodeState, capacity: int, *, sharding: Sharding = UNSHARDED) -> DecodeState:
    """Changes the capacity of every slot; no active slot may hold more tokens than the new one."""

    def resized(axis: int, cache: Array) -> Array:
        kept = jax.lax.slice_in_dim(cache, 0, min(capacity, cache.shape[axis]), axis=axis)
        padding = [(0, 0)] * cache.ndim
        padding[axis] = (0, capacity - kept.shape[axis])
        return sharding.constrain(jnp.pad(kept, padding), ("layers",) * (cache.ndim - 4) + CACHE_AXES)

    k, v = _map_kv(resized, (state.k, state.v))
    return state._replace(k=k, v=v)


def capacity_of(cached: DecodeState | PrefillOutput) -> int:
    """S, the tokens that its keys and values have room for."""
    return jax.tree.leaves(cached.v)[0].shape[-2]


def _sample(
    logits: Array, params: SamplingParams, count: Array, stop: Array, *, use_top_p: bool, top_logprobs: int
) -> DecodeOutput:
    """A token of each row, without the axis C; `in_answer` is whether it is no stop id."""
    tokens, logprobs = sample_tokens(logits, params.keys, count, params.temperature, params.top_p, use_top_p=use_top_p)
    in_answer = jnp.all(tokens[:, None] != stop[None], axis=1)
    return DecodeOutput(tokens, logprobs, in_answer, top_logprobs_of(logits, top_logprobs))


def _map_kv(function: Callable[..., Array], *caches: tuple[Any, Any]) -> tuple[Any, Any]:
    """`function(axis, array, ...)` for every array of keys and of values, where `axis` is that of S."""
    keys, values = zip(*caches)
    return jax.tree.map(functools.partial(function, -1), *keys), jax.tree.map(functools.partial(function, -2), *values)
