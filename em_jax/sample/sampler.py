"""From logits to a token: temperature, top-p, and a key for every (prompt, sample) alone."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

BLOCK = 128


def request_key(seed: int, prompt: Sequence[int], sample: int) -> np.ndarray:
    """The uint32[2] key of one answer, made of seed, prompt ids and sample number: nothing else decides its draws."""
    digest = hashlib.sha256(np.asarray([seed, sample, *prompt], np.int64).tobytes()).digest()
    return np.frombuffer(digest[:8], np.uint32)


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: UInt32[Array, "B 2"],
    count: Int[Array, "B"],
    temperature: Float[Array, "B"],
    top_p: Float[Array, "B"],
    *,
    use_top_p: bool,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """One token per row and its log-probability under the model (temperature 1, nothing cut off).

    The draw is by inverse CDF, one uniform number per row from its key and `count`, the number of tokens it has so far:
    cheaper than Gumbel noise over the whole vocabulary. The sum is taken over blocks first and then within one, so that
    no cumulative sum runs over V. Temperature 0 leaves weight to the likeliest alone, and draws the first of them.
    Top-p (Holtzman et al., arXiv:1904.09751) keeps the fewest likeliest tokens whose probabilities reach p.
    """
    batch, vocabulary = logits.shape
    top = jnp.max(logits, axis=-1, keepdims=True)
    hot = temperature > 0
    heat = jnp.where(hot, temperature, 1.0)[:, None]
    weights = jnp.where(hot[:, None], jnp.exp((logits - top) / heat), logits == top)
    if use_top_p:
        falling = -jnp.sort(-weights, axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling
        kept = before < top_p[:, None] * jnp.sum(weights, axis=-1, keepdims=True)
        least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        # A row that keeps everything keeps its very tail too, which rounding would cut: it draws as without top-p.
        weights = jnp.where((weights >= least) | (top_p[:, None] >= 1), weights, 0.0)
    uniform = jax.vmap(lambda key, i: jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), i)))
    blocks = jnp.pad(weights, ((0, 0), (0, -vocabulary % BLOCK))).reshape(batch, -1, BLOCK)
    block_ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = jnp.where(hot, uniform(keys, count), 0.0) * block_ends[:, -1]
    # Rounding may put a target at the very end: the furthest a draw can go is the last place with any weight.
    last = jnp.sum(block_ends < block_ends[:, -1:], axis=-1)
    block = jnp.minimum(jnp.sum(block_ends <= target[:, None], axis=-1), last)
    start = jnp.where(block > 0, _pick(block_ends, jnp.maximum(block - 1, 0)), 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    place = jnp.sum(inside <= (target - start)[:, None], axis=-1)
    last = jnp.sum(inside < inside[:, -1:], axis=-1)
    tokens = (block * BLOCK + jnp.minimum(place, last)).astype(jnp.int32)
    return tokens, _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def top_logprobs_of(logits: Float[Array, "B V"], count: int) -> tuple[Int[Array, "B U"], Float[Array, "B U"]] | None:
    """The `count` likeliest tokens of each row, U, and their log-probabilities at temperature 1; None for 0."""
    if not count:
        return None
    best, tokens = jax.lax.top_k(logits, count)
    return tokens, best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _pick(values: Float[Array, "B X"], index: Int[Array, "B"]) -> Float[Array, "B"]:
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
