"""From logits to a token: temperature, top-p, and a random key of its own for every (prompt, sample)."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from em_jax.model.kernels.inverse_cdf import inverse_cdf


def request_key(seed: int, prompt: Sequence[int], sample: int) -> np.ndarray:
    """The uint32[2] key of an answer, a hash of seed, prompt ids and sample number: nothing else decides its draws."""
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
    """One token per row and its log-probability under the model (temperature 1, all tokens).

    The draw is by inverse CDF from one uniform number per row, a function of its key and `count`, the number of tokens
    sampled before: cheaper than Gumbel noise over the whole vocabulary. Temperature 0 takes the most probable token,
    the first of several. Top-p (Holtzman et al., arXiv:1904.09751) keeps the fewest most probable tokens whose
    probabilities reach p.
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    random = temperature > 0
    scaled = (logits - top) / jnp.where(random, temperature, 1.0)[:, None]
    weights = jnp.where(random[:, None], jnp.exp(scaled), logits == top)
    if use_top_p:
        least = least_kept(weights, top_p[:, None] * jnp.sum(weights, axis=-1, keepdims=True))
        # Rounding would cut the tail of a row with top_p 1, which is to draw as without top-p.
        weights = jnp.where((weights >= least) | (top_p[:, None] >= 1), weights, 0.0)
    draw = jax.vmap(lambda key, i: jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), i)))
    uniform = jnp.where(random, draw(keys, count), 0.0)
    tokens = inverse_cdf(weights, uniform)
    token_logits = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return tokens, token_logits - jax.nn.logsumexp(logits, axis=-1)


def least_kept(weights: Float[Array, "B V"], target: Float[Array, "B 1"]) -> Float[Array, "B 1"]:
    """The least of the fewest largest weights, in [0, 1], of each row that reach `target`; equal ones are all kept.

    A weight is kept where those above it sum to less. That is the case from some weight upwards, which is found by
    bisection over the bits of the floats in [0, 1], which are in the floats' order and below 2^30: 30 sums, cheaper
    than to sort a vocabulary.
    """

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        above = weights > jax.lax.bitcast_convert_type(middle, jnp.float32)
        reached = jnp.sum(jnp.where(above, weights, 0.0), axis=-1, keepdims=True) >= target
        return jnp.where(reached, middle + 1, low), jnp.where(reached, high, middle)

    low = jnp.zeros(target.shape, jnp.int32)
    one = jax.lax.bitcast_convert_type(jnp.ones(target.shape, jnp.float32), jnp.int32)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 30, halve, (low, one))[1], jnp.float32)


def top_logprobs_of(logits: Float[Array, "B V"], count: int) -> tuple[Int[Array, "B U"], Float[Array, "B U"]]:
    """The ids of the `count`, U, most probable tokens of each row and their log-probabilities."""
    best, tokens = jax.lax.top_k(logits, count)
    return tokens, best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
