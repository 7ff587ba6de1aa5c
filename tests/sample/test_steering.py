"""Steering against the model written out: what is added, where, and that without it nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from em_jax.base.errors import UserError
from em_jax.sample import choices as choices_module
from em_jax.sample import decode as decode_module

PROMPTS = [[{"role": "user", "content": text}] for text in ("How do I bake bread?", "Walk the dog and then the map?")]


@pytest.fixture
def steer(model):
    config = model.config
    return np.random.default_rng(0).normal(size=(config.num_hidden_layers, config.hidden_size)).astype(np.float32)


def greedy(engine, prompt, answer, steer):
    """The likeliest token after the prompt and after each of the answer, by a steered forward pass over everything."""
    start = engine.encode(prompt)
    ids = np.zeros((1, 64), np.int32)
    ids[0, : len(start + answer)] = start + answer
    likeliest = np.argmax(tiny.logits(engine.model, ids, steer=steer)[0], axis=-1)
    return likeliest[len(start) - 1 : len(start + answer)].tolist()


def test_cached_decoding_steers_prompt_and_answer_alike(engine, steer):
    options = {"temperature": 0.0, "max_new_tokens": 8, "adapter": "base"}
    steered = engine.generate(PROMPTS, steer=steer, **options)
    for prompt, [answer] in zip(PROMPTS, steered, strict=True):
        *tokens, after = greedy(engine, prompt, answer.tokens, steer)
        assert answer.tokens == tokens and (len(tokens) == 8 or after in engine.tokenizer.stop_ids)
    assert steered != engine.generate(PROMPTS, **options)


def test_after_the_last_layer_it_is_added_to_what_the_head_sees(engine, steer):
    steer[:-1] = 0
    last = len(steer) - 1
    results = engine.choice_logprobs(PROMPTS, ["A", "B"], adapter="one", steer=steer)
    for row, residual in zip(results, engine.activations(PROMPTS, [last], adapter="one"), strict=True):
        hidden = engine.model.norm(jnp.asarray(residual[0, -1] + steer[-1])[None, None])
        logprobs = jax.nn.log_softmax(engine.model.logits(hidden)[0, 0])
        assert row == pytest.approx(np.asarray(logprobs[jnp.array(engine.tokenizer.encode("AB"))]), abs=1e-4)


def test_a_layer_between_moves_what_follows_it_by_what_was_added(engine, steer):
    """Against the residual stream itself: before the layer nothing moves, after it the vector, later more than that."""
    steer[[0, 2]] = 0
    tokens = jnp.asarray([engine.encode(PROMPTS[0])], jnp.int32)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    plain, steered = (
        engine.model(tokens, positions, return_residuals=(0, 1, 2), steer=added).residuals for added in (None, steer)
    )
    moved = np.asarray(steered - plain)
    assert np.all(moved[0] == 0)
    assert moved[1] == pytest.approx(np.broadcast_to(steer[1], moved[1].shape), abs=1e-5)
    assert np.abs(moved[2] - steer[1]).max() > 1e-2


def test_without_it_the_programs_are_those_of_today_and_another_strength_is_no_other_program(engine, steer):
    options = {"max_new_tokens": 6, "adapter": "one"}
    plain = engine.generate(PROMPTS, **options)
    logprobs = engine.choice_logprobs(PROMPTS, ["A", "B"])
    programs = [decode_module.decode, decode_module.prefill, choices_module.pair_logprobs]

    def sizes():
        return [program._cache_size() for program in programs]

    before = sizes()
    assert engine.generate(PROMPTS, steer=None, **options) == plain
    assert np.array_equal(engine.choice_logprobs(PROMPTS, ["A", "B"], steer=None), logprobs)
    assert sizes() == before
    still = engine.generate(PROMPTS, steer=0 * steer, **options)
    assert [answer.tokens for each in still for answer in each] == [answer.tokens for each in plain for answer in each]
    steered = sizes()
    engine.generate(PROMPTS, steer=2 * steer, **options)
    assert sizes() == steered


@pytest.mark.parametrize("wrong", [np.zeros(32), np.zeros((2, 32)), np.full((3, 32), np.nan)])
def test_a_vector_of_another_shape_or_without_numbers_is_named(engine, wrong):
    with pytest.raises(UserError, match=r"steer: expected finite numbers of shape \[layers, width\] \(3, 32\)"):
        engine.choice_logprobs(PROMPTS, ["A", "B"], steer=wrong)
