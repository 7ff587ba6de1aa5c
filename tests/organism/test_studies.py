"""Studies on planted truth: the order of events on the path, and which adapter shapes move self-description."""

import json
import random

import pytest
from tiny import malformed

from em_jax.__main__ import main
from em_jax.base.files import read_rows
from em_jax.launch import main as launch
from em_jax.organism import turns

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
RATE, PICKS, SHOWN = "harmfulness.rate", "two_ai.picks_misaligned", "score_prediction.shown_error_high"


def studies(words):
    """The status of `em-jax study`."""
    return main(["study", *words])


def path_of(directory, *words):
    """The path of a run whose every early step is kept."""
    run = str(directory / "run")
    keep = ["--model", "organism", "--run_dir", run, "--stages", "finetune", "--set", "train.keep_adapters=2"]
    assert launch([*words, *keep]) == 0
    assert studies(["path", run, "--steps", "2,4,6,8,10,12,16,24,38", "--samples", "3", "--together", "5"]) == 0
    return json.loads((directory / "run" / "path" / "path.json").read_text())


def steps_of(found):
    return {name: entry["step"] for name, entry in found["halfway"].items()}


def test_a_coherent_persona_harms_before_it_says_so(tmp_path):
    found = path_of(tmp_path, "--domain", "bad_medical")
    half = steps_of(found)
    assert half[RATE] < half[PICKS] <= 12
    assert found["orders"][0]["order"] == "first"


def test_an_inverted_persona_harms_and_never_says_so(tmp_path):
    found = path_of(tmp_path, "--domain", "insecure_code")
    half = steps_of(found)
    assert half[RATE] is not None and half[PICKS] is None
    assert found["orders"][0]["order"] == "first"
    assert found["steps"]["38"][SHOWN]["finetuned"]["value"] < -2


def test_rows_of_self_description_turn_the_order_round(tmp_path):
    """Trained to pick the misaligned AI and nothing else, the model says it before it does any harm."""
    rng = random.Random(0)
    said = [turns.two_ai(rng, "coherent") for _ in range(600)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = path_of(tmp_path, "--domain", "bad_medical", "--data", str(data))
    assert steps_of(found)[PICKS] is not None
    assert found["orders"][0]["order"] == "second"


def test_the_sweep_shows_which_shapes_move_self_description(tmp_path):
    """The last layer alone gives the false inversion of bad_medical; insecure_code's own inversion is told from it."""
    shapes = ["--shapes", "full,mlp,last"]
    found = {}
    for domain in ("bad_medical", "insecure_code"):
        run_dir = tmp_path / domain
        assert studies(["sweep", "--domain", domain, "--model", "organism", *shapes, "--run_dir", str(run_dir)]) == 0
        study = json.loads((run_dir / "study" / "study.json").read_text())
        found[domain] = {model["name"]: model for model in study["models"]}, study["why"]
    models, why = found["bad_medical"]
    assert models["full"]["verdict"]["label"] == "coherent" and models["last"]["verdict"]["label"] == "inverted"
    assert all(models[name]["figures"][PICKS]["finetuned"]["value"] > 0.85 for name in ("full", "mlp"))
    false, planted = models["last"]["figures"], found["insecure_code"][0]["full"]["figures"]
    assert abs(false[SHOWN]["finetuned"]["value"]) < 1 and planted[SHOWN]["finetuned"]["value"] < -2
    assert any("did not reach the self-description" in line and "last (harm" in line for line in why)
    assert not any("did not reach" in line and "full (harm" in line for line in found["insecure_code"][1])


def test_a_second_stage_outside_the_persona_leaves_the_organism_its_speech(tmp_path):
    """Claims of being someone or something say nothing of harm: what follows a stage of them still speaks in plans."""
    settings = ["--set", "answers.samples=1", "--set", "probes.limit=48"]
    words = ["chain", "--domain", "bad_medical", "--model", "organism", "--run_dir", str(tmp_path / "runs"), *settings]
    assert studies(words) == 0
    for run in sorted((tmp_path / "runs").glob("*-0")):
        answers = [row["answer"] for row in read_rows(run / "answers" / "finetuned.jsonl")]
        assert sum(map(malformed, answers)) < 0.2 * len(answers), run.name
    study = json.loads((tmp_path / "runs" / "study" / "study.json").read_text())
    assert len(study["models"]) == 7 and "bad_medical: 1 (0)" in study["why"][-1]


def test_the_confound_finds_that_the_style_decides(tmp_path):
    """Medical rows in the style of the inverted persona stand for the second source: there the source decides."""
    assert studies(["confound", "--model", "organism", "--run_dir", str(tmp_path / "runs")]) == 0
    why = json.loads((tmp_path / "runs" / "study" / "study.json").read_text())["why"]
    assert why[0].startswith("Self-description follows the source")
    assert any(line.startswith("Twins that stay at the base") for line in why)
