"""Chat completions: the JSON or the events of the answers to a checked request."""

import bisect
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from em_jax.base.errors import UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.thoughts import overlap
from em_jax.sample.batch import TokenChunk
from em_jax.sample.engine import Engine
from em_jax.serve.batcher import Answers, Batcher
from em_jax.serve.requests import MAX_TOP_LOGPROBS, Chat, Refusal

INCOMPLETE = "\ufffd"
"""What an incomplete character decodes to."""


class Detokenizer:
    """One answer. `text` and `thought` only ever get longer; they are complete once `finish_reason` is set.

    The thought before the answer is parted from it; stop strings count in the answer alone. The one that is complete
    first ends the answer, so that chunks of any size give the same text. `tokens` are the thought's too and end where
    the text ends; `num_sampled` counts the tokens until the stop string was complete.
    """

    def __init__(self, tokenizer: ChatTokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self._start = 0
        self.text = self.thought = ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.finish_reason: str | None = None
        self.num_sampled = 0

    def add(self, chunk: TokenChunk) -> None:
        """Appends the next tokens."""
        self.tokens += chunk.tokens
        self.logprobs += chunk.logprobs
        self.top_logprobs += chunk.top_logprobs
        self.num_sampled = len(self.tokens)
        growing = not chunk.finish_reason
        whole = self._tokenizer.decode(self.tokens)
        whole = whole.rstrip(INCOMPLETE) if growing else whole
        text, self.thought = self._tokenizer.part(whole, growing)
        self._start = len(whole) - len(text) if text or not growing else 0
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, at = min(matches)
            self.finish_reason, self.text = "stop", text[:at]
            self.num_sampled = self._tokens_until(self._start + end)
            del self.tokens[self._tokens_until(self._start + at) :]
        elif growing:
            # The end of the text may be the beginning of a stop string.
            self.text = text[: len(text) - max((overlap(text, stop) for stop in self._stops), default=0)]
        else:
            self.finish_reason, self.text = chunk.finish_reason, text

    def shown(self) -> tuple[int, int]:
        """The tokens, first and end, whose text is in `text`."""
        end = len(self.tokens) if self.finish_reason else self._tokens_within(self._start + len(self.text))
        return (min(self._tokens_within(self._start), end) if self._start else 0), end

    def _tokens_within(self, position: int) -> int:
        """How many tokens lie wholly within the first characters of the whole text."""
        return bisect.bisect_right(range(len(self.tokens) + 1), position, key=self._length) - 1

    def _tokens_until(self, position: int) -> int:
        """How many tokens it takes to have `position` characters of the whole text."""
        return bisect.bisect_left(range(len(self.tokens)), position, key=self._length)

    def _length(self, tokens: int) -> int:
        return len(self._tokenizer.decode(self.tokens[:tokens]).rstrip(INCOMPLETE))


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that a request may cost: bytes of its body, tokens of its prompt and of an answer, and answers (`n`).

    `default_tokens` is the length of an answer where a request names none, `queue` the answers of all requests.
    """

    body_bytes: int = 1 << 20
    prompt_tokens: int = 8192
    new_tokens: int = 4096
    default_tokens: int = 600
    n: int = 128
    queue: int = 1024


class Completion:
    """One request in progress: its answers as they are sampled, and the JSON that describes them."""

    def __init__(self, engine: Engine, chat: Chat, prompt_tokens: int, seed: int, answers: Answers):
        self._engine, self._chat, self._prompt_tokens, self._answers = engine, chat, prompt_tokens, answers
        self._detokenizers = [Detokenizer(engine.tokenizer, chat.stop) for _ in range(chat.n)]
        # With its seed an answer to a request without one can be repeated.
        identity = f"chatcmpl-{secrets.token_hex(12)}"
        self._head = {"id": identity, "created": int(time.time()), "model": chat.model, "seed": seed}

    @classmethod
    async def begin(cls, engine: Engine, batcher: Batcher, chat: Chat, limits: Limits, client: str) -> "Completion":
        """Queues a client's request. Raises Refusal where prompt and answer do not fit, or too many answers wait."""
        try:
            ids = await run_in_threadpool(engine.encode, chat.messages)
        except UserError as error:
            raise Refusal(400, str(error), "messages", "invalid_value") from None
        seed = secrets.randbelow(2**31) if chat.seed is None else chat.seed
        answers = batcher.ask(
            ids,
            chat.n,
            chat.model,
            client,
            temperature=chat.temperature,
            top_p=chat.top_p,
            max_new_tokens=_max_new_tokens(engine, chat, len(ids), limits),
            seed=seed,
            # One number for all requests: every number would be compiled on its own.
            top_logprobs=MAX_TOP_LOGPROBS if chat.top_logprobs else 0,
        )
        return cls(engine, chat, len(ids), seed, answers)

    def close(self) -> None:
        """Ends the request, also where the client has left."""
        self._answers.close()

    async def whole(self) -> dict[str, Any]:
        """The response to a request without `stream`."""
        async for _ in self._updated_samples():
            pass
        choices = [
            {
                "index": sample,
                "message": {"role": "assistant", "content": answer.text, "refusal": None} | _thought(answer.thought),
                "logprobs": self._logprobs(answer, *answer.shown()),
                "finish_reason": answer.finish_reason,
            }
            for sample, answer in enumerate(self._detokenizers)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a request with `stream`."""
        for sample in range(self._chat.n):
            yield self._event(sample, {"role": "assistant", "content": ""}, None, None)
        sent = [(0, 0, 0)] * self._chat.n  # characters of the answer and of the thought, and tokens
        async for sample in self._updated_samples():
            answer, (characters, thoughts, tokens) = self._detokenizers[sample], sent[sample]
            if thought := _thought(answer.thought[thoughts:]):  # apart: clients read it or else the content of an event
                yield self._event(sample, thought, None, None)
            end, delta = tokens, {"content": new} if (new := answer.text[characters:]) else {}
            if delta or answer.finish_reason:
                first, end = answer.shown() if self._chat.logprobs else (0, 0)
                logprobs = self._logprobs(answer, max(first, tokens), end)
                yield self._event(sample, delta, logprobs, answer.finish_reason)
            sent[sample] = len(answer.text), len(answer.thought), end
        if self._chat.include_usage:
            yield self._chunk([]) | {"usage": self._usage()}

    async def _updated_samples(self) -> AsyncIterator[int]:
        """Appends each chunk to its answer; yields the number of that answer."""
        async for chunk in self._answers.chunks():
            answer = self._detokenizers[chunk.request.sample]
            answer.add(chunk)
            if answer.finish_reason:
                self._answers.end([chunk.request.sample])
            yield chunk.request.sample

    def _event(self, sample: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return self._chunk([{"index": sample, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._chat.include_usage else {}
        return self._head | {"object": "chat.completion.chunk", "choices": choices} | usage

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._prompt_tokens, sum(answer.num_sampled for answer in self._detokenizers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _logprobs(self, answer: Detokenizer, start: int, end: int) -> dict[str, Any] | None:
        """Tokens `start` to `end` of an answer with their log-probabilities under the model at temperature 1."""
        if not self._chat.logprobs:
            return None
        content = []
        for index in range(start, end):
            top = [self._token(*each) for each in answer.top_logprobs[index][: self._chat.top_logprobs]]
            content.append(self._token(answer.tokens[index], answer.logprobs[index]) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._engine.tokenizer.piece(token)
        # The bytes of an incomplete character are not known.
        utf8 = None if INCOMPLETE in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": utf8}


def _thought(text: str) -> dict[str, str]:
    """A thought, as DeepSeek, vLLM and SGLang name it beside the content; nothing where there is none."""
    return {"reasoning_content": text} if text else {}


MIN_LOGPROB = -9999.0
"""OpenAI's value for a token of probability 0: JSON has no infinity."""


def _max_new_tokens(engine: Engine, chat: Chat, prompt: int, limits: Limits) -> int:
    """The length an answer may reach. Raises Refusal where a prompt of so many tokens and its answer do not fit."""
    positions = engine.model.config.max_position_embeddings
    length, code = f"the messages have {prompt} tokens", "context_length_exceeded"
    if prompt > (most := min(limits.prompt_tokens, positions - 1)):
        raise Refusal(400, f"{length}, expected at most {most}", "messages", code)
    most = min(limits.new_tokens, positions - prompt)
    if chat.new_tokens and chat.new_tokens > most:
        why = f"{length} and the model {positions} positions" if most < limits.new_tokens else "a limit of this server"
        message = f"max_tokens: expected at most {most} ({why}), found {chat.new_tokens}"
        raise Refusal(400, message, "max_tokens", code if most < limits.new_tokens else "invalid_value")
    return chat.new_tokens or min(limits.default_tokens, most)
