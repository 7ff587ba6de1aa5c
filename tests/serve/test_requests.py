"""The bodies that harnesses send are read; what would change an answer is refused by its name."""

import json
import time
import types

import pytest

from em_jax.sample.batch import SampleRequest, TokenChunk
from em_jax.serve.completions import Detokenizer
from em_jax.serve.requests import Refusal, read_chat

pytestmark = pytest.mark.fast


def read(**more):
    body = {"model": "base", "messages": [{"role": "user", "content": "Q: 2+2?\nA:"}]} | more
    return read_chat(json.dumps(body).encode(), 128)


MESSAGES = {
    "lm-evaluation-harness 0.4.9": [{"role": "user", "content": "Hi", "type": "text"}],
    "its few-shot turns": [
        {"role": "system", "content": "Short.", "type": "text"},
        {"role": "user", "content": "Hi", "type": "text"},
        {"role": "assistant", "content": "Yes", "type": "text"},
        {"role": "user", "content": "Hi", "type": "text"},
    ],
    "its later versions": [{"role": "user", "content": "Hi"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "Inspect's earlier answer": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "tool_calls": [], "refusal": None, "audio": None},
        {"role": "user", "content": "Hi", "name": "someone"},
    ],
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_messages_of_harnesses_are_read(kind):
    chat = read(messages=MESSAGES[kind], max_tokens=16, temperature=0, stop=["\n\n"], seed=1234)
    assert chat.messages[-1] == {"role": "user", "content": "Hi"}
    assert len(chat.messages) == len(MESSAGES[kind])


INERT = {
    "vLLM": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "best_of": 1, "ignore_eos": False, "min_tokens": 0},
    "vLLM's text": {"skip_special_tokens": True, "add_generation_prompt": True, "stop_token_ids": [], "echo": False},
    "llama.cpp": {"top_k": 0, "typical_p": 1.0, "mirostat": 0, "repeat_penalty": 1.0},
    "OpenAI": {"reasoning_effort": "none", "verbosity": "medium", "logit_bias": {}, "tools": [], "user": "u"},
    "thinking off": {"think": False, "thinking": {"type": "disabled"}, "reasoning": {"effort": "none"}},
    "of the server alone": {"cache_prompt": True, "n_probs": 0, "return_token_ids": False, "include_reasoning": True},
    "Qwen": {"chat_template_kwargs": {"enable_thinking": False}, "length_penalty": 1.0, "use_beam_search": False},
}


@pytest.mark.parametrize("kind", INERT)
def test_fields_that_change_nothing_are_taken(kind):
    assert read(**INERT[kind]) == read()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_of_an_earlier_answer_reaches_the_template(name):
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", name: "Hm."}]
    assert read(messages=asked).messages[1] == {"role": "assistant", "content": "Yes", "reasoning_content": "Hm."}
    with pytest.raises(Refusal, match="expected a thought to be a text"):
        read(messages=[asked[1] | {name: ["Hm."]}])


CHANGES = {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "best_of": 4, "think": True, "prompt_logprobs": 5}


@pytest.mark.parametrize("field, value", CHANGES.items())
def test_the_same_fields_are_refused_where_they_would_change_the_answer(field, value):
    with pytest.raises(Refusal, match=f"{field} is not supported") as refused:
        read(**{field: value})
    assert refused.value.param == field


@pytest.mark.parametrize(
    "more",
    [
        {"stop": "a" * 900_000},
        {"stop": ["ab" * 1000] * 16},
        {"stop": ["x"] * 200_000},
        {"messages": [{"role": "user", "content": "x"}] * 20_000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 20_000}]},
        {"tools": ["x" * 900_000]},
        {"model": "m", "x" * 900_000: 1},
    ],
    ids=["a long stop", "long stops", "many stops", "many messages", "many parts", "a long tool", "a long name"],
)
def test_every_list_and_text_has_a_limit_that_is_told_soon(more):
    began = time.perf_counter()
    with pytest.raises(Refusal) as refused:
        read(**more)
    assert time.perf_counter() - began < 1.0 and len(str(refused.value)) < 2_000_000


def test_the_longest_stops_are_searched_in_little_time():
    tokenizer = types.SimpleNamespace(decode=lambda tokens: "a" * len(tokens), part=lambda text, growing: (text, ""))
    answer = Detokenizer(tokenizer, ["a" * 999 + str(number) for number in range(10)])
    request = SampleRequest(0, 0, [1], None)
    began = time.perf_counter()
    for _ in range(100):
        answer.add(TokenChunk(request, [1] * 40, [0.0] * 40, [], None))
    answer.add(TokenChunk(request, [1], [0.0], [], "length"))
    assert answer.text == "a" * 4001 and time.perf_counter() - began < 3
