"""Hostile checkpoints and adapters: configs, safetensors headers, indexes, tokenizers and chat templates."""

import gc
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from hostile.trying import amounts, as_json, attempt, damaged, json_file, spoiled
from hypothesis import strategies as st
from tokenizers_made import write_byte_level

from em_jax.base.cli import Stopped
from em_jax.base.errors import UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import load_model, save_model
from em_jax.formats.hub import find_model
from em_jax.formats.model_config import config_fields, parse_config, read_config
from em_jax.formats.peft import CONFIG, TENSORS, load_adapter, save_adapter
from em_jax.formats.tensor_files import INDEX, SINGLE, open_checkpoint
from em_jax.lora.config import LoraConfig
from em_jax.model.parameters import random_model
from em_jax.runs import adapters
from em_jax.untrusted import tokenizer_guard
from em_jax.untrusted.chat_template import ChatTemplate

BASE = parse_config(tiny.SHAPE)
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F16", "shape": [], "data_offsets": [32, 34]},
}
LENGTHS = st.sampled_from([0, 1, 7, 8, 2**31, 2**63, 2**64 - 1, 100_000_000, 99_999_999])


@st.composite
def safetensors_file(draw, header: dict, data: bytes) -> bytes:
    """A safetensors file with things wrong in its header, its header's length, or its bytes."""
    text = as_json(draw(spoiled(header)))
    length = len(text) if draw(st.integers(0, 9)) else draw(LENGTHS)
    return draw(damaged(length.to_bytes(8, "little") + text + data))


@amounts(2_000)
def test_config_json(cases, tmp_path):
    raw = tiny.SHAPE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 16}
    path = tmp_path / "config.json"

    def act(data):
        path.write_bytes(data)
        config = read_config(tmp_path)
        assert parse_config(json.loads(json.dumps(config_fields(config)))) == config

    assert len(attempt("config.json", cases, json_file(raw), tmp_path, act)) == 2


@amounts(2_000)
def test_safetensors_headers(cases, tmp_path):
    def act(data):
        (tmp_path / SINGLE).write_bytes(data)
        tensors, _ = open_checkpoint(tmp_path)
        for tensor in tensors.values():
            if tensor.dtype in ("F32", "BF16", "F16") and tensor.shape:
                assert tensor.rows(0, tensor.shape[0]).shape == tensor.shape

    made = safetensors_file(HEADER, bytes(34))
    assert len(attempt("safetensors headers", cases, made, tmp_path, act)) == 2


@amounts(1_500)
def test_index_files(cases, tmp_path):
    """The file outside holds what the index asks for: it must not be opened."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for place in (folder / "one.safetensors", folder / "two.safetensors", tmp_path / "outside"):
        name = place.stem
        safetensors.numpy.save_file({name: np.zeros((2, 2), np.float32)}, place)
    index = {"metadata": {"total_size": 32}, "weight_map": {"one": "one.safetensors", "two": "two.safetensors"}}

    def act(data):
        (folder / INDEX).write_bytes(data)
        tensors, _ = open_checkpoint(folder)
        assert all(tensor.path.parent == folder for tensor in tensors.values())

    assert len(attempt("index files", cases, json_file(index), folder, act)) == 2


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "..", ".", "", "a/b", "a\\b", "\0", "file:x/y", 3, None]
)
def test_an_index_names_no_file_elsewhere(name, tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"one": name}}))
    with pytest.raises(UserError, match="inside the directory|no '|Is a directory|not a readable"):
        open_checkpoint(tmp_path)


@amounts(150)
def test_whole_checkpoints(cases, tmp_path):
    """A checkpoint whose shape, index or shards are wrong loads whole or not at all."""
    config = parse_config(tiny.SHAPE | {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8})
    save_model(random_model(config, jax.random.key(0), stacked=True), tmp_path)
    tiny.split(tmp_path, 4)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shard = sorted(name for name in whole if name.endswith(".safetensors"))[0]
    load_model(tmp_path)
    header = whole[shard][8 : 8 + int.from_bytes(whole[shard][:8], "little")]
    data = whole[shard][8 + len(header) :]
    made = st.one_of(
        json_file(json.loads(whole["config.json"])).map(lambda data: ("config.json", data)),
        json_file(json.loads(whole[INDEX])).map(lambda data: (INDEX, data)),
        safetensors_file(json.loads(header), data).map(lambda data: (shard, data)),
    )

    def act(case):
        name, content = case
        (tmp_path / name).write_bytes(content)
        try:
            load_model(tmp_path)
        finally:
            (tmp_path / name).write_bytes(whole[name])

    assert len(attempt("whole checkpoints", cases, made, tmp_path, act)) == 2


@amounts(1_000)
def test_tokenizer_files(cases, tmp_path):
    write_byte_level(tmp_path, generation={"eos_token_id": [258, 256]})
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    kinds = [json_file(json.loads(whole[name])).map(lambda data, name=name: (name, data)) for name in names]
    kinds.append(json_file({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}).map(_special))
    kinds.append(damaged((tmp_path / "tokenizer_config.json").read_bytes(), always=True).map(_template))
    chat = [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Hello, 12."}]
    ChatTokenizer.from_directory(tmp_path).example(chat)

    def act(case):
        name, content = case
        (tmp_path / name).write_bytes(content)
        try:
            tokenizer = ChatTokenizer.from_directory(tmp_path)
            ids = tokenizer.prompt(chat[:1])
            assert isinstance(tokenizer.decode(ids), str)
            tokenizer.example(chat)
        finally:
            if name in whole:
                (tmp_path / name).write_bytes(whole[name])
            else:
                (tmp_path / name).unlink()

    assert len(attempt("tokenizer files", cases, st.one_of(kinds), tmp_path, act)) == 2


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "words": "{{ lipsum(n=10**9) }}",
}
LARGE = {
    "a constant": "{{ 'x' * 10**11 }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a filter": "{{ 'x' | center(10**11) }}",
    "a long text": "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nesting": "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "a file": "{% include '/etc/passwd' %}",
    "python": "{{ cycler.__init__.__globals__ }}",
    "a name of python's": "{% set n = namespace(__class__=1) %}",
}


HARD = [pytest.param(template, id=name) for name, template in (LARGE | ENDLESS).items()]
HARD[-1] = pytest.param(*HARD[-1].values, id=HARD[-1].id, marks=pytest.mark.long)


@pytest.mark.parametrize("template", HARD)
def test_a_template_that_never_ends_or_fills_the_memory_is_refused(template, tmp_path):
    kept = ChatTemplate("{% if messages[0].content == 'Hi' %}" + template + "{% else %}well{% endif %}", {})
    said = []

    def act(text):
        try:
            return kept.render([{"role": "user", "content": text}], generation_prompt=True)
        except UserError as error:
            said.append(str(error))
            raise

    assert attempt("templates", 1, st.just("Hi"), tmp_path, act) == {"refused": 1}
    assert (template in ENDLESS.values()) == ("did not end within 3 s" in said[0])
    if template != LARGE["nesting"]:  # which is no template at all
        # What it did to one chat is no matter for the next.
        assert act("x") == "well"


def test_a_template_sees_no_key_and_its_process_ends_with_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "planted")
    kept = ChatTemplate("x", {})
    assert kept.render([{"role": "user", "content": "Hi"}], generation_prompt=True) == "x"
    process = kept._process
    assert b"planted" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    del kept
    gc.collect()
    assert process.returncode == 0


def _with_step(tmp_path, kind, step):
    write_byte_level(tmp_path, generation={"eos_token_id": 258})
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields[kind] = step
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    return ChatTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "pattern, text",
    [
        ("(a+)+$", "a" * 60 + "b"),
        ("a*a*a*[^a]", "a" * 5_000),
        pytest.param("a*[^a]", "a" * 100_000, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("kind", ["pre_tokenizer", pytest.param("normalizer", marks=pytest.mark.long)])
def test_a_pattern_of_a_tokenizer_that_never_ends_is_refused(pattern, text, kind, tmp_path):
    step = {"pattern": {"Regex": pattern}}
    step |= {"type": "Replace", "content": ""} if kind == "normalizer" else SPLIT

    def act(text):
        _with_step(tmp_path, kind, step).encode(text)

    assert attempt("tokenizers' patterns", 1, st.just(text), tmp_path, act) == {"refused": 1}


@pytest.mark.parametrize("text", [" " * 9_999 + "x", " \t\n" * 3_333, "'s" * 5_000, "x" * 10_000])
def test_a_known_pattern_ends_on_any_short_text(text, tmp_path):
    tokenizer = ChatTokenizer.from_directory(find_model("organism"))
    assert attempt("tokenizers' patterns", 1, st.just(text), tmp_path, tokenizer.encode) == {"taken": 1}


def test_a_short_text_has_a_time_limit_too(tmp_path, monkeypatch):
    """No match of this pattern needs ten million steps, at which the library gives up; a text has a hundred."""
    tokenizer = _with_step(tmp_path, "pre_tokenizer", SPLIT | {"pattern": {"Regex": "(?:(?:a|a){20}b|.)"}})
    monkeypatch.setattr(tokenizer_guard, "SECONDS", 0.3)
    with pytest.raises(UserError, match="did not end within"):
        tokenizer.encode("a" * 100)


def test_a_panic_of_the_tokenizers_library_is_one_line_and_a_request_to_stop_is_none_of_its():
    class PanicException(BaseException):
        pass

    def end(error):
        raise error

    with pytest.raises(UserError, match="gave up .retry-limit"):
        tokenizer_guard.with_time_limit(lambda: end(PanicException("retry-limit")), 1)
    for error in (Stopped, KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            tokenizer_guard.with_time_limit(lambda error=error: end(error()), 1)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
DOUBLE = {"type": "Replace", "pattern": {"String": "i"}, "content": "ii"}


@pytest.mark.parametrize(
    "kind, step",
    [
        ("normalizer", {"type": "Sequence", "normalizers": [DOUBLE] * 40}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 100}),
        ("normalizer", {"type": "Prepend", "prepend": "x" * 100_000}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}),
        ("decoder", {"type": "Sequence", "decoders": [DOUBLE] * 40}),
        ("decoder", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
    ],
)
def test_a_tokenizer_that_makes_a_text_many_times_longer_is_refused(kind, step, tmp_path):
    assert attempt("growth", 1, st.just(None), tmp_path, lambda _: _with_step(tmp_path, kind, step)) == {"refused": 1}


def test_half_a_surrogate_pair_is_refused_in_one_line(tmp_path):
    write_byte_level(tmp_path, generation={"eos_token_id": 258})
    tokenizer = ChatTokenizer.from_directory(tmp_path)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "half \ud800"}]
    for read in (lambda: tokenizer.example(chat), lambda: tokenizer.prompt(chat), lambda: tokenizer.encode("\udfff")):
        with pytest.raises(UserError, match="half of a surrogate pair"):
            read()


def _special(data):
    return "special_tokens_map.json", data


def _template(data):
    return "chat_template.jinja", data


@pytest.fixture
def adapter(tmp_path):
    """A small adapter, beside the base it was made for."""
    lora = LoraConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), rank_pattern={"layers.1.self_attn.q_proj": 3})
    save_adapter(tmp_path / "adapter", tiny.random_adapter(BASE, lora), lora, BASE, "some/base")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config_fields(BASE)))
    for folder in ("base", "adapter"):
        fields = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<|im_end|>"}]}
        (tmp_path / folder / "tokenizer.json").write_text(json.dumps(fields))
    load_adapter(tmp_path / "adapter", BASE)
    return tmp_path / "adapter"


def _read_adapter(folder):
    assert all(isinstance(line, str) for line in adapters.disagreements(folder, "x/y", folder.parent / "base"))
    read, lora = load_adapter(folder, BASE)
    assert read.factors and lora.rank > 0


@amounts(1_500)
def test_adapter_configs(cases, adapter):
    fields = json.loads((adapter / CONFIG).read_text()) | {"use_dora": False, "init_lora_weights": True}
    fields |= {"modules_to_save": None, "alpha_pattern": {r"layers\.0\..*": 3.0}}

    def act(data):
        (adapter / CONFIG).write_bytes(data)
        _read_adapter(adapter)

    assert len(attempt("adapter_config.json", cases, json_file(fields), adapter, act)) == 2


@pytest.mark.parametrize(
    "changed", [{"r": 999_999_999}, {"rank_pattern": {"q_proj": 10**8}}, {"r": 2.5}, {"r": 10**400}]
)
def test_a_rank_that_the_tensors_do_not_have_costs_nothing(changed, adapter):
    fields = json.loads((adapter / CONFIG).read_text()) | changed
    (adapter / CONFIG).write_text(json.dumps(fields))
    assert attempt("ranks", 1, st.just(None), adapter, lambda _: _read_adapter(adapter)) == {"refused": 1}


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", r"(\w+\.?)+!", "(.*)*(.*)*(.*)*x!", "(?:(?:.*)*)*!", "(" * 5_000 + ")" * 5_000, "(.|.)" * 40 + "!"]
    + [
        ".*" * 40 + "!",
        "a{99999999999}",
        r"[\w.]*" * 9 + "!",
        "x" * 100_000,
        "(?=(a+))*",
        r"(\w*)\1*\1*!",
        "|" * 999,
        "a?" * 300,
    ],
    ids=lambda pattern: pattern[:12],
)
def test_a_pattern_that_never_ends_is_refused_or_ends(pattern, adapter):
    fields = json.loads((adapter / CONFIG).read_text()) | {"rank_pattern": {pattern: 2}, "alpha_pattern": {pattern: 2}}
    (adapter / CONFIG).write_text(json.dumps(fields))
    attempt("patterns", 1, st.just(None), adapter, lambda _: _read_adapter(adapter))


@amounts(1_500)
def test_adapter_tensors(cases, adapter):
    whole = (adapter / TENSORS).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    made = safetensors_file(json.loads(whole[8 : 8 + length]), whole[8 + length :])

    def act(data):
        (adapter / TENSORS).write_bytes(data)
        _read_adapter(adapter)

    assert len(attempt("adapter tensors", cases, made, adapter, act)) == 2


@amounts(500)
def test_what_comes_with_an_adapter(cases, adapter):
    names = ("tokenizer.json", "tokenizer_config.json")
    fields = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 2, "content": "x"}], "chat_template": "x"}
    made = st.tuples(st.sampled_from(names), json_file(fields))

    def act(case):
        (adapter / case[0]).write_bytes(case[1])
        _read_adapter(adapter)

    attempt("an adapter's tokenizer", cases, made, adapter, act)


@pytest.mark.parametrize("layers", [10**6, 2**31 - 1, 10**30, 10**400])
def test_more_layers_than_tensors_is_told_at_once(layers, tmp_path):
    shutil.copytree(find_model("organism"), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    assert attempt("config.json", 1, st.just(tmp_path / "model"), tmp_path, load_model) == {"refused": 1}
