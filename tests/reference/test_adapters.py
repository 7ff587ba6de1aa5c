"""Adapters against peft: PEFT in, PEFT out, the same tensors and the same effect on the logits (within 1e-3 of it)."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from em_jax.formats.checkpoint import load_model
from em_jax.formats.peft import CONFIG, TENSORS, load_adapter, save_adapter
from em_jax.lora.adapter import init_adapter
from em_jax.lora.config import LoraConfig

BAR = 1e-3
ADAPTERS = {
    "plain": LoraConfig(rank=4, alpha=8, rslora=False),
    "rslora": LoraConfig(rank=4, alpha=8, rslora=True),
    "patterns": LoraConfig(
        rank=4,
        alpha=6,
        rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 7, r"layers\.0\.self_attn\.[kv]_proj": 3},
        alpha_pattern={"down_proj": 16.0, "0.self_attn.v_proj": 1.5},
    ),
    "some_layers": LoraConfig(rank=3, alpha=3, rslora=False, layers_to_transform=(1,)),
    "some_targets": LoraConfig(rank=3, alpha=3, targets=("k_proj", "o_proj", "gate_proj"), rank_pattern={"k_proj": 5}),
}


# Where two patterns fit, the first decides; peft sorts them as it saves and then cannot read its own file back.
OVERLAPPING = LoraConfig(rank=4, alpha=6, rank_pattern={"v_proj": 2, r"layers\.0\..*": 3}, alpha_pattern={"v_proj": 1})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("base"))


def assert_same_effect(ours, theirs, base, theirs_base):
    """The adapter moves our logits as it moves the reference's, within 1e-3 of how much it moves them."""
    moved = theirs - theirs_base
    assert np.abs(moved).max() > 0.1
    deviation = np.abs(ours - base - moved).max() / np.abs(moved).max()
    print(f"the adapter's effect deviates by {deviation:.1e} of it")
    assert deviation < BAR


@pytest.mark.parametrize("name", [*ADAPTERS, "overlapping"])
def test_ours_means_the_same_in_peft(name, checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    lora = ADAPTERS.get(name, OVERLAPPING)
    model, reference = tiny.load_both(checkpoint, stacked=name == "rslora")
    adapter = tiny.random_adapter(model.config, lora)
    save_adapter(tmp_path, adapter, lora, model.config, "some/base")
    rows = tiny.tokens(2, 16)
    plain = tiny.reference_logits(reference, rows)
    wrapped = peft.PeftModel.from_pretrained(reference, str(tmp_path))
    held = {key: value.numpy() for key, value in peft.get_peft_model_state_dict(wrapped).items()}
    written = safetensors.numpy.load_file(tmp_path / TENSORS)
    assert held.keys() == written.keys()
    assert all(np.array_equal(held[key], written[key]) for key in held)
    base, ours = tiny.logits(model, rows), tiny.logits(model, rows, lora_params=adapter.lora_params())
    assert_same_effect(ours, tiny.reference_logits(wrapped, rows), base, plain)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("name", ADAPTERS)
def test_theirs_means_the_same_here(name, checkpoint, tmp_path):
    torch, _ = tiny.references()
    peft = pytest.importorskip("peft")
    lora = ADAPTERS[name]
    model, reference = tiny.load_both(checkpoint)
    rows = tiny.tokens(2, 16)
    plain = tiny.reference_logits(reference, rows)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        layers_to_transform=list(lora.layers_to_transform) or None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(reference, settings).eval()
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.2)
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    adapter, read = load_adapter(tmp_path / "theirs", model.config)
    base, ours = tiny.logits(model, rows), tiny.logits(model, rows, lora_params=adapter.lora_params())
    assert_same_effect(ours, tiny.reference_logits(wrapped, rows), base, plain)

    save_adapter(tmp_path / "ours", adapter, read, model.config, "some/base")
    there, back = (safetensors.numpy.load_file(tmp_path / part / TENSORS) for part in ("theirs", "ours"))
    assert there.keys() == back.keys()
    assert all(np.array_equal(there[key], back[key]) for key in there)


IRREGULAR = {
    "exclude by name": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.0.mlp.up_proj"]},
    "exclude by expression": {
        "target_modules": ["gate_proj", "k_proj"],
        "exclude_modules": r"model\.layers\.1\.mlp\..*",
        "rank_pattern": {"layers.0.mlp.gate_proj": 6},
    },
    "expression with an alternative": {"target_modules": r".*\.(0\.mlp\.up|1\.self_attn\.v)_proj"},
    "one path and one ending": {"target_modules": ["model.layers.1.self_attn.o_proj", "up_proj"]},
    "layers by their pattern": {
        "target_modules": ["q_proj", "wqkv"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "use_rslora": True,
    },
}
"""Settings of peft whose modules are not all layers of some targets, or that name more than the base has."""


@pytest.mark.parametrize("name", IRREGULAR)
def test_any_modules_of_theirs_mean_the_same_here(name, checkpoint, tmp_path):
    torch, _ = tiny.references()
    peft = pytest.importorskip("peft")
    model, reference = tiny.load_both(checkpoint)
    rows = tiny.tokens(2, 16)
    plain = tiny.reference_logits(reference, rows)
    settings = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **IRREGULAR[name])
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(reference, settings).eval()
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.5)
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    adapter, read = load_adapter(tmp_path / "theirs", model.config)
    base, ours = tiny.logits(model, rows), tiny.logits(model, rows, lora_params=adapter.lora_params())
    assert_same_effect(ours, tiny.reference_logits(wrapped, rows), base, plain)
    save_adapter(tmp_path / "ours", adapter, read, model.config, "some/base")
    again = peft.PeftModel.from_pretrained(tiny.reference_model(checkpoint), str(tmp_path / "ours"))
    assert_same_effect(ours, tiny.reference_logits(again, rows), base, plain)


def test_fresh_adapters_are_drawn_like_pefts(checkpoint):
    peft = pytest.importorskip("peft")
    lora = LoraConfig(rank=16, alpha=8)
    adapter = init_adapter(load_model(checkpoint).config, lora, jax.random.key(0))
    wrapped = peft.get_peft_model(
        tiny.reference_model(checkpoint), peft.LoraConfig(r=16, target_modules=list(lora.targets))
    )
    for target, (a, b) in adapter.factors.items():
        theirs = wrapped.get_submodule(f"base_model.model.model.layers.0.{target}.lora_A.default").weight
        assert not np.asarray(b).any()
        bound = theirs.shape[1] ** -0.5
        for drawn in (np.asarray(a), theirs.detach().numpy()):
            assert 0.97 * bound < np.abs(drawn).max() <= bound * 1.0001, target
            assert abs(drawn.std() / (bound / 3**0.5) - 1) < 0.1, target
