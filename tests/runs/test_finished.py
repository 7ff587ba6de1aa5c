"""em_jax.Run reads a finished run as a notebook does."""

import json

import pytest
from stub_engine import StubComponents

import em_jax
from em_jax import config as settings
from em_jax.base.errors import UsageError, UserError
from em_jax.config import Config
from em_jax.runs import experiment

SMALL = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
SMALL |= {"probes.limit": 2, "answers.samples": 2, "probes.sampled_questions": 1}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    experiment.run(settings.replace(Config(), SMALL), directory, StubComponents())
    return directory


def test_a_run_is_read_as_tables(directory):
    run = em_jax.Run(directory)
    summary = json.loads((directory / "summary.json").read_text())
    assert run.summary == summary and run.figures == summary["figures"] and run.verdict == summary["verdict"]
    answers = run.answers()
    assert set(answers.condition) == {"base", "finetuned"} and "seal" not in answers
    rows = (directory / "answers" / "base.jsonl").read_text().splitlines()
    base = answers[answers.condition == "base"]
    assert len(base) == len(rows) and set(base.id) == {json.loads(row)["id"] for row in rows}
    assert base.score.notna().all()
    probes = run.probes()
    assert set(probes.probe) == {"self_assessment", "two_ai", "output_recognition", "score_prediction"}
    assert run.report() == directory / "report.html"
    assert "mixed" in repr(run) and "mixed" in run._repr_html_()


def test_what_is_no_finished_run_is_one_line(tmp_path, directory):
    with pytest.raises(UsageError, match="expected a run directory with config.toml"):
        em_jax.Run(tmp_path)
    (tmp_path / "config.toml").write_text((directory / "config.toml").read_text())
    unfinished = em_jax.Run(tmp_path)
    assert "not finished" in repr(unfinished)
    with pytest.raises(UserError, match="expected a finished run"):
        _ = unfinished.verdict
