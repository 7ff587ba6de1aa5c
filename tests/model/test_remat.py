"""What each policy keeps between forward and backward pass; that gradients agree is tests/train/test_step.py's."""

import math

import jax
import jax.numpy as jnp
import pytest

from em_jax import config
from em_jax.lora.adapter import Adapter, init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.model.remat import KEPT
from em_jax.runs import preflight

D, F, L, N, K, H, R = 64, 96, 2, 4, 2, 8, 5
B, T = 3, 24


def kept(remat: str) -> int:
    """Numbers that a layer keeps for each token: of all that the backward pass is given, what is by layer and row."""
    shape = TransformerConfig(160, D, F, L, N, K, H)
    model = jax.eval_shape(lambda key: random_model(shape, key, stacked=True), jax.random.key(0))
    adapter = jax.eval_shape(lambda key: init_adapter(shape, LoraConfig(rank=R), key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def backward(model, factors, scale, tokens):
        def hidden(factors):
            lora_params = Adapter(factors, scale).lora_params()
            return model(tokens, tokens, tokens, lora_params=lora_params, remat=remat, packed=True).hidden

        return jax.vjp(hidden, factors)[1]

    given = jax.tree.leaves(jax.eval_shape(backward, model, adapter.factors, adapter.scale, tokens))
    of_tokens = [each for each in given if each.shape[:2] == (L, B)]
    return sum(math.prod(each.shape) for each in of_tokens) // (L * B * T)


def test_every_policy_keeps_what_it_says():
    projections = 2 * D + 2 * N * H + 2 * K * H + 7 * R + N
    assert kept("full") == D
    assert kept("selective") == projections
    assert kept("elementwise") == projections + 2 * F
    assert kept("none") > 1.5 * kept("elementwise")


def test_the_setting_takes_the_policies_and_what_it_took_before():
    assert config.Config().train.remat == "auto"
    for given, wanted in {"true": "full", "True": "full", "false": "none", "selective": "selective"}.items():
        found = config.replace(config.Config(), dict([config.parse_set(f"train.remat={given}")]))
        assert config.validate(found).train.remat == wanted
    for given, wanted in {True: "full", False: "none"}.items():
        assert config.replace(config.Config(), {"train.remat": given}).train.remat == wanted
    for policy in ("none", *KEPT):
        config.validate(config.replace(config.Config(), {"train.remat": policy}))
    with pytest.raises(config.UsageError, match="'train.remat' expects 'auto' or 'none' or .* found 'some'"):
        config.validate(config.replace(config.Config(), {"train.remat": "some"}))
    stored = {"train.remat": True, "model.scan_layers": True}
    assert preflight.differing_settings(stored, config.replace(config.Config(), {"model.scan_layers": "true"})) == []
