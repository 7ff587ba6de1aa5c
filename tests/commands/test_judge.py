"""`em-jax judge check` from its door: a judge of known errors, and labelled sets that are wrong."""

import json

import pytest
from probes.test_judges import Server

from em_jax.base import files
from em_jax.base.errors import UsageError, UserError
from em_jax.commands import judge
from em_jax.probes import labelled, suite_files
from em_jax.probes.suite import LABELS

FOLDER = suite_files.standard_directory()


def standard():
    return suite_files.load(FOLDER).labelled


def test_a_judge_of_known_errors_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    # The judge that calls harmful what names harm in the prompt's own words would be no test: this one goes by text.
    known = {answer.answer: answer.score for answer in standard()}
    missed = {text for text, score in known.items() if score == 4 and len(text) % 4 == 0}

    def behave(text, tries):
        found = next(answer for answer in known if answer in text)
        return 200, json.dumps({"score": 1 if found in missed else known[found]})

    server = Server(behave)
    out = tmp_path / "check"
    try:
        words = ["--judge", server.url, "--judge_model", "stub", "--suite", "standard", "--out", str(out)]
        judge.main(["check", *words])
    finally:
        server.close()
    record = json.loads((out / "judge_check.json").read_text())
    assert record["specificity"]["value"] == 1 and record["unscored"] == 0 and record["answers"] == 200
    assert record["sensitivity"]["value"] == pytest.approx(1 - len(missed) / 80) and 0 < len(missed) < 40
    assert record["sensitivity"]["ci_low"] < record["sensitivity"]["value"] < record["sensitivity"]["ci_high"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("sensitivity: 0.") and printed[-1] == str(out / "judge_check.json")
    assert len((out / "scores.jsonl").read_text().splitlines()) == 200


def test_a_judge_that_scores_no_harmful_answer_has_no_sensitivity(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    lines = {json.loads(line)["score"]: line for line in (FOLDER / suite_files.LABELLED).read_text().splitlines()}
    (tmp_path / "set.jsonl").write_text("\n".join(lines.values()))
    harmful = [json.loads(line)["answer"] for score, line in lines.items() if score >= 4]

    def behave(text, tries):
        return 200, "I won't." if any(answer in text for answer in harmful) else '{"score": 1}'

    server = Server(behave)
    words = ["--judge_model", "stub", "--labelled", str(tmp_path / "set.jsonl"), "--out", str(tmp_path / "out")]
    try:
        judge.main(["check", "--judge", server.url, *words])
    finally:
        server.close()
    record = json.loads((tmp_path / "out" / "judge_check.json").read_text(), parse_constant=pytest.fail)
    assert (record["true_harmful"], record["sensitivity"]["value"], record["unscored"]) == (0, None, 2)
    printed = capsys.readouterr().out
    assert printed.startswith("sensitivity: no data of 0 answers\nspecificity: 1.000 [")
    assert "\nunscored: 2 of 5, most often: no score in the reply\n" in printed


@pytest.mark.fast
def test_the_shipped_set_is_balanced():
    answers = standard()
    cells = {(answer.category, answer.score) for answer in answers}
    assert len(answers) >= 200 and len(cells) == 5 * len({answer.category for answer in answers})
    assert all(sum(answer.score == score for answer in answers) == 40 for score in LABELS)


@pytest.mark.fast
def test_a_class_that_is_missing_is_named(tmp_path):
    lines = (suite_files.standard_directory() / suite_files.LABELLED).read_text().splitlines(keepends=True)
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(line for line in lines if json.loads(line)["score"] != 3))
    with pytest.raises(UserError, match=rf"{file}: expected labelled answers of every score, found 0 with score 3"):
        suite_files.read_labelled(file, {})
    file.write_text("".join(lines[:7]).replace('"score": 2', '"score": 6'))
    with pytest.raises(UserError, match=rf"{file}:2: expected a whole number from 1 to 5"):
        suite_files.read_labelled(file, {})


@pytest.mark.fast
def test_the_model_of_a_judge_without_an_address_is_refused(tmp_path):
    """It was left out silently, and the base scored."""
    with pytest.raises(UsageError, match="--judge_model gpt-4o-mini expects --judge URL"):
        judge.main(["check", "--judge_model", "gpt-4o-mini", "--out", str(tmp_path / "new")])


def test_scores_are_kept_as_they_come(tmp_path, monkeypatch):
    """They were written once the last one was there: an interrupted check lost all that a judge had been paid for."""

    def interrupted(*_):
        yield {"id": "a", "sample": 0, "score": 4}
        raise KeyboardInterrupt

    monkeypatch.setattr(labelled, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge.main(["check", "--judge", "http://127.0.0.1:9/v1", "--judge_model", "x", "--out", str(tmp_path / "new")])
    assert [row["score"] for row in files.read_rows(tmp_path / "new" / "scores.jsonl")] == [4]


def test_a_check_without_a_score_leaves_no_folder(tmp_path, monkeypatch):
    """The same command with a key that is right would be refused for it."""

    def refused(*_):
        yield from ()
        raise UserError("judge x: 401")

    monkeypatch.setattr(labelled, "score", refused)
    with pytest.raises(UserError, match="401"):
        judge.main(["check", "--judge", "http://127.0.0.1:9/v1", "--judge_model", "x", "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
