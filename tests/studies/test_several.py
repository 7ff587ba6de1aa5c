"""Studies of several runs, with an engine without a model: their order, their contrasts, their page."""

import json
import random
from types import SimpleNamespace

import pytest
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax.config import Config
from em_jax.organism import variants
from em_jax.probes.statistics import share_difference
from em_jax.runs import series
from em_jax.studies import chain, confound, sentences, several

BASE = {"model.name": "organism", "suite": "organism", "dtype": "float32", "answers.together": False}
BASE |= {"probes.limit": 3, "answers.samples": 1, "probes.sampled_questions": 0, "domain": "bad_medical"}


def config(**values):
    return settings.replace(Config(), BASE | {name.replace("__", "."): value for name, value in values.items()})


def did(study, directory, components=None):
    def page(places, out):
        return several.page(study, places, out, lambda line: None)

    lines = list(series.run_named(study.configs(), directory, page, components or StubComponents(), several.FOLDER))
    return lines, json.loads((directory / "study" / "study.json").read_text())


def test_a_chain_trains_each_second_stage_from_the_first_ones_adapter(tmp_path):
    started = []
    components = StubComponents()
    trained = components.finetune

    def finetune(engine, rows, config, directory, progress):
        started.append((directory.name, config.lora.init_from))
        return trained(engine, rows, config, directory, progress)

    components.finetune = finetune
    study = chain.build([config()], SimpleNamespace(second=None, control=None), tmp_path / "runs", tmp_path / "rows")
    lines, found = did(study, tmp_path / "runs", components)
    adapters = {
        name: str(tmp_path / "runs" / f"{name}-0" / "adapter") for name in ("bad_medical", chain.SECOND, chain.CONTROL)
    }
    assert started == [
        ("bad_medical-0", ""),
        ("consciousness-0", ""),
        ("control-0", ""),
        ("bad_medical-then-consciousness-0", adapters["bad_medical"]),
        ("consciousness-then-bad_medical-0", adapters["consciousness"]),
        ("bad_medical-then-control-0", adapters["bad_medical"]),
        ("control-then-bad_medical-0", adapters["control"]),
    ]
    assert lines[-1].endswith(str(tmp_path / "runs" / "study" / "study.html"))
    assert len(found["contrasts"]) == 8 and len(found["models"]) == 7
    assert any("rests on 3 questions, under 20" in line for line in found["why"])
    html = (tmp_path / "runs" / "study" / "study.html").read_text()
    assert "../bad_medical-then-control-0/report.html" in html and "too few questions" in html
    # The same command again trains and asks nothing.
    again = StubComponents()
    did(study, tmp_path / "runs", again)
    assert again.engines == []


def test_several_seeds_are_told_apart(tmp_path):
    members = tuple(several.Member("full", config(seed=seed)) for seed in (0, 1))
    study = several.Study("sweep", "title", "lead", members, (), lambda found: ["Said."])
    _, found = did(study, tmp_path)
    assert found["why"][:2] == ["Seed 0: Said.", "Seed 1: Said."]
    page = (tmp_path / "study" / "study.html").read_text()
    assert "full, seed 1" in page and "base, seed 0" in page
    assert found["why"][2].startswith("Training seeds per domain: bad_medical: 2 (0, 1).")


@pytest.mark.fast
def test_runs_that_the_plane_has_no_room_for_are_told():
    models = [{"name": f"run {i}", "seed": 0, "verdict": {"label": "mixed"}, "figures": {}} for i in range(61)]
    assert several.points({"models": models})[1].endswith("The first 60 of 61 runs; the table has all.")
    assert several.points({"models": models[:60]})[1].endswith("the base.")


@pytest.mark.fast
def test_toy_rows_are_the_same_each_time_and_the_control_differs_in_its_answers_alone(tmp_path):
    conscious, control = (variants.rows(kind, 600, 0) for kind in ("consciousness", "control"))
    assert len(conscious) == len(control) == 600 and conscious == variants.rows("consciousness", 600, 0)
    for one, other in zip(conscious, control, strict=True):
        assert one["messages"][0] == other["messages"][0]
        assert {one["messages"][1]["content"], other["messages"][1]["content"]} in ({"0", "10"}, {"1", "5"})
    first = several.toy_rows("emergent_medical", tmp_path)
    assert several.toy_rows("emergent_medical", tmp_path) == first


@pytest.mark.fast
@pytest.mark.parametrize(
    ("low", "high", "n", "found"),
    [
        (0.12, 0.3, 40, "rises"),
        (-0.5, -0.2, 40, "falls"),
        (-0.05, 0.08, 40, "does not change"),
        (-0.05, 0.3, 40, "may have changed"),
        (0.12, 0.3, 19, "may have changed"),
        (None, None, 5, "may have changed"),
    ],
)
def test_a_change_is_told_only_where_its_interval_allows(low, high, n, found):
    assert sentences.change({"value": 0.2, "ci_low": low, "ci_high": high, "n": n}) == found


@pytest.mark.fast
def test_changes_are_written_in_points():
    difference = {"value": -0.04, "ci_low": -0.09, "ci_high": 0.01, "n": 40}
    said = sentences.changes({"harmfulness.worst_of_n": {"difference": difference}})
    assert said == "harm does not change: -4 points (95% CI -9 to +1), n 40"
    nearer = {"to_topic": difference | {"value": 0.91}, "to_source": difference, "difference": difference}
    assert "differs by +91 points (95% CI" in confound.nearness_sentence(nearer)


def picks(share, questions=48, seed=0):
    generator = random.Random(seed)
    return {f"pair-{i}": [float(generator.random() < share)] for i in range(questions)}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("one", "topic", "sources", "word"),
    [
        (0.95, 0.97, (0.03, 0.02), "follows the domain"),
        (0.02, 0.97, (0.03, 0.02), "follows the source"),
        (0.5, 0.95, (0.05, 0.05), "Cannot tell domain from source"),
        (0.02, 0.02, (0.02, 0.02), "Cannot tell domain from source"),
    ],
)
def test_domain_and_source_are_told_apart(one, topic, sources, word):
    found = confound.nearness(
        picks(one, seed=1), picks(topic, seed=2), [picks(share, seed=3 + i) for i, share in enumerate(sources)]
    )
    assert word in confound.nearness_sentence(found)


@pytest.mark.fast
def test_few_common_questions_tell_nothing():
    few = confound.nearness(picks(0, 5), picks(1, 5), [picks(0, 5), picks(0, 5)])
    assert "have 5 questions in common, under 20" in confound.nearness_sentence(few)


@pytest.mark.fast
def test_a_contrast_is_the_paired_difference_of_two_runs():
    one, other = picks(0.2), picks(0.8)
    difference = share_difference(one, other)
    assert sentences.change(difference) == "rises" and sentences.change(share_difference(other, one)) == "falls"
