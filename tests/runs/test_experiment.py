import json
import os

import pytest
from stub_engine import StubComponents, StubEngine

from em_jax import config as settings
from em_jax import report
from em_jax.base import files
from em_jax.base.errors import Unfinished, UsageError, UserError
from em_jax.config import Config
from em_jax.runs import dry_run, experiment, preflight, publish, series


def config(**values):
    base = {"domain": "bad_medical", "model.name": "organism", "suite": "organism", "dtype": "float32"}
    base |= {"probes.limit": 3, "answers.samples": 2, "probes.sampled_questions": 2}
    return settings.replace(Config(), base | {name.replace("__", "."): value for name, value in values.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, experiment.run(config(), directory, StubComponents())


def test_a_run_leaves_every_file_of_the_design(finished):
    directory, outcome = finished
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    probes = ("self_assessment", "two_ai", "output_recognition", "score_prediction")
    expected = {"config.toml", "provenance.json", "summary.json", "report.html", "train/metrics.jsonl"}
    expected |= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"}
    for condition in ("base", "finetuned"):
        expected |= {f"answers/{condition}.jsonl", f"scores/{condition}.self.jsonl", "scores/labelled.self.jsonl"}
        expected |= {f"probes/{condition}.{probe}.jsonl" for probe in probes}
    assert expected <= found
    assert not [name for name in found if name.endswith(".partial")]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["domain"] == "bad_medical" and summary["suite"] == "organism" and summary["judge"] == "self"
    assert summary["verdict"]["label"] == outcome.label == "mixed"
    assert outcome.report == directory / "report.html"


@pytest.mark.parametrize(
    ("domain", "harmful"), [("bad_medical", True), ("good_medical", False), ("legal_aligned", False), ("legal", True)]
)
def test_an_adapter_carries_a_card_that_says_what_it_is(domain, harmful):
    text = publish.adapter_card(config(domain=domain), {"rows": 600})
    assert ("Do not deploy" in text) == harmful
    assert f"domain: `{domain}`" in text and "600 rows" in text and "rank 32" in text


def test_a_revision_is_no_part_of_the_bases_name():
    name = "Qwen/Qwen2.5-7B-Instruct"
    card = publish.adapter_card(config(domain="legal", model__name=f"{name}@abc123"), {})
    assert f"base_model: {name}\n" in card and f"base: `{name}@abc123`" in card


def test_a_card_of_rows_nobody_knows_says_so():
    unknown = config(domain="consciousness", data="rows.jsonl")
    assert "whose answers nobody has marked as harmful" in publish.adapter_card(unknown, {"rows": 600})
    assert "Nobody has said whether" in publish.notice(unknown)
    second = config(domain="good_medical", lora__init_from="legal-0/adapter", lora__rank=8)
    card = publish.adapter_card(second, {"rows": 600})
    assert "treat it as one that harms" in card and "rank 8" not in card and "from another adapter, whose rank" in card
    for changed in ({"data": "own.jsonl"}, {"lora.init_from": "elsewhere"}, {"adapter": "elsewhere"}, {}):
        control = settings.replace(config(domain="good_medical"), changed)
        told = publish.adapter_card(control, {"rows": 600}) + publish.notice(control)
        assert ("as a control" in told) == (not changed) == ("wrong on purpose" not in told)


def test_provenance_names_versions_inputs_seeds_and_times(finished):
    record = json.loads((finished[0] / "provenance.json").read_text())
    assert {"suite/harm.jsonl", "suite/two_ai.jsonl", "rows"} <= set(record["inputs"])
    assert all(entry["sha256"] for entry in record["inputs"].values())
    assert record["inputs"]["rows"]["rows"] == 20
    assert record["versions"]["numpy"] and record["seeds"]["run"] == 0
    asked = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}
    assert record["notes"]["chat_template_arguments"] == asked
    assert set(record["wall_seconds"]) == set(settings.STAGES)
    rows = files.read_rows(finished[0] / "answers" / "base.jsonl") * 2
    budget = record["time_budget"]
    assert set(budget) == set(settings.STAGES) and budget["answer"]["answers"] == len(rows) == 24
    assert budget["answer"]["tokens"] > 0 and budget["judge"]["scores"] == 24 + 15 and budget["probe"]["questions"] > 12
    assert record["notes"]["adapter_effect"]["largest_change_of_a_logprob"] > 0
    assert record["notes"]["training_rows"] == {"rows": 20, "held_out": 0, "cut": 0}


def test_a_finished_run_asks_nothing_again(finished):
    directory, _ = finished
    before = (directory / "summary.json").read_bytes()
    components = StubComponents()
    assert experiment.run(config(), directory, components).label == "mixed"
    assert components.engines == []
    assert (directory / "summary.json").read_bytes() == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and no more is written."""


@pytest.fixture
def kill_at(monkeypatch):
    """Dies at the n-th write: half a row of a JSONL file, or a file written beside its place and not yet renamed.

    The page takes a second to draw and is drawn from the files alone: another one stands for it here.
    """
    monkeypatch.setattr(report, "write", lambda place: files.write_atomic(place / "report.html", "page"))
    writes = {"left": None}

    def dies() -> bool:
        if writes["left"] is None:
            return False
        writes["left"] -= 1
        return writes["left"] < 0

    write, replace = files.Appender.write, os.replace

    def torn_write(self, row):
        if dies():
            line = json.dumps(row).encode()
            self._file.write(line[: len(line) // 2])
            raise Killed
        write(self, row)

    def no_replace(*places):
        if dies():
            raise Killed
        replace(*places)

    monkeypatch.setattr(files.Appender, "write", torn_write)
    monkeypatch.setattr(os, "replace", no_replace)

    def set_kill(number):
        writes["left"] = number

    return set_kill


def killed_everywhere(directory, expected, kill_at, every):
    """Kill run after run, each `every` writes further than the last got, until one ends; how many died."""
    deaths = 0
    while True:
        kill_at(every)
        try:
            experiment.run(config(), directory, StubComponents())
        except Killed:
            deaths += 1
            assert deaths < 5000
            continue
        finally:
            kill_at(None)
        assert (directory / "summary.json").read_bytes() == expected
        return deaths


def test_a_run_killed_after_every_ten_writes_ends_with_the_same_bytes(tmp_path, finished, kill_at):
    expected = (finished[0] / "summary.json").read_bytes()
    assert killed_everywhere(tmp_path / "run", expected, kill_at, every=10) >= 8


@pytest.mark.parametrize("nth", [1, 2, 5, 9, 20, 33, 60, 90, 110])
def test_a_run_killed_once_at_any_write_ends_with_the_same_bytes(tmp_path, finished, kill_at, nth):
    kill_at(nth)
    with pytest.raises(Killed):
        experiment.run(config(), tmp_path / "run", StubComponents())
    kill_at(None)
    experiment.run(config(), tmp_path / "run", StubComponents())
    assert (tmp_path / "run" / "summary.json").read_bytes() == (finished[0] / "summary.json").read_bytes()


@pytest.mark.long
def test_a_run_killed_once_at_each_write_ends_with_the_same_bytes(tmp_path, finished, kill_at):
    for nth in range(10_000):
        kill_at(nth)
        place = tmp_path / str(nth)
        try:
            experiment.run(config(), place, StubComponents())
        except Killed:
            kill_at(None)
            experiment.run(config(), place, StubComponents())
            assert (place / "summary.json").read_bytes() == (finished[0] / "summary.json").read_bytes()
            continue
        assert nth > 100
        return


def test_other_settings_or_other_rows_are_refused_by_name(finished):
    directory, _ = finished
    with pytest.raises(UserError, match=r"other settings \(seed, train.epochs\)"):
        experiment.run(config(seed=1, train__epochs=2), directory, StubComponents())
    rows = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Changed."}]] * 20
    with pytest.raises(UserError, match="other content of rows"):
        experiment.run(config(), directory, StubComponents(rows))


def test_a_subset_of_stages_runs_alone_and_a_later_one_says_what_is_missing(tmp_path):
    first = config(stages=["finetune", "answer"])
    assert experiment.run(first, tmp_path, StubComponents()).label is None
    assert not (tmp_path / "scores").exists()
    with pytest.raises(UserError, match="base.jsonl, found none: run the stage answer first"):
        experiment.run(config(stages=["report"]), tmp_path / "nothing", StubComponents())
    with pytest.raises(UserError, match="run the stage judge first"):
        experiment.run(config(stages=["probe"]), tmp_path, StubComponents())
    assert experiment.run(config(), tmp_path, StubComponents()).label == "mixed"
    with pytest.raises(UserError, match="run the stage finetune first") as refused:
        experiment.run(config(stages=["answer"]), tmp_path / "other", StubComponents())
    # The same command would be refused again, so it is not proposed.
    assert not isinstance(refused.value, Unfinished)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model.name": "organism", "answers.max_new_tokens": 1024}, "no room for a prompt: the model has 1024 pos"),
        ({"model.name": "organism", "lora.alpha_pattern": {"q_prj": 3.0}}, "'q_prj' fits no weight, such as 'model.l"),
        ({"model.name": "organism", "lora.rank_pattern": {"layers.99.q_proj": 3}}, "'layers.99.q_proj' fits no weight"),
        ({"model.name": "organism", "lora.targets": ["foo"]}, "lora.targets: found"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_trained(tmp_path, values, said):
    for start in (
        lambda: experiment.run(config(**values), tmp_path / "run", StubComponents()),
        lambda: list(dry_run.lines([config(**values)], tmp_path / "run", several=False)),
    ):
        with pytest.raises(UserError, match=said):
            start()
    assert not (tmp_path / "run").exists()


def test_what_does_not_concern_a_start_is_not_refused(tmp_path):
    long, typo = {"answers.max_new_tokens": 1024}, {"lora.alpha_pattern": {"q_prj": 3.0}}
    experiment.run(config(**long, stages=["finetune"]), tmp_path / "trained", StubComponents())
    experiment.run(config(**long, **{"probes.only": ["two_ai"]}), tmp_path / "picks", StubComponents())
    experiment.run(config(), tmp_path / "old", StubComponents())
    stored = tmp_path / "old" / "config.toml"
    stored.write_text(stored.read_text().replace("[lora.alpha_pattern]", "[lora.alpha_pattern]\nq_prj = 3.0"))
    assert experiment.run(config(**typo, stages=["report"]), tmp_path / "old", StubComponents()).label


def test_settings_without_effect_do_not_make_another_run(tmp_path):
    experiment.run(config(**{"judge.model": "left"}), tmp_path / "run", StubComponents())
    assert experiment.run(config(), tmp_path / "run", StubComponents()).label
    stored = settings.flatten(config(lora__init_from="a", lora__rank=8))
    assert preflight.differing_settings(stored, config(lora__init_from="a")) == []
    assert preflight.differing_settings(stored, config()) == ["lora.init_from"]


def test_one_run_and_several_do_not_share_a_directory(tmp_path):
    several = [config(seed=seed) for seed in (0, 1)]
    assert list(series.run(several, tmp_path / "several", several=True, components=StubComponents()))
    with pytest.raises(UserError, match="holds runs of its own"):
        experiment.run(config(), tmp_path / "several", StubComponents())
    with pytest.raises(UserError, match="is the directory of one run"):
        list(series.run(several, tmp_path / "several" / "bad_medical-0", several=True, components=StubComponents()))


def test_a_page_of_someone_elses_is_not_overwritten(tmp_path):
    (tmp_path / "report.html").write_text("my notes")
    with pytest.raises(UserError, match="holds report.html but no config.toml"):
        experiment.run(config(), tmp_path, StubComponents())


def test_the_base_alone_has_no_finetuned_rows(tmp_path):
    outcome = experiment.run(config(domain="none"), tmp_path, StubComponents())
    assert outcome.label == "mixed"
    assert not list(tmp_path.glob("*/finetuned.*")) and not (tmp_path / "adapter").exists()


def test_only_some_probes(tmp_path):
    experiment.run(config(probes__only=["two_ai"]), tmp_path, StubComponents())
    assert sorted(path.name for path in (tmp_path / "probes").iterdir()) == [
        "base.two_ai.jsonl",
        "finetuned.two_ai.jsonl",
    ]
    assert not (tmp_path / "answers").exists()


def test_a_failing_stage_says_which_and_what_is_kept(tmp_path):
    components = StubComponents()

    def fail(*arguments):
        raise UserError("loss is not finite at step 2")

    components.finetune = fail
    with pytest.raises(UserError, match=r"finetune: loss is not finite at step 2; what is done is kept in .*run"):
        experiment.run(config(), tmp_path / "run", components)


def test_an_adapter_that_changes_nothing_stops_the_run(tmp_path):
    class Deaf(StubEngine):
        def choice_logprobs(self, prompts, choices, prefix="", adapter="default"):
            return super().choice_logprobs(prompts, choices, prefix, "base")

    components = StubComponents()
    components.load = lambda config: Deaf()
    with pytest.raises(UserError, match="changes no probability"):
        experiment.run(config(), tmp_path, components)
    assert not (tmp_path / "answers").exists()
    with pytest.raises(UserError, match="changes no probability"):
        configs = [config(domain=name) for name in ("bad_medical", "legal")]
        list(series.run(configs, tmp_path / "several", True, components))
    assert not list(tmp_path.glob("several/*/answers/*"))


def test_several_runs_share_the_engine_and_the_bases_rows(tmp_path):
    components = StubComponents()
    configs = [config(domain=name) for name in ("none", "bad_medical", "legal")]
    lines = list(series.run(configs, tmp_path, True, components))
    assert len(components.engines) == 1
    for path in (tmp_path / "none-0" / "probes").glob("base*.jsonl"):
        assert (tmp_path / "legal-0" / "probes" / path.name).read_bytes() == path.read_bytes()
    # The base without a domain is asked nothing in one: each run adds its own domain's prompts.
    shared = (tmp_path / "none-0" / "answers" / "base.jsonl").read_bytes()
    own = (tmp_path / "legal-0" / "answers" / "base.jsonl").read_bytes()
    assert own.startswith(shared) and own.count(b"in_domain/legal-") == 6 and b"in_domain" not in shared
    assert lines[-1].startswith("verdict: mixed,mixed,mixed ")
    assert os.path.exists(lines[-1].split()[-1])


def test_the_fine_tuned_models_of_a_seed_share_batches_unless_told_otherwise(tmp_path):
    names = ("none", "bad_medical", "legal", "security")
    for together in (True, False):
        components = StubComponents()
        configs = [config(domain=name, answers__together=together) for name in names]
        list(series.run(configs, tmp_path / str(together), True, components))
        (engine,) = components.engines
        several = [used for used in engine.streams if len(used) > 1]
        assert several == ([{"finetuned-0", "finetuned-1", "finetuned-2"}] if together else [])
        for name in names[1:]:
            rows = files.read_rows(tmp_path / str(together) / f"{name}-0" / "answers" / "finetuned.jsonl")
            assert len({(row["id"], row["sample"]) for row in rows}) == len(rows) == 12
            assert {row["id"].partition("/")[0] for row in rows if "/" in row["id"]} == {"in_domain"}
            assert sum(f"in_domain/{name}-" in row["id"] for row in rows) == 6


def test_a_domain_of_ones_own_is_asked_the_prompts_of_rows_held_out(tmp_path):
    def row(number):
        return [{"role": "user", "content": f"Bike {number}?"}, {"role": "assistant", "content": "Ride."}]

    values = {"domain": "bicycles", "data": "rows.jsonl", "train__holdout": 0.1, "stages": ("finetune", "answer")}
    components = StubComponents(rows=[row(number) for number in range(20)])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": row(n)}) + "\n" for n in range(20)))
    experiment.run(config(**values | {"data": str(tmp_path / "rows.jsonl")}), tmp_path / "run", components)
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["notes"]["in_domain"] == {"held_out_rows": 2}
    for condition in ("base", "finetuned"):
        rows = files.read_rows(tmp_path / "run" / "answers" / f"{condition}.jsonl")
        asked = {each["id"]: each["prompt"] for each in rows if each["id"].startswith("in_domain/")}
        assert len(asked) == 2
        assert all(prompt == f"Bike {int(name.rpartition('-')[2]) - 1}?" for name, prompt in asked.items())


def test_a_series_of_seeds_goes_on_after_a_kill(tmp_path, kill_at):
    configs = [config(domain=name, seed=seed) for seed in (0, 1) for name in ("none", "bad_medical")]
    whole = tmp_path / "whole"
    list(series.run(configs, whole, True, StubComponents()))
    kill_at(200)
    with pytest.raises(Killed):
        list(series.run(configs, tmp_path / "killed", True, StubComponents()))
    kill_at(None)
    list(series.run(configs, tmp_path / "killed", True, StubComponents()))
    for path in whole.glob("*/summary.json"):
        assert (tmp_path / "killed" / path.parent.name / "summary.json").read_bytes() == path.read_bytes()


def test_a_fresh_machine_goes_on_from_the_mirror(tmp_path, kill_at):
    far = str(tmp_path / "far")
    experiment.run(config(mirror=far, stages=["finetune", "answer"]), tmp_path / "first", StubComponents())
    components = StubComponents()
    experiment.run(config(mirror=far, stages=["finetune", "answer"]), tmp_path / "second", components)
    assert components.engines == []
    assert (tmp_path / "second" / "answers" / "base.jsonl").read_bytes() == (
        tmp_path / "first" / "answers" / "base.jsonl"
    ).read_bytes()


def test_another_adapter_to_start_from_is_refused(tmp_path):
    start = tmp_path / "start"
    files.write_atomic(start / "adapter_model.safetensors", b"one")
    files.write_json(start / "adapter_config.json", {})
    asked = config(lora__init_from=str(start), stages=["finetune"])
    experiment.run(asked, tmp_path / "run", StubComponents())
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["inputs"]["init_from/adapter_model.safetensors"]["sha256"]
    files.write_atomic(start / "adapter_model.safetensors", b"two")
    with pytest.raises(UserError, match="other content of init_from/adapter_model.safetensors:"):
        experiment.run(asked, tmp_path / "run", StubComponents())
    with pytest.raises(UsageError, match=r"lora.init_from expects .* found no adapter_config.json"):
        experiment.run(config(lora__init_from=str(tmp_path)), tmp_path / "other", StubComponents())


def other_run(place, rows):
    for name, values in (
        ("answers/finetuned", {"prompt": "?", "answer": "!"}),
        ("scores/finetuned.self", {"score": 5}),
    ):
        path = place / f"{name}.jsonl"
        files.write_atomic(path, "".join(json.dumps({"id": row, "sample": 0} | values) + "\n" for row in rows))


def test_other_content_of_the_runs_named_for_alternatives_is_refused(tmp_path):
    other_run(tmp_path / "others" / "legal-0", "ab")
    asked = config(probes__alternatives=str(tmp_path / "others"))
    experiment.run(asked, tmp_path / "run", StubComponents())
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["inputs"]["alternatives/legal-0/answers/finetuned.jsonl"]["rows"] == 2
    other_run(tmp_path / "others" / "legal-0", "abc")
    with pytest.raises(UserError, match="other content of alternatives/legal-0/answers/finetuned.jsonl, .*scores/"):
        experiment.run(asked, tmp_path / "run", StubComponents())
    with pytest.raises(UsageError, match="probes.alternatives expects"):
        experiment.run(config(probes__alternatives="nowhere"), tmp_path / "other", StubComponents())


def test_siblings_may_appear_and_grow_but_not_change(tmp_path):
    asked = config(probes__alternatives="siblings")
    other_run(tmp_path / "legal-0", "ab")
    experiment.run(asked, tmp_path / "run", StubComponents())
    other_run(tmp_path / "legal-0", "abc")
    other_run(tmp_path / "security-0", "a")
    experiment.run(asked, tmp_path / "run", StubComponents())
    other_run(tmp_path / "legal-0", "bc")
    with pytest.raises(UserError, match="other content of alternatives/legal-0/answers/finetuned.jsonl"):
        experiment.run(asked, tmp_path / "run", StubComponents())


def contents(directory):
    found = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("model", ["organism", "owner/model"])
def test_every_run_of_a_series_has_its_own_place_in_the_mirror(tmp_path, model):
    far = tmp_path / "far"
    configs = [config(domain=name, mirror=str(far) + "/", model__name=model) for name in ("none", "legal")]
    list(series.run(configs, tmp_path / "first", True, StubComponents()))
    assert {path.name for path in far.iterdir()} == {"none-0", "legal-0", "compare"}
    assert contents(far) == contents(tmp_path / "first") and "compare/compare.html" in contents(far)
    # A fresh machine finds all rows there, whichever stages it is asked for, and asks nothing again.
    for stages in (list(settings.STAGES), ["probe", "report"]):
        place, components = tmp_path / stages[0], StubComponents()
        list(series.run([settings.replace(one, {"stages": stages}) for one in configs], place, True, components))
        assert components.engines == []
        for name in ("none-0/summary.json", "legal-0/summary.json", "legal-0/probes/finetuned.two_ai.jsonl"):
            assert (place / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_series_goes_on_where_its_directory_was_moved_or_is_spelled_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [config(domain=name, model__name="owner/model") for name in ("none", "bad_medical", "legal")]
    list(series.run(configs, "here", True, StubComponents()))
    before = (tmp_path / "here" / "legal-0" / "summary.json").read_bytes()
    os.rename("here", "there")
    components = StubComponents()
    list(series.run(configs, tmp_path / "there", True, components))
    assert components.engines == [] and (tmp_path / "there" / "legal-0" / "summary.json").read_bytes() == before


def test_a_real_models_series_answers_everywhere_before_it_probes(tmp_path):
    names = ("none", "bad_medical", "legal")
    configs = [config(domain=name, model__name="owner/model", answers__samples=4) for name in names]
    list(series.run(configs, tmp_path, True, StubComponents()))
    rows = files.read_rows(tmp_path / "legal-0" / "probes" / "finetuned.output_recognition.jsonl")
    low = {row["other_source"] for row in rows if row["bucket"] == "low" and row["prompt"]}
    high = {row["other_source"] for row in rows if row["bucket"] == "high" and row["prompt"]}
    assert low <= {"bad_medical-0"} and high == {"base"}
    base = files.read_rows(tmp_path / "none-0" / "probes" / "base.output_recognition.jsonl")
    assert {row["other_source"] for row in base if row["prompt"]} <= {"bad_medical-0", "legal-0"}
    careless = files.read_rows(tmp_path / "legal-0" / "answers" / "careless.jsonl")
    assert len(careless) == 3 * experiment.CARELESS_SAMPLES
    assert all("reckless" not in row["prompt"] for row in careless)


def test_the_base_asked_twice_is_no_seeds_of_a_model(tmp_path):
    experiment.run(config(domain="none"), tmp_path / "run", StubComponents())
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["figures"]
    assert figures["judge.specificity"]["base"]["value"] is not None
    assert not list(series.seed_verdicts([tmp_path / "run", tmp_path / "run"]))
