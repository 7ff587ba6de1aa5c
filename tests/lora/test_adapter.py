"""Ranks and scales by pattern, fresh and stacked adapters, one adapter per row, and gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from em_jax.base.errors import UserError
from em_jax.formats.model_config import parse_config
from em_jax.lora.adapter import init_adapter, layouts, ranks, stack_adapters
from em_jax.lora.config import TARGETS, LoraConfig
from em_jax.model import linear
from em_jax.model.config import TransformerConfig
from em_jax.model.kernels import few_rows
from em_jax.model.kernels.joined import with_joint_a, with_stacks
from em_jax.model.linear import Linear, LoraWeights, apply_together
from em_jax.model.parameters import random_model

CONFIG = parse_config(tiny.SHAPE | {"num_hidden_layers": 3})


def test_ranks_and_scales_by_pattern():
    lora = LoraConfig(
        rank=4,
        alpha=8,
        targets=("q_proj", "up_proj"),
        rank_pattern={"layers.1.self_attn.q_proj": 16, "q_proj": 2},
        alpha_pattern={r"layers\.[02]\.mlp\.up_proj": 4.0},
        layers_to_transform=(1, 2),
    )
    found = ranks(CONFIG, lora)
    assert found == {
        "self_attn.q_proj": [(0, 0.0), (16, 8 / 4), (2, 8 / 2**0.5)],
        "mlp.up_proj": [(0, 0.0), (4, 8 / 2), (4, 4 / 2)],
    }
    plain = ranks(CONFIG, LoraConfig(rank=4, alpha=8, rslora=False))
    assert set(plain) == set(layouts(CONFIG))
    assert {pair for pairs in plain.values() for pair in pairs} == {(4, 2.0)}


def test_a_pattern_is_a_whole_name_or_a_dotted_ending():
    lora = LoraConfig(rank=4, targets=("o_proj",), rank_pattern={"proj": 1, "1.self_attn.o_proj": 2, "oo_proj": 3})
    assert [rank for rank, _ in ranks(CONFIG, lora)["self_attn.o_proj"]] == [4, 2, 4]


@pytest.mark.parametrize(
    "lora, said",
    [
        (LoraConfig(targets=("q_proj", "embed")), "lora.targets: found ['embed']"),
        (LoraConfig(targets=()), "lora.targets: found none"),
        (LoraConfig(layers_to_transform=(3,)), "found [3], expected 0 to 2"),
        (LoraConfig(layers_to_transform=(-1,)), "found [-1], expected 0 to 2"),
        (LoraConfig(rank=0), "must be at least 1, found 0"),
        (LoraConfig(rank_pattern={"k_proj": -2}), "must be at least 1, found -2"),
    ],
)
def test_settings_that_cannot_be(lora, said):
    with pytest.raises(UserError) as refused:
        ranks(CONFIG, lora)
    assert said in str(refused.value)


def test_a_fresh_adapter_changes_nothing_and_unused_ranks_are_zero():
    lora = LoraConfig(rank=2, targets=TARGETS[4:6], rank_pattern={"0.mlp.gate_proj": 5}, layers_to_transform=(0, 2))
    adapter = init_adapter(CONFIG, lora, jax.random.key(0))
    a, b = adapter.factors["mlp.gate_proj"]
    assert a.shape == (3, 64, 1, 5) and b.shape == (3, 1, 5, 96)
    used = np.asarray(a).any(axis=(1, 2))
    assert used.tolist() == [[True] * 5, [False] * 5, [True] * 2 + [False] * 3]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapter))
    assert not any(np.asarray(pair.b).any() for pair in adapter.factors.values())
    # Two targets of one shape must not be drawn alike, nor two layers of one target.
    up, gate = adapter.factors["mlp.up_proj"].a, a[..., :2]
    assert not np.array_equal(up[2], gate[2]) and not np.array_equal(up[0], up[2])


def test_a_stack_answers_each_row_with_its_own_adapter():
    model = random_model(CONFIG, jax.random.key(0), scale=0.2, stacked=True)
    adapters = [
        tiny.random_adapter(CONFIG, lora, seed)
        for seed, lora in enumerate(
            (
                LoraConfig(rank=3, alpha=3, targets=("q_proj", "o_proj", "down_proj")),
                LoraConfig(rank=5, alpha=2, rslora=False, targets=("v_proj", "down_proj")),
                LoraConfig(rank=2, alpha=4, targets=TARGETS[:1], layers_to_transform=(1,)),
            )
        )
    ]
    rows = tiny.tokens(4, 7)
    adapter_mask = jnp.asarray([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]], jnp.float32)
    together = tiny.logits(
        model, rows, lora_params=stack_adapters(CONFIG, adapters).lora_params(), adapter_mask=adapter_mask
    )
    base = tiny.logits(model, rows)
    alone = [tiny.logits(model, rows, lora_params=adapter.lora_params()) for adapter in adapters]
    for row, expected in ((0, alone[2]), (1, alone[0]), (2, base), (3, alone[1])):
        np.testing.assert_allclose(together[row], expected[row], atol=1e-5 * np.ptp(base))
    assert all(np.abs(each - base).max() > 0.05 * np.ptp(base) for each in alone)


@pytest.mark.parametrize("layout", ["D->NH", "NH->D", "D->F"])
@pytest.mark.parametrize("adapters", [1, 2])
def test_the_gradients_by_hand_are_autodiffs(adapters, layout):
    inputs, outputs = layout.split("->")
    sizes = {"D": 6, "N": 2, "H": 4, "F": 5}
    wide, thin = [sizes[letter] for letter in inputs], [sizes[letter] for letter in outputs]
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (3, 7, *wide))
    a, b = jax.random.normal(keys[1], (*wide, adapters, 3)), jax.random.normal(keys[2], (adapters, 3, *thin))
    adapter_mask = jnp.asarray([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]])[:, :adapters]
    scale = jnp.asarray([2.0, 3.0])[:adapters]
    towards = jax.random.normal(keys[3], (3, 7, *thin))
    layer = Linear("it", layout, lambda name, layout: jnp.zeros((*wide, *thin)))

    def ours_of(x, a, b):
        return apply_together([layer], x, {"it": LoraWeights(a, b, scale)}, adapter_mask)[0]

    def plain(x, a, b):
        low = jnp.einsum(f"BT{inputs},{inputs}SR->BTSR", x, a) * (adapter_mask * scale[None])[:, None, :, None]
        return jnp.einsum(f"BTSR,SR{outputs}->BT{outputs}", low, b)

    np.testing.assert_allclose(ours_of(x, a, b), plain(x, a, b), rtol=1e-5, atol=1e-5)
    ours = jax.grad(lambda *parts: jnp.sum(ours_of(*parts) * towards), argnums=(0, 1, 2))(x, a, b)
    theirs = jax.grad(lambda *parts: jnp.sum(plain(*parts) * towards), argnums=(0, 1, 2))(x, a, b)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [TARGETS, ("k_proj", "v_proj", "up_proj"), ("up_proj", "down_proj")])
@pytest.mark.parametrize("whole", [False, True])
def test_joined_adapters_are_those_of_each_layer(whole, targets):
    """With every target, and without the first of those that read the same input; ranks and scales differ."""
    patterns = {"v_proj": 2, "up_proj": 20}, {"k_proj": 9, "up_proj": 2}
    lora = LoraConfig(rank=3, alpha=5, targets=targets, rank_pattern=patterns[0], alpha_pattern=patterns[1])
    adapter, mask = tiny.random_adapter(CONFIG, lora), jnp.asarray([[1.0], [0.5]])
    if not whole:
        adapter = stack_adapters(CONFIG, [adapter, tiny.random_adapter(CONFIG, LoraConfig(rank=2), 1)])
        mask = jnp.asarray([[1.0, 0.0], [0.5, 2.0]])
    each = adapter.lora_params()
    joint = with_stacks(each) if whole else with_joint_a(each)
    assert ("mlp.gate_proj+mlp.up_proj" in joint) == (whole and targets == TARGETS)
    model, rows = random_model(CONFIG, jax.random.key(0), scale=0.2, stacked=True), tiny.tokens(2, 6)
    together = tiny.logits(model, rows, lora_params=joint, adapter_mask=mask)
    alone = tiny.logits(model, rows, lora_params=each, adapter_mask=mask)
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.ptp(alone))
    assert np.abs(alone - tiny.logits(model, rows)).max() > 0.01 * np.ptp(alone)


@pytest.mark.parametrize("targets", [TARGETS, ("up_proj", "down_proj"), ("k_proj",)])
def test_a_token_through_a_gpus_kernels_is_one_through_the_plain_matmuls(targets, monkeypatch):
    """Ranks, scales and masks differ; an adapter of both layers, of one of them, and of neither."""
    config = TransformerConfig(160, 128, 128, 2, 4, 2, 32)
    lora = LoraConfig(rank=3, alpha=5, targets=targets, rank_pattern={"up_proj": 20}, alpha_pattern={"up_proj": 2})
    each, mask = tiny.random_adapter(config, lora).lora_params(), jnp.asarray([[1.0], [0.5], [0.0]])
    model, rows = random_model(config, jax.random.key(0), scale=0.2), tiny.tokens(3, 1)
    alone = tiny.logits(model, rows, lora_params=each, adapter_mask=mask)
    calls = []
    for place, of in (few_rows, few_rows.gated), (linear, few_rows.matmul):
        interpreted = lambda *args, of=of: calls.append(of.__name__) or of(*args, interpret=True)  # noqa: E731
        monkeypatch.setattr(place, of.__name__, interpreted)
    monkeypatch.setattr(few_rows, "serves", lambda *sizes: True)
    together = tiny.logits(model, rows, lora_params=with_stacks(each), adapter_mask=mask)
    plain = targets == ("up_proj", "down_proj")  # of gate and up both have an update, or none
    assert calls == ["matmul", "matmul", *(["matmul"] * 2 if plain else ["gated"]), "matmul"] * 2
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.ptp(alone))
