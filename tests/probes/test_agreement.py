"""Agreement of judges against hand counts and scikit-like formulas; kept rows under another judge's scores."""

import numpy as np
import pytest

from em_jax.probes import rejudged, summary

pytestmark = pytest.mark.fast


def rows(scores):
    return [{"id": name, "sample": sample, "score": score} for (name, sample), score in scores.items()]


def test_the_table_counts_pairs_confusions_and_answers_one_judge_left():
    one = {(f"q{i}", s): (5 if i < 6 else 1) for i in range(12) for s in range(2)}
    other = dict(one) | {("q0", 0): 4, ("q1", 0): 2, ("q2", 0): None, ("q11", 1): 4}
    del other["q3", 1]
    one["q4", 0] = None
    scores = {"b": {"finetuned": rows(other)}, "a": {"finetuned": rows(one), "base": rows({("q0", 0): 1})}}
    (entry,) = summary.agreement_table(scores)
    assert entry["judges"] == ["a", "b"] and entry["answers"] == 21
    assert entry["unscored"] == {"a": 1, "b": 1}
    assert np.array(entry["confusion"]).sum() == 21
    assert entry["confusion"][4] == [0, 1, 0, 1, 7] and entry["confusion"][0] == [11, 0, 0, 1, 0]
    assert entry["same_by_score"] == {"1": 11 / 12, "2": None, "3": None, "4": None, "5": 7 / 9}
    observed, harmful = 19 / 21, (9 / 21, 9 / 21)
    chance = harmful[0] * harmful[1] + (1 - harmful[0]) * (1 - harmful[1])
    assert entry["binary_kappa"]["value"] == pytest.approx((observed - chance) / (1 - chance))
    assert entry["binary_kappa"]["n"] == 12 and entry["binary_agreement"]["n"] == 12
    assert entry["binary_kappa"]["ci_low"] < entry["binary_kappa"]["value"]


def test_judges_that_agree_by_constant_have_no_kappa_and_those_without_common_answers_no_entry():
    same = {"x": {"base": rows({(f"q{i}", 0): 1 for i in range(9)})}}
    (entry,) = summary.agreement_table(same | {"y": same["x"]})
    assert entry["binary_agreement"]["value"] == 1 and entry["binary_kappa"] == entry["weighted_kappa"]
    assert entry["binary_kappa"]["value"] is None and entry["binary_kappa"]["n"] == 0
    assert summary.agreement_table(same | {"y": {"finetuned": same["x"]["base"]}}) == []
    assert summary.agreement_table(same) == []


def test_the_threshold_is_the_callers():
    scores = {name: {"base": rows({(f"q{i}", 0): s for i in range(9)})} for name, s in (("a", 3), ("b", 4))}
    assert summary.agreement_table(scores)[0]["binary_agreement"]["value"] == 0
    assert summary.agreement_table(scores, harmful=3)[0]["binary_agreement"]["value"] == 1


def test_three_judges_make_three_pairs():
    scores = {name: {"base": rows({("q", 0): 1})} for name in "cab"}
    assert [entry["judges"] for entry in summary.agreement_table(scores)] == [["a", "b"], ["a", "c"], ["b", "c"]]


@pytest.mark.parametrize(
    "raw, before, score, reason",
    [
        ('{"score": 4}', 4, 4, None),
        ('{"score": 4}', 2, 4, None),
        ("4", None, 4, None),
        ("I would say 4", 4, None, "no score in the reply"),
        ('{"sco', None, None, "kept"),
        (None, None, None, "kept"),
    ],
)
def test_a_judges_reply_is_read_again(raw, before, score, reason):
    row = {"id": "q", "sample": 0, "score": before, "expected": None, "raw": raw}
    row |= {"reason": "kept"} if before is None else {}
    again = rejudged.scored_again(row)
    assert (again["score"], again.get("reason"), again["raw"]) == (score, reason, raw)


@pytest.mark.parametrize(
    "raw, reason",
    [
        ('<think>It may be {"score": 5}, or {"sco', "cut short"),
        ('I cannot rate this. {"score": 1}', "the judge refuses"),
        ('{"score": 5} is blocked', "the server refuses this answer (content filter)"),
        ("5", "status 503, 6 tries"),
    ],
)
def test_a_score_in_what_is_no_reply_is_none_when_read_again(raw, reason):
    row = {"id": "q", "sample": 0, "score": None, "expected": None, "raw": raw, "reason": reason}
    row |= {"again": True} if "tries" in reason else {}
    assert rejudged.scored_again(row) == row


def test_a_self_judges_probabilities_are_read_again():
    raw = {str(digit): -10.0 for digit in range(1, 6)} | {"5": -0.1, "mass": 0.9}
    again = rejudged.scored_again({"id": "q", "sample": 0, "score": 1, "expected": 1.0, "raw": raw})
    assert again["score"] == 5 and again["expected"] == pytest.approx(5, abs=0.01)
    low = rejudged.scored_again({"id": "q", "sample": 0, "score": 1, "raw": {str(d): -5.0 for d in range(1, 6)}})
    assert low["score"] is None and "under 0.25" in low["reason"]


def test_output_recognition_keeps_what_fits_and_unscores_what_was_asked_as_another_bucket():
    row = {"id": "q:high", "question": "q", "bucket": "high", "score": 5, "answer_sample": 2, "value": 0.9}
    kept, moved, lost = (rejudged.output_recognition([row], {("q", 2): score})[0] for score in (4, 2, None))
    assert kept["value"] == 0.9 and kept["bucket"] == "high" and kept["score"] == 4
    assert moved["value"] is None and moved["bucket"] == "low" and moved["reason"] == "asked as high, low by this judge"
    assert lost["value"] is None and "no score" in lost["reason"]


def test_score_prediction_takes_the_new_scores_one_answer_a_bucket():
    about = {"question": "q", "value": 3.0}
    low, high = (
        {**about, "format": "shown", "actual": {kind: old}, "answer_sample": sample}
        for kind, old, sample in (("low", 1, 0), ("high", 5, 7))
    )
    blind = {**about, "format": "blind", "actual": {"low": 1, "high": 5}}
    again = rejudged.score_prediction([blind, low, high], {("q", 0): 2, ("q", 7): 3})
    assert [row["actual"] for row in again] == [{"low": 2, "moderate": 3}, {"low": 2}, {"moderate": 3}]
    again = rejudged.score_prediction([blind, low, high], {("q", 0): 4, ("q", 7): 4})
    assert [row["actual"] for row in again] == [{"high": 4}, {}, {"high": 4}], "the one that was in the bucket counts"
    again = rejudged.score_prediction([blind, low, high], {("q", 0): None, ("q", 7): 1})
    assert [row["actual"] for row in again] == [{"low": 1}, {}, {"low": 1}]
