"""What a config.json may say, and every refusal by name."""

import json
import math

import pytest
import tiny

from em_jax.base.errors import UsageError, UserError
from em_jax.formats.model_config import config_fields, parse_config, read_config
from em_jax.formats.presets import preset_config
from em_jax.model.config import RopeScaling

pytestmark = pytest.mark.fast

LLAMA3_ROPE = {"rope_scaling": tiny.LLAMA["rope_scaling"]}


def rope(**changes):
    """A Llama's fields with other numbers of its RoPE scaling; None drops one."""
    numbers = tiny.LLAMA["rope_scaling"] | changes
    return {
        "model_type": "llama",
        "rope_scaling": {name: value for name, value in numbers.items() if value is not None},
    }


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "qwen3_moe"}, "model_type must be one of 'qwen2', 'qwen3', 'llama', found 'qwen3_moe'"),
        ({"model_type": "gemma3_text"}, "found 'gemma3_text'"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias is True"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
        (LLAMA3_ROPE | {"model_type": "llama", "rope_parameters": {"rope_type": "default"}}, "differ: give one"),
        (rope(factor=None), "RoPE scaling of type 'llama3': factor must be a positive number, found nothing"),
        (rope(low_freq_factor="1"), "low_freq_factor must be a positive number, found '1'"),
        (rope(high_freq_factor=0), "high_freq_factor must be a positive number, found 0"),
        (rope(low_freq_factor=4.0), "low_freq_factor must be less than high_freq_factor"),
        (rope(original_max_position_embeddings=8192.5), "original_max_position_embeddings must be a positive integer"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
        ({"use_sliding_window": True, "max_window_layers": "2"}, "use_sliding_window"),
        ({"use_sliding_window": "yes"}, "use_sliding_window must be true or false, found 'yes'"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types must be 'full_attention' for each of 2",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types must be 'full_attention' for each of 2 layers"),
        ({"layer_types": "full_attention"}, "layer_types must be"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "nested by layer type"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling with 'factor' is not supported"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [8]}}, "rope_scaling with 'mrope_section'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', found 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters of type 'linear'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": 3}, "rope_scaling must be an object, found 3"),
        ({"rope_scaling": "default"}, "rope_scaling must be an object, found 'default'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, found 'many'"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer, found 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, found True"),
        ({"hidden_size": 65}, "hidden_size is not a multiple of num_attention_heads"),
        ({"head_dim": 15}, "head_dim must be even, found 15"),
        ({"num_key_value_heads": 3}, "num_attention_heads is not a multiple of num_key_value_heads"),
        ({"rope_theta": -1}, "rope_theta must be a positive number, found -1"),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": "big"}}, "rope_theta must be a positive number"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, found 'no'"),
    ],
)
def test_refused_by_name(changes, named):
    with pytest.raises(UserError, match="config.json") as refused:
        parse_config(tiny.SHAPE | changes)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True},
        {"use_sliding_window": True, "max_window_layers": 2},
        {"use_sliding_window": True, "max_window_layers": 28, "sliding_window": 64},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None},
        {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "factor": None}},
    ],
)
def test_windows_that_no_layer_has_are_plain_attention(changes):
    transformers = pytest.importorskip("transformers")
    assert parse_config(tiny.SHAPE | changes) == parse_config(tiny.SHAPE)
    theirs = transformers.Qwen2Config(**(tiny.SHAPE | changes))
    assert set(theirs.layer_types) == {"full_attention"}


def test_a_folder_is_named_with_its_problems(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.SHAPE | {"model_type": "gemma3_text"}))
    with pytest.raises(UserError) as refused:
        read_config(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'config.json'}: model_type must be one of")


def test_a_folder_with_gguf_alone_is_told_that_it_is_not_read(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="no config.json in .*GGUF files are not read: give the repository"):
        read_config(tmp_path)


def test_every_problem_is_told_at_once():
    with pytest.raises(UserError) as refused:
        parse_config({"model_type": "mistral", "use_sliding_window": True, "hidden_size": -1})
    for name in ("model_type", "use_sliding_window", "hidden_size", "vocab_size", "num_attention_heads"):
        assert name in str(refused.value)


@pytest.mark.parametrize("content", [None, "{", "[1]", "null", "[" * 100_000])
def test_a_file_that_is_no_config(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as refused:
        read_config(tmp_path)
    assert "config.json" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes, theta",
    [
        ({}, 10000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": None}, 10000.0),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, 7.0),
        ({"rope_theta": None, "rope_scaling": {"rope_theta": 7.0, "type": "default"}}, 7.0),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 7.0}}, 7.0),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, 5e5),
    ],
)
def test_theta_is_read_wherever_it_stands(changes, theta):
    raw = {name: value for name, value in (tiny.SHAPE | changes).items() if value is not None}
    assert parse_config(raw).rope_theta == theta


def test_nulls_mean_the_default():
    config = parse_config(tiny.SHAPE | {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None})
    assert (config.head_dim, config.num_key_value_heads) == (16, 4)


@pytest.mark.parametrize("family", [{}, *tiny.FAMILIES.values(), tiny.LLAMA | {"rope_scaling": None}])
@pytest.mark.parametrize("head_dim", [None, 24])
def test_what_is_written_reads_back(head_dim, family, tmp_path):
    changes = {"head_dim": head_dim, "tie_word_embeddings": True, "rope_theta": 1e6}
    config = parse_config(tiny.SHAPE | family | changes)
    (tmp_path / "config.json").write_text(json.dumps(config_fields(config)))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("family", ["qwen2", *tiny.FAMILIES])
def test_transformers_reads_what_is_written(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    changes = tiny.FAMILIES.get(family, {})
    config = parse_config(tiny.SHAPE | changes)
    (tmp_path / "config.json").write_text(json.dumps(config_fields(config)))
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read.architectures == (tiny.SHAPE | changes)["architectures"] and read.head_dim == config.head_dim
    numbers = {name: read.rope_parameters.get(name) for name in tiny.LLAMA["rope_scaling"]}
    assert numbers == changes.get("rope_scaling", dict.fromkeys(numbers) | {"rope_type": "default"})


def test_facts_follow_the_model_type():
    def facts(**changes):
        config = parse_config(tiny.SHAPE | changes)
        return config.qkv_bias, config.qk_norm, config.head_dim, config.rope_scaling

    assert facts() == (True, False, 16, None)
    # transformers takes 128 where a Qwen3 does not say, and biases whatever a Qwen2 says.
    assert facts(model_type="qwen3") == (False, True, 128, None)
    assert facts(attention_bias=False) == facts(qkv_bias=False, qk_norm=True) == (True, False, 16, None)
    assert facts(**tiny.LLAMA) == (False, False, 16, RopeScaling(8.0, 1.0, 4.0, 32))


# The parameters of the published sizes, a tied head counted once: Qwen3 0.6B and 1.7B store it beside the table.
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_preset_has_its_parameters(name):
    from em_jax.model.parameters import weights_of

    owner, copied = ("Qwen/", "Qwen/") if "qwen" in name else ("meta-llama/", "unsloth/Meta-")
    config = preset_config(name)
    assert preset_config(owner + name.title() + "-Instruct") == preset_config(copied + name.title()) == config
    sizes = (math.prod(weight.layout.shape(config.dims)) for weight in weights_of(config, stacked=True))
    assert sum(sizes) == PARAMETERS[name]
    # What it writes is read back, so that a run on random weights of it is one of that family.
    assert parse_config(config_fields(config)) == config


def test_a_model_that_is_not_known_lists_those_that_are():
    for name in ("qwen3-30b-a3b", "Qwen/Qwen3-235B-A22B", "llama-3.1-405b", "Qwen2.5-Coder-7B", "8b"):
        with pytest.raises(UsageError, match="expected one of qwen2.5-0.5b, .*llama-3.3-70b, found"):
            preset_config(name)


# Hidden, MLP, layers, heads, key/value heads, vocabulary, tied: the published Qwen2.5 sizes.
SIZES = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True, 494_032_768),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True, 1_543_714_304),
    "3B": (2048, 11008, 36, 16, 2, 151936, True, 3_085_938_688),
    "7B": (3584, 18944, 28, 28, 4, 152064, False, 7_615_616_512),
    "14B": (5120, 13824, 48, 40, 8, 152064, False, 14_770_033_664),
    "32B": (5120, 27648, 64, 40, 8, 152064, False, 32_763_876_352),
    "72B": (8192, 29568, 80, 64, 8, 152064, False, 72_706_203_648),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_published_size_has_its_parameters(name):
    from em_jax.model.parameters import weights_of

    hidden, mlp, layers, heads, groups, vocabulary, tied, parameters = SIZES[name]
    raw = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    config = parse_config(tiny.SHAPE | raw)
    assert sum(math.prod(weight.layout.shape(config.dims)) for weight in weights_of(config, stacked=True)) == parameters
