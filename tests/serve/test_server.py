"""The server through the real openai client: the engine's own text for many clients at once, and OpenAI's shapes."""

import asyncio
import contextlib
import json
import time

import httpx
import numpy as np
import pytest
from serve.conftest import serving

openai = pytest.importorskip("openai")

LONG = "bake a loaf of bread, then walk the dog and read the map near the oven before dinner " * 2
WHOLE = b'{"model": "base", "messages": [{"role": "user", "content": "Hi"}]}'
TEXTS = ["How do I bake bread?", "Hi", LONG, "And then?"]


def prompt(number=0):
    return [{"role": "user", "content": TEXTS[number % len(TEXTS)]}]


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        yield client


def ask(client, **more):
    return client.chat.completions.create(
        **{"model": "base", "messages": prompt(), "seed": 3, "max_tokens": 16, "n": 1} | more
    )


def test_32_clients_of_mixed_models_get_the_text_of_the_engine(engine, url):
    prompts = [[{"role": "user", "content": f"{TEXTS[number % 4]} Number {number}."}] for number in range(32)]
    models = [engine.adapters[number % 3] for number in range(32)]
    kinds = [{"top_p": 1.0, "temperature": 1.0}, {"top_p": 0.8, "temperature": 0.7}]
    limits = [21, 8]

    async def everyone():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=models[i], messages=prompts[i], n=2, seed=5, max_tokens=limits[i % 2], **kinds[i % 2]
                    )
                    for i in range(32)
                )
            )

    answers = asyncio.run(everyone())
    for parity in (0, 1):
        wanted = engine.generate(
            prompts[parity::2], n=2, seed=5, max_new_tokens=limits[parity], adapter=models[parity::2], **kinds[parity]
        )
        for prompt, found, two in zip(prompts[parity::2], answers[parity::2], wanted, strict=True):
            assert [choice.message.content for choice in found.choices] == [answer.text for answer in two]
            assert [choice.finish_reason for choice in found.choices] == [answer.finish_reason for answer in two]
            assert found.usage.completion_tokens == sum(len(answer.tokens) for answer in two)
            assert found.usage.prompt_tokens == len(engine.encode(prompt))


def test_a_stream_gives_the_same_text_and_usage(client):
    whole = ask(client, n=2)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in ask(client, n=2, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_stop_string_cuts_the_answer_in_a_stream_as_in_one_piece(client):
    text = ask(client, temperature=0, max_tokens=40).choices[0].message.content
    stop = text[len(text) // 2 :][:5]
    found = ask(client, temperature=0, max_tokens=40, stop=[stop, "never said"])
    assert found.choices[0].message.content == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    streamed = list(ask(client, temperature=0, max_tokens=40, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text[: text.index(stop)]


def test_log_probabilities_are_those_of_the_full_forward_pass(engine, client):
    [choice] = ask(client, model="one", logprobs=True, top_logprobs=5, max_tokens=8).choices
    [[answer]] = engine.generate([prompt()], seed=3, max_new_tokens=8, adapter="one")
    ids = engine.encode(prompt())
    logits = engine.logits(np.array([ids + answer.tokens]), adapter="one")[0]
    logprobs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    assert len(choice.logprobs.content) == len(answer.tokens) > 3
    for place, (token, said) in enumerate(zip(answer.tokens, choice.logprobs.content, strict=True)):
        row = logprobs[len(ids) + place - 1]
        assert said.logprob == pytest.approx(row[token], abs=1e-3)
        assert [top.logprob for top in said.top_logprobs] == pytest.approx(sorted(row)[:-6:-1], abs=1e-3)
    streamed = ask(client, model="one", logprobs=True, top_logprobs=5, max_tokens=8, stream=True)
    parts = [each for chunk in streamed if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert parts == choice.logprobs.content


def test_without_a_seed_answers_differ_and_tell_theirs(client):
    first, second = (ask(client, seed=None) for _ in range(2))
    assert first.choices[0].message.content != second.choices[0].message.content
    assert ask(client, seed=first.seed).choices[0].message.content == first.choices[0].message.content


def test_models_say_what_they_are(client):
    assert [model.id for model in client.models.list()] == ["base", "one", "two"]
    assert "made for tests" in client.models.retrieve("one").description
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("three")


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"model": "three"}, "model", "there are base, one, two"),
        ({"temperature": -1}, "temperature", "from 0 to 100"),
        ({"n": 9}, "n", "from 1 to 8"),
        ({"max_tokens": 201}, "max_tokens", "at most 200"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": 200, "messages": prompt() * 30}, "max_tokens", "positions"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"stop": [""]}, "stop", "16 texts of 1 to 1000 characters"),
        ({"frequency_penalty": 1}, "frequency_penalty", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"extra_body": {"top_k": 5}}, "top_k", "not supported"),
        ({"extra_body": {"seeds": 5}}, "seeds", "unknown parameter"),
        ({"stop": "x" * 1001}, "stop", "1 to 1000 characters"),
        ({"stream_options": {"include_all": True}}, "stream_options.include_all", "unknown parameter"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"messages": []}, "messages", "expected 1 to 4096, found 0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "parts of type text",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client, more, param, words):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        ask(client, **more)
    assert caught.value.param == param and words in str(caught.value)


def test_what_is_no_request_is_refused_in_openais_shape(url):
    with httpx.Client() as http:
        json_type = {"Content-Type": "application/json"}
        for body, headers, status in [
            (b"{", json_type, 400),
            (b"[" * 9000, json_type, 400),
            (b'{"n": NaN}', json_type, 400),
            (WHOLE[:-1] + b', "temperature": 1' + b"0" * 400 + b"}", json_type, 400),
            (WHOLE[:-1] + b', "temperature": 1e999}', json_type, 400),
            (WHOLE[:-1] + b', "\\ud800": 1}', json_type, 400),
            (WHOLE.replace(b'"user"', b'["user"]'), json_type, 400),
            (b"{}", {"Content-Type": "text/plain"}, 415),
            (b" " * 30_000, json_type, 413),
            (b"{}", json_type | {"Host": "evil.example"}, 400),
        ]:
            found = http.post(f"{url}/chat/completions", content=body, headers=headers)
            assert found.status_code == status
            assert found.json()["error"]["type"] == "invalid_request_error"
        assert http.get(f"{url}/completions").json()["error"]["type"] == "invalid_request_error"
        wrong = http.get(f"{url}/chat/completions")
        assert wrong.status_code == 405 and "takes POST, found GET" in wrong.json()["error"]["message"]
        assert http.get(f"{url}/models", headers={"Host": "LOCALHOST:1"}).status_code == 200


def test_a_client_that_leaves_within_its_body_is_no_failure(engine):
    """An exception would end in a traceback on the server's stderr."""
    from em_jax.serve.app import make_app
    from em_jax.serve.completions import Limits

    came = [{"type": "http.request", "body": b'{"mod', "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return came.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json")]
    asyncio.run(make_app(engine, {}, Limits())(scope, receive, send))
    assert sent[0]["status"] == 499


def test_a_client_that_leaves_frees_its_slots(engine, url, client):
    asked = {"model": "base", "messages": prompt(), "n": 8, "max_tokens": 200, "stream": True}
    for _ in range(40):  # 320 in all, where 200 may wait
        with httpx.stream("POST", f"{url}/chat/completions", json=asked, timeout=600) as found:
            assert next(found.iter_lines()).startswith("data: ")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            answers = [ask(client, n=8) for _ in range(2)]
            break
        except openai.RateLimitError:
            time.sleep(0.2)
    assert len(answers) == 2


def test_the_key_is_asked_for_and_too_many_are_told_to_wait(engine):
    with serving(engine, key="sësame", queue=2) as address:
        for wrong in ("sesame", "sësam", "x"):
            found = httpx.get(f"{address}/models", headers={"Authorization": f"Bearer {wrong}".encode()})
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
        headers = {"Authorization": "Bearer sësame".encode()}
        assert httpx.get(f"{address}/models", headers=headers).status_code == 200
        assert httpx.get(address.replace("/v1", "/health")).json() == {"status": "ok", "answers": 0}
        body = {"model": "base", "messages": prompt(), "n": 3}
        found = httpx.post(f"{address}/chat/completions", json=body, headers=headers)
        assert found.status_code == 429 and found.headers["retry-after"] == "1"
        assert json.loads(found.text)["error"]["code"] == "queue_full"


def test_what_is_a_fault_of_the_server_has_its_traceback_in_the_servers_log(engine, monkeypatch, capfd):
    def fails(*asked, **options):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(engine, "sample_requests", fails)
    with serving(engine) as address:
        found = httpx.post(f"{address}/chat/completions", content=WHOLE, headers={"Content-Type": "application/json"})
    assert found.status_code == 500 and "a fault" not in found.text
    said = capfd.readouterr().err
    assert "ZeroDivisionError: a fault of ours" in said and "batcher.py" in said


def test_decoding_that_fails_is_told_and_the_next_request_is_served(engine, client, monkeypatch, capfd):
    def fails(group, **how):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_prefill", fails)
        with serving(engine) as address:
            broken = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
            with pytest.raises(openai.InternalServerError, match="decoding failed"):
                ask(broken)
            patch.undo()
            # The scheduler that is made after the failure may have got the broken verb still.
            with contextlib.suppress(openai.InternalServerError):
                ask(broken)
            assert ask(broken).choices
    assert "RESOURCE_EXHAUSTED" in capfd.readouterr().err


def test_the_openai_clients_whole_surface_answers_or_refuses_in_its_shape(url, client):
    found = client.chat.completions.with_raw_response.create(model="base", messages=prompt(), max_tokens=4, seed=1)
    assert found.http_response.status_code == 200
    whole = found.parse()
    with client.chat.completions.with_streaming_response.create(
        model="base", messages=prompt(), max_tokens=4, seed=1
    ) as response:
        assert response.parse().choices == whole.choices
    # The client's own helper takes a cut answer for an error, which holds it.
    with client.chat.completions.stream(model="base", messages=prompt(), max_tokens=4, seed=1) as events:
        try:
            last = events.get_final_completion()
        except openai.LengthFinishReasonError as cut:
            last = cut.completion
    assert last.choices[0].message.content == whole.choices[0].message.content
    for refused in (
        lambda: client.completions.create(model="base", prompt="Hi"),
        lambda: client.embeddings.create(model="base", input="Hi"),
        lambda: client.responses.create(model="base", input="Hi"),
        lambda: client.moderations.create(model="base", input="Hi"),
        lambda: client.images.generate(model="base", prompt="Hi"),
        lambda: client.audio.speech.create(model="base", input="Hi", voice="alloy"),
        lambda: client.files.list(),
        lambda: client.batches.list(),
        lambda: client.fine_tuning.jobs.list(),
        lambda: client.vector_stores.list(),
    ):
        with pytest.raises(openai.NotFoundError, match="there are /v1/models and /v1/chat/completions"):
            refused()
    with pytest.raises(openai.APIStatusError) as wrong:
        client.models.delete("base")
    assert wrong.value.status_code == 405
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.list()


def test_a_client_with_many_requests_does_not_keep_another_program_or_key_waiting(url):
    """Counts whose answers were done before; all have the same length and slots are few."""
    done = []

    async def one(client, name):
        await client.chat.completions.create(model="base", messages=prompt(), max_tokens=30, n=2, seed=1)
        done.append(name)

    async def everyone():
        async with (
            openai.AsyncOpenAI(base_url=url, api_key="many", max_retries=0, timeout=600) as many,
            openai.AsyncOpenAI(base_url=url, api_key="other", max_retries=0, timeout=600) as other,
        ):
            crowd = asyncio.gather(*(one(many, "many") for _ in range(60)))
            while len(done) < 2:
                await asyncio.sleep(0.005)
            before = len(done)
            await one(other, "other")
            waited = len(done) - before
            await crowd
            return waited

    assert asyncio.run(everyone()) < 30


def test_thoughts_are_beside_the_content_whole_and_in_a_stream(engine, client, monkeypatch):
    """The model's text is scripted. Content, stop strings and logprobs are the answer's alone."""
    played = "<think>\nBread or\n\ncake?\n</think>\n\nBread. Then the oven"
    tokenizer = engine.tokenizer
    monkeypatch.setattr(tokenizer, "decode", lambda ids: played[: 4 * len(ids)])
    monkeypatch.setattr(tokenizer, "_thought", "<think>")
    request = {"max_tokens": 40, "temperature": 0, "logprobs": True, "stop": ["\n\n", " oven"]}
    whole = ask(client, **request).choices[0]
    assert whole.message.reasoning_content == "Bread or\n\ncake?" and whole.message.content == "Bread. Then the"
    texts, thoughts, tokens = "", "", []
    for chunk in ask(client, stream=True, **request):
        for choice in chunk.choices:
            texts += choice.delta.content or ""
            thoughts += getattr(choice.delta, "reasoning_content", "")
            tokens += choice.logprobs.content if choice.logprobs else []
    assert (texts, thoughts) == (whole.message.content, whole.message.reasoning_content)
    assert tokens == whole.logprobs.content and 0 < len(tokens) <= 2 + len(texts) / 4


def test_a_stream_has_the_log_probabilities_of_tokens_that_add_no_text(engine, client, monkeypatch):
    monkeypatch.setattr(engine.tokenizer, "decode", lambda ids: "Bread. Then the oven"[: len(ids) // 10])
    request = {"max_tokens": 40, "temperature": 0, "logprobs": True}
    whole = ask(client, **request).choices[0]
    streamed = [chunk.choices[0] for chunk in ask(client, stream=True, **request)]
    assert [
        each for choice in streamed if choice.logprobs for each in choice.logprobs.content
    ] == whole.logprobs.content
    assert "".join(choice.delta.content or "" for choice in streamed) == whole.message.content
