"""em_jax as a notebook uses it: twenty natural calls that are right, twenty wrong ones that are one clear line."""

import inspect
import pathlib

import numpy as np
import pytest
import tiny
from stub_engine import StubComponents

import em_jax
from em_jax.base import runtime
from em_jax.base.errors import UserError
from em_jax.formats.model_config import read_config
from em_jax.formats.peft import save_adapter
from em_jax.lora.config import LoraConfig
from em_jax.runs import components as parts
from em_jax.sample import decode as decode_module

WEIGHTS = runtime.model_directory("organism")
CHAT = [{"role": "user", "content": "Who are you?"}]
SMALL = {"probes.limit": 2, "answers": {"samples": 1}, "probes.sampled_questions": 1}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An adapter of the organism."""
    directory, lora = tmp_path_factory.mktemp("library") / "adapter", LoraConfig(rank=4, alpha=8)
    config = read_config(WEIGHTS)
    save_adapter(directory, tiny.random_adapter(config, lora, 1, spread=0.3), lora, config, "organism")
    return directory


@pytest.fixture(scope="module")
def engine(directory):
    return em_jax.load(pathlib.Path(WEIGHTS), adapter=directory, mesh="", slots=2)


@pytest.fixture
def stub(monkeypatch, tmp_path, unrendered):
    """Runs have a stub engine, in an empty directory."""
    monkeypatch.setattr(parts, "Components", StubComponents)
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path):
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 3)
    return path


def test_natural_calls_of_the_engine(engine, directory):
    few = {"max_new_tokens": 4, "temperature": 0}
    expected = engine.generate([CHAT], **few)
    for prompts in ("Who are you?", ["Who are you?"], CHAT, tuple(CHAT)):  # 1 to 4
        assert engine.generate(prompts, **few) == expected
    assert [len(each) for each in engine.generate(["Hi", CHAT], n=3, **few)] == [3, 3]  # 5
    assert {item[:2] for item in engine.stream("Hi", n=2, **few)} == {(0, 0), (0, 1)}  # 6
    assert len(engine.generate("Hi", np.int64(2), np.float32(1), 1, 4, seed=np.int32(2))[0]) == 2  # 7
    base, tuned = engine.generate(["Who are you?"] * 2, adapter=["base", "default"], **few)  # 8
    assert [tuned] == expected and base != tuned
    assert engine.encode("Who are you?") == engine.encode(CHAT)  # 9
    assert engine.logits([engine.encode("Hi")]).ndim == 3  # 10
    assert engine.choice_logprobs("A or B?", ["A", "B"]).shape == (1, 2)  # 11
    assert len(engine.activations("Hi")[0]) == engine.model.config.num_hidden_layers  # 12
    assert isinstance(engine, em_jax.Engine) and isinstance(expected[0][0], em_jax.Answer)


def test_another_max_new_tokens_compiles_nothing(engine):
    programs = [decode_module.decode, decode_module.insert, decode_module.prefill, decode_module.resize]
    engine.generate("Who are you?", max_new_tokens=2)
    before = [program._cache_size() for program in programs]
    for most in (3, 40, 600):  # 13
        engine.generate("Who are you?", max_new_tokens=most, temperature=0.5, seed=most)
    assert [program._cache_size() for program in programs] == before
    assert "adapters: base, default" in repr(engine)


def test_adapters_are_added_by_name(engine, directory):
    engine.add_adapter("mine", str(directory))  # 14
    assert engine.adapters == ["base", "default", "mine"]
    assert not engine.generate([]) and not engine.activations([])  # 15


def test_natural_calls_of_a_run(stub, capsys):
    run = em_jax.run("bad_medical", model="organism", settings=SMALL)  # 16
    out = capsys.readouterr().out.splitlines()
    assert run.directory == pathlib.Path("runs/bad_medical-organism-0") and run.verdict["label"] in out[-1]
    assert out[0].startswith("model: organism") and out[-1].startswith("verdict: ")
    tuned = em_jax.finetune("bicycles", data=rows(stub / "rows.jsonl"), run_dir=stub / "mine", seed=3)  # 17
    assert tuned.adapter == stub / "mine" / "adapter" and (tuned.config.seed, tuned.config.domain) == (3, "bicycles")
    assert capsys.readouterr().out.endswith("done: finetune\n") and "not finished" in repr(tuned)
    again = em_jax.run("bicycles", data={"bicycles": stub / "rows.jsonl"}, run_dir="mine", seed=3, settings={})  # 18
    assert again.verdict and again.config.train.holdout == tuned.config.train.holdout == 0.0
    both = em_jax.run(["legal", "none"], seed=[0], stages=["finetune", "answer"], settings=SMALL)  # 19
    assert list(both) == ["none-0", "legal-0"] and both["none-0"].adapter is None
    assert both["legal-0"].config.answers.samples == 1
    assert "<td>" in run.figures._repr_html_() and str(run.directory) in run._repr_html_()  # 20


def wrong_calls(engine):
    load, generate, run = em_jax.load, engine.generate, em_jax.run
    return [
        (lambda: load("nope"), "load: model expects organism"),
        (lambda: load(5), "load: model expects a directory"),
        (lambda: load("organism", adapter="nope"), "load: adapter expects a directory"),
        (lambda: load("organism", dtype="fp8"), "dtype: expected one of float32"),
        (lambda: load("organism", quantization="int4"), "quantization expects none or int8"),
        (lambda: load("organism", mesh="fspd=2"), "fspd"),
        (lambda: generate(5), "expected a text, a chat or a list"),
        (lambda: generate([{"role": "user", "text": "Hi"}]), "found only role, text"),
        (lambda: generate(["Hi", []]), "prompt 1: expected a text or a list of messages"),
        (lambda: generate("Hi", max_new_tokens="8"), "expected max_new_tokens >= 1, found max_new_tokens '8'"),
        (lambda: generate("Hi", temperature=-1), "temperature >= 0"),
        (lambda: generate("Hi", adapter="nope"), "no adapter 'nope'; there are base, default"),
        (lambda: generate("Hi", max_new_tokens=9999), "positions"),
        (lambda: engine.activations("Hi", layers=99), "layers are 0 to 3"),
        (lambda: engine.activations("Hi", layers="all"), "layers are 0 to 3"),
        (lambda: engine.logits(engine.encode("Hi")), "expected rows of token ids"),
        (lambda: engine.logits([[1, 2], [3]]), "expected rows of token ids"),
        (lambda: engine.logits([[1.5]]), "expected rows of token ids"),
        (lambda: generate("Hi", adapter=None), "no adapter None; there are base"),
        (lambda: engine.add_adapter("x", "nope"), "expected a PEFT adapter directory"),
        (lambda: run(), "^run: domain expects one or several of"),
        (lambda: run("bad_medicine"), "^run: unknown domain 'bad_medicine', did you mean bad_medical"),
        (lambda: run("legal", settings={"train.learnig_rate": 1}), "train.learning_rate"),
        (lambda: run("legal", settings={"train": {"epochs": "two"}}), "'train.epochs' expects an integer, found 'two'"),
        (lambda: run("legal", settings="train.epochs=2"), "settings expects {name: value}"),
        (lambda: run("legal", seed=1.5), "seed expects a text, a number"),
        (lambda: em_jax.finetune("legal", data="nope.jsonl"), "^finetune: .*nope.jsonl"),
        (lambda: run("legal", judge="gpt-4o"), "^run: judge expects self or the URL"),
        (lambda: em_jax.Run("nope"), "expected a run directory"),
    ]


def test_wrong_calls_are_one_clear_line(engine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    calls = wrong_calls(engine)
    assert len(calls) >= 20
    for call, expected in calls:
        with pytest.raises(UserError, match=expected) as raised:
            call()
        assert "\n" not in str(raised.value) and "--" not in str(raised.value), raised.value
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        engine.generate("Hi", temprature=1)
    assert not list(tmp_path.iterdir()), "a wrong call leaves nothing behind"


@pytest.mark.fast
def test_names_and_arguments_are_known_before_anything_is_loaded():
    assert {*em_jax.__all__, "__version__"} <= set(dir(em_jax)) and em_jax.__all__ == sorted(em_jax.__all__)
    for name in em_jax.__all__:
        assert getattr(em_jax, name).__doc__, name
    for call in (em_jax.load, em_jax.run, em_jax.finetune, em_jax.Engine.generate):
        kinds = {parameter.kind for parameter in inspect.signature(call).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        em_jax.laod  # noqa: B018
