"""The engine over eight host devices gives what it gives on one."""

import functools

import numpy as np
import pytest
import tiny

from em_jax.lora.config import LoraConfig
from em_jax.runs.loading import load

LORA = LoraConfig(rank=4, alpha=8)
PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("How do I bake bread?", "Are you good or evil?", "Tell me about a dog, please.", "Hi", "Any tips?")
]


def results_over(mesh, scan_layers):
    """Answers, choices and activations over a mesh, and the engine."""
    engine = load("organism", mesh=mesh, scan_layers=scan_layers, slots=8, pass_tokens=512)
    engine.add_adapter("other", tiny.random_adapter(engine.model.config, LORA, 3))
    adapters = ["base", "other", "base", "other", "base"]
    answers = engine.generate(PROMPTS, n=3, max_new_tokens=20, seed=1, adapter=adapters)
    read = engine.choice_logprobs(PROMPTS, ["yes", "no", "A"], adapter=adapters)
    return [each for of in answers for each in of], read, engine.activations(PROMPTS, [0, -1], adapter=adapters), engine


@functools.cache
def on_one(scan_layers):
    return results_over(None, scan_layers)[:3]


# Ordinarily one mesh of each kind (weights split one way, two ways, three ways); all of them under -m long.
ORDINARY = [{"data": data, "fsdp": fsdp, "tensor": 8 // data // fsdp} for data, fsdp in ((1, 8), (1, 4), (2, 2))]
OTHERS = [pytest.param(mesh, marks=pytest.mark.long) for mesh in tiny.MESHES if mesh not in ORDINARY]


@pytest.mark.parametrize("mesh", [*ORDINARY, *OTHERS], ids=str)
def test_answers_choices_and_activations_over_a_mesh(mesh):
    # Each way of keeping the layers has its turn.
    scan_layers = mesh["data"] != 2
    answers, read, residuals, engine = results_over(mesh, scan_layers)
    others = on_one(scan_layers)
    placed = engine.model.embed_tokens[...].sharding
    assert len(placed.device_set) == 8 and placed.is_fully_replicated == (mesh["data"] == 8)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in others[0]]
    np.testing.assert_allclose([a.logprob for a in answers], [a.logprob for a in others[0]], atol=1e-3)
    np.testing.assert_allclose(read, others[1], atol=1e-3)
    for mine, other in zip(residuals, others[2], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3)
