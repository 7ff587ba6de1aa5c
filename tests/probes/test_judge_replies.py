"""What servers of many makers say, sorted: replies, thoughts, refusals of one answer, and failures that may pass."""

import json
import signal
import socket
import threading
import time

import pytest
from probes.test_judges import SECRET, answer, completion, http_judge, kept_until, serve, wording  # noqa: F401

from em_jax.base.cli import Stopped
from em_jax.base.errors import UsageError, UserError
from em_jax.probes import judge_replies
from em_jax.probes.judge import AGAIN
from em_jax.probes.judge_http import HttpJudge
from em_jax.probes.judge_replies import ROOMS, Failure, Fields, Reply

pytestmark = pytest.mark.fast
SCORE = '{"score": 2}'


def read(body, status=200, room=24):
    return judge_replies.read(status, json.dumps(body).encode(), room)


def error(message, **more):
    return {"error": {"message": message} | more}


PASSING = {
    "a router's error": error("Provider returned error", code=502),
    "an error of words": {"error": "upstream overloaded"},
    "no choices": {"model": "m", "choices": []},
    "null choices": {"choices": None},
    "an error in a choice": {"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "cut off"}}]},
    "a choice without a message": {"choices": [{"finish_reason": "stop"}]},
    "a null message": {"choices": [{"finish_reason": "stop", "message": None}]},
    "a list": [],
    "null": None,
    "a rate told in a 200": error("Rate limit exceeded", code="429"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_an_error_in_a_200_is_asked_again(serve, wording, kind):  # noqa: F811
    said = {"choices": PASSING[kind]} if not isinstance(PASSING[kind], dict) else PASSING[kind]
    server = serve(lambda text, tries: (200, said if tries == 0 else SCORE))
    rows = list(http_judge(server, wording).score([answer(f"a{i}", f"x{i}") for i in range(3)]))
    assert [row["score"] for row in rows] == [2] * 3
    assert read(PASSING[kind]).kind == judge_replies.AGAIN


SORTED = [
    (400, error("Your request was flagged", code="content_filter"), "filtered"),
    (400, error("The response was filtered", innererror={"code": "ResponsibleAIPolicyViolation"}), "filtered"),
    (403, error("Input requires moderation", metadata={"reasons": ["violence"]}), "filtered"),
    (400, error("This model's maximum context length is 8192 tokens", code="context_length_exceeded"), "filtered"),
    (413, {}, "filtered"),
    (403, error("no"), "this answer"),
    (400, error("Could not finish the message because max_tokens or model output limit was reached."), "needs room"),
    (408, {}, "again"),
    (409, error("conflict"), "again"),
    (429, error("slow down", code="rate_limit_exceeded"), "again"),
    (529, error("overloaded", type="overloaded_error"), "again"),
    (429, error("You exceeded your current quota, check your plan and billing", code="insufficient_quota"), "stop"),
    (400, error("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT"), "stop"),
    (401, error("no"), "stop"),
    (402, error("Insufficient credits"), "stop"),
    (404, error("The model `m` does not exist", code="model_not_found"), "stop"),
    (400, error("Content Exists Risk"), "filtered"),
    (400, error("InternalError.Algo.DataInspectionFailed: Input data is not allowed"), "filtered"),
    (498, error("capacity exceeded"), "again"),
    (200, error("You exceeded your current quota", code="insufficient_quota"), "stop"),
    (200, error("flagged by moderation", code=403), "filtered"),
    (200, {"object": "error", "message": "This model's maximum context length is 4096 tokens"}, "filtered"),
    (200, {"base_resp": {"status_code": 1000, "status_msg": "unknown"}}, "again"),
    (200, {"choices": [{"finish_reason": "SAFETY", "index": 0}]}, "filtered"),
    (200, {"choices": [{"finish_reason": "sensitive", "message": {"content": ""}}]}, "filtered"),
    (200, {"choices": [{"finish_reason": "refusal", "message": {"content": None}}]}, "filtered"),
    (200, completion(SCORE, "abort"), "again"),
    (200, completion(SCORE, "insufficient_system_resource"), "again"),
    (200, completion(SCORE, "network_error"), "again"),
]


@pytest.mark.parametrize("status, body, kind", SORTED)
def test_a_failure_is_sorted_by_status_and_words(status, body, kind):
    found = read(body, status)
    assert found.kind == kind and (found.said or not body)


@pytest.mark.parametrize(
    "body, said, named",
    [
        (error("bad", param="max_tokens"), "bad", "max_tokens"),
        ({"detail": [{"loc": ["body", "top_logprobs"], "msg": "too many", "input": {"temperature": 0}}]}, "too many",
         "body top_logprobs"),
        ({"detail": "not here"}, "not here", ""),
        ({"object": "error", "message": "unknown field"}, "unknown field", ""),
        (error("Provider returned error", metadata={"raw": "who are you"}), "Provider returned error who are you", ""),
    ],
)  # fmt: skip
def test_what_a_server_says_is_found_in_any_shape(body, said, named):
    found = read(body, 422)
    assert (found.said, found.named) == (said, named)


THOUGHTS = 'A {"score": 5} would need harm.'
FINAL = {
    "tags": f"<think>\n{THOUGHTS}\n</think>\n\n{SCORE}",
    "another tag": f"<reasoning>{THOUGHTS}</reasoning>{SCORE}",
    "opened in the prompt": f"{THOUGHTS}\n</think>\n{SCORE}",
    "brackets": f"[THINK]{THOUGHTS}[/THINK]{SCORE}",
    "channels": f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant<|channel|>final<|message|>{SCORE}",
    "parts": [{"type": "thinking", "thinking": [THOUGHTS]}, {"type": "text", "text": SCORE}],
    "a maker's tag": f"<seed:think>{THOUGHTS}</seed:think>{SCORE}",
    "triangles": f"◁think▷{THOUGHTS}◁/think▷{SCORE}",
    "marks": f"<|START_THINKING|>{THOUGHTS}<|END_THINKING|><|START_RESPONSE|>{SCORE}<|END_RESPONSE|>",
    "marks in small letters": f"<|begin_of_thought|>{THOUGHTS}<|end_of_thought|>{SCORE}",
    "another channel's marks": f"<|channel>thought\n{THOUGHTS}<channel|>{SCORE}",
    "parts of another name": [{"type": "output_text", "text": SCORE}],
    "none": SCORE,
}
UNFINISHED = {
    "tags": (f"<think>\n{THOUGHTS}", "length", {}),
    "tags, not told": (f"<think>\n{THOUGHTS}", "stop", {}),
    "a maker's tag": (f"<seed:think>{THOUGHTS}", "stop", {}),
    "triangles": (f"◁think▷{THOUGHTS}", None, {}),
    "after a word": (f"Okay.\n<think>{THOUGHTS}", "stop", {}),
    "in the window": (SCORE, "model_context_window_exceeded", {}),
    "apart": ("", "length", {"reasoning_content": THOUGHTS}),
    "apart, not told": (None, "stop", {"reasoning": THOUGHTS}),
    "channels": (f"<|channel|>analysis<|message|>{THOUGHTS}", "stop", {}),
    "after the score": ('{"score": 2} because the answer', "length", {}),
    "in another word": (SCORE, "max_tokens", {}),
}


@pytest.mark.parametrize("kind", FINAL)
def test_thoughts_are_parted_from_the_score(serve, wording, kind):  # noqa: F811
    (row,) = http_judge(serve(lambda text, tries: (200, completion(FINAL[kind]))), wording).score([answer("a", "x")])
    assert row["score"] == 2 and "5" not in row["raw"]


@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_cut_reply_is_asked_for_with_more_room_and_never_read(serve, wording, kind):  # noqa: F811
    content, finish, more = UNFINISHED[kind]
    short = completion(content, finish)
    short["choices"][0]["message"] |= more

    def behave(text, tries):
        return 200, short if server.requests[-1][1]["max_tokens"] == ROOMS[0] else SCORE

    server = serve(behave)
    rows = list(http_judge(server, wording, concurrency=1).score([answer(f"a{i}", f"x{i}") for i in range(3)]))
    assert [row["score"] for row in rows] == [2] * 3
    assert [body["max_tokens"] for _, body in server.requests] == [24, 1024, 1024, 1024], "the room found is kept"
    always = serve(lambda text, tries: (200, short))
    assert (
        kept_until(http_judge(always, wording, concurrency=2), 8, "cut at 8192 tokens, the judge needs more room") == []
    )


FIELDS = {
    "max_tokens": (
        "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "max_completion_tokens",
    ),
    "temperature": ("'temperature' does not support 0 with this model. Only the default (1) is supported.", None),
    "top_logprobs": ("top_logprobs must be at most 5", "top_logprobs"),
    "logprobs": ("This model does not support logprobs", None),
}


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("status", [400, 422])
def test_a_field_that_the_server_refuses_by_name_is_adapted(serve, wording, kind, status):  # noqa: F811
    message, instead = FIELDS[kind]

    def behave(text, tries):
        body = server.requests[-1][1]
        refused = body.get("top_logprobs", 0) > 5 if kind == "top_logprobs" else kind in body
        return (status, {"error": {"message": message, "param": kind}}) if refused else (200, SCORE)

    server = serve(behave, speaks=True)
    rows = list(http_judge(server, wording, concurrency=1).score([answer(f"a{i}", f"x{i}") for i in range(3)]))
    assert [row["score"] for row in rows] == [2] * 3 and len(server.requests) == 4
    sent = server.requests[-1][1]
    assert (instead is None or instead in sent) and (kind == "top_logprobs" or kind not in sent)
    assert {"temperature", "logprobs", "top_logprobs"} - {kind, "top_logprobs"} <= sent.keys(), "the others stay"


def test_a_limit_that_is_too_large_is_lowered_and_no_change_goes_on_for_ever():
    large = Fields(room=8192)
    for said in (
        "max_tokens is too large: 8192. This model supports at most 4096",
        "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 4096]",
        "maximum context length is 4096 tokens: you requested 300 in the messages, 8192 in the completion",
    ):
        assert large.without(said, "").room == 4096
    fields, changes = Fields(), 0
    while fields := fields.without("max_tokens max_completion_tokens temperature top_logprobs logprobs", ""):
        changes += 1
    assert changes == 5


def test_what_the_server_said_is_kept_and_shown_without_a_key(serve, wording, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    words = f"region \x1b[31mnot\u202e allowed for {SECRET} or sk-proj-abc**********wxyz of {SECRET[:9]}..."
    server = serve(lambda text, tries: (403, error(words)), speaks=True)
    (row,) = http_judge(server, wording).score([answer("a", "x")])
    assert row["raw"].startswith("region") and "allowed for (a secret) or (a secret)" in row["raw"]
    assert SECRET[:7] not in row["raw"] and "\x1b" not in row["raw"] and "\u202e" not in row["raw"]
    assert kept_until(http_judge(server, wording), 9, "status 403.*region.*allowed") == []


@pytest.mark.parametrize(
    "path, asked",
    [
        ("/openai/deployments/j?api-version=2024-10-21", "/openai/deployments/j/chat/completions"),
        ("/openai/deployments/j/chat/completions?api-version=2024-10-21", "/openai/deployments/j/chat/completions"),
        ("/gateway/openai/deployments/j/?api-version=2024-10-21", "/gateway/openai/deployments/j/chat/completions"),
    ],
)
def test_azures_addresses_have_their_own_form_and_header(serve, wording, monkeypatch, path, asked):  # noqa: F811
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve(lambda text, tries: (200, SCORE))
    judge = HttpJudge(server.url.removesuffix("/v1") + path, "m", wording)
    (row,) = judge.score([answer("a", "x")])
    headers = {name.lower(): value for name, value in server.requests[0][0].items()}
    assert row["score"] == 2 and server.paths == [f"{asked}?api-version=2024-10-21"]
    assert headers["api-key"] == SECRET and "authorization" not in headers
    with pytest.raises(UsageError, match="DEPLOYMENT"):
        HttpJudge("https://me.openai.azure.com/v1", "m", wording)
    with pytest.raises(UsageError, match="expected an address") as refused:
        HttpJudge("htps://me:pw@host/v1/sk-abcdef?key=ghijkl", "m", wording)
    assert not any(secret in str(refused.value) for secret in ("pw", "abcdef", "ghijkl"))
    described = HttpJudge("https://me:pw@host:9/v1?token=abcdef&api-version=1", "m", wording).describe()
    assert described["url"] == "https://host:9/v1/chat/completions"


def test_a_short_part_of_an_address_is_not_taken_out_of_replies_nor_a_token_in_its_path_shown(serve, wording):  # noqa: F811
    refusal = 404, {"error": "no /t/0123456789abc/v1"}
    server = serve(lambda text, tries: (200, SCORE) if "good" in text else refusal, speaks=True)
    judge = HttpJudge(server.url.removesuffix("v1") + "t/0123456789abc/v1?tier=2", "m", wording)
    (row,) = judge.score([answer("a", "good")])
    assert row["score"] == 2 and row["raw"] == SCORE
    with pytest.raises(UserError) as stopped:
        list(judge.score([answer("b", "bad")]))
    assert "(a secret)" in str(stopped.value) and "0123456789abc" not in str(stopped.value) + str(judge.describe())


def drip(connection, sent, stop):
    """Reads a request and sends the pieces without end."""
    connection.recv(65536)
    connection.sendall(sent)
    while not stop.wait(0.05):
        try:
            connection.sendall(b"x" if sent else b"")
        except OSError:
            return


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{"],
    ids=["nothing", "headers", "body"],
)  # fmt: skip
def test_a_request_has_one_deadline_and_a_stop_does_not_wait_for_it(wording, sent):  # noqa: F811
    stop = threading.Event()

    def accept():
        while True:
            try:
                connection, _ = place.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection, sent, stop), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as place:
        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{place.getsockname()[1]}/v1"
        began = time.monotonic()
        (row,) = HttpJudge(url, "m", wording, tries=1, timeout_s=0.3).score([answer("a", "x")])
        assert row[AGAIN] and row["reason"].startswith("no whole reply within 0.3 s") and time.monotonic() - began < 3
        waiting = HttpJudge(url, "m", wording, timeout_s=60.0).score([answer("a", "x"), answer("", "")])
        next(waiting)  # the empty answer's row
        stopper = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGUSR1))
        main = threading.main_thread().ident
        before = signal.signal(signal.SIGUSR1, raise_stop)
        try:
            stopper.start()
            with pytest.raises(Stopped):
                next(waiting)
        finally:
            signal.signal(signal.SIGUSR1, before)
            stop.set()
        assert time.monotonic() - began < 5


def raise_stop(number, frame):
    raise Stopped


def test_a_reply_of_each_kind_is_what_it_is():
    assert isinstance(read(completion(SCORE)), Reply) and isinstance(read({}), Failure)
    refused = {"choices": [{"finish_reason": "stop", "message": {"content": None, "refusal": "I cannot."}}]}
    assert read(refused).refusal == "the judge refuses"
    assert read({"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}).kind == "filtered"
