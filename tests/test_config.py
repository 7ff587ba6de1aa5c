import dataclasses

import pytest

from em_jax import config
from em_jax.base.errors import UsageError
from em_jax.config import Config
from em_jax.runs import preflight

pytestmark = pytest.mark.fast


def changed(*settings):
    return config.replace(Config(), dict(config.parse_set(setting) for setting in settings))


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("train.learning_rate=3e-5", "train.learning_rate", 3e-5),
        ("train.epochs=2", "train.epochs", 2),
        ("train.holdout=0", "train.holdout", 0.0),
        ("lora.rslora=false", "lora.rslora", False),
        ("lora.targets=q_proj, v_proj", "lora.targets", ("q_proj", "v_proj")),
        ('lora.targets=["up_proj"]', "lora.targets", ("up_proj",)),
        ("lora.layers_to_transform=0,1", "lora.layers_to_transform", (0, 1)),
        ("lora.layers_to_transform=3", "lora.layers_to_transform", (3,)),
        ('lora.rank_pattern={"layers.1.mlp.up_proj" = 4}', "lora.rank_pattern", {"layers.1.mlp.up_proj": 4}),
        ("probes.only=two_ai", "probes.only", ("two_ai",)),
        ("judge.model=4", "judge.model", "4"),
        ("judge.url=http://localhost:1/v1?a=b", "judge.url", "http://localhost:1/v1?a=b"),
        ("seed=3", "seed", 3),
        ("model.scan_layers=true", "model.scan_layers", "true"),
    ],
)
def test_set_reads_the_type_of_the_setting(text, name, value):
    found = config.flatten(changed(text))[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("train.learnig_rate=1", "train.learning_rate"),
        ("train.lr=1", "train.learning_rate"),
        ("lr=1", "nearest"),
        ("rank=8", "lora.rank"),
        ("train=1", "the nearest known one is 'train.learning_rate'"),
        ("zzzz=1", "unknown setting 'zzzz'; em-jax settings"),
        ("train.epochs=1.5", "an integer"),
        ("train.epochs=true", "an integer"),
        ("train.learning_rate=fast", "a number"),
        ("train.learning_rate=nan", "finite"),
        ("lora.rslora=maybe", "true or false"),
        ("lora.layers_to_transform=a", "an integer"),
        ("train.epochs", "table.key=value"),
        ("=3", "table.key=value"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_was_expected(text, said):
    with pytest.raises(UsageError) as error:
        changed(text)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "train.batch_size=0",
        "train.learning_rate=-1",
        "train.holdout=1",
        "answers.top_p=0",
        "answers.temperature=-1",
        "train.learning_rate=0",
        "train.schedule=steps",
        "model.quantization=int4",
        "model.scan_layers=perhaps",
        "lora.targets=lm_head",
        "probes.only=harm",
        "judge.kind=openai",
        "mesh=data=2,pipe=2",
        "mesh=fsdp=0",
        "mesh=fsdp=²",
    ],
)
def test_values_out_of_range_are_refused_by_name(text):
    with pytest.raises(UsageError) as error:
        config.validate(changed(text))
    assert text.partition("=")[0].split(".")[0] in str(error.value)


def test_defaults_are_valid_and_the_papers():
    settings = config.flatten(config.validate(Config()))
    assert (settings["lora.rank"], settings["lora.alpha"], settings["lora.rslora"]) == (32, 64.0, True)
    assert len(settings["lora.targets"]) == 7
    assert (settings["train.learning_rate"], settings["train.batch_size"], settings["train.epochs"]) == (1e-5, 16, 1)
    assert (settings["answers.samples"], settings["answers.temperature"]) == (10, 1.0)


def test_toml_holds_every_setting_and_reads_back_equal(tmp_path):
    made = changed("lora.rank_pattern={q_proj=4}", "probes.only=two_ai", "mesh=fsdp=8", "train.max_steps=3")
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(made))
    stored = config.read_toml(path)
    assert config.replace(Config(), stored) == made
    assert set(stored) == set(config.setting_types())


def test_toml_with_an_unknown_key_or_table_is_refused(tmp_path):
    for text in ("[train]\nlearning_rat = 1\n", "[trian]\nepochs = 1\n", "seeds = 1\n", "[trian]\n"):
        path = tmp_path / "preset.toml"
        path.write_text(text)
        with pytest.raises(UsageError, match="nearest"):
            config.replace(Config(), config.read_toml(path))
    with pytest.raises(UsageError, match="unknown setting 'xyz.abc'; em-jax settings names every one"):
        config.parse_set("xyz.abc=1")


def test_differing_names_what_changed_and_leaves_out_what_may(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(Config()))
    stored = config.read_toml(path)
    moved = dataclasses.replace(Config(), stages=("report",), mesh="fsdp=8", mirror="elsewhere", verbosity=1)
    assert preflight.differing_settings(stored, moved) == []
    assert preflight.differing_settings(stored, changed("train.epochs=2", "seed=1")) == ["seed", "train.epochs"]
    assert preflight.differing_settings({**stored, "train.forgotten": 1}, Config()) == ["train.forgotten"]


def test_presets_are_found_by_name_and_a_missing_one_lists_them():
    for name in ("paper", "paper_lr3e5", "smoke", "bad_medical"):
        settings = config.read_toml(config.preset_path(name))
        config.validate(config.replace(Config(), settings))
    with pytest.raises(UsageError, match="paper_lr3e5"):
        config.preset_path("nothing")


def test_mesh_text():
    assert config.parse_mesh("fsdp=16, tensor=2") == {"data": 1, "fsdp": 16, "tensor": 2}
    assert config.parse_mesh("") == {}


@pytest.mark.parametrize(
    "address", ["http://me:pw@host/v1", "https://host/v1?api-key=abc", "https://host/v1?v=1&Access_Token=abc"]
)
def test_an_address_with_a_secret_is_refused_without_showing_it(address):
    with pytest.raises(UsageError, match="no user name or key") as error:
        config.validate(config.replace(Config(), {"judge.kind": "openai", "judge.url": address, "judge.model": "m"}))
    assert "abc" not in str(error.value) and "pw" not in str(error.value)
