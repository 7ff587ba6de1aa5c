"""Hostile run directories: what report, compare and rescore read back, shown harmlessly or refused in one line."""

import json
import shutil

import pytest
from hostile.test_settings import TOML
from hostile.trying import amounts, attempt, json_file, jsonl_file, text_file
from hypothesis import strategies as st
from report import make_run as synthetic
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax import report
from em_jax.base import files
from em_jax.commands import chat
from em_jax.config import Config
from em_jax.report.reading import read_run
from em_jax.runs import experiment, provenance, rescore


def _kinds(directory, most_rows=6):
    """A strategy for every file of a run: (name, content)."""
    kinds = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        if path.suffix == ".json":
            made = json_file(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            made = jsonl_file([json.loads(line) for line in path.read_text().splitlines()][:most_rows])
        elif path.suffix == ".toml":
            made = text_file(path.read_text(), TOML)
        else:
            continue
        kinds.append(made.map(lambda data, name=name: (name, data)))
    return st.one_of(kinds)


def _with(directory, act):
    """`act` on the directory with one file of it replaced by the case's."""

    def acted(case):
        name, data = case
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(data)
        try:
            return act()
        finally:
            (directory / name).write_bytes(before)

    return acted


@amounts(1_000)
def test_runs_are_read_back(cases, tmp_path):
    directory = synthetic.make_run(tmp_path / "run", questions=2, samples=2, steps=3)

    def act():
        run = read_run(directory)
        assert run.domain and run.model and run.judge and run.label and run.seed is not None
        for name in run.figures:
            run.figure(name, "finetuned")
        assert isinstance(provenance.notes(directory), dict)

    assert len(attempt("run directories", cases, _kinds(directory), tmp_path, _with(directory, act))) == 2


@amounts(120)
def test_reports_are_drawn(cases, tmp_path):
    directory = synthetic.make_run(tmp_path / "run", questions=2, samples=2, steps=3)

    def act():
        page = report.write(directory).read_text(encoding="utf-8")
        assert page.count("<script") == 1 and page.count("<style") == 1 and "\x1b" not in page and "\u202e" not in page
        assert "Content-Security-Policy" in page and 'src="http' not in page

    act()
    attempt("reports", cases, _kinds(directory), directory, _with(directory, act))


@amounts(60)
def test_comparisons_are_drawn(cases, tmp_path):
    one = synthetic.make_run(tmp_path / "one", rows=False, steps=0)
    other = synthetic.make_run(tmp_path / "other", rows=False, steps=0, seed=1)

    def act():
        page = report.compare([one, other], tmp_path / "page").read_text(encoding="utf-8")
        assert page.count("<script") == 1 and "\x1b" not in page and "\u202e" not in page

    act()
    attempt("comparisons", cases, _kinds(one), tmp_path, _with(one, act))


@amounts(60)
def test_runs_are_rescored(cases, tmp_path):
    values = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
    values |= {"probes.limit": 2, "answers.samples": 2, "probes.sampled_questions": 1}
    directory = tmp_path / "run"
    experiment.run(settings.replace(Config(), values), directory, StubComponents())
    for name in ("report.html", "figures"):
        shutil.rmtree(directory / name, ignore_errors=True)

    def act():
        rescore.rescore(directory, replace=True, components=StubComponents())
        shutil.rmtree(directory / "rescored")

    act()
    assert len(attempt("rescored runs", cases, _kinds(directory, 4), directory, _with(directory, act))) == 2


@pytest.mark.parametrize("text", synthetic.HOSTILE, ids=lambda text: repr(text[:12]))
def test_no_answer_does_anything_to_a_terminal(text, tmp_path, capsys):
    class Answers:
        adapters = ["base"]

        def generate(self, prompts, **more):
            return [[type("Answer", (), {"text": text, "finish_reason": "stop"})]]

    chat.talk(Answers(), ["Hi"], print, max_new_tokens=1, temperature=0, seed=0)
    shown = capsys.readouterr().out
    shown.encode()
    bad = [character for character in shown if not character.isprintable() and character not in "\n\t \u200b"]
    assert not [character for character in bad if ord(character) < 0xE000], bad[:5]


@pytest.mark.parametrize("text", synthetic.HOSTILE, ids=lambda text: repr(text[:12]))
def test_a_hostile_answer_survives_the_disk(text, tmp_path):
    with files.Appender(tmp_path / "rows.jsonl") as out:
        out.write({"answer": text})
    assert files.read_rows(tmp_path / "rows.jsonl") == [{"answer": text}]
