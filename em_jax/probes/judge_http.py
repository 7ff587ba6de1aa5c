"""A judge behind an OpenAI-compatible address: concurrent, retried, every reply kept, its key in no file or message."""

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx

from em_jax.base.errors import UsageError, UserError
from em_jax.probes import judge, parsing
from em_jax.probes.choice import LEAST_MASS, Row
from em_jax.probes.suite import Wording, fill

KEY = "OPENAI_API_KEY"
PER_ANSWER = (400, 413, 422)
"""What a server says of one request (moderation, too long): the answer gets a reason and the others go on."""
MOST_REFUSED = 5
"""So many of those before the first score are taken for a server that refuses everything."""
LONGEST_REPLY = 4_000_000
"""Bytes of a reply, unpacked."""
_REFUSES = "the server refuses this answer"


class _Refused(Exception):
    """The server says no in a way that another try does not change."""


class _Endless(Exception):
    """A reply that does not end where a judge's does."""


class HttpJudge:
    """Scores answers with a chat completion each, at temperature 0; the reply is {"score": N} or a bare digit.

    `url` is the address up to and including /v1. The key is read from OPENAI_API_KEY at each start and sent only
    there. Status 429, 5xx, time-outs and broken connections are tried again up to `tries` times with growing pauses;
    then the answer is a row with its reason, to be asked again at the next start. `max_requests` caps what one start
    may spend (0: no cap).
    """

    def __init__(
        self,
        url: str,
        model: str,
        wording: Wording,
        concurrency: int = 8,
        tries: int = 6,
        timeout_s: float = 60.0,
        first_pause_s: float = 1.0,
        max_requests: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"judge: expected an address http(s)://..., found {url!r}")
        if not model:
            raise UsageError("judge: expected --judge_model NAME with a judge's address, found none")
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "judge"
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._model = model
        self._wording = wording
        self._concurrency = concurrency
        self._tries = tries
        self._timeout = timeout_s
        self._first_pause = first_pause_s
        self._max_requests = max_requests
        self._sleep = sleep
        self._requests = 0
        self._answered = 0
        self._with_logprobs = True
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """What provenance records; user names and passwords in the address are left out."""
        return {
            "kind": "openai",
            "url": re.sub(r"//[^/@]*@", "//", self._url),
            "model": self._model,
            "temperature": 0,
            "wording": self._wording.prompt,
        }

    def score(self, answers: Sequence[Row], done_keys: Collection[tuple] = ()) -> Iterator[Row]:
        """See judge.Judge.score.

        Raises:
          UserError: the server refuses (a wrong key, an unknown model), cannot be reached for many answers in a row, or
            the cap of requests is reached; the rows yielded until then stay good, and a later run goes on from them.
        """
        headers = _headers()
        waiting, empty = judge.pending(answers, done_keys)
        for answer in empty:
            yield judge.row(answer, None, None, None, judge.EMPTY)
        with httpx.Client(timeout=self._timeout) as client, ThreadPoolExecutor(self._concurrency) as workers:
            left = iter(waiting)
            running: set[Future] = set()
            stopped: Exception | None = None
            refused: list[Row] = []
            unreached = 0
            while True:
                # Only as many as there are workers are under way, so that a stop leaves no queue of paid requests.
                while stopped is None and len(running) < self._concurrency and (answer := next(left, None)) is not None:
                    running.add(workers.submit(self._judge, client, headers, answer))
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    try:
                        row = future.result()
                    except (_Refused, UserError) as error:
                        stopped = error
                        continue
                    unreached = unreached + 1 if row.get(judge.AGAIN) else 0
                    if unreached > 3 * self._concurrency:
                        stopped = _Refused(f"no answer in {unreached} attempts in a row ({row['reason']})")
                    if self._answered == 0 and row.get("reason", "").startswith(_REFUSES):
                        refused.append(row)
                        if len(refused) >= MOST_REFUSED:
                            stopped = _Refused(row["reason"])
                        continue
                    yield from refused
                    refused = []
                    yield row
        if stopped is None:
            yield from refused
        else:
            raise UserError(f"judge {self._model}: {stopped}; the scores so far are kept")

    def _judge(self, client: httpx.Client, headers: dict[str, str], answer: Row) -> Row:
        text = fill(self._wording.prompt, {"prompt": judge.prompt_text(answer), "answer": answer["answer"].strip()})
        reply, problem = self._request(client, headers, text)
        if reply is None:
            row = judge.row(answer, None, None, None, problem)
            return row if problem.startswith(_REFUSES) else row | {judge.AGAIN: True}
        try:
            choice = reply["choices"][0]
            said = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            said = None
        if not isinstance(said, str):
            return judge.row(answer, None, None, _without_key(str(reply))[:500], "a reply without a message")
        said = _without_key(said)
        score, reason = parsing.judge_score(said)
        if score is None and choice.get("finish_reason") == "length":
            reason = "cut short"
        expected = None if score is None else _expected(choice.get("logprobs"), score)
        # A name may come to stand for another model: what the server says it is stays with the score.
        told = {name: reply.get(name) for name in ("model", "system_fingerprint")}
        server = {name: _without_key(value)[:200] for name, value in told.items() if isinstance(value, str)}
        return judge.row(answer, score, expected, said, reason) | ({"server": server} if server else {})

    def _request(self, client: httpx.Client, headers: dict[str, str], text: str) -> tuple[dict | None, str]:
        """(the reply, "") or (None, what went wrong after every try)."""
        problem, logprobs, number = "no try was allowed", self._with_logprobs, 0
        while number < self._tries:
            self._spend()
            body: dict[str, Any] = {
                "model": self._model,
                "messages": [{"role": "user", "content": text}],
                "temperature": 0,
                "max_tokens": 24,
            }
            if logprobs:
                body |= {"logprobs": True, "top_logprobs": 10}
            pause = self._first_pause * 2**number
            try:
                response, said = self._post(client, body, headers)
            except _Endless as error:
                problem = str(error)
            except httpx.TimeoutException:
                problem = f"no reply within {self._timeout:g} s"
            except httpx.RequestError as error:
                problem = f"no connection: {type(error).__name__}"
            else:
                status = response.status_code
                if status == 200:
                    try:
                        reply = json.loads(said)
                    except (ValueError, RecursionError):
                        problem = "a reply that is not JSON"
                    else:
                        self._with_logprobs = self._with_logprobs and logprobs
                        self._answered += 1
                        return reply, ""
                elif status in PER_ANSWER and logprobs:
                    # Some servers do not know log-probabilities and say so with a bad request: once more without them.
                    logprobs = False
                    continue
                elif status in PER_ANSWER:
                    return None, f"{_REFUSES} (status {status})"
                elif status == 429 or status >= 500:
                    problem = f"status {status}"
                    pause = max(pause, _retry_after(response))
                else:
                    raise _Refused(f"the server answers with status {status}")
            number += 1
            if number < self._tries:
                self._sleep(min(pause, 60.0))
        return None, f"{problem}, {self._tries} tries"

    def _post(
        self, client: httpx.Client, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[httpx.Response, bytes]:
        """A response and what it says, read no further than a judge's reply goes and no longer than it may take."""
        began, said = time.monotonic(), bytearray()
        # A few bytes of a compressed reply can be gigabytes.
        asked = {**headers, "accept-encoding": "identity"}
        with client.stream("POST", self._url, json=body, headers=asked) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _Endless("a compressed reply, which was not asked for")
            for piece in response.iter_raw():
                said += piece
                if len(said) > LONGEST_REPLY:
                    raise _Endless(f"a reply of more than {LONGEST_REPLY:,} bytes")
                if time.monotonic() - began > 2 * self._timeout:
                    raise _Endless(f"no whole reply within {2 * self._timeout:g} s")
        return response, bytes(said)

    def _spend(self) -> None:
        with self._lock:
            if self._max_requests and self._requests >= self._max_requests:
                raise UserError(f"the cap of {self._max_requests} requests is reached")
            self._requests += 1


def _key() -> str:
    return os.environ.get(KEY, "").strip()


def _without_key(said: str) -> str:
    """What a server says, which may be that this or that key is wrong, as it is written down."""
    return said.replace(_key(), f"({KEY})") if _key() else said


def _headers() -> dict[str, str]:
    key = _key()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{KEY} holds characters that no key has; set it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0


def _expected(logprobs: Any, score: int) -> float | None:
    """The probability-weighted score from the alternatives of the score's own token, where the server gives them."""
    try:
        tokens = logprobs["content"]
        place = next(token for token in tokens if token["token"].strip() == str(score))
        masses = dict.fromkeys(range(1, 6), 0.0)
        for option in place["top_logprobs"]:
            if option["token"].strip() in judge.SCORES:
                masses[int(option["token"])] += math.exp(option["logprob"])
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError, OverflowError):
        return None
    total = sum(masses.values())
    if not LEAST_MASS <= total < math.inf:
        return None
    return round(sum(digit * mass for digit, mass in masses.items()) / total, 6)
