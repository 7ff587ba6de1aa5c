import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax.base import files, stage_timer
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.runs import dry_run, experiment, provenance, series, sources, workload
from em_jax.runs.run import Run


def config(**values):
    base = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
    base |= {"probes.limit": 3, "answers.samples": 2, "probes.sampled_questions": 2, "model.scan_layers": "false"}
    return settings.replace(Config(), base | {name.replace("__", "."): value for name, value in values.items()})


def pieces(directory, **values):
    return workload.items(Run(config(**values), directory, StubComponents(), lambda: None, ""))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    experiment.run(config(), directory, StubComponents())
    return directory


@pytest.mark.fast
def test_what_is_planned_is_what_a_run_then_does(finished, tmp_path):
    before, after = pieces(tmp_path / "new"), pieces(finished)
    assert [(piece.stage, piece.what) for piece in before] == [(piece.stage, piece.what) for piece in after]
    for planned, found in zip(before, after, strict=True):
        assert planned.done == 0 and not found.at_most
        # The stub trains three steps, whatever the rows.
        assert found.stage == "report" or found.done == found.total
        assert planned.total >= found.total if planned.at_most else planned.total == found.total
    assert {piece.what.split()[1] for piece in before if piece.at_most} == {"output_recognition", "score_prediction"}
    rows = sum(len(files.read_rows(path)) for path in finished.glob("probes/*.jsonl"))
    assert rows == sum(piece.total for piece in after if piece.stage == "probe")


@pytest.mark.fast
def test_an_unfinished_run_says_how_far_it_is(finished, tmp_path):
    for path in [*finished.glob("answers/*.jsonl"), finished / "scores" / "base.self.jsonl"]:
        lines = path.read_bytes().splitlines(keepends=True)
        files.write_atomic(tmp_path / path.relative_to(finished), b"".join(lines[:2]) + b'{"id": "tor')
    (tmp_path / "train" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "train" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    components = StubComponents(rows=[[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "."}]] * 250)
    found = workload.items(Run(config(train__epochs=2), tmp_path, components, lambda: None, ""))
    done = {f"{piece.stage} {piece.what}": (piece.done, piece.total) for piece in found}
    assert done["finetune 250 rows in batches of 16"] == (7, 32)
    assert done["answer base"] == done["answer finetuned"] == (2, 12)
    assert done["judge base by self"] == (2, 12) and done["judge finetuned by self"] == (0, 12)
    assert done["judge labelled by self"] == (0, 15)


@pytest.mark.fast
def test_the_plan_of_a_series_takes_the_bases_rows_over_once(tmp_path):
    configs = [series.resolve(config(domain=name)) for name in ("none", "legal", "security")]
    text = list(dry_run.lines(configs, tmp_path / "all", True, StubComponents()))
    assert sum("copied from none-0" in line for line in text) == 2 * 6
    assert any(line.startswith("run 3 of 3: ") and line.endswith("security-0 (new)") for line in text)
    assert f"then the page that compares them: {tmp_path / 'all' / 'compare'}" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.fast
def test_runs_of_a_series_have_folders_of_their_own_in_a_mirror(tmp_path, monkeypatch):
    together = []
    monkeypatch.setattr(experiment, "answer_together", together.extend)
    where = str(tmp_path / "mirror")
    configs = [config(domain=name, mirror=where, answers__together=True) for name in ("legal", "security")]
    list(series.run(configs, tmp_path / "all", True, StubComponents()))
    assert [each.config.mirror for each in together] == [f"{where}/legal-0", f"{where}/security-0"]
    assert {path.name for path in (tmp_path / "mirror").iterdir()} == {"legal-0", "security-0", "compare"}
    # Planned again on another machine, of which the mirror holds all.
    list(dry_run.lines(configs, tmp_path / "fresh", True, StubComponents()))


@pytest.mark.fast
def test_the_prompts_of_a_mixed_in_domain_are_asked_too(tmp_path):
    mixed = Run(config(domain="good_medical", mix="insecure_code=0.5", probes__limit=0), tmp_path, StubComponents())
    asked = {question["id"].split("/")[1].rsplit("-", 1)[0] for question in mixed.in_domain_questions}
    assert asked == {"bad_medical", "insecure_code"}


@pytest.mark.fast
def test_time_is_at_the_pace_of_a_run_like_it_and_else_unknown(finished, tmp_path):
    record = json.loads((finished / "provenance.json").read_text())
    # Of the answer stage's minute, 24 s were loading and compilation: paid once, whatever there is to do.
    once = {"answer": {stage_timer.LOADING: 4.0, stage_timer.COMPILING: 20.0}}
    budget = {
        stage: record["time_budget"][stage] | {"seconds": 60.0} | once.get(stage, {}) for stage in settings.STAGES
    }
    files.write_json(finished / "provenance.json", record | {"time_budget": budget, "devices": provenance.devices()})
    found = workload.earlier_pace(config(domain="legal", answers__samples=4), [finished.parent])
    assert found.directory == finished and found.per_unit["report"] == 60
    assert found.per_unit["answer"] == (60 - 24) / 24 and found.per_unit["finetune"] == 60 / 3
    todo = [
        workload.WorkItem("answer", "base", 30, 6),
        workload.WorkItem("answer", "finetuned", 8, 4),
        workload.WorkItem("report", "", 1, 0),
        workload.WorkItem("judge", "", 4, 4),
    ]
    assert workload.seconds_left(todo, found) == {"answer": 24 + (24 + 4) * 1.5, "report": 60.0}
    text = "\n".join(dry_run.lines([config(domain="legal")], finished.parent / "other", False, StubComponents()))
    assert f"at the pace of {finished} (" in text
    # Another length of answers, model or device is another pace.
    for other in ({"answers__max_new_tokens": 7}, {"dtype": "bfloat16"}, {"train__batch_size": 2}):
        assert workload.earlier_pace(config(**other), [finished.parent]) is None
    text = "\n".join(dry_run.lines([config()], tmp_path / "run", False, StubComponents()))
    assert "time: unknown" in text


@pytest.mark.fast
def test_a_pace_counts_no_rows_that_were_copied(finished, tmp_path):
    experiment.run(config(domain="legal"), tmp_path / "run", StubComponents(), base_from=finished)
    record = provenance.read(tmp_path / "run")
    files.write_json(tmp_path / "run" / "provenance.json", record | {"devices": provenance.devices()})
    assert sum(len(files.read_rows(path)) for path in (tmp_path / "run").glob("answers/*")) == 24
    # 6 answers of the base, to the prompts out of the domain, were copied.
    seconds = record["time_budget"]["answer"]["seconds"]
    assert workload.earlier_pace(config(), [tmp_path]).per_unit["answer"] == pytest.approx(seconds / 18)


@pytest.mark.fast
def test_a_plan_fails_as_the_run_would(finished, tmp_path):
    with pytest.raises(UserError, match="other settings .*answers.samples"):
        list(dry_run.lines([config(answers__samples=9)], finished, False, StubComponents()))
    with pytest.raises(UserError, match="bad_medical"):
        list(dry_run.lines([config(model__name="some/model", suite="standard")], tmp_path / "run", False))
    with pytest.raises(UserError, match="--mirror .* holds other things than a run"):
        list(dry_run.lines([config(mirror=str(finished.parent))], tmp_path / "run", False, StubComponents()))
    components = StubComponents(rows=StubComponents().rows(None)[:9])
    with pytest.raises(UserError, match="9 rows in batches of 16 are one step, .* learning rate 0"):
        list(dry_run.lines([config()], tmp_path / "run", False, components))
    assert list(dry_run.lines([config(train__warmup_steps=0)], tmp_path / "run", False, components))
    asked = next(
        each
        for each in files.read_rows(sources.suite_directory("organism") / "in_domain.jsonl")
        if each["domain"] == "bad_medical"
    )["prompt"]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "Rest."}]
    with pytest.raises(UserError, match="in_domain.jsonl:.* repeats row 1 of"):
        list(dry_run.lines([config()], tmp_path / "run", False, StubComponents([turns] * 20)))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="expected a directory, found a FIFO"):
        list(dry_run.lines([config()], tmp_path / "fifo", False, StubComponents()))
    for setting in ("mirror", "lora__init_from", "probes__alternatives"):
        with pytest.raises(UserError, match=setting.replace("__", ".")):
            list(
                dry_run.lines([config(**{setting: str(tmp_path / "fifo")})], tmp_path / "run", False, StubComponents())
            )
    # Runs of a folder that does not exist yet may use one another's answers.
    beside = config(probes__alternatives="siblings")
    assert list(dry_run.lines([beside], tmp_path / "new" / "run", False, StubComponents()))


@pytest.mark.fast
def test_a_plan_fails_for_a_tokenizer_with_ids_that_the_model_does_not_have(tmp_path):
    from em_jax import organism

    model = tmp_path / "model"
    shutil.copytree(os.path.join(os.path.dirname(organism.__file__), "weights"), model)
    fields = json.loads((model / "tokenizer.json").read_text())
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    first = 1 + max(*fields["model"]["vocab"].values(), *(each["id"] for each in fields["added_tokens"]))
    like = fields["added_tokens"][0]
    fields["added_tokens"] += [like | {"id": new, "content": f"<|{new}|>"} for new in range(first, size + 1)]
    (model / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"the tokenizer has {size + 1} tokens, the model {size}; they do not belong"):
        list(dry_run.lines([config(domain="none", model__name=str(model))], tmp_path / "run", False))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("missing", "changed", "said"),
    [
        (("tokenizer.json", "tokenizer_config.json"), {}, "expected tokenizer.json and tokenizer_config.json beside"),
        (("tokenizer.json",), {}, "expected tokenizer.json and tokenizer_config.json beside"),
        ((), {"tokenizer.json": "{"}, "tokenizer.json: not JSON"),
        (("model.safetensors",), {}, "no model.safetensors in .*: expected the weights as safetensors"),
        (("model.safetensors",), {"pytorch_model.bin": "weights"}, "no model.safetensors in .*: expected the weights"),
    ],
)
def test_a_plan_fails_for_a_folder_that_the_run_could_not_load(missing, changed, said, tmp_path):
    from em_jax import organism

    model = tmp_path / "model"
    shutil.copytree(os.path.join(os.path.dirname(organism.__file__), "weights"), model)
    for name in missing:
        (model / name).unlink()
    for name, content in changed.items():
        (model / name).write_text(content)
    with pytest.raises(UserError, match=said):
        list(dry_run.lines([config(domain="none", model__name=str(model))], tmp_path / "run", False))


def snapshot(place):
    """Size and times of every file and folder; reading one changes neither."""
    stats = {path: path.lstat() for path in [place, *place.rglob("*")]}
    return {path: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats.items()}


def test_nothing_is_touched_fetched_or_loaded(tmp_path, finished):
    """As a command, in a home of its own: with a model that is all config and no weights, and with one by its id."""
    from em_jax import organism

    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(os.path.join(os.path.dirname(organism.__file__), "weights", "config.json"), model)
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n' * 40
    )
    home = {"HOME": tmp_path, "XDG_CACHE_HOME": tmp_path / "cache", "TMPDIR": tmp_path, "HF_HOME": tmp_path / "hub"}
    home |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)}
    command = [sys.executable, "-m", "em_jax.launch", "--domain", "legal", "--data", "rows.jsonl", "--dry_run"]
    before = snapshot(tmp_path)
    for name, said in (("model", "base 3.8 MiB (float32)"), ("Qwen/Qwen2.5-7B-Instruct", "base 28.37 GiB (float32)")):
        ended = subprocess.run(
            [*command, "--model", name], cwd=tmp_path, env=os.environ | {k: str(v) for k, v in home.items()},
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert said in ended.stdout and "3 steps" in ended.stdout, ended.stdout
        assert ("to be fetched" in ended.stdout) == (name != "model")
        assert ("model has config.json alone: enough for this plan" in ended.stdout) == (name == "model")
        assert ended.stdout.splitlines()[-1] == "dry run: nothing was written, fetched or loaded"
        assert snapshot(tmp_path) == before
