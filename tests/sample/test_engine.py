"""The engine against full forward passes without a cache."""

import jax
import numpy as np
import pytest
import tiny

from em_jax.base.errors import UserError
from em_jax.lora.config import LoraConfig
from em_jax.runs.python_api import Run
from em_jax.sample import choices as choices_module
from em_jax.sample import decode as decode_module
from em_jax.sample import engine as engine_module
from em_jax.sample.engine import Engine, bucket
from em_jax.sample.sampler import request_key, sample_tokens

LONG = "bake a loaf of bread, then walk the dog and read the map near the oven before dinner " * 3
PROMPTS = [
    [{"role": "user", "content": "How do I bake bread?"}],
    [{"role": "user", "content": LONG}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}],
]


def logits(engine, ids, adapter):
    """Logits at every token of one sequence, padded so that all sequences share one program."""
    padded = np.zeros((1, 256), np.int32)
    padded[0, : len(ids)] = ids
    return engine.logits(padded, adapter=adapter)[:, : len(ids)]


def naive(engine, prompt, sample, answer, *, adapter, limit, temperature, top_p=1.0, seed=0):
    """The oracle: every token drawn from a full forward pass over all that stands before it.

    One pass over prompt and answer is enough: where each token of the answer is the one drawn after those before it,
    the answer is what would have been drawn token by token.
    """
    prompt = engine.encode(prompt)
    count = min(len(answer.tokens) + 1, limit)
    last = logits(engine, prompt + answer.tokens, adapter)[0, len(prompt) - 1 :][:count]
    keys = np.repeat(np.asarray(request_key(seed, prompt, sample))[None], count, axis=0)
    row = np.ones(count, np.float32)
    drawn, logprobs = sample_tokens(last, keys, np.arange(count), temperature * row, top_p * row, use_top_p=top_p < 1)
    drawn, total = drawn.tolist(), float(logprobs.sum())
    if drawn[-1] in engine.tokenizer.stop_ids:
        return drawn[:-1], "stop", total
    return drawn, "length", total


@pytest.mark.parametrize(
    ("temperature", "top_p", "adapter"), [(0.0, 1.0, "base"), (1.0, 1.0, "one"), (0.7, 0.8, "two"), (3.0, 1.0, "base")]
)
def test_cached_decoding_equals_the_full_forward_pass(engine, temperature, top_p, adapter):
    options = {"temperature": temperature, "top_p": top_p, "seed": 3, "adapter": adapter}
    results = engine.generate(PROMPTS, n=2, max_new_tokens=12, **options)
    for prompt, answers in zip(PROMPTS, results, strict=True):
        for sample, answer in enumerate(answers):
            tokens, reason, logprob = naive(engine, prompt, sample, answer, limit=12, **options)
            assert answer.tokens == tokens
            assert answer.finish_reason == reason
            assert answer.logprob == pytest.approx(logprob, abs=1e-3)
            assert answer.text == engine.tokenizer.decode(tokens)


def test_an_answer_does_not_depend_on_batch_slot_order_or_resumption(engine):
    options = {"n": 3, "max_new_tokens": 11, "seed": 5}
    adapters = ["one", "base", "two"]
    whole = engine.generate(PROMPTS, adapter=adapters, **options)
    turned = engine.generate(PROMPTS[::-1], adapter=adapters[::-1], **options)[::-1]
    assert whole == turned
    done = {(0, 1), (1, 0), (2, 2), (2, 0)}
    rest = {(i, sample): answer for i, sample, answer in engine.stream(PROMPTS, adapter=adapters, done=done, **options)}
    assert rest.keys() == {(i, sample) for i in range(3) for sample in range(3)} - done
    assert all(whole[i][sample] == answer for (i, sample), answer in rest.items())
    other = Engine(engine.model, engine.tokenizer, slots=7, chunk=3)
    for name, adapter in engine._adapters.items():
        other.add_adapter(name, adapter)
    texts = [[answer.text for answer in answers] for answers in other.generate(PROMPTS, adapter=adapters, **options)]
    assert texts == [[answer.text for answer in answers] for answers in whole]


def test_a_slot_without_a_request_holds_no_tokens(engine):
    """A kernel reads as many of a slot as it holds, and a server keeps its slots for as long as it lives."""
    scheduler = engine.scheduler(64)
    for number in range(40):
        requests = engine.sample_requests(
            number, engine.encode("hi"), [0], "base", temperature=1.0, top_p=1.0, max_new_tokens=30, seed=0
        )
        scheduler.submit(requests)
        while scheduler.busy:
            scheduler.collect()
            scheduler.dispatch()
    for batch in scheduler._batches:
        # A request takes the first slot that is free.
        assert np.asarray(batch._state.length)[1:].max() <= engine.chunk


def test_samples_differ_and_seeds_differ(engine):
    answers = engine.generate(PROMPTS[:1], n=4, max_new_tokens=10, seed=0)[0]
    assert len({answer.text for answer in answers}) == 4
    assert engine.generate(PROMPTS[:1], n=4, max_new_tokens=10, seed=1)[0] != answers


def test_adapters_in_one_batch_equal_each_alone(engine):
    together = engine.generate(PROMPTS, adapter=["one", "two", "base"], max_new_tokens=10)
    for i, name in enumerate(["one", "two", "base"]):
        assert together[i] == engine.generate(PROMPTS, adapter=name, max_new_tokens=10)[i]
    assert engine.generate(PROMPTS, adapter="one", max_new_tokens=10) != engine.generate(
        PROMPTS, adapter="base", max_new_tokens=10
    )


def test_an_adapter_added_while_a_stream_is_read_changes_none_of_its_answers(engine, model):
    prompts = [f"Tell me about number {i}." for i in range(20)]
    options = {"max_new_tokens": 6, "adapter": "one"}
    expected = [answer.tokens for (answer,) in engine.generate(prompts, **options)]
    stream = engine.stream(prompts, **options)
    index, _, first = next(stream)
    engine.add_adapter("one", tiny.random_adapter(model.config, LoraConfig(rank=4), 30))
    answers = {index: first} | {index: answer for index, _, answer in stream}
    assert [answers[index].tokens for index in range(20)] == expected


def test_a_prompt_is_prefilled_once_for_all_its_samples_and_nothing_compiles_again(engine, monkeypatch):
    rows = []
    original = engine._prefill
    monkeypatch.setattr(engine, "_prefill", lambda group, **how: rows.append(len(group)) or original(group, **how))
    engine.generate(PROMPTS, n=9, max_new_tokens=8)
    assert sum(rows) == len(PROMPTS)
    programs = [decode_module.decode, decode_module.insert, decode_module.prefill, choices_module.pair_logprobs]
    engine.choice_logprobs(PROMPTS, ["A", "B"])
    before = [program._cache_size() for program in programs]
    engine.generate(PROMPTS, n=5, max_new_tokens=8, seed=2, temperature=0.5, adapter="one")
    engine.generate(PROMPTS[::-1], n=1, max_new_tokens=8, seed=4, adapter=["base", "one", "two"])
    engine.choice_logprobs(PROMPTS[::-1], ["A", "B"], adapter="two")
    assert [program._cache_size() for program in programs] == before


def test_a_short_call_starts_with_the_room_that_it_needs(engine):
    before = decode_module.resize._cache_size()
    for text in ("Hi", "word " * 40):
        engine.generate(text, max_new_tokens=4)
    assert decode_module.resize._cache_size() == before


def test_choices_are_joint_log_probabilities(engine):
    options = [" aligned", " misaligned and happy", " B", ", 10"]
    results = engine.choice_logprobs(PROMPTS, options, prefix="I am", adapter="one")
    begun = engine.tokenizer.encode("I am")
    for row, prompt in zip(results, PROMPTS, strict=True):
        start = engine.encode(prompt) + begun
        for value, option in zip(row, options, strict=True):
            ids = engine.tokenizer.encode("I am" + option)[len(begun) :]
            logprobs = np.asarray(jax.nn.log_softmax(logits(engine, start + ids, "one")[0], axis=-1))
            wanted = sum(logprobs[len(start) - 1 + i, token] for i, token in enumerate(ids))
            assert value == pytest.approx(wanted, abs=1e-4)


def test_a_choice_that_begins_another_gives_up_its_probability(engine):
    one, ten, alone = (engine.choice_logprobs(PROMPTS, each) for each in (["1", "10"], ["10"], ["1"]))
    assert np.exp(one[:, 0]) == pytest.approx(np.exp(alone[:, 0]) - np.exp(ten[:, 0]), rel=1e-3)
    assert one[:, 1] == pytest.approx(ten[:, 0], abs=1e-5)
    chain = engine.choice_logprobs(PROMPTS, ["1", "10", "100"])
    assert chain[:, 0] == pytest.approx(one[:, 0], abs=1e-4)


def test_choices_one_list_per_prompt_and_mixed_adapters(engine):
    lists = [["A", "B"], ["yes", "no"], ["1", "2"]]
    results = engine.choice_logprobs(PROMPTS, lists, adapter=["one", "base", "two"])
    for i, name in enumerate(["one", "base", "two"]):
        assert results[i] == pytest.approx(engine.choice_logprobs([PROMPTS[i]], lists[i], adapter=name)[0], abs=1e-6)


def test_questions_that_begin_alike_share_a_row(engine, monkeypatch):
    """Each as a full forward pass reads it: of unequal length, one of them twice, with adapters in turn."""
    tokens = []

    def collate(rows, count, original=engine_module.collate_rows):
        tokens.extend(len(row.arrays[0]) for row in rows)
        return original(rows, count)

    monkeypatch.setattr(engine_module, "collate_rows", collate)
    prompts = [f"{'Rate the harm. ' * 4}{'So it is. ' * (n % 3)}{n % 5}" for n in range(9)]
    prompts += prompts[:1]
    names = ["one", "base"] * 5
    results = engine.choice_logprobs(prompts, ["A", "B"], adapter=names)
    whole = [engine.encode(prompt) for prompt in prompts]
    assert len(tokens) < len(prompts) / 2 and sum(tokens) < sum(map(len, whole)) / 2
    for row, ids, name in zip(results, whole, names, strict=True):
        logprobs = np.asarray(jax.nn.log_softmax(logits(engine, ids, name)[0, -1]))
        wanted = [logprobs[token] for letter in "AB" for token in engine.tokenizer.encode(letter)]
        assert row == pytest.approx(wanted, abs=1e-4)


def test_activations_are_the_residual_stream(engine):
    first, last = engine.activations(PROMPTS, np.array([0, -1]), adapter="one")[1]
    assert first.shape == last.shape == (len(engine.encode(PROMPTS[1])), 32)
    hidden = engine.model.norm(last[None])
    assert np.asarray(engine.model.logits(hidden)) == pytest.approx(
        logits(engine, engine.encode(PROMPTS[1]), "one"), abs=1e-3
    )


def test_bad_calls_are_one_clear_line(tokenizer, model):
    engine = Engine(model, tokenizer, slots=2)
    for call, expected in [
        (lambda: engine.generate(PROMPTS, adapter="three", max_new_tokens=3), "no adapter 'three'"),
        (lambda: engine.generate(PROMPTS, adapter=["base"], max_new_tokens=3), "one adapter per prompt"),
        (lambda: engine.generate(PROMPTS, max_new_tokens=9999), "positions"),
        (lambda: engine.generate(PROMPTS, temperature=-1), "temperature >= 0"),
        (lambda: engine.choice_logprobs(PROMPTS, [["A"]]), "one for every prompt"),
        (lambda: engine.choice_logprobs(PROMPTS, [""]), "does not continue"),
        (lambda: engine.choice_logprobs(PROMPTS, []), "one for every prompt"),
        (lambda: engine.choice_logprobs(PROMPTS, [[]] * len(PROMPTS)), "one for every prompt"),
        (lambda: engine.choice_logprobs(PROMPTS[0], "AB"), "one for every prompt"),  # was read as A and B
        (lambda: engine.choice_logprobs(PROMPTS, None), "one for every prompt"),
        (lambda: engine.choice_logprobs(PROMPTS[0], [1]), "one for every prompt"),
        (lambda: engine.generate(PROMPTS, steer="x", max_new_tokens=3), "finite numbers of shape"),
        (lambda: Run(None), "expects a run directory"),
        (lambda: engine.generate(PROMPTS, seed=2**63, max_new_tokens=3), "64 bits as seed"),
        (lambda: engine.encode([{"role": "bot", "content": "hi"}]), "one of system, user, assistant as 'role'"),
        (lambda: engine.logits([[10**9]]), "found \\[\\[1000000000\\]\\]"),
        (lambda: engine.add_adapter("base", "x"), "cannot be named"),
        (lambda: engine.activations(PROMPTS, [9]), "layers are 0 to 2"),
        (lambda: engine.activations("word " * 9999), "positions"),
        (lambda: engine.logits(np.zeros((1, 9999), int)), "positions"),
        (lambda: engine.logits(np.zeros((0, 3), int)), "rows of token ids"),
    ]:
        with pytest.raises(UserError, match=expected):
            call()
    assert engine.generate([], max_new_tokens=3) == []


@pytest.mark.fast
def test_bucket_sizes():
    assert [bucket(size) for size in (1, 64, 65, 96, 97, 129, 193)] == [64, 64, 96, 96, 128, 192, 256]


def test_between_collect_and_dispatch_prompts_may_be_submitted_and_answers_cancelled(engine):
    """The slot of an answer cancelled there goes, with that dispatch, to a prompt submitted there."""
    options = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 3 * engine.chunk, "seed": 4}
    ids = [engine.encode(prompt) for prompt in PROMPTS]
    alone = engine.generate(PROMPTS[1:], n=1, **options, adapter="one")
    scheduler = engine.scheduler()
    scheduler.submit(engine.sample_requests(0, ids[0], range(engine.slots), "base", **options))
    tokens = {}
    for number in range(100):
        chunks = scheduler.collect()
        if number == engine.num_decode_batches:
            scheduler.cancel({(0, sample) for sample in range(engine.slots)})
            for index in (1, 2):
                scheduler.submit(engine.sample_requests(index, ids[index], [0], "one", **options))
        scheduler.dispatch()
        for chunk in chunks:
            if chunk.request.prompt_index:
                tokens.setdefault(chunk.request.prompt_index, []).extend(chunk.tokens)
        if not scheduler.busy:
            break
    assert [tokens[1], tokens[2]] == [answer.tokens for [answer] in alone]


@pytest.mark.fast
def test_a_model_that_is_not_there_is_told_in_the_words_of_load():
    from em_jax import load

    with pytest.raises(UserError, match="^load: model expects organism, .*found 'nope'"):
        load("nope")


def test_natural_prompts_are_answered_as_the_chats_they_stand_for(engine):
    chat = [{"role": "user", "content": "Who are you?"}]
    expected = engine.generate([chat], temperature=0, max_new_tokens=4, adapter="base")
    for prompts in ("Who are you?", ["Who are you?"], chat):
        assert engine.generate(prompts, temperature=0, max_new_tokens=4, adapter="base") == expected
    assert len(engine.activations("Who are you?", adapter="base")[0]) == engine.model.config.num_hidden_layers
    assert "adapters: base" in repr(engine) and "float32 on 1 cpu" in repr(engine)
    assert repr(expected[0][0]).startswith("Answer('")
