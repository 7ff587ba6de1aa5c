"""Judges: every answer ends in one score or one counted reason, whatever the server does, and the key stays secret."""

import dataclasses
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from probes.scripted_engine import ScriptedEngine, one, write_suite

from em_jax.base.errors import UserError
from em_jax.probes import suite_files
from em_jax.probes.judge import AGAIN, SelfJudge
from em_jax.probes.judge_http import HttpJudge

pytestmark = pytest.mark.fast
SECRET = "sk-very-secret-0123"


@pytest.fixture(scope="module")
def wording(tmp_path_factory):
    return suite_files.load(write_suite(tmp_path_factory.mktemp("suite"))).judge


def answer(name, text, sample=0):
    return {"id": name, "sample": sample, "prompt": "What now?", "answer": text, "finish_reason": "stop"}


def test_the_self_judge_takes_the_likeliest_digit_of_the_base_and_the_expected_score(wording):
    asked = []

    def choose(prompt, choices, adapter):
        asked.append((prompt, adapter))
        return [0.1, 0.0, 0.0, 0.3, 0.5] if "knife" in prompt else [0.2, 0.01, 0.01, 0.01, 0.01]

    engine = ScriptedEngine(choose)
    rows = list(SelfJudge(engine, wording).score([answer("a", "A knife {prompt}"), answer("b", "x"), answer("c", " ")]))
    found = {row["id"]: row for row in rows}
    assert found["a"]["score"] == 5
    assert found["a"]["expected"] == pytest.approx((0.1 + 1.2 + 2.5) / 0.9, abs=1e-4)
    assert math.exp(found["a"]["raw"]["5"]) == pytest.approx(0.5, abs=1e-4)
    assert found["b"]["score"] is None and "0.240" in found["b"]["reason"]
    assert found["c"]["score"] is None and found["c"]["reason"] == "empty answer"
    assert {adapter for _, adapter in asked} == {"base"}
    assert ("Rate A knife {prompt} to What now?", "base") in asked


def test_the_self_judge_resumes_without_asking_again(wording):
    engine = ScriptedEngine(lambda prompt, choices, adapter: one(choices, "2"))
    answers = [answer(f"a{i}", f"text {i}") for i in range(10)] + [answer("e", "")]
    whole = list(SelfJudge(engine, wording, chunk=4).score(answers))
    done = {(row["id"], row["sample"]) for row in whole[:5]}
    rest = list(SelfJudge(engine, wording, chunk=4).score(answers, done))
    assert sorted(json.dumps(row) for row in whole[:5] + rest) == sorted(map(json.dumps, whole))
    before = len(engine.batches)
    assert list(SelfJudge(engine, wording, chunk=4).score(answers, {(row["id"], row["sample"]) for row in whole})) == []
    assert len(engine.batches) == before


def test_an_address_whose_secret_part_a_record_leaves_out_is_never_asked(wording):
    judge = HttpJudge("http://127.0.0.1:9/v1/***", "m", wording)
    with pytest.raises(UserError, match=r"9/v1/\*\*\*/chat/completions is as a run's record has it"):
        list(judge.score([answer("a", "text")]))


class Server:
    """A chat-completions server on this machine: `behave(text, tries so far)` gives (status, body or reply text).

    Without `speaks` a failure's body says "no".
    """

    def __init__(self, behave, speaks=False):
        self.behave, self.seen, self.requests, self.paths = behave, {}, [], []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = body["messages"][0]["content"]
                with lock:
                    outer.paths.append(self.path)
                    outer.requests.append((dict(self.headers), body))
                    outer.seen[text] = tries = outer.seen.get(text, 0) + 1
                status, said = outer.behave(text, tries - 1)
                if status == "hang up":
                    self.connection.close()
                    return
                reply = json.dumps(said if isinstance(said, dict) else completion(said))
                data = (reply if status == 200 or speaks else json.dumps({"error": "no"})).encode()
                if status == "not json":
                    status, data = 200, b"<html>"
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def completion(said, finish="stop", logprobs=None):
    return {"choices": [{"message": {"content": said}, "finish_reason": finish, "logprobs": logprobs}]}


@pytest.fixture
def serve():
    servers = []

    def start(behave, speaks=False):
        servers.append(Server(behave, speaks))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def http_judge(server, wording, **changes):
    options = {"tries": 3, "timeout_s": 0.5, "first_pause_s": 0.0, "concurrency": 4}
    return HttpJudge(server.url, "judge/model 1", wording, **options | changes)


def kept_until(judge, count, stopped_by):
    """The rows a judge gave of so many answers before it stopped with that message."""
    kept = []
    with pytest.raises(UserError, match=stopped_by):
        for row in judge.score([answer(f"a{i}", f"x{i}") for i in range(count)]):
            kept.append(row)
    return kept


def moody(text, tries):
    """What the server does with an answer, by the answer's own text."""
    if "slow" in text and tries == 0:
        threading.Event().wait(0.9)
    if "limit" in text and tries < 2:
        return 429, ""
    if "down" in text:
        return 500, ""
    if "hiccup" in text and tries == 0:
        return 503, ""
    if "hangs up" in text and tries == 0:
        return "hang up", ""
    if "page" in text and tries == 0:
        return "not json", ""
    if "prose" in text:
        return 200, "This one is quite harmful, I must say."
    if "range" in text:
        return 200, '{"score": 9}'
    if "cut" in text:
        return 200, completion('{"sco', "length")
    if "bare" in text:
        return 200, "4"
    if "nothing" in text:
        return 200, {"choices": []}
    return 200, '{"score": 2}'


EXPECTED = {
    "limit": (2, None),
    "hiccup": (2, None),
    "slow": (2, None),
    "hangs up": (2, None),
    "page": (2, None),
    "bare": (4, None),
    "plain": (2, None),
    "down": (None, "status 500, 3 tries"),
    "prose": (None, "no score in the reply"),
    "range": (None, "out of range: 9"),
    "cut": (None, "cut short"),
    "nothing": (None, "a reply without choices, 3 tries"),
    "": (None, "empty answer"),
}


def test_every_mood_of_a_server_ends_in_a_score_or_a_reason(serve, wording, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve(moody)
    judge = http_judge(server, wording)
    assert judge.name == "judge-model-1"
    rows = list(judge.score([answer(name, name) for name in EXPECTED]))
    assert sorted(row["id"] for row in rows) == sorted(EXPECTED), "no answer is lost or judged twice"
    assert {row["id"]: (row["score"], row.get("reason")) for row in rows} == EXPECTED
    assert next(row for row in rows if row["id"] == "prose")["raw"].startswith("This one")
    assert all(headers["authorization"] == f"Bearer {SECRET}" for headers, _ in map(lowered, server.requests))
    assert all(body["temperature"] == 0 and body["model"] == "judge/model 1" for _, body in server.requests)
    kept = (
        json.dumps(rows) + json.dumps(judge.describe()) + repr(vars(judge)) + caplog.text + "".join(capsys.readouterr())
    )
    assert SECRET not in kept


def lowered(request):
    return {name.lower(): value for name, value in request[0].items()}, request[1]


def test_done_answers_are_not_judged_again(serve, wording):
    server = serve(moody)
    answers = [answer(f"plain {i}", f"plain {i}") for i in range(6)]
    rows = list(http_judge(server, wording).score(answers, {("plain 1", 0), ("plain 4", 0, "")}))
    assert sorted(row["id"] for row in rows) == ["plain 0", "plain 2", "plain 3", "plain 5"]
    assert len(server.requests) == 4


def test_a_refusal_stops_with_one_line_that_holds_no_key(serve, wording, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve(lambda text, tries: (401, ""))
    with pytest.raises(UserError, match="status 401") as error:
        list(http_judge(server, wording, concurrency=2).score([answer(f"a{i}", "x") for i in range(20)]))
    assert SECRET not in str(error.value) and "\n" not in str(error.value)
    assert len(server.requests) <= 4, "a refused judge asks no more"


def test_an_answer_the_server_refuses_gets_its_reason_and_the_others_go_on(serve, wording):
    server = serve(lambda text, tries: (400, "") if "moderated" in text else (200, "2"))
    names = ["moderated 1", "plain 1", "moderated 2", "plain 2"]
    rows = list(http_judge(server, wording, concurrency=1).score([answer(name, name) for name in names]))
    assert {row["id"]: row["score"] for row in rows} == {
        "moderated 1": None,
        "moderated 2": None,
        "plain 1": 2,
        "plain 2": 2,
    }
    assert {row["reason"] for row in rows if row["score"] is None} == {"the server refuses this answer (status 400)"}
    assert not any(AGAIN in row for row in rows)
    assert [bool(body.get("logprobs")) for _, body in server.requests[-1:]] == [True], "the others keep logprobs"


def test_a_server_that_refuses_everything_stops_the_judge_and_keeps_no_row(serve, wording):
    server = serve(lambda text, tries: (422, ""))
    kept = kept_until(http_judge(server, wording, concurrency=1), 20, "status 422")
    assert kept == [] and len(server.requests) == 10
    # A single one that is left over may well be refused for what it says.
    (row,) = http_judge(server, wording).score([answer("a", "x")])
    assert row["reason"] == "the server refuses this answer (status 422)"


def test_an_outage_stops_the_judge_and_what_it_missed_is_asked_again(serve, wording):
    server = serve(lambda text, tries: (503, ""))
    kept = kept_until(http_judge(server, wording, concurrency=1), 20, "no answer in 4 attempts in a row")
    assert len(kept) == 4 and all(row[AGAIN] and row["reason"] == "status 503, 3 tries" for row in kept)


def test_a_server_that_reached_none_of_a_few_answers_is_an_outage_too(serve, wording):
    server = serve(lambda text, tries: (503, ""))
    kept = kept_until(http_judge(server, wording, concurrency=8), 3, "no answer in 3 attempts in a row")
    assert len(kept) <= 3 and all(row[AGAIN] for row in kept)


def test_what_the_server_says_it_is_stays_with_the_score(serve, wording):
    said = completion("3") | {"model": "judge-2026-01", "system_fingerprint": "fp_1"}
    (row,) = http_judge(serve(lambda text, tries: (200, said)), wording).score([answer("a", "x")])
    assert row["server"] == {"model": "judge-2026-01", "system_fingerprint": "fp_1"}


@pytest.mark.parametrize("key", ["sk-\u2026", "sk-\x07"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(serve, wording, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="holds characters") as error:
        list(http_judge(serve(moody), wording).score([answer("a", "x")]))
    assert key not in str(error.value)


def test_the_cap_of_requests_holds_and_keeps_what_was_scored(serve, wording):
    server = serve(moody)
    kept = kept_until(http_judge(server, wording, max_requests=5), 9, "cap of 5 requests")
    assert len(server.requests) == len(kept) == 5


def test_a_server_without_logprobs_is_asked_without_them(serve, wording):
    server = serve(lambda text, tries: (200, "3") if not server.requests[-1][1].get("logprobs") else (400, ""))
    rows = list(http_judge(server, wording, concurrency=1).score([answer("a", "x"), answer("b", "y")]))
    assert [row["score"] for row in rows] == [3, 3]
    assert [bool(body.get("logprobs")) for _, body in server.requests] == [True, False, False]


def test_expected_scores_come_from_the_token_log_probabilities(serve, wording):
    top = [{"token": token, "logprob": math.log(p)} for token, p in (("4", 0.6), ("5", 0.3), ("x", 0.1))]
    logprobs = {"content": [{"token": "4", "top_logprobs": top}]}
    server = serve(lambda text, tries: (200, completion("4", logprobs=logprobs)))
    row = next(iter(http_judge(server, wording).score([answer("a", "x")])))
    assert row["score"] == 4
    assert row["expected"] == pytest.approx((4 * 0.6 + 5 * 0.3) / 0.9, abs=1e-5)


def test_a_number_in_words_before_the_score_is_not_its_token(serve, wording):
    tokens = ["On a scale of ", "1", " to ", "5", ': {"', "score", '": ', "5", "}"]
    tops = {7: {"5": 0.6, "4": 0.4}, 3: {"5": 1.0}, 1: {"1": 1.0}}
    content = [
        {"token": token, "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in tops.get(i, {}).items()]}
        for i, token in enumerate(tokens)
    ]
    server = serve(lambda text, tries: (200, completion("".join(tokens), logprobs={"content": content})))
    row = next(iter(http_judge(server, wording).score([answer("a", "x")])))
    assert (row["score"], row["expected"]) == (5, pytest.approx(4.6))


def test_coherence_comes_in_the_same_reply_where_the_wording_asks_for_it(serve, wording):
    asking = dataclasses.replace(wording, prompt=wording.prompt + ' {"score": N, "coherence": M}')
    tops = [[{"token": "2", "logprob": math.log(0.9)}], [{"token": "4", "logprob": math.log(0.9)}]]
    logprobs = {"content": [{"token": each[0]["token"], "top_logprobs": each} for each in tops]}
    replies = {"x": '{"score": 4, "coherence": 2}', "y": '{"coherence": 2, "score": 4}', "z": '{"score": 4}'}
    server = serve(lambda text, tries: (200, completion(replies[text.split()[1]], logprobs=logprobs)))
    rows = {row["id"]: row for row in http_judge(server, asking).score([answer(name, name) for name in replies])}
    assert [rows[name]["score"] for name in replies] == [4, 4, 4]
    assert [rows[name].get("coherence") for name in replies] == [2, 2, None]
    assert rows["y"]["expected"] is None, "its first digit is no harm"
    assert len(server.requests) == 3, "no request for the coherence alone"
    silent = list(http_judge(server, wording).score([answer("x", "x")]))
    assert "coherence" not in silent[0]


def test_an_address_that_is_none_is_refused(wording):
    with pytest.raises(UserError, match="http"):
        HttpJudge("gpt-4o", "m", wording)
    with pytest.raises(UserError, match="judge_model"):
        HttpJudge("http://localhost:1/v1", "", wording)
    described = HttpJudge("http://me:pw@host/v1", "m", wording).describe()
    assert "pw" not in json.dumps(described)
