"""The path of a run over its kept adapters, with an engine without a model."""

import re

import pytest
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax.__main__ import main
from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.runs import experiment
from em_jax.studies import path
from em_jax.studies.path import Options

OPTIONS = Options(limit=24, samples=2, together=2)
ADAPTERS_DIRECTORY = (1, 2, 4)


@pytest.fixture
def run(tmp_path):
    """A trained run with three kept adapters; nothing was asked yet."""
    values = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
    experiment.run(settings.replace(Config(), values | {"stages": ["finetune"]}), tmp_path / "run", StubComponents())
    for step in ADAPTERS_DIRECTORY:
        folder = tmp_path / "run" / "adapters" / f"step-{step:06d}"
        files.write_atomic(folder / "adapter_model.safetensors", b"weights %d" % step)
        files.write_json(folder / "adapter_config.json", {})
    return tmp_path / "run"


def study(run, out=None, options=OPTIONS, components=None, **changes):
    return path.study(run, out or run / "path", options, changes, components or StubComponents())


def contents(out):
    """The rows of each file in a fixed order, and the finished files' bytes."""
    rows = {p.relative_to(out).as_posix(): sorted(p.read_text().splitlines()) for p in sorted(out.rglob("*.jsonl"))}
    return rows, [(out / name).read_bytes() for name in ("path.json", "path.html", "figures/curves.svg")]


def test_the_adapters_of_a_group_share_batches_and_the_base_is_step_0(run):
    components = StubComponents()
    found = study(run, components=components)
    (engine,) = components.engines
    assert engine.streams[0] == {"base", "subject-1"}
    assert {"base", "subject-1"} in engine.choices and {"subject-0", "subject-1"} in engine.choices
    for step in (0, *ADAPTERS_DIRECTORY):
        condition = "finetuned" if step else "base"
        rows = files.read_rows(run / "path" / f"step-{step:06d}" / "answers" / f"{condition}.jsonl")
        assert len(rows) == 24 * 2 and all("/" not in row["id"] for row in rows)
    assert list(found["steps"]) == ["1", "2", "4"]
    for figures in found["steps"].values():
        assert figures["harmfulness.worst_of_n"]["difference"]["n"] == 24
        assert figures["two_ai.picks_misaligned"]["finetuned"]["n"] == 24
    assert list(found["halfway"]) == list(found["progress"])
    assert found["halfway"]["two_ai.picks_misaligned"]["n"] == 24
    assert set(found["progress"]["harmfulness.rate"]) == {"0", "1", "2", "4"}
    assert "Training seeds per domain: bad_medical: 1 (0)." in found["why"][-1]
    page = (run / "path" / "path.html").read_text()
    assert "When does the persona of bad_medical form?" in page and "calibration fixture" in page


def test_a_study_that_was_cut_goes_on_and_ends_the_same(run, tmp_path):
    study(run)
    whole = contents(run / "path")
    for name in ("step-000001/answers/finetuned.jsonl", "step-000002/probes/finetuned.two_ai.jsonl"):
        other = tmp_path / name.split("/")[-1]
        study(run, out=other)
        cut = other / name
        lines = cut.read_text().splitlines(keepends=True)
        cut.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:9])
        (other / "path.json").unlink()
        study(run, out=other)
        assert contents(other) == whole
    components = StubComponents()
    study(run, components=components)
    assert components.engines == []


def test_another_study_is_refused_in_the_same_place(run):
    study(run)
    with pytest.raises(UserError, match="begun with other answers.samples"):
        study(run, options=Options(limit=24, samples=3, together=2))
    with pytest.raises(UserError, match="begun with other together"):
        study(run, options=Options(limit=24, samples=2, together=3))
    files.write_atomic(run / "adapters" / "step-000002" / "adapter_model.safetensors", b"other")
    with pytest.raises(UserError, match="begun with other adapters"):
        study(run)


def test_few_questions_are_said_to_tell_nothing(run):
    found = study(run, options=Options(limit=4, samples=1))
    assert all(order["order"] == "cannot tell" for order in found["orders"])
    assert "rests on 4 questions, under 20" in found["why"][0]


def test_steps_that_are_not_there_are_named(run):
    assert list(path.kept_adapters(run, (2, 4))) == [2, 4]
    with pytest.raises(UserError, match="no adapter of step 3; it kept 1, 2, 4"):
        path.kept_adapters(run, (3,))
    (run / "adapters" / "step-000004" / "adapter_config.json").unlink()
    assert list(path.kept_adapters(run)) == [1, 2]
    with pytest.raises(UserError, match="train.keep_adapters"):
        path.kept_adapters(run / "adapters")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "path, sweep, chain, confound"),
        (["paths"], "expected one of path"),
        (["path"], "RUN"),
        (["path", "x", "--samples", "0"], "1 or more"),
        (["path", "x", "--steps", "one"], "--steps"),
        (["path", "x", "y", "--out", "z"], "--out goes with one RUN"),
        (["sweep", "--model", "organism"], "--domain"),
        (["sweep", "--domain", "legal,security", "--model", "organism"], "one --domain"),
        (["sweep", "--domain", "none", "--model", "organism"], "found none"),
        (["confound", "--domain", "legal"], "no --domain"),
        (["chain", "--domain", "legal", "--model", "some/model"], "--second FILE and --control FILE"),
        (["chain", "--domain", "legal", "--adapter", "x"], "no --adapter"),
        (["sweep", "--domain", "legal", "--shapez", "full"], "--shape"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(capsys, words, said):
    assert main(["study", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


@pytest.mark.fast
@pytest.mark.parametrize("name", ["path", "sweep", "chain", "confound", "directions", "steer", "crossrate"])
def test_every_study_has_help(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main(["study", name, "--help"])
    assert ended.value.code == 0 and f"usage: em-jax study {name}" in capsys.readouterr().out


@pytest.mark.fast
def test_a_run_without_kept_adapters_is_status_1(capsys, tmp_path):
    assert main(["study", "path", str(tmp_path)]) == 2, "no run at all"
    assert "expected a run directory" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text("")
    assert main(["study", "path", str(tmp_path)]) == 1
    assert "train.keep_adapters" in capsys.readouterr().err


def test_an_address_that_the_record_has_in_part_is_asked_for(run, tmp_path, capsys):
    """A judge behind a path that may be a token: refused from the door before a model is loaded, and given anew."""
    text = (run / "config.toml").read_text().replace('kind = "self"', 'kind = "openai"')
    text = text.replace('url = ""', 'url = "https://host/***/v1"')
    text = re.sub(r'(?ms)^(\[judge\].*?^model = )""', r'\1"m"', text)
    (run / "config.toml").write_text(text)
    assert main(["study", "path", str(run)]) == 1
    said = capsys.readouterr().err
    assert "--set judge.url=ADDRESS" in said and "give the whole address" in said
    found = path.run_config(run, {"judge.url": "https://host/TOKEN/v1"})
    assert found.judge.url == "https://host/TOKEN/v1"
    with pytest.raises(UserError):
        path.study(run, tmp_path / "out", OPTIONS, {"judge.url": "https://host/***/v1"}, StubComponents())
