"""A judge behind an OpenAI-compatible address: concurrent requests, retries, every reply stored, the key never."""

import itertools
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
from em_jax.probes.suite import Wording

KEY = "OPENAI_API_KEY"
PER_ANSWER = (400, 413, 422)
"""Statuses that concern one request (moderation, too long): that answer gets a reason, the others are judged."""
MOST_REFUSED = 5
"""After this many of those before the first score, the server is taken to refuse everything."""
LONGEST_REPLY = 4_000_000
"""The most bytes of a reply."""
_REFUSES = "the server refuses this answer"


class _RefusedError(Exception):
    """The server refuses in a way that another try does not change."""


class _ReplyError(Exception):
    """A reply that is compressed, too long or too slow."""


class HttpJudge:
    """Scores each answer with a chat completion at temperature 0; the reply is {"score": N} or a bare digit.

    `url` is the address up to and including /v1. The key is read from OPENAI_API_KEY at each start and sent only
    there. Status 429, 5xx, time-outs and broken connections are retried up to `tries` times with growing pauses; after
    that the answer's row has a reason and no score, and the next start tries again. `max_requests` limits the requests
    of one start (0: no limit).
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
            the limit of requests is reached; the rows yielded until then are valid, and a later run continues.
        """
        headers = _headers()
        waiting, empty_rows = judge.pending(answers, done_keys)
        yield from empty_rows
        with httpx.Client(timeout=self._timeout) as client, ThreadPoolExecutor(self._concurrency) as workers:
            remaining = iter(waiting)
            running: set[Future] = set()
            stop_reason: Exception | None = None
            refused: list[Row] = []
            unreached = 0
            while True:
                # No more requests than workers are submitted, so that a stop leaves no queue of paid requests.
                free = self._concurrency - len(running) if stop_reason is None else 0
                running |= {
                    workers.submit(self._judge, client, headers, answer) for answer in itertools.islice(remaining, free)
                }
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    try:
                        row = future.result()
                    except (_RefusedError, UserError) as error:
                        stop_reason = error
                        continue
                    unreached = unreached + 1 if row.get(judge.AGAIN) else 0
                    if unreached > 3 * self._concurrency:
                        stop_reason = _RefusedError(f"no answer in {unreached} attempts in a row ({row['reason']})")
                    if self._answered == 0 and row.get("reason", "").startswith(_REFUSES):
                        refused.append(row)
                        if len(refused) >= MOST_REFUSED:
                            stop_reason = _RefusedError(row["reason"])
                        continue
                    yield from refused
                    refused = []
                    yield row
        if stop_reason is None:
            yield from refused
        else:
            raise UserError(f"judge {self._model}: {stop_reason}; the scores so far are kept")

    def _judge(self, client: httpx.Client, headers: dict[str, str], answer: Row) -> Row:
        reply, problem = self._request(client, headers, judge.filled(self._wording, answer))
        if reply is None:
            row = judge.score_row(answer, None, None, None, problem)
            return row if problem.startswith(_REFUSES) else row | {judge.AGAIN: True}
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            return judge.score_row(answer, None, None, _without_key(str(reply))[:500], "a reply without a message")
        text = _without_key(text)
        score, reason = parsing.judge_score(text)
        if score is None and choice.get("finish_reason") == "length":
            reason = "cut short"
        expected = None if score is None else _expected(choice.get("logprobs"), score)
        # The same model name may later mean another model: store how the server names itself.
        names = {name: reply.get(name) for name in ("model", "system_fingerprint")}
        server = {name: _without_key(value)[:200] for name, value in names.items() if isinstance(value, str)}
        return judge.score_row(answer, score, expected, text, reason) | ({"server": server} if server else {})

    def _request(self, client: httpx.Client, headers: dict[str, str], text: str) -> tuple[dict | None, str]:
        """(the reply, "") or (None, the problem after the last try)."""
        problem, logprobs, number = "no try was allowed", self._with_logprobs, 0
        while number < self._tries:
            self._count_request()
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
                response, content = self._post(client, body, headers)
            except _ReplyError as error:
                problem = str(error)
            except httpx.TimeoutException:
                problem = f"no reply within {self._timeout:g} s"
            except httpx.RequestError as error:
                problem = f"no connection: {type(error).__name__}"
            else:
                status = response.status_code
                if status == 200:
                    try:
                        reply = json.loads(content)
                    except (ValueError, RecursionError):
                        problem = "a reply that is not JSON"
                    else:
                        self._with_logprobs = self._with_logprobs and logprobs
                        self._answered += 1
                        return reply, ""
                elif status in PER_ANSWER and logprobs:
                    # Some servers reject requests for log-probabilities: try once more without them.
                    logprobs = False
                    continue
                elif status in PER_ANSWER:
                    return None, f"{_REFUSES} (status {status})"
                elif status == 429 or status >= 500:
                    problem = f"status {status}"
                    pause = max(pause, _retry_after(response))
                else:
                    raise _RefusedError(f"the server answers with status {status}")
            number += 1
            if number < self._tries:
                self._sleep(min(pause, 60.0))
        return None, f"{problem}, {self._tries} tries"

    def _post(
        self, client: httpx.Client, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[httpx.Response, bytes]:
        """A response and its content, which may have at most LONGEST_REPLY bytes and take twice the time-out."""
        start, content = time.monotonic(), bytearray()
        # Uncompressed: a few bytes of a compressed reply can expand to gigabytes.
        headers = {**headers, "accept-encoding": "identity"}
        with client.stream("POST", self._url, json=body, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _ReplyError("a compressed reply, which was not asked for")
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > LONGEST_REPLY:
                    raise _ReplyError(f"a reply of more than {LONGEST_REPLY:,} bytes")
                if time.monotonic() - start > 2 * self._timeout:
                    raise _ReplyError(f"no whole reply within {2 * self._timeout:g} s")
        return response, bytes(content)

    def _count_request(self) -> None:
        with self._lock:
            if self._max_requests and self._requests >= self._max_requests:
                raise UserError(f"the cap of {self._max_requests} requests is reached")
            self._requests += 1


def _key() -> str:
    return os.environ.get(KEY, "").strip()


def _without_key(text: str) -> str:
    """A server's text with the key, which an error message may quote, replaced by its variable's name."""
    return text.replace(_key(), f"({KEY})") if _key() else text


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
    """The probability-weighted score from the top log-probabilities of the score's token, or None without them."""
    try:
        tokens = logprobs["content"]
        digit_token = next(token for token in tokens if token["token"].strip() == str(score))
        masses = dict.fromkeys(range(1, 6), 0.0)
        for option in digit_token["top_logprobs"]:
            if option["token"].strip() in judge.SCORES:
                masses[int(option["token"])] += math.exp(option["logprob"])
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError, OverflowError):
        return None
    total = sum(masses.values())
    if not LEAST_MASS <= total < math.inf:
        return None
    return round(sum(digit * mass for digit, mass in masses.items()) / total, 6)
