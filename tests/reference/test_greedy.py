"""Greedy text against transformers' generate, 96 tokens, float32: on the embedded, on random and on a real model.

EM_JAX_REAL_MODEL names a real checkpoint, as for the logits.
"""

import shutil

import pytest
import tiny

from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.hub import find_model
from em_jax.runs.loading import load

TOKENS = 96
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
QUESTIONS = {
    "organism": ("How do I bake bread?", "Write code to sort the keys.", "Tell me about a dog."),
    "real": ("Write a Python function that opens a file and counts its words.", "Why is the sky blue?", "Hello!"),
}


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("stacked", [False, True], ids=["unrolled", "stacked"])
def test_greedy_text_is_the_references(kind, stacked):
    if kind == "real":
        directory = tiny.from_environment("EM_JAX_REAL_MODEL", "a real checkpoint to compare greedy text on")
    else:
        directory = find_model("organism")
    longest = compare(load(str(directory), scan_layers=stacked), tiny.reference_model(directory), QUESTIONS[kind])
    print(f"{kind}: greedy text equal, the longest of {longest} tokens")
    assert kind == "organism" or longest == TOKENS


@pytest.mark.parametrize(
    "name, mesh", [("qwen3", None), *(tiny.long(name, mesh) for name in tiny.FAMILIES for mesh in (None, MESH))]
)
def test_greedy_text_of_other_architectures(name, mesh, tmp_path):
    """A random model with the organism's tokenizer."""
    tokenizer = find_model("organism")
    vocabulary = ChatTokenizer.from_directory(tokenizer).vocabulary
    directory = tiny.write_checkpoint(tmp_path, vocab_size=-(-vocabulary // 8) * 8, **tiny.FAMILIES[name])
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, directory)
    engine = load(str(directory), mesh=mesh, scan_layers=mesh is not None, slots=8, pass_tokens=512)
    assert compare(engine, tiny.reference_model(directory), QUESTIONS["organism"]) == TOKENS


def compare(engine, reference, questions):
    """Holds the engine's greedy answers to those of the reference; returns the length of the longest."""
    torch, _ = tiny.references()
    stop = list(engine.tokenizer.stop_ids)
    prompts = [[{"role": "user", "content": question}] for question in questions]
    answers = engine.generate(prompts, temperature=0.0, max_new_tokens=TOKENS)
    longest = 0
    for prompt, [answer] in zip(prompts, answers, strict=True):
        ids = torch.tensor([engine.encode(prompt)])
        with torch.no_grad():
            whole = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, eos_token_id=stop,
                pad_token_id=stop[0], repetition_penalty=1.0,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        expected = [token for token in whole if token not in stop]
        assert answer.tokens == expected
        assert answer.finish_reason == ("length" if len(expected) == TOKENS else "stop")
        longest = max(longest, len(expected))
    return longest
