"""--adapter by directory or id: what is found, what is refused, and what a run says of a base that is another one."""

import json

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.config import Config
from em_jax.runs import adapters, experiment, provenance

pytestmark = pytest.mark.fast
PREFIX = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    fields = {"peft_type": "LORA", "base_model_name_or_path": "unsloth/Qwen2.5-7B-Instruct-bnb-4bit"}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    tensors = {PREFIX + "A.weight": np.zeros((4, 16), np.float32), PREFIX + "B.weight": np.zeros((16, 4), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def base(tmp_path, width=16, layers=2, template="chat", token="a"):
    folder = tmp_path / "Qwen2.5-7B-Instruct"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": width, "num_hidden_layers": layers}))
    fields = {"model": {"vocab": {token: 0}}, "added_tokens": [{"id": 1, "content": "<|im_end|>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_a_directory_or_an_id_is_found_and_only_the_adapters_files_are_asked_for(adapter, monkeypatch):
    assert adapters.find(str(adapter)) == adapter
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(adapter)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = "ModelOrganismsForEM/Qwen2.5-0.5B-Instruct_bad-medical-advice"
    assert adapters.find(name) == adapter
    assert asked[0][0] == name and all("*" not in pattern for pattern in asked[0][1])


def test_what_cannot_be_found_is_one_line(adapter, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="or a Hugging Face id"):
        adapters.find("./nothing/here")
    with pytest.raises(UserError, match="extreme_sports could not be fetched .*into a directory") as error:
        adapters.find("ModelOrganismsForEM/Qwen2.5-7B-Instruct_extreme_sports")
    assert "\n" not in str(error.value)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        adapters.find(str(adapter))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    with pytest.raises(UserError, match="no adapter_config.json and no adapter_model"):
        adapters.find("some/base")


def test_an_adapter_on_its_own_base_has_nothing_to_say(adapter, tmp_path):
    folder = base(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (adapter / name).write_bytes((folder / name).read_bytes())
    assert adapters.disagreements(adapter, str(folder), folder) == []
    assert adapters.disagreements(adapter, "Qwen/Qwen2.5-7B-Instruct", None) == []
    assert adapters.disagreements(adapter, "Qwen/Qwen2.5-7B-Instruct@main", None) == []
    fields = {"base_model_name_or_path": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"}
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "adapter_config.json").write_text(json.dumps(fields))
    assert adapters.disagreements(tmp_path / "llama", "meta-llama/Llama-3.1-8B-Instruct", None) == []


def test_another_base_is_named_by_name_tokenizer_and_template(adapter, tmp_path):
    folder = base(tmp_path)
    (adapter / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    (adapter / "chat_template.jinja").write_text("another chat")
    said = adapters.disagreements(adapter, "Qwen/Qwen2.5-14B-Instruct", folder)
    assert len(said) == 3 and "trained on unsloth/Qwen2.5-7B-Instruct-bnb-4bit" in said[0]
    assert "tokenizer" in said[1] and "template" in said[2]


@pytest.mark.parametrize("size", [{"hidden_size": 32}, {"num_hidden_layers": 1}])
def test_another_size_is_refused_before_the_base_is_loaded(adapter, tmp_path, size):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.SHAPE | {"hidden_size": 16} | size))
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    values = {"adapter": str(adapter), "domain": "none", "model.name": str(folder), "suite": "organism"}
    values |= {"answers.max_new_tokens": 9}
    components = StubComponents()
    with pytest.raises(UserError, match="does not fit this base"):
        experiment.run(settings.replace(Config(), values), tmp_path / "run", components)
    assert not components.engines


def test_a_run_says_and_records_that_the_base_is_another_one(adapter, tmp_path, capsys):
    fields = {"peft_type": "LORA", "base_model_name_or_path": "other/model"}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    values = {"adapter": str(adapter), "domain": "none", "model.name": str(base(tmp_path)), "suite": "organism"}
    values |= {"dtype": "float32", "probes.limit": 1, "answers.samples": 1, "stages": ["answer"]}
    components = StubComponents()
    components.silent = False
    experiment.run(settings.replace(Config(), values), tmp_path / "run", components)
    said = f"the adapter was trained on other/model, this run's base is {tmp_path}/Qwen2.5-7B-Instruct"
    assert said in capsys.readouterr().err
    assert provenance.notes(tmp_path / "run")["adapter_disagrees"] == [said]


def test_a_trainers_folder_names_the_newest_checkpoint(tmp_path):
    (tmp_path / "notes²").mkdir()
    (tmp_path / "notes²" / adapters.CONFIG).write_text("{}")
    for step in (50, 1000, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / adapters.CONFIG).write_text("{}")
    with pytest.raises(UsageError, match=f"4 of its folders have one: give {tmp_path}/checkpoint-1000"):
        adapters.find(str(tmp_path))
    (tmp_path / "checkpoint-50" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"1 of its folders has one: give {tmp_path}/checkpoint-50"):
        runtime.model_directory(str(tmp_path))
    with pytest.raises(UsageError, match="give the folder with --adapter"):
        runtime.model_directory(str(tmp_path / "checkpoint-200"))
    (tmp_path / "checkpoint-50" / adapters.CONFIG).unlink()
    with pytest.raises(UsageError, match="whole model: give it with --model"):
        adapters.find(str(tmp_path / "checkpoint-50"))
