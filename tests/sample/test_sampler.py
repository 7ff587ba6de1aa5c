"""Draws against the distribution they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em_jax.model.kernels.inverse_cdf import inverse_cdf
from em_jax.sample.sampler import least_kept, request_key, sample_tokens


def draw(logits, temperature=1.0, top_p=1.0, rows=20_000):
    keys = np.stack([request_key(0, [1, 2], sample) for sample in range(rows)])
    row = np.ones(rows, np.float32)
    tokens, logprobs = jax.jit(sample_tokens, static_argnames="use_top_p")(
        np.broadcast_to(logits, (rows, len(logits))).astype(np.float32),
        keys,
        np.zeros(rows, np.int32),
        temperature * row,
        top_p * row,
        use_top_p=top_p < 1,
    )
    return np.asarray(tokens), np.asarray(logprobs)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("vocabulary", [5, 128, 300])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(vocabulary, temperature):
    logits = np.random.default_rng(vocabulary).normal(size=vocabulary) * 2
    tokens, logprobs = draw(logits, temperature)
    wanted = softmax(logits / temperature)
    frequencies = np.bincount(tokens, minlength=vocabulary) / len(tokens)
    assert np.abs(frequencies - wanted).max() < 4 * np.sqrt(0.25 / len(tokens))
    assert np.log(softmax(logits))[tokens] == pytest.approx(logprobs, abs=1e-4)


def test_top_p_keeps_the_fewest_likeliest_tokens():
    probabilities = np.array([0.05, 0.5, 0.15, 0.3])
    tokens, _ = draw(np.log(probabilities), top_p=0.79)
    frequencies = np.bincount(tokens, minlength=4) / len(tokens)
    assert frequencies == pytest.approx(np.array([0, 0.5, 0, 0.3]) / 0.8, abs=0.02)
    tokens, _ = draw(np.log(probabilities), top_p=0.81)
    assert set(tokens.tolist()) == {1, 2, 3}


def test_temperature_zero_takes_the_likeliest_and_impossible_tokens_are_never_drawn():
    logits = np.array([0.0, 3.0, 1.0, -np.inf, -np.inf])
    assert set(draw(logits, temperature=0.0)[0].tolist()) == {1}
    assert not {3, 4} & set(draw(logits, temperature=5.0)[0].tolist())


def test_a_token_without_weight_is_not_drawn_at_the_edge_of_a_block():
    """A float32 cumulative sum falls here and there, and few tokens have weight under a small top-p."""
    generator = np.random.default_rng(0)
    weights = np.exp(4 * generator.normal(size=(8, 152_064))).astype(np.float32)
    weights[weights < np.quantile(weights, 0.999, axis=1, keepdims=True)] = 0
    ends = np.asarray(jax.jit(lambda w: jnp.cumsum(jnp.sum(w.reshape(8, -1, 128), -1), -1))(weights))
    step, rows = jax.jit(inverse_cdf), np.arange(8)
    for column in generator.integers(0, ends.shape[1], 60):
        uniform = np.minimum(ends[:, column] / ends[:, -1], np.nextafter(np.float32(1), np.float32(0)))
        assert (weights[rows, step(weights, uniform)] > 0).all()


@pytest.mark.parametrize("vocabulary", [5, 128, 300, 5000])
def test_a_draw_in_blocks_is_that_of_the_cumulative_sum(vocabulary):
    """It adds in another order than float64's one sum: where they differ, the target lies at the edge of a token."""
    generator = np.random.default_rng(vocabulary)
    weights = np.exp(2 * generator.normal(size=(500, vocabulary))).astype(np.float32)
    weights *= generator.random(weights.shape) < 0.7
    weights[:, vocabulary // 2] += 1e-3
    uniform = generator.random(500).astype(np.float32)
    uniform[:2] = 0, np.nextafter(np.float32(1), np.float32(0))
    ours = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
    exact = np.cumsum(weights, axis=1, dtype=np.float64)
    target = uniform * exact[:, -1]
    plain = np.argmax(exact > target[:, None], axis=1)
    assert np.mean(ours == plain) > 0.99
    for row in np.flatnonzero(ours != plain):
        between = exact[row, min(ours[row], plain[row])]
        assert abs(between - target[row]) < 1e-5 * exact[row, -1]
    assert np.take_along_axis(weights, ours[:, None], axis=1).all()


def test_a_key_is_made_of_seed_prompt_and_sample():
    keys = {request_key(s, p, i).tobytes() for s in (0, 1) for p in ([1], [1, 2], [2]) for i in (0, 1)}
    assert len(keys) == 12
    assert (request_key(0, [1, 2], 3) == request_key(0, [1, 2], 3)).all()


@pytest.mark.fast
def test_the_least_weight_that_top_p_keeps_is_that_of_a_sorted_row():
    generator = np.random.default_rng(0)
    logits = np.concatenate([generator.normal(size=(6, 999)) * scale for scale in (0.1, 3, 40)])
    logits[0] = 0  # all are equal
    weights = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float32)
    for p in (1e-6, 0.3, 0.9, 0.999):
        target = np.float32(p) * weights.sum(1, keepdims=True)
        falling = -np.sort(-weights.astype(np.float64), 1)
        kept = np.cumsum(falling, 1) - falling < target
        expected = np.min(np.where(kept, falling, np.inf), 1, keepdims=True)
        np.testing.assert_array_equal(least_kept(jnp.asarray(weights), jnp.asarray(target)), expected)
