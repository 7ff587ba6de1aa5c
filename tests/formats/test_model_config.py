"""What a config.json may say, and every refusal by name."""

import json
import math

import pytest
import tiny

from em_jax.base.errors import UserError
from em_jax.formats.model_config import config_fields, parse_config, read_config

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "qwen3"}, "model_type must be 'qwen2', found 'qwen3'"),
        ({"model_type": None}, "model_type"),
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


def test_every_problem_is_told_at_once():
    with pytest.raises(UserError) as refused:
        parse_config({"model_type": "llama", "use_sliding_window": True, "hidden_size": -1})
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


@pytest.mark.parametrize("head_dim", [None, 24])
def test_what_is_written_reads_back(head_dim, tmp_path):
    config = parse_config(tiny.SHAPE | {"head_dim": head_dim, "tie_word_embeddings": True, "rope_theta": 1e6})
    (tmp_path / "config.json").write_text(json.dumps(config_fields(config)))
    assert read_config(tmp_path) == config


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
