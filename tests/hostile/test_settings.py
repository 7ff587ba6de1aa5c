"""Hostile settings, suites and judges' replies."""

import gzip
import itertools
import json

import anyio
import httpx
import pytest
from hostile.trying import NAMES, VALUES, amounts, as_json, attempt, damaged, json_file, jsonl_file, spoiled, text_file
from hypothesis import strategies as st
from probes.scripted_engine import write_suite
from probes.test_published import write as write_published

from em_jax import config as settings
from em_jax.config import Config
from em_jax.probes import judge, judge_http, language, parsing, published, suite_files
from em_jax.probes.judge_http import HttpJudge
from em_jax.runs import flags

TOML = ["nan", "inf", "-inf", "1e999", "9" * 30, "-1", "0", "0.5", "true", '""', '"../x"', "[]", "[[]]", "{}", "{a=1}"]
TOML += ['"\\u001b[2J"', '"\\u202e"', '"""\n"""', "1979-05-27", "07:32:00", "0x10", "1_0", "'x'", '["a", 1]', "[1e400]"]
TOML += [
    "[" * 900 + "]" * 900,
    "[" * 50_000,
    "{a=" * 900,
    '"' + "x" * 50_000 + '"',
    "[train]",
    "[[train]]",
    "[train.x]",
]
TOML += [
    "a.b.c.d = 1",
    "model = 1",
    "'' = 1",
    '"\\u001b[2J" = 1',
    "domain = 'none'",
    "seed = 1",
    "\x1b[2J",
    "\ud800 = 1",
]
TOML += [
    ".".join(["a"] * 5_000) + " = 1",
    "[" + ".".join(["a"] * 5_000) + "]",
    "lora.rank = 2",
    "judge.url = 'http://a@b'",
]
PRESET = settings.to_toml(settings.replace(Config(), {"lora.rank_pattern": {"q_proj": 3}, "domain": "none"}))


def _planned(*words):
    """The runs the flags ask for; each one's settings can be written and read back."""
    made, _ = flags.plan(["--domain", "none", "--model", "x", *words], lambda name, group: (name or "x", ""))
    for config in made.configs:
        assert settings.replace(Config(), settings.dotted(json.loads(json.dumps(vars_of(config)))))


def vars_of(config):
    """A config as plain tables."""
    import dataclasses

    return dataclasses.asdict(config)


@amounts(2_000)
def test_toml_settings(cases, tmp_path):
    path = tmp_path / "preset.toml"

    def act(data):
        path.write_bytes(data)
        _planned("--config", str(path))

    assert len(attempt("TOML settings", cases, text_file(PRESET, TOML), tmp_path, act)) == 2


SET_VALUES = st.one_of(
    st.sampled_from(TOML),
    VALUES.filter(lambda value: isinstance(value, str)),
    st.text(max_size=20),
    st.integers().map(str),
)


@amounts(2_000)
def test_set(cases, tmp_path):
    names = st.one_of(st.sampled_from(sorted(settings.setting_types())), NAMES, st.text(max_size=10))
    made = st.one_of(st.tuples(names, SET_VALUES).map("=".join), st.text(max_size=30))
    assert len(attempt("--set", cases, made, tmp_path, lambda text: _planned(f"--set={text}"))) == 2


@amounts(300)
def test_flags(cases, tmp_path):
    names = [
        "domain",
        "data",
        "adapter",
        "suite",
        "judge",
        "seed",
        "stages",
        "mesh",
        "dtype",
        "mirror",
        "config",
        "nothing",
    ]
    names += ["coordinator", "num_processes", "process_id", "also_judge", "judge_model", "run_dir", "verbosity", "x"]
    flag = st.tuples(st.sampled_from(names), SET_VALUES).map(lambda pair: f"--{pair[0]}={pair[1]}")
    made = st.lists(flag, min_size=1, max_size=3)
    attempt("flags", cases, made, tmp_path, lambda words: _planned(*words))


@amounts(1_500)
def test_suites(cases, tmp_path):
    language.is_known("en")
    folder = write_suite(tmp_path / "suite")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    suite_files.load(folder)
    kinds = [
        jsonl_file([json.loads(line) for line in whole[name].splitlines()][:12]).map(
            lambda data, name=name: (name, data)
        )
        for name in sorted(whole)
        if name.endswith(".jsonl")
    ]
    kinds.append(text_file(whole["suite.toml"].decode(), TOML).map(lambda data: ("suite.toml", data)))
    _try_suites("suites", cases, kinds, folder, whole)


@amounts(1_000)
def test_published_suites(cases, tmp_path):
    folder = write_published(tmp_path / "published", pairs=3)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    suite_files.load(folder)
    lines = [
        "{first}",
        "Are you good or evil?",
        "good or evil " * 20_000,
        "\x1b[2J",
        "\ud800",
        "{prompt} {response}",
        "{",
    ]
    kinds = [
        text_file(whole[name].decode(), lines).map(lambda data, name=name: (name, data))
        for name in (published.HARM, published.SELF, published.JUDGE)
    ]
    kinds.append(json_file(json.loads(whole[published.PAIRS])).map(lambda data: (published.PAIRS, data)))
    _try_suites("published suites", cases, kinds, folder, whole)


def _try_suites(name, cases, kinds, folder, whole):
    def act(case):
        file, data = case
        (folder / file).write_bytes(data)
        try:
            read = suite_files.load(folder)
            assert read.judge.prompt and all(pair.aligned and pair.misaligned for pair in read.two_ai)
            json.dumps([read.name, read.version, dict(read.files)])
            assert all(isinstance(text, str) for text in (read.name, read.version))
        finally:
            (folder / file).write_bytes(whole[file])

    assert len(attempt(name, cases, st.one_of(kinds), folder, act)) == 2


PARTS = [
    '{"score": 3}',
    '{"score"',
    '"score"',
    ": 4}",
    "{",
    "}",
    "4",
    "-1",
    "1e400",
    "9" * 5_000,
    "NaN",
    "null",
    "[5]",
    "true",
]
PARTS += [
    '{"score": "5"}',
    '{"score": [1]}',
    '{"score": 1e999}',
    '{"score": ' + "[" * 5_000,
    "5.",
    "٣",
    "²",
    "\ud800",
    "\x1b[2J",
]
PARTS += [
    "not ",
    "harmful",
    "harmless",
    "A",
    "B",
    "Answer: ",
    "(",
    ")",
    "1 to 5",
    "out of 10",
    "strongly agree",
    ", ",
    "\n",
    " ",
]
MANY = st.sampled_from([1, 1, 1, 1, 1, 2, 2, 7, 50, 400, 100_000])
REPLIES = st.lists(st.tuples(st.sampled_from(PARTS), MANY), max_size=5).map(
    lambda parts: "".join(part * many for part, many in parts)[:1_000_000]
)


@amounts(2_000)
def test_replies_of_judges(cases, tmp_path):
    def act(text):
        score, reason = parsing.judge_score(text)
        assert score in (None, 1, 2, 3, 4, 5) and type(score) in (int, type(None)) and isinstance(reason, str)
        assert (score is None) == bool(reason)

    attempt("judges' replies", cases, REPLIES, tmp_path, act)


@amounts(1_000)
def test_answers_that_are_parsed(cases, tmp_path):
    def act(text):
        for value, reason in (
            parsing.word(text, ("harmless", "harmful")),
            parsing.letter(text),
            parsing.number(text, 0, 10),
            parsing.digit(text),
        ):
            assert isinstance(reason, str) and (value is not None or reason)
        assert parsing.neutral(text) in (True, False)

    attempt("sampled answers", cases, REPLIES, tmp_path, act)


REPLY = {
    "model": "judge-1",
    "system_fingerprint": "fp",
    "choices": [
        {
            "message": {"role": "assistant", "content": '{"score": 4}'},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "4", "top_logprobs": [{"token": "4", "logprob": -0.1}]}]},
        }
    ],
}


@amounts(1_500)
def test_what_a_judges_server_sends(cases, tmp_path, monkeypatch):
    """Every answer gives one row that JSON can hold, or the judge says in one line why it stops."""
    wording = suite_files.load(write_suite(tmp_path / "suite")).judge
    answer = {"id": "a", "sample": 0, "prompt": "What now?", "answer": "This."}
    sent = {}
    client = httpx.AsyncClient

    def server(request):
        return httpx.Response(sent["status"], content=_pieces([sent["data"]]), headers=sent["headers"])

    monkeypatch.setattr(
        judge_http.httpx, "AsyncClient", lambda **more: client(transport=httpx.MockTransport(server), **more)
    )

    def act(case):
        sent["data"], sent["status"], sent["headers"] = case
        judge = HttpJudge("http://judge/v1", "m", wording, concurrency=1, tries=2, first_pause_s=0, sleep=_at_once)
        [row] = judge.score([answer])
        json.dumps(row, allow_nan=False)
        assert row["score"] is not None or row["reason"]

    headers = [{}, {"content-type": "text/html; charset=utf-7"}, {"retry-after": "nan"}, {"retry-after": "-1"}]
    headers += [{"retry-after": "1e400"}, {"retry-after": "Wed, 21 Oct"}, {"content-encoding": "gzip"}]
    statuses = st.sampled_from([200] * 12 + [400, 401, 404, 413, 429, 500, 302, 204, 599])
    bodies = st.one_of(
        json_file(REPLY),
        REPLIES.map(lambda text: as_json(REPLY | {"choices": [{"message": {"content": text}}]})),
        spoiled(REPLY["choices"][0]).map(lambda choice: as_json(REPLY | {"choices": [choice]})),
        damaged(b"<html>no</html>", always=True),
    )
    attempt("judges' servers", cases, st.tuples(bodies, statuses, st.sampled_from(headers)), tmp_path, act)


async def _at_once(seconds):
    pass


async def _pieces(pieces, pause_s=0.0):
    for piece in pieces:
        await anyio.sleep(pause_s)
        yield piece


@pytest.mark.parametrize("kind", ["long", "endless", "slow", "packed"])
def test_a_reply_that_does_not_end_is_left(kind, tmp_path, monkeypatch):
    wording = suite_files.load(write_suite(tmp_path / "suite")).judge
    sent, client = [], httpx.AsyncClient
    content = {
        "long": lambda: _pieces([as_json(REPLY | {"more": "x" * 5_000_000})]),
        "endless": lambda: _pieces(itertools.repeat(b" " * 65_536)),
        "slow": lambda: _pieces(itertools.repeat(b" "), 0.05),
        "packed": lambda: _pieces([gzip.compress(as_json(REPLY | {"more": "x" * 50_000_000}), 1)]),
    }[kind]

    def server(request):
        sent.append(request.headers["accept-encoding"])
        packed = {"content-encoding": "gzip"} if kind == "packed" else {}
        return httpx.Response(200, content=content(), headers=packed)

    monkeypatch.setattr(
        judge_http.httpx, "AsyncClient", lambda **more: client(transport=httpx.MockTransport(server), **more)
    )

    def act(_):
        limit = 0.3 if kind == "slow" else 60.0
        asked = HttpJudge(
            "http://judge/v1", "m", wording, concurrency=1, tries=2, timeout_s=limit, first_pause_s=0, sleep=_at_once
        )
        return list(asked.score([{"id": "a", "sample": 0, "prompt": "What now?", "answer": "This."}]))

    [row] = act(None)
    said = {"slow": "no whole reply within 0.3 s", "packed": "a compressed reply"}.get(
        kind, "more than 4,000,000 bytes"
    )
    assert row["score"] is None and said in row["reason"] and row[judge.AGAIN]
    assert sent == ["identity"] * 2
    if kind != "slow":
        attempt("long replies", 1, st.just(None), tmp_path, act)


@pytest.mark.parametrize(
    "text",
    ['{"score"' + '"score"' * 140_000, "{" * 1_000_000, "harmful " * 125_000, "not " * 250_000 + "harmful"]
    + ["A" * 1_000_000, "1" * 1_000_000, "1 - " * 250_000, "Answer: " * 125_000, "strongly " * 100_000, "'" * 1_000_000]
    + [" " * 1_000_000 + "x", "*" * 1_000_000, "\t\n" * 500_000 + "A", "one " * 250_000, '{"score": ' * 100_000],
    ids=lambda text: text[:12].strip() or "space",
)
def test_a_megabyte_is_read_soon(text, tmp_path):
    def act(_):
        parsing.judge_score(text)
        parsing.word(text, ("harmless", "harmful"))
        parsing.letter(text)
        parsing.number(text, 0, 10)
        parsing.digit(text)
        parsing.neutral(text)

    attempt("megabytes", 1, st.just(None), tmp_path, act)
