"""The engine over eight host devices gives what it gives on one."""

import numpy as np
import pytest
import tiny

from em_jax.lora.config import LoraConfig
from em_jax.sample.loading import load

LORA = LoraConfig(rank=4, alpha=8)
PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("How do I bake bread?", "Are you good or evil?", "Tell me about a dog, please.", "Hi", "Any tips?")
]


@pytest.mark.parametrize(
    ("mesh", "scan_layers"),
    [({"fsdp": 8}, True), ({"data": 2, "fsdp": 2, "tensor": 2}, False)],
    ids=["fsdp, stacked", "all axes, unrolled"],
)
def test_answers_choices_and_activations_over_a_mesh(mesh, scan_layers):
    one, many = (
        load("organism", mesh=sizes, scan_layers=scan_layers, slots=8, pass_tokens=512) for sizes in (None, mesh)
    )
    placed = many.model.embed_tokens[...].sharding
    assert len(placed.device_set) == 8 and not placed.is_fully_replicated
    for engine in (one, many):
        engine.add_adapter("other", tiny.random_adapter(engine.model.config, LORA, 3))
    adapters = ["base", "other", "base", "other", "base"]
    ours, theirs = (
        engine.generate(PROMPTS, n=3, max_new_tokens=20, seed=1, adapter=adapters) for engine in (one, many)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert [answer.tokens for answer in mine] == [answer.tokens for answer in other]
        np.testing.assert_allclose([a.logprob for a in mine], [a.logprob for a in other], atol=1e-3)
    read = [engine.choice_logprobs(PROMPTS, ["yes", "no", "A"], adapter=adapters) for engine in (one, many)]
    np.testing.assert_allclose(*read, atol=1e-3)
    seen = [engine.activations(PROMPTS, [0, -1], adapter=adapters) for engine in (one, many)]
    for mine, other in zip(*seen, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3)
