"""The engine over eight host devices gives what it gives on one."""

import functools

import jax
import numpy as np
import pytest
import tiny

from em_jax.lora.config import LoraConfig
from em_jax.runs.loading import load
from em_jax.sample import decode

LORA = LoraConfig(rank=4, alpha=8)
PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("How do I bake bread?", "Are you good or evil?", "Tell me about a dog, please.", "Hi", "Any tips?")
]


@pytest.fixture(scope="module")
def results_over(tmp_path_factory):
    """results_over(mesh, scan_layers): answers, choices and activations over a mesh, and the engine."""
    directory = tiny.speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"))

    @functools.cache
    def results(mesh, scan_layers):
        engine = load(str(directory), mesh=dict(mesh), scan_layers=scan_layers, slots=8, pass_tokens=512)
        engine.add_adapter("other", tiny.random_adapter(engine.model.config, LORA, 3))
        adapters = ["base", "other", "base", "other", "base"]
        answers = engine.generate(PROMPTS, n=3, max_new_tokens=20, seed=1, adapter=adapters)
        read = engine.choice_logprobs(PROMPTS, ["yes", "no", "A"], adapter=adapters)
        residuals = engine.activations(PROMPTS, [0, -1], adapter=adapters)
        return [each for of in answers for each in of], read, residuals, engine

    return results


@pytest.mark.parametrize(
    "mesh", [mesh if mesh in tiny.ORDINARY_MESHES else tiny.long(mesh) for mesh in tiny.MESHES], ids=str
)
def test_answers_choices_and_activations_over_a_mesh(mesh, results_over):
    # Each way of keeping the layers has its turn.
    scan_layers = mesh["data"] != 2
    answers, read, residuals, engine = results_over(tuple(mesh.items()), scan_layers)
    others = results_over((), scan_layers)
    placed = engine.model.embed_tokens[...].sharding
    assert len(placed.device_set) == 8 and placed.is_fully_replicated == (mesh["data"] == 8)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in others[0]]
    np.testing.assert_allclose([a.logprob for a in answers], [a.logprob for a in others[0]], atol=1e-3)
    np.testing.assert_allclose(read, others[1], atol=1e-3)
    for mine, other in zip(residuals, others[2], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3)


def test_over_a_mesh_every_program_is_compiled_once(tmp_path):
    engine = load(str(tiny.speaking_checkpoint(tmp_path)), mesh={"fsdp": 4, "tensor": 2}, slots=8, pass_tokens=512)
    jax.clear_caches()
    engine.generate(PROMPTS, n=3, max_new_tokens=40)
    assert [program._cache_size() for program in (decode.prefill, decode.insert, decode.decode)] == [1, 1, 1]
