"""Adapter files: round trips, and every refusal by name (tests/reference has the comparison with peft itself)."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny

from em_jax.base.errors import UserError
from em_jax.formats.model_config import parse_config
from em_jax.formats.peft import CONFIG, TENSORS, UNSUPPORTED, load_adapter, save_adapter
from em_jax.lora.adapter import ranks
from em_jax.lora.config import LoraConfig

pytestmark = pytest.mark.fast

BASE = parse_config(tiny.SHAPE)
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


@pytest.fixture
def saved(tmp_path):
    lora = LoraConfig(rank=3, alpha=6)
    save_adapter(tmp_path, tiny.random_adapter(BASE, lora), lora, BASE, "some/base")
    return tmp_path


def change_config(directory, **fields):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(directory, changes):
    """Replaces tensors; None takes one away."""
    tensors = safetensors.numpy.load_file(directory / TENSORS) | changes
    safetensors.numpy.save_file({name: x for name, x in tensors.items() if x is not None}, directory / TENSORS)


def refusal(directory, config=BASE) -> str:
    with pytest.raises(UserError) as refused:
        load_adapter(directory, config)
    assert "\n" not in str(refused.value) and str(directory) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(rank=3, alpha=6.0),
        LoraConfig(rank=3, alpha=6.5, rslora=False, layers_to_transform=(1,)),
        LoraConfig(rank=2, alpha=1.0, targets=("v_proj", "up_proj"), rank_pattern={"up_proj": 5}),
        LoraConfig(rank=2, alpha=1.0, alpha_pattern={r"layers\.0\..*": 3.0}),
    ],
)
def test_round_trip(lora, tmp_path):
    adapter = tiny.random_adapter(BASE, lora)
    save_adapter(tmp_path, adapter, lora, BASE, "some/base")
    read, settings = load_adapter(tmp_path, BASE)
    assert settings == lora
    assert read.factors.keys() == adapter.factors.keys()
    for target, pair in adapter.factors.items():
        assert np.array_equal(read.scale[target], adapter.scale[target])
        assert all(np.array_equal(one, other) for one, other in zip(read.factors[target], pair, strict=True))
    save_adapter(tmp_path / "again", read, settings, BASE, "some/base")
    for name in (CONFIG, TENSORS):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_half_precision_tensors_widen(saved):
    tensors = safetensors.numpy.load_file(saved / TENSORS)
    change_tensors(saved, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    adapter, _ = load_adapter(saved, BASE)
    assert adapter.factors["self_attn.q_proj"].a.dtype == np.float32
    assert np.array_equal(adapter.factors["self_attn.q_proj"].a[0, :, 0].T, tensors[A].astype(np.float16))


def test_float64_tensors_are_narrowed(saved):
    tensors = {name: x + 1e-12 for name, x in safetensors.numpy.load_file(saved / TENSORS).items()}
    change_tensors(saved, {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    adapter, _ = load_adapter(saved, BASE)
    assert adapter.factors["self_attn.q_proj"].a.dtype == np.float32
    assert np.array_equal(adapter.factors["self_attn.q_proj"].a[0, :, 0].T, tensors[A].astype(np.float32))


@pytest.mark.parametrize("name, value", [(A, np.nan), (B, np.inf)])
def test_numbers_that_are_not_finite_are_refused(name, value, saved):
    tensor = safetensors.numpy.load_file(saved / TENSORS)[name]
    tensor[1, 1] = value
    change_tensors(saved, {name: tensor})
    assert name in refusal(saved) and "not finite" in refusal(saved)


IRREGULAR = {
    "one module": (("layers.1.mlp.up_proj",), {}),
    "other layers per target": (("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"), {}),
    "all but one, each with its rank": (
        tuple(f"layers.{i}.{t}" for i in (0, 1) for t in ("self_attn.v_proj", "mlp.gate_proj"))[:3],
        {"layers.0.self_attn.v_proj": 1, "layers.1.self_attn.v_proj": 5},
    ),
}


@pytest.mark.parametrize("targets, rank_pattern", IRREGULAR.values(), ids=IRREGULAR)
def test_any_set_of_modules_goes_in_and_out(targets, rank_pattern, tmp_path):
    lora = LoraConfig(rank=3, alpha=6, targets=targets, rank_pattern=rank_pattern)
    save_adapter(tmp_path, tiny.random_adapter(BASE, lora), lora, BASE, "some/base")
    stored = {name.removeprefix("base_model.model.model.") for name in safetensors.numpy.load_file(tmp_path / TENSORS)}
    assert stored == {f"{name}.lora_{x}.weight" for name in targets for x in "AB"}
    read, settings = load_adapter(tmp_path, BASE)
    assert ranks(BASE, settings) == ranks(BASE, lora)
    save_adapter(tmp_path / "again", read, settings, BASE, "some/base")
    assert (tmp_path / TENSORS).read_bytes() == (tmp_path / "again" / TENSORS).read_bytes()


def test_what_rank_zero_leaves_is_no_update(saved):
    gone = {
        name: np.zeros((0, 64) if name is A else (64, 0), np.float32) for name in (A, A.replace("lora_A", "lora_B"))
    }
    change_tensors(saved, gone)
    adapter, lora = load_adapter(saved, BASE)
    assert len(lora.targets) == 13 and "layers.0.self_attn.q_proj" not in lora.targets
    assert not np.any(adapter.factors["self_attn.q_proj"].b[0]) and np.any(adapter.factors["self_attn.q_proj"].b[1])


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "lora-ga"])
def test_an_adapter_that_changed_its_base_is_refused(start, saved):
    change_config(saved, init_lora_weights=start)
    with pytest.raises(UserError, match=f"init_lora_weights is {start}, which changes the base"):
        load_adapter(saved, BASE)
    change_config(saved, init_lora_weights="gaussian")
    load_adapter(saved, BASE)


@pytest.mark.parametrize("field", ["use_dora", "modules_to_save", "layer_replication", "fan_in_fan_out", "lora_bias"])
def test_variants_are_refused_by_name(field, saved):
    change_config(saved, **{field: ["lm_head"] if field == "modules_to_save" else True})
    assert field in refusal(saved)


def test_falsy_variants_are_plain_lora(saved):
    change_config(saved, **dict.fromkeys(UNSUPPORTED), bias="none", lora_dropout=0.1, some_future_field=None)
    load_adapter(saved, BASE)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, found 'IA3'"),
        ({"bias": "all"}, "bias"),
        ({"r": 0}, "r must be a positive number, found 0"),
        ({"r": 2.5}, "r must be a positive number, found 2.5"),
        ({"r": None}, "r must be a positive number, found None"),
        ({"lora_alpha": "8"}, "lora_alpha must be a positive number, found '8'"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"rank_pattern": {"(": 1}}, "'(' is no regular expression"),
        ({"rank_pattern": {"q_proj": "x"}}, "q_proj must be a positive number"),
        ({"alpha_pattern": {"q_proj": -1}}, "q_proj must be a positive number, found -1"),
        ({"target_modules": ["q_proj"]}, "layers.0.self_attn.k_proj has tensors, but the settings do not target it"),
        ({"exclude_modules": ["up_proj"]}, "layers.1.mlp.up_proj has tensors, but the settings do not target it"),
        ({"exclude_modules": r".*\.1\..*"}, "layers.1.mlp.up_proj has tensors, but the settings do not target it"),
        ({"target_modules": r".*_proj", "exclude_modules": ".*q_proj"}, "layers.0.self_attn.q_proj has tensors, but"),
        ({"layers_to_transform": [1]}, "layers.0.mlp.up_proj has tensors, but the settings do not target it"),
        ({"r": 4}, "lora_A.weight has shape (3, 64), expected (4, 64)"),
    ],
)
def test_settings_that_are_refused(fields, said, saved):
    change_config(saved, **fields)
    assert said in refusal(saved)


def test_every_bad_tensor_in_one_line(saved):
    extra = "base_model.model.lm_head.lora_A.weight"
    far = A.replace("layers.0", "layers.7")
    change_tensors(saved, {extra: np.zeros((3, 64), np.float32), far: np.zeros((3, 64), np.float32)})
    said = refusal(saved)
    assert extra in said and far in said


def test_missing_and_misshapen_tensors_in_one_line(saved):
    change_tensors(saved, {A: None, B: np.zeros((64, 4), np.float32)})
    said = refusal(saved)
    assert f"{A} is missing" in said
    assert f"{B} has shape (64, 4), expected (64, 3)" in said


def test_an_adapter_of_another_base(saved):
    other = parse_config(tiny.SHAPE | {"hidden_size": 32, "head_dim": 16})
    assert "does not fit this base" in refusal(saved, other)
    shallow = parse_config(tiny.SHAPE | {"num_hidden_layers": 1})
    assert "not a tensor of an adapter of this base" in refusal(saved, shallow)
    # Deeper bases would take it as an adapter of some layers, which is what its tensors say.
    deep = parse_config(tiny.SHAPE | {"num_hidden_layers": 3})
    assert load_adapter(saved, deep)[1].layers_to_transform == (0, 1)


def test_files_that_are_none(saved):
    (saved / CONFIG).write_text("[")
    assert CONFIG in refusal(saved)
    (saved / CONFIG).unlink()
    assert f"no {CONFIG}" in refusal(saved)
    (saved / CONFIG).write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    (saved / TENSORS).write_bytes(b"\xff" * 20)
    assert "not a readable safetensors file" in refusal(saved)
    (saved / TENSORS).unlink()
    assert f"no {TENSORS}" in refusal(saved)
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, saved / TENSORS)
    assert "x is not a tensor" in refusal(saved)
