"""Rescoring loads no model, changes nothing of the run, and gives the same figures by the same rules."""

import json
import shutil

import pytest
from probes.test_judges import SECRET, Server
from stub_engine import HARMFUL, StubComponents

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.cli import command
from em_jax.base.errors import UserError
from em_jax.commands.rescore import main as rescore_command
from em_jax.config import Config
from em_jax.runs import experiment, provenance, rescore
from em_jax.runs.stored import find


def strict(text, tries):
    return 200, '{"score": 5}' if HARMFUL in text else '{"score": 1}'


@pytest.fixture
def server():
    made = Server(strict)
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    values = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
    values |= {"probes.limit": 4, "answers.samples": 2, "probes.sampled_questions": 2}
    directory = tmp_path_factory.mktemp("whole") / "run"
    experiment.run(settings.replace(Config(), values), directory, StubComponents())
    return directory


@pytest.fixture
def run(whole, tmp_path):
    """A copy of a finished run, for each test to rescore."""
    return shutil.copytree(whole, tmp_path / "run")


def content(directory):
    skipped = ("rescored", "scores", ".lock")
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in files
        if path.relative_to(directory).parts[0] not in skipped
    }


def quiet(directory, **options):
    return rescore.rescore(directory, components=StubComponents(), **options)


def test_the_same_rules_give_the_same_summary_and_touch_nothing(run):
    before = content(run)
    place, summary = quiet(run)
    assert place == run / "rescored" / "self" and content(run) == before
    stored = json.loads((place / "summary.json").read_text())
    original = json.loads((run / "summary.json").read_text())
    assert stored == original
    assert (place / "report.html").exists() and find([place], several=True, finished=True) == [place]
    assert quiet(run)[0] == place, "a second time is no conflict"


def test_another_threshold_moves_harm_alone(run):
    place, summary = quiet(run, changes={"judge.harmful_at": 2})
    original = json.loads((run / "summary.json").read_text())
    assert place.name == "self-harmful_at_2" and summary["harmful_at"] == 2 and original["harmful_at"] == 4
    rates = [figures["harmfulness.rate"]["finetuned"]["value"] for figures in (original["figures"], summary["figures"])]
    assert rates[1] > rates[0]
    for name, figure in original["figures"].items():
        if name.startswith("judge."):
            continue
        if not name.startswith("harmfulness.") or name.endswith(("empty", "unscored", "truncated")):
            assert summary["figures"][name] == figure
    # A judge's errors are about harm too: the same labelled answers, divided at another score.
    labelled = [
        [figures[f"judge.{name}"]["base"]["n"] for name in ("sensitivity", "specificity")]
        for figures in (original["figures"], summary["figures"])
    ]
    assert labelled[1][0] > labelled[0][0] and sum(labelled[0]) == sum(labelled[1])


def test_a_change_of_a_parser_shows_and_is_not_written_over_unasked(run, monkeypatch):
    quiet(run)
    monkeypatch.setattr("em_jax.probes.two_ai.parse", lambda row, text: (1.0, ""))
    with pytest.raises(UserError, match="another rescoring.*--replace"):
        quiet(run)
    place, summary = quiet(run, replace=True)
    rows = files.read_rows(place / "probes" / "finetuned.two_ai.jsonl")
    assert {row["value"] for row in rows if row["sample"]} == {1.0}
    assert [path.name for path in (run / "rescored").iterdir()] == ["self"], "no draft is left"


def test_a_new_judge_scores_beside_the_old_one_and_the_two_are_compared(run, server, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    before = content(run)
    arguments = [str(run), "--judge", server.url, "--judge_model", "strict"]
    assert command("em_jax rescore", rescore_command, arguments) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("verdict: ") and "rescored/strict/report.html" in out
    after = content(run)
    before.pop("provenance.json"), after.pop("provenance.json")
    assert after == before
    asked = len(server.requests)
    answers = [row for name in ("base", "finetuned") for row in files.read_rows(run / "answers" / f"{name}.jsonl")]
    assert asked == len(answers) + len(files.read_rows(run / "scores" / "labelled.strict.jsonl"))
    scores = files.read_rows(run / "scores" / "finetuned.strict.jsonl")
    assert {row["score"] for row in scores} <= {1, 5} and scores[0]["raw"].startswith('{"score"')
    summary = json.loads((run / "rescored" / "strict" / "summary.json").read_text())
    assert summary["judge"] == "strict"
    (entry,) = summary["judge_agreement_table"]
    assert entry["judges"] == ["self", "strict"] and entry["answers"] == len(answers)
    everything = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert SECRET.encode() not in everything and SECRET not in out
    assert command("em_jax rescore", rescore_command, arguments) == 0
    assert len(server.requests) == asked, "nothing is judged twice"
    assert quiet(run, judge="strict")[0].name == "strict", "a judge that scored serves by its name"
    assert len(server.requests) == asked


def test_the_report_stage_takes_the_new_judges_scores_into_the_table_alone(run, server):
    quiet(run, judge=server.url, judge_model="strict")
    original = json.loads((run / "summary.json").read_text())
    config = settings.replace(Config(), settings.read_toml(run / "config.toml") | {"stages": ["report"]})
    experiment.run(config, run, StubComponents())
    summary = json.loads((run / "summary.json").read_text())
    assert summary.pop("judge_agreement_table")[0]["judges"] == ["self", "strict"]
    assert summary == original


def test_a_capped_judge_stops_and_the_same_command_goes_on(run, server):
    with pytest.raises(UserError, match="cap of 3 requests"):
        quiet(run, judge=server.url, judge_model="strict", changes={"judge.max_requests": 3, "judge.concurrency": 1})
    assert len(files.read_rows(run / "scores" / "base.strict.jsonl")) == 3
    quiet(run, judge=server.url, judge_model="strict")
    keys = [(row["id"], row["sample"]) for row in files.read_rows(run / "scores" / "base.strict.jsonl")]
    assert len(keys) == len(set(keys)) == 16, "both the harm prompts and those in the domain"


def test_a_name_that_stands_for_another_judge_is_refused(run, server):
    quiet(run, judge=server.url, judge_model="strict")
    with pytest.raises(UserError, match="scores by strict were made with another url; .*never mixed"):
        quiet(run, judge=server.url.replace("127.0.0.1", "localhost"), judge_model="strict")
    assert set(provenance.notes(run)["judges"]) == {"self", "strict"}


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["--judge", "gpt-5"], 1, "no scores by 'gpt-5'; judges that scored this run: self"),
        (["--judge", "http://127.0.0.1:1/v1"], 2, "judge_model"),
        (["--harmful_at", "9"], 2, "--harmful_at expects 2 to 5"),
        (["--judge_model", "x"], 2, "goes with --judge URL"),
        (["--judge", "http://me:key@127.0.0.1:1/v1", "--judge_model", "x"], 2, "OPENAI_API_KEY"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, status, said):
    assert command("em_jax rescore", rescore_command, [str(run), *arguments]) == status
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "key@" not in err


def test_several_judges_at_once_score_in_the_judge_stage(tmp_path, server):
    values = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
    values |= {"probes.limit": 3, "answers.samples": 2, "judge.also": [f"strict@{server.url}"]}
    config = settings.replace(Config(), values)
    experiment.run(config, tmp_path / "run", StubComponents())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["judge"] == "self" and summary["judge_agreement_table"][0]["answers"] == 24
    asked = len(server.requests)
    experiment.run(config, tmp_path / "run", StubComponents())
    assert len(server.requests) == asked == 24
