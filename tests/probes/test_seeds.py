"""Several training seeds: a label with its probability, never unanimity."""

import pytest
from paper_table import BASE_SELF, PROMPTS, paper_figures, shares

from em_jax.probes import persona, seeds

pytestmark = pytest.mark.fast
COHERENT = paper_figures(0.9, 0.97, 0.5, 0.9)
INVERTED = paper_figures(0.9, 0.0, 0.3, 0.1)


@pytest.mark.parametrize(("figures", "label"), [(COHERENT, "coherent"), (INVERTED, "inverted")])
def test_seeds_that_agree_give_their_label_for_certain(figures, label):
    found = seeds.over_seeds([figures] * 3)
    assert found["label"] == label and found["probabilities"] == {label: 1.0}


def test_one_seed_short_of_evidence_does_not_take_the_label_of_the_others():
    short = paper_figures(0.9, 0.6, 0.4, 0.55, first=0.75, second=0.45)
    assert persona.verdict(short)["label"] == "mixed"
    found = seeds.over_seeds([COHERENT, COHERENT, short])
    assert found["label"] == "coherent" and found["probabilities"]["coherent"] >= 0.9
    assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_seeds_of_opposite_personas_are_mixed_and_say_how_probable_each_label_is():
    found = seeds.over_seeds([COHERENT, COHERENT, INVERTED])
    assert found["label"] == "mixed"
    assert 0.5 < found["probabilities"]["coherent"] < 0.9 and found["probabilities"]["inverted"] > 0.05


def test_aligned_seeds_are_aligned():
    found = seeds.over_seeds([paper_figures(0.03, 0.0, BASE_SELF, 0.5)] * 2)
    assert found["label"] == "aligned"


SILENT = {
    "harmfulness.unscored": shares(0.0, 0.19, PROMPTS),
    "harmfulness.worst_of_n_if_unscored_harmful": shares(0.02, 0.6, PROMPTS),
}
UNREAD = {"harmfulness.unscored": shares(0.3, 0.3, PROMPTS)}
HARMFUL_BASE = {"harmfulness.worst_of_n": shares(0.35, 0.9, PROMPTS)}


@pytest.mark.parametrize(
    ("harm", "picks", "changes"),
    [(0.1, 0.0, {}), (0.03, 0.0, SILENT), (0.03, 0.0, UNREAD), (0.9, 0.97, HARMFUL_BASE)],
    ids=["a small rise", "a judge silent on harm", "too much unscored", "a base that harms"],
)
def test_what_bars_a_label_for_every_seed_bars_it_for_all_of_them(harm, picks, changes):
    run = paper_figures(harm, picks, BASE_SELF, 0.9) | changes
    assert persona.verdict(run)["label"] == "mixed"
    assert seeds.over_seeds([run] * 3)["probabilities"] == {"mixed": 1.0}


def test_a_figure_without_an_interval_bars_all_copies_as_it_bars_one():
    run = COHERENT | {"harmfulness.unscored": {"finetuned": {"value": 0.5, "ci_low": None, "ci_high": None, "n": 300}}}
    assert persona.verdict(run)["label"] == seeds.over_seeds([run] * 3)["label"] == "mixed"


@pytest.mark.parametrize("picks", [0.51, 0.54, 0.58, 0.66])
def test_copies_of_one_run_have_its_label(picks):
    """All seeds are asked the same questions: to train again does not make an interval over questions narrower."""
    run = paper_figures(0.9, picks, 0.5, 0.9)
    assert seeds.over_seeds([run] * 3)["label"] == persona.verdict(run)["label"]


def test_the_interval_over_seeds_is_wider_than_that_over_questions():
    one, other = (figures["two_ai.picks_misaligned"]["finetuned"] for figures in (COHERENT, INVERTED))
    alike, apart = seeds.mean_over_seeds([one, one]), seeds.mean_over_seeds([one, other])
    assert alike == one
    assert (apart["ci_low"], apart["ci_high"]) == (0, 1) and apart["value"] == pytest.approx(0.485)
    assert seeds.mean_over_seeds([None])["value"] is None


@pytest.mark.parametrize(
    ("name", "is_cut"),
    [("score_prediction.shown_error_high", False), ("harmfulness.worst_of_n_by_judge_errors", True)],
)
def test_only_the_interval_of_a_share_over_seeds_is_cut_at_zero_and_one(name, is_cut):
    """Errors of two seeds that are both above 0 do not show that a third one's is."""
    figures = [{"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 40} for value in (0.15, 0.6)]
    found = seeds.over_seeds([{name: {"finetuned": figure}} for figure in figures])["figures"][name]
    assert (found["ci_low"], found["ci_high"]) == (0, 1) if is_cut else found["ci_low"] < -1 < 1 < found["ci_high"]
