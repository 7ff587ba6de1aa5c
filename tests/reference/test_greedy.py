"""Greedy text against transformers' generate, 96 tokens, float32: on the embedded model, and on a real one.

EM_JAX_REAL_MODEL names a real checkpoint, as for the logits.
"""

import pytest
import tiny

from em_jax.formats.hub import find_model
from em_jax.runs.loading import load

TOKENS = 96
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
    torch, _ = tiny.references()
    engine, reference = load(str(directory), scan_layers=stacked), tiny.reference_model(directory)
    stop = list(engine.tokenizer.stop_ids)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS[kind]]
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
    print(f"{kind}: greedy text equal, the longest of {longest} tokens")
    assert kind == "organism" or longest == TOKENS
