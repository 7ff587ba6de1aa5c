"""Logits against transformers, within 1e-4 of the logit range, float32.

EM_JAX_REAL_MODEL names a directory with a real checkpoint for the tests that want one (any of 0.1 to
1 billion parameters is quick enough); without it they are skipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_jax.formats.checkpoint import load_model
from em_jax.model.attention import PADDING, SHARED
from em_jax.model.sharding import Sharding, make_mesh

BAR = 1e-4
SHAPES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "head_dim": {"head_dim": 10, "hidden_size": 48, "rope_theta": 1e6},
    "all_kv_heads": {"num_key_value_heads": 4, "num_hidden_layers": 1},
    "seven_heads": {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "num_hidden_layers": 1},
    "theta_in_rope_parameters": {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "theta_in_both": {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "theta_nowhere": {"rope_theta": None, "rms_norm_eps": 1e-2},
    **tiny.FAMILIES,
    "llama_plain_rope": tiny.LLAMA | {"rope_scaling": None, "head_dim": 10},
    "llama3_rope_of_qwen3": tiny.QWEN3 | {"rope_parameters": {**tiny.LLAMA["rope_scaling"], "rope_theta": 5e5}},
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_every_kind_of_config(name, tmp_path):
    directory = tiny.write_checkpoint(tmp_path, **SHAPES[name])
    rows = tiny.tokens(2, 24)
    theirs = tiny.reference_logits(tiny.reference_model(directory), rows)
    for stacked in (False, True) if name in ("tied", "untied", "qwen3") else (False,):
        model = load_model(directory, stacked=stacked)
        deviation = tiny.worst(tiny.logits(model, rows), theirs)
        print(f"{name}: logits deviate by {deviation:.1e} of their range")
        assert deviation < BAR / 10, (name, stacked)


@pytest.mark.parametrize("name", ["qwen3_tied", tiny.long("llama")])
def test_int8_logits_over_eight_devices(name, tmp_path):
    """The reference's matrices are rounded as `quantize` states: 255 steps, the largest of each output at +-127."""
    torch, _ = tiny.references()
    directory = tiny.write_checkpoint(tmp_path, **SHAPES[name])
    sharding = Sharding(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    model = load_model(directory, stacked=True, sharding=sharding, quantization="int8")
    reference = tiny.reference_model(directory)
    with torch.no_grad():
        for layer in reference.model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                scale = layer.weight.abs().amax(dim=1, keepdim=True) / 127
                layer.weight.copy_((layer.weight / scale).round() * scale)
    rows = tiny.tokens(4, 24)
    deviation = tiny.worst(tiny.logits(model, rows, sharding=sharding), tiny.reference_logits(reference, rows))
    print(f"{name}: int8 logits deviate by {deviation:.1e} of their range")
    assert deviation < BAR


@pytest.mark.parametrize("name", ["untied", tiny.long("llama")])
def test_logits_far_into_a_long_row(name, tmp_path):
    directory = tiny.write_checkpoint(
        tmp_path, **SHAPES[name] | {"rope_theta": 1e6, "max_position_embeddings": 4096, "num_hidden_layers": 2}
    )
    rows = tiny.tokens(1, 2048)
    theirs = tiny.reference_logits(tiny.reference_model(directory), rows)
    assert tiny.worst(tiny.logits(load_model(directory), rows), theirs) < BAR


@st.composite
def shapes(draw):
    """Any valid small model."""
    family = draw(st.sampled_from(["qwen2", "qwen3", "llama"]))
    scaling = family == "llama" and draw(st.booleans())
    low = draw(st.floats(0.5, 2.0))
    rope = {"rope_type": "default"}
    if scaling:
        rope = {"rope_type": "llama3", "factor": draw(st.floats(1.5, 32.0)), "low_freq_factor": low}
        rope |= {"high_freq_factor": low + draw(st.floats(0.5, 8.0))}
        rope["original_max_position_embeddings"] = draw(st.sampled_from([4, 8, 64]))
    groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 12))
    explicit = family == "qwen3" or draw(st.booleans())
    width = draw(st.integers(4, 40)) if explicit else groups * share * head_dim
    if family == "llama":  # transformers wants a multiple of the heads, though the heads have a size of their own
        width = -(-width // (groups * share)) * groups * share
    theta = draw(st.floats(100.0, 2e6))
    inside = draw(st.booleans())
    return {
        "model_type": family,
        "num_key_value_heads": groups,
        "num_attention_heads": groups * share,
        "hidden_size": width,
        "head_dim": head_dim if explicit else None,
        "intermediate_size": draw(st.integers(1, 60)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "vocab_size": draw(st.integers(8, 80)),
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "rope_theta": None if inside else theta,
        "rope_parameters": rope | ({"rope_theta": theta} if inside else {}) if inside or scaling else None,
    }


def check_any(shape, seed, factory):
    directory = tiny.write_checkpoint(factory.mktemp("any"), seed, **shape)
    rows = tiny.tokens(2, 9, shape["vocab_size"], seed)
    theirs = tiny.reference_logits(tiny.reference_model(directory), rows)
    assert tiny.worst(tiny.logits(load_model(directory, stacked=bool(seed % 2)), rows), theirs) < BAR


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(shape=shapes(), seed=st.integers(0, 99))
def test_logits_of_some_configs(shape, seed, tmp_path_factory):
    check_any(shape, seed, tmp_path_factory)


@pytest.mark.long
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes(), seed=st.integers(0, 99))
def test_logits_of_any_config(shape, seed, tmp_path_factory):
    check_any(shape, seed, tmp_path_factory)


@pytest.mark.parametrize("stacked", [False, True])
def test_packed_rows_read_like_separate_ones(stacked, tmp_path):
    directory = tiny.write_checkpoint(tmp_path)
    ours, theirs = tiny.load_both(directory, stacked=stacked)
    sizes = (7, 1, 12, 5)
    parts = [tiny.tokens(1, size, seed=size) for size in sizes]
    packed = np.concatenate([*parts, np.zeros((1, 6), np.int32)], axis=1)
    segments = np.repeat([1, 2, 3, 4, PADDING], [*sizes, 6])[None]
    positions = np.concatenate([np.arange(size) for size in (*sizes, 6)])[None]
    found = tiny.logits(ours, packed, jnp.asarray(positions), jnp.asarray(segments))
    assert np.isfinite(found).all()
    start = 0
    for part in parts:
        size = part.shape[1]
        assert tiny.worst(found[:, start : start + size], tiny.reference_logits(theirs, part)) < BAR / 10
        start += size


def test_a_shared_beginning_is_seen_by_every_continuation(tmp_path):
    ours, theirs = tiny.load_both(tiny.write_checkpoint(tmp_path))
    prompt, ends = tiny.tokens(1, 9), [tiny.tokens(1, size, seed=size) for size in (4, 3)]
    packed = np.concatenate([prompt, *ends], axis=1)
    segments = np.repeat([SHARED, 1, 2], [9, 4, 3])[None]
    positions = np.concatenate([np.arange(9), 9 + np.arange(4), 9 + np.arange(3)])[None]
    found = tiny.logits(ours, packed, jnp.asarray(positions), jnp.asarray(segments))
    for end, span in zip(ends, (slice(9, 13), slice(13, 16)), strict=True):
        expected = tiny.reference_logits(theirs, np.concatenate([prompt, end], axis=1))[:, 9:]
        assert tiny.worst(found[:, span], expected) < BAR / 10


@pytest.mark.parametrize("stacked", [False, True])
def test_residuals_are_the_reference_hidden_states(stacked, tmp_path):
    torch, _ = tiny.references()
    ours, theirs = tiny.load_both(tiny.write_checkpoint(tmp_path), stacked=stacked)
    rows = tiny.tokens(2, 8)
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    found = np.asarray(
        jax.jit(lambda model: model(jnp.asarray(rows), positions, return_residuals=(0, 1)))(ours).residuals
    )
    with torch.no_grad():
        hidden = theirs(torch.tensor(rows, dtype=torch.long), output_hidden_states=True).hidden_states
    # The reference gives the last layer's only after the norm.
    assert tiny.worst(found[0], hidden[1].numpy()) < BAR / 10


def test_logits_of_a_real_checkpoint():
    directory = tiny.from_environment("EM_JAX_REAL_MODEL", "a real checkpoint to compare logits on")
    ours, theirs = tiny.load_both(directory)
    rows = tiny.tokens(2, 64, ours.config.vocab_size)
    deviation = tiny.worst(tiny.logits(ours, rows), tiny.reference_logits(theirs, rows))
    print(f"real checkpoint: logits deviate by {deviation:.2e} of their range")
    assert deviation < BAR
    scanned = load_model(directory, stacked=True)
    assert tiny.worst(tiny.logits(scanned, rows), tiny.reference_logits(theirs, rows)) < BAR
