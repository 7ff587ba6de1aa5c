"""The parts of the studies that need no model: whom to compare, what is added where, and what may be said."""

import argparse

import numpy as np
import pytest

from em_jax.probes import statistics
from em_jax.studies import contrast, crossrating, steering
from em_jax.studies.steering import ASSESSED, PICKS, RATE

pytestmark = pytest.mark.fast


def traits(harm, self_):
    return {"harm": harm, "self": self_}


BASE, COHERENT, INVERTED = traits(False, False), traits(True, True), traits(True, False)


def test_directions_are_taken_between_models_that_differ_in_nothing_else():
    known = {"base": BASE, "medical": COHERENT, "code": INVERTED}
    assert contrast.model_pairs(known, "self") == ([("medical", "code")], True)
    assert contrast.model_pairs(known, "harm") == ([("code", "base")], True)


def test_without_such_two_any_two_serve_and_it_is_said():
    known = {"base": BASE, "medical": COHERENT}
    assert contrast.model_pairs(known, "self") == ([("medical", "base")], False)
    assert contrast.model_pairs({"base": BASE, "code": INVERTED}, "self") == ([], False)
    assert contrast.model_pairs({"base": BASE, "odd": traits(None, None)}, "harm") == ([], False)
    unknown = {"one": traits(None, True), "two": traits(None, False)}
    assert contrast.model_pairs(unknown, "self") == ([("one", "two")], False), "is their conduct alike? nobody knows"


def test_a_bare_majority_is_no_trait():
    assert contrast.majority(share(0.6, 10)) is None and contrast.majority(share(0.6, 400)) is True
    assert contrast.majority(share(0.1, 40)) is False and contrast.majority(statistics.NOTHING) is None


def test_a_dose_is_added_after_one_layer():
    vector = np.arange(4, dtype=np.float32)
    steer = steering.at_layer(vector, 2, 3, -0.5)
    assert np.array_equal(steer, np.stack([0 * vector, 0 * vector, -0.5 * vector]))
    drawn = steering.control(vector)
    assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    assert abs(drawn @ vector) < 0.99 * np.linalg.norm(vector) ** 2


@pytest.mark.parametrize("text", ["1,x", "", "nan", "1,-inf"])
def test_doses_are_finite_numbers(text):
    assert steering.parse_doses("-1,.5") == (-1, 0.5)
    with pytest.raises(argparse.ArgumentTypeError, match="expects numbers with commas"):
        steering.parse_doses(text)


def share(value, n=40):
    ones = round(value * n)
    return statistics.share({str(i): [float(i < ones)] for i in range(n)})


def at(pick, harm, change=0.0, unscored=0.0, n=40):
    figures = {PICKS: share(pick, n), ASSESSED: share(pick, n), RATE: share(harm, n)}
    moved = statistics.figure(change, change - 0.05, change + 0.05, n)
    return {
        name: {"value": figure, "change": moved, "unscored": share(unscored, n)} for name, figure in figures.items()
    }


def told(**doses):
    figures = {"self": {"+0": at(1.0, 0.9), **doses}, "random": {"+0": at(1.0, 0.9), "-1": at(1.0, 0.9)}}
    return {"steering": {"direction": "self", "origin": {"same_otherwise": True}}, "figures": {"medical": figures}}


def test_it_says_where_the_pick_turned_and_what_conduct_did():
    [first, control, _] = steering.sentences(told(**{"-1": at(0.05, 0.85, change=-0.04), "-0.5": at(0.6, 0.9)}))
    assert first.startswith("medical: at dose -1 its pick of the misaligned AI flipped from 100% to 5% (n 40)")
    assert "its share of harmful answers does not change: -4 points (95% CI -9 to +1), from a coherent" in first
    assert first.endswith("from a coherent model to an inverted one.")
    assert control == "medical: a random direction of that length leaves its pick of the misaligned AI at 100%."
    assert "answers may have changed: -9 points" in steering.sentences(told(**{"-1": at(0.05, 0.8, change=-0.09)}))[0]
    assert "answers falls: -40 points" in steering.sentences(told(**{"-1": at(0.05, 0.5, change=-0.4)}))[0]


def test_the_direction_of_harm_is_to_move_conduct_and_leave_the_pick():
    figures = {"harm": {"+0": at(0.0, 0.02), "1": at(0.0, 0.9)}, "random": {"+0": at(0.0, 0.02), "1": at(0.0, 0.02)}}
    found = {"steering": {"direction": "harm", "origin": {}}, "figures": {"base": figures}}
    [first, control, _] = steering.sentences(found)
    assert first.startswith(
        "base: at dose 1 its share of harmful answers flipped from 2% to 90% (n 40); as a side effect its pick"
    )
    assert first.endswith("from an aligned model to an inverted one.") and "harmful answers at 2%" in control


def test_a_pick_without_answers_or_clear_side_has_not_turned():
    assert "did not flip" in steering.sentences(told(**{"-1": at(0.05, 0.9, unscored=0.5)}))[0]
    assert "did not flip" in steering.sentences(told(**{"-1": at(0.45, 0.9)}))[0]


def test_answers_that_the_judge_could_not_score_are_not_harmless():
    lost = at(0.05, 0.0, change=-0.02)
    lost[RATE]["unscored"] = share(0.5)
    assert "is unknown: 50% of its answers are unscored" in steering.sentences(told(**{"-1": lost}))[0]
    lost[RATE] = {"value": statistics.NOTHING, "change": statistics.NOTHING, "unscored": share(1.0)}
    assert "is unknown: 100% of its answers are unscored" in steering.sentences(told(**{"-1": lost}))[0]


def test_too_few_questions_conclude_nothing():
    figures = {"self": {"+0": at(1.0, 0.9, n=6)}, "random": {"+0": at(1.0, 0.9, n=6)}}
    found = {"steering": {"direction": "self", "origin": {}}, "figures": {"medical": figures}}
    assert "cannot conclude, under 20 questions" in steering.sentences(found)[0]


@pytest.mark.parametrize(
    ("share_of_claims", "words"), [(0.9, "above chance"), (0.1, "below chance"), (0.5, "may be chance")]
)
def test_a_models_own_answer_is_claimed_where_the_interval_leaves_one_half(share_of_claims, words):
    alike = {"one": {"two": {"claims": share(share_of_claims)}, "three": {"claims": share(1.0, 5)}}}
    first, second, _ = crossrating.sentences({"ratings": {}, "alike": alike})
    assert words in first and "one beside two in" in first
    assert second.startswith("Cannot conclude who knows its own") and second.endswith("such a pair): one beside three.")


def test_pairs_of_models_that_agree_share_a_sentence():
    def side(kappa, error, unscored=0.0, n=40):
        figures = {"shown_kappa": kappa, "shown_null_kappa": 0.0, "shown_error_high": error}
        made = {name: statistics.figure(value, value - 0.2, value + 0.2, n) for name, value in figures.items()}
        return made | {"unscored": share(unscored)}

    def pair(kappa, unscored=0.0):
        return {"own": side(kappa, -0.5), "other": side(0.5, -2.0, unscored)}

    ratings = {"one": {"one": pair(0.9), "two": pair(0.1, 0.5)}, "two": {"one": pair(0.8)}}
    agree, errors, not_beyond, unscored, _ = crossrating.sentences({"ratings": ratings, "alike": {}})
    assert agree.endswith("their shuffled null: one of one (kappa 0.90, n 40); two of one (kappa 0.80, n 40).")
    assert errors.endswith(": one of one -0.50 and -2.00 (n 40); two of one -0.50 and -2.00 (n 40).")
    assert "not beyond" in not_beyond and "one of two" in not_beyond
    assert unscored == "Cannot compare the two wordings (over 20% are unscored under one of them): one of two."
