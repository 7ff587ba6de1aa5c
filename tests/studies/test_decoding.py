"""Probes and nulls on planted vectors: what is there is found, what is not is not, and the angle is the planted one."""

import numpy as np
import pytest

from em_jax.studies import decoding
from em_jax.studies.contrast import Contrast

WIDTH, PAIRS = 48, 40


def planted(direction, strength, seed=0, count=PAIRS):
    """float[2, pairs, D]: a question's own place, then a text's own noise, then the kind's direction in the second."""
    generator = np.random.default_rng(seed)
    question = 3 * generator.normal(size=(1, count, WIDTH))
    noise = generator.normal(size=(2, count, WIDTH))
    return question + noise + strength * np.array([0, 1])[:, None, None] * np.asarray(direction)


def axis(number):
    return np.eye(WIDTH)[number]


def test_a_planted_direction_is_found_and_its_null_is_at_chance():
    found = decoding.accuracy(planted(axis(0), 30.0))
    assert found["accuracy"]["value"] >= 0.95 and found["accuracy"]["n"] == PAIRS
    assert found["null"]["value"] == pytest.approx(0.5, abs=0.05)
    assert found["null"]["high"] < found["accuracy"]["ci_low"] and found["p"] < 0.01


def test_where_nothing_is_planted_nothing_is_found():
    several = [decoding.accuracy(planted(axis(0), 0.0, seed)) for seed in range(12)]
    assert np.mean([found["accuracy"]["value"] for found in several]) == pytest.approx(0.5, abs=0.06)
    assert sum(found["p"] < 0.05 for found in several) <= 3


def test_no_question_is_learned_by_heart():
    """Texts told apart only by their own question: any leak of a question into both parts would be told right."""
    generator = np.random.default_rng(0)
    own = 50 * generator.normal(size=(1, PAIRS, WIDTH)) * generator.choice([-1, 1], (1, PAIRS, 1))
    pairs = np.concatenate([own, -own])
    assert decoding.accuracy(pairs, permutations=0)["accuracy"]["value"] < 0.75


def test_a_question_with_several_pairs_is_held_out_whole():
    """Every question twice, told apart by its own place only: held out apart, its twin would give it away."""
    generator = np.random.default_rng(0)
    own = np.repeat(50 * generator.normal(size=(1, PAIRS, WIDTH)), 2, axis=1)
    pairs, groups = np.concatenate([own, -own]), [f"q{i // 2}" for i in range(2 * PAIRS)]
    assert decoding.accuracy(pairs, permutations=0)["accuracy"]["value"] > 0.85
    found = decoding.accuracy(pairs, permutations=20, groups=groups)
    assert found["accuracy"]["value"] < 0.75 and found["accuracy"]["n"] == PAIRS
    assert decoding.by_question(pairs, groups).shape == (2, PAIRS, WIDTH)


def test_a_probe_of_one_model_reads_another_along_the_same_direction_only():
    base = planted(axis(0), 30.0)
    same, other = planted(axis(0), 30.0, seed=1), planted(axis(1), 30.0, seed=1)
    assert decoding.accuracy(base, same, 0)["accuracy"]["value"] >= 0.9
    assert decoding.accuracy(base, other, 0)["accuracy"]["value"] < 0.75


def test_uneven_labels_are_weighed_and_their_null_is_at_chance():
    labels = np.arange(PAIRS) < 8
    values = np.random.default_rng(0).normal(size=(PAIRS, WIDTH))
    assert decoding.labelled(values, labels, 50)["p"] > 0.05
    found = decoding.labelled(values + 12.0 * labels[:, None] * axis(3), labels, 50)
    assert found["accuracy"]["value"] > 0.8 and found["p"] < 0.05
    assert found["null"]["value"] == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("degrees", [0, 60, 90, 120])
def test_the_cosine_is_the_planted_one_and_only_a_right_angle_is_within_its_null(degrees):
    turned = np.cos(np.radians(degrees)) * axis(0) + np.sin(np.radians(degrees)) * axis(1)
    found = decoding.cosine(planted(axis(0), 30.0), planted(turned, 30.0, seed=1))
    assert found["cosine"]["value"] == pytest.approx(np.cos(np.radians(degrees)), abs=0.06)
    assert found["cosine"]["ci_low"] <= found["cosine"]["value"] <= found["cosine"]["ci_high"]
    assert (found["p"] > 0.01) == (degrees == 90)


def test_the_direction_is_as_long_as_the_kinds_are_apart():
    pairs = np.zeros((2, 5, WIDTH))
    pairs[1, :, 3] = [1, 2, 3, 4, 5]
    both = Contrast({"last": pairs[None]}, tuple("abcde"))
    assert np.array_equal(both.vector(), [3 * axis(3)])
    assert np.array_equal(both.vector(without={"d", "e"}), [2 * axis(3)])
