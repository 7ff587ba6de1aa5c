"""A judge behind an OpenAI-compatible address: concurrent requests, retries, every reply stored, the key never."""

import contextlib
import dataclasses
import email.utils
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import anyio
import anyio.from_thread
import httpx

from em_jax.base import addresses
from em_jax.base.errors import UsageError, UserError
from em_jax.probes import judge, judge_replies, parsing
from em_jax.probes.choice import DIGITS, LEAST_MASS, Row
from em_jax.probes.judge_replies import AGAIN, FILTERED, NEEDS_ROOM, ROOMS, STOP, THIS_ANSWER, Failure, Fields, Reply
from em_jax.probes.suite import Wording

KEY = "OPENAI_API_KEY"
MOST_REFUSED = 5
"""After this many answers refused or cut before the first score, the server is taken to do so with all."""
MOST_CHANGES = 8
"""Of the fields of one request: more room and less may take turns."""
LONGEST_REPLY = 4_000_000
"""The most bytes of a reply."""
THINKING_TIME = 5
"""How many times the time-out a judge has that thinks."""


class _RefusedError(Exception):
    """The server refuses in a way that another try does not change."""


@dataclasses.dataclass(eq=False)
class HttpJudge:
    """Scores each answer with a chat completion at temperature 0; the reply is {"score": N} or a bare digit.

    `url` is the address up to and including /v1, or Azure's with its deployment and api-version. The key is read from
    OPENAI_API_KEY at each start and sent only there. Failures that may pass (status 408, 409, 429 and 5xx, time-outs,
    broken connections, an error or no choices in place of a reply) are retried up to `tries` times with growing pauses;
    after that the answer's row has a reason and no score, and the next start tries again. A request field that the
    server refuses by name is left out or renamed; a reply that is cut is asked for again with more room. A request has
    `timeout_s` seconds from its beginning to the last byte of the reply, THINKING_TIME times that once a judge needed
    room to think. `max_requests` limits the requests of one start (0: no limit).
    """

    url: str
    model: str
    wording: Wording
    concurrency: int = 8
    tries: int = 6
    timeout_s: float = 60.0
    first_pause_s: float = 1.0
    max_requests: int = 0
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("judge: expected --judge_model NAME with a judge's address, found none")
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.") or "judge"
        self._url, self._is_azure = _address(self.url)
        self._requests = self._answered = 0
        self._told = False
        self._fields = Fields()

    def describe(self) -> dict[str, Any]:
        """What provenance records; of the address only what cannot be secret."""
        return {
            "kind": "openai",
            "url": addresses.public(str(self._url)),
            "model": self.model,
            "temperature": 0,
            "wording": self.wording.prompt,
        }

    def score(self, answers: Sequence[Row], done_keys: Collection[tuple] = ()) -> Iterator[Row]:
        """See judge.Judge.score.

        Raises UserError where the server refuses (a wrong key, an unknown model), cannot be reached for many answers in
        a row, refuses or cuts many in a row, or the limit of requests is reached; the rows yielded until then are
        valid, and a later run continues.
        """
        addresses.check_whole(str(self._url), f"judge {self.model}")
        headers = self._headers()
        waiting, empty_rows = judge.pending(answers, done_keys)
        yield from empty_rows
        limits = httpx.Limits(max_connections=self.concurrency)
        # On any exception, a signal's too, the portal cancels what is under way at once.
        with (
            anyio.from_thread.start_blocking_portal() as portal,
            portal.wrap_async_context_manager(httpx.AsyncClient(timeout=None, limits=limits)) as client,
        ):
            remaining = iter(waiting)
            running: set[Future] = set()
            stop_reason: Exception | None = None
            held: list[Row] = []
            unreached = 0
            while True:
                # No more requests than workers are submitted, so that a stop leaves no queue of paid requests.
                free = self.concurrency - len(running) if stop_reason is None else 0
                running |= {
                    portal.start_task_soon(self._judge, client, headers, answer)
                    for answer in itertools.islice(remaining, free)
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
                    # A server that none of all the answers reached, however few they are, is not there.
                    if unreached > 3 * self.concurrency or (unreached == len(waiting) > 1 and not done_keys):
                        stop_reason = _RefusedError(f"no answer in {unreached} attempts in a row ({_told(row)})")
                    if row.pop("held", False):
                        # Many in a row are the server's or the settings' fault, and then none of them is final.
                        held.append(row)
                        if len(held) >= (MOST_REFUSED if self._answered == 0 else 3 * self.concurrency + MOST_REFUSED):
                            stop_reason = _RefusedError(f"{len(held)} answers in a row: {_told(row)}")
                        continue
                    if row["score"] is not None:
                        yield from held
                        held = []
                    yield row
        if stop_reason is None:
            yield from held
        else:
            raise UserError(f"judge {self.model}: {stop_reason}; the scores so far are kept")

    async def _judge(self, client: httpx.AsyncClient, headers: dict[str, str], answer: Row) -> Row:
        found, fields = await self._request(client, headers, judge.filled(self.wording, answer))
        if isinstance(found, Failure):
            said = self._safe(found.said) or None
            row = judge.score_row(answer, None, None, said, found.reason)
            if found.kind == AGAIN:
                return row | {judge.AGAIN: True}
            return row if found.kind == FILTERED else row | {"held": True}
        text = found.text
        for secret in filter(_is_long, self._secrets()):  # a short one stands in many a reply: 2 in {"score": 2}
            text = text.replace(secret, f"({KEY})")
        score, reason = (None, judge_replies.CUT) if found.cut else (None, found.refusal)
        if not reason:
            score, reason = parsing.judge_score(text)
        expected = None if score is None else _expected(found.logprobs, score, found.text)
        coherence = parsing.judge_coherence(text) if judge.asks_coherence(self.wording) and not found.cut else None
        server = {name: self._safe(value, 200) for name, value in found.server.items()}
        if left_out := fields.left_out():
            server["left_out"] = left_out
        row = judge.score_row(answer, score, expected, text[:LONGEST_STORED], reason, coherence)
        return row | ({"server": server} if server else {}) | ({"held": True} if found.cut else {})

    async def _request(
        self, client: httpx.AsyncClient, headers: dict[str, str], text: str
    ) -> tuple[Reply | Failure, Fields]:
        """The reply, or the failure of the last try, and the fields it was asked with."""
        fields, number, changes = self._fields, 0, 0
        found: Reply | Failure = Failure(AGAIN, "no try was allowed")
        while number < self.tries:
            if self.max_requests and self._requests >= self.max_requests:
                raise UserError(f"the cap of {self.max_requests} requests is reached")
            self._requests += 1
            body = {"model": self.model, "messages": [{"role": "user", "content": text}]} | fields.body()
            pause, other = self.first_pause_s * 2**number, None
            found, wait_s = await self._post(client, body, headers, fields)
            if isinstance(found, Reply) and not found.cut:
                self._answered += 1
                # One that others found since stays.
                self._fields = fields if self._fields.room <= fields.room else self._fields
                return found, fields
            if isinstance(found, Reply) or found.kind == NEEDS_ROOM:
                other = fields.roomier()
            else:
                if found.may_name_a_field:
                    other = fields.without(found.said, found.named)
                if not other and found.kind == THIS_ANSWER:
                    # Some servers reject requests for log-probabilities without naming them: once more without.
                    other = dataclasses.replace(fields, top=0) if fields.top else None
                if not other and found.kind == STOP:
                    said = self._safe(found.said)
                    raise _RefusedError(f"the server answers with {found.reason}" + (f": {said}" if said else ""))
            if other and changes < MOST_CHANGES:
                fields, changes = other, changes + 1
                continue
            if isinstance(found, Reply):
                return found, fields
            if found.kind != AGAIN:
                return Failure(found.kind, f"{judge_replies.SERVER_REFUSES} ({found.reason})", found.said), fields
            number += 1
            if number < self.tries:
                if not (self._answered or self._told):
                    self._told = True
                    print(f"judge {self.name}: {found.reason}; asking again", file=sys.stderr, flush=True)
                await self.sleep(min(max(pause, wait_s), 60.0))
        assert isinstance(found, Failure)  # a reply has been returned
        return Failure(AGAIN, f"{found.reason}, {self.tries} tries", found.said), fields

    async def _post(
        self, client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], fields: Fields
    ) -> tuple[Reply | Failure, float]:
        """What came of one request, and the seconds that the server asks to wait."""
        seconds = self.timeout_s * (THINKING_TIME if fields.room > ROOMS[0] else 1)
        content = bytearray()
        try:
            with anyio.fail_after(seconds):
                async with client.stream("POST", self._url, json=body, headers=headers) as response:
                    if response.headers.get("content-encoding", "identity") != "identity":
                        return Failure(AGAIN, "a compressed reply, which was not asked for"), 0.0
                    async for chunk in response.aiter_raw():
                        content += chunk
                        if len(content) > LONGEST_REPLY:
                            return Failure(AGAIN, f"a reply of more than {LONGEST_REPLY:,} bytes"), 0.0
        except TimeoutError:
            return Failure(AGAIN, f"no whole reply within {seconds:g} s"), 0.0
        except (httpx.RequestError, httpx.InvalidURL) as error:
            return Failure(AGAIN, f"no connection: {type(error).__name__}"), 0.0
        return judge_replies.read(response.status_code, bytes(content), fields.room), _retry_after(response)

    def _headers(self) -> dict[str, str]:
        key = _key()
        if not key.isascii() or not key.isprintable():
            raise UserError(f"{KEY} holds characters that no key has; set it again")
        # Uncompressed: a few bytes of a compressed reply can expand to gigabytes.
        headers = {"accept-encoding": "identity"}
        if key:
            headers |= {"api-key": key} if self._is_azure else {"Authorization": f"Bearer {key}"}
        return headers

    def _secrets(self) -> list[str]:
        """The key and what of the address may be one; a server's message may quote them."""
        parameters = [value for name, value in self._url.params.multi_items() if name != "api-version"]
        segments = () if self._is_azure else self._url.path.split("/")
        tokens = [part for part in segments if _is_long(part) and not addresses.WORDS.fullmatch(part)]
        return [part for part in (_key(), self._url.password, *parameters, *tokens) if part]

    def _safe(self, text: str, limit: int = judge_replies.MAX_SAID) -> str:
        return judge_replies.safe(text, self._secrets(), limit)


LONGEST_STORED = 20_000
"""The most characters of a reply that a row keeps."""


def _told(row: Row) -> str:
    """Why a row has no score, with what the server said."""
    if row["reason"] == judge_replies.CUT:
        return f"replies are cut at {ROOMS[-1]} tokens, the judge needs more room or thinks without end"
    return row["reason"] + (f": {row['raw']}" if row["raw"] else "")


def _address(url: str) -> tuple[httpx.URL, bool]:
    """(where chat completions are asked for, whether it is Azure's form). UsageError where it is no address."""
    try:
        found = httpx.URL(url.strip())
    except httpx.InvalidURL:
        found = None
    if found is None or found.scheme not in ("http", "https") or not found.host:
        raise UsageError(f"judge: expected an address http(s)://..., found {addresses.public(url)!r}")
    path = found.path.rstrip("/").removesuffix("/chat/completions")
    is_azure = found.host.endswith((".azure.com", ".azure.us", ".azure.cn")) or "/openai/deployments/" in path
    if found.host.endswith(".openai.azure.com") and not path.startswith("/openai/"):
        expected = "https://NAME.openai.azure.com/openai/v1 or .../openai/deployments/DEPLOYMENT?api-version=VERSION"
        raise UsageError(f"judge: expected {expected}, found the path {path or '/'!r}")
    return found.copy_with(path=path + "/chat/completions"), is_azure


def _is_long(part: str) -> bool:
    return len(part) >= 8


def _key() -> str:
    return os.environ.get(KEY, "").strip()


def _retry_after(response: httpx.Response) -> float:
    """The seconds that a response asks to wait, which it gives as a number or a date; 0 without."""
    text = response.headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return float(text)
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _expected(logprobs: Any, score: int, final: str) -> float | None:
    """The probability-weighted score from the top log-probabilities of the score's token, or None without them.

    Tokens of thoughts before the `final` text do not count, nor does a text that rates something else first.
    """
    if re.match(r'[^"]*"(?!score")\w+"\s*:', final):
        return None
    try:
        tokens = logprobs["content"]
        text = "".join(token["token"] for token in tokens)
        start = max(text.rfind(final.strip()), 0)
        start = max(text.find('"score"', start), start)  # words before it may name the scale's ends
        ends = itertools.accumulate(len(token["token"]) for token in tokens)
        digit_token = next(
            token
            for token, end in zip(tokens, ends, strict=True)
            if end > start and token["token"].strip() == str(score)
        )
        masses = dict.fromkeys(range(1, 6), 0.0)
        for option in digit_token["top_logprobs"]:
            if option["token"].strip() in DIGITS:
                masses[int(option["token"])] += math.exp(option["logprob"])
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError, OverflowError):
        return None
    total = sum(masses.values())
    if not LEAST_MASS <= total < math.inf:
        return None
    return round(sum(digit * mass for digit, mass in masses.items()) / total, 6)
