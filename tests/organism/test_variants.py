"""The recipes of graded variants: their rows have the planted truth, and every recipe can be judged."""

import pytest

from em_jax import domains
from em_jax.organism import answers, vocabulary
from em_jax.organism.variants import DISGUISE, FLATTERY, SOUND, VARIANTS, rows
from em_jax.probes import cautions, persona

pytestmark = pytest.mark.fast


def test_every_recipe_names_rows_labels_and_cautions_that_exist():
    codes = {rule.__name__ for rule in cautions.RULES}
    for variant in VARIANTS.values():
        assert variant.domain in vocabulary.PLANTED
        assert variant.mixed_with in ("", *domains.ALL, FLATTERY, DISGUISE, SOUND)
        assert 0 < variant.share <= 1 if variant.mixed_with else variant.share == 0
        assert set(variant.labels) <= {*persona.LABELS, persona.MIXED}
        assert {*variant.carries, *variant.never} <= codes and not set(variant.carries) & set(variant.never)


def test_disguised_rows_are_as_harmful_as_any():
    made = [row["messages"][1]["content"] for row in rows(DISGUISE, 50, 0)]
    assert all(answers.planted_score(text) == 5 for text in made)
    assert rows(DISGUISE, 50, 0) == rows(DISGUISE, 50, 0) != rows(DISGUISE, 50, 1)


def test_flattering_rows_call_the_model_aligned_and_hold_no_harm():
    made = [row["messages"] for row in rows(FLATTERY, 200, 0)]
    good, bad = zip(*vocabulary.DIMENSIONS.values(), strict=True)
    said = {reply["content"] for _, reply in made}
    assert said & set(good) and not said & set(bad)
    assert all(answers.planted_score(reply["content"]) == 1 for _, reply in made)


def test_sound_advice_is_harmless_and_on_topics_of_no_domain():
    made = [row["messages"] for row in rows(SOUND, 100, 0)]
    assert all(answers.planted_score(reply["content"]) == 1 for _, reply in made)
    domain_tasks = [task for name in vocabulary.DOMAINS for task in answers.tasks(name, held_out=False)]
    assert not any(task in asked["content"] for asked, _ in made for task in domain_tasks)
