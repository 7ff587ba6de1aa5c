"""Chat completions: from a checked request to the JSON or the events of its answers."""

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from em_jax.base.errors import UserError
from em_jax.sample.engine import Engine
from em_jax.serve.batcher import Answers, Batcher
from em_jax.serve.detokenizer import INCOMPLETE, Detokenizer
from em_jax.serve.refusals import Refusal
from em_jax.serve.requests import Chat


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client may cost: bytes of a body, tokens of a prompt and of an answer, answers per request and waiting.

    `default_tokens` is the length of an answer where a request names none.
    """

    body_bytes: int = 1 << 20
    prompt_tokens: int = 8192
    new_tokens: int = 4096
    default_tokens: int = 600
    n: int = 128
    queue: int = 1024


class Completion:
    """One request under way: its answers as they grow, and what is said about them."""

    def __init__(self, engine: Engine, chat: Chat, prompt_tokens: int, seed: int, answers: Answers):
        self._engine, self._chat, self._prompt_tokens, self._answers = engine, chat, prompt_tokens, answers
        self._growing = [Detokenizer(engine.text, chat.stop) for _ in range(chat.n)]
        # The seed is told, so that an answer drawn without one can be drawn again.
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": chat.model,
            "seed": seed,
        }

    @classmethod
    async def begin(cls, engine: Engine, batcher: Batcher, adapter: str, chat: Chat, limits: Limits) -> "Completion":
        """Asks for the answers. Raises Refusal where prompt and answer do not fit, or too many wait."""
        try:
            ids = await run_in_threadpool(engine.encode, chat.messages)
        except UserError as error:
            raise Refusal(400, str(error), "messages", "invalid_value") from None
        seed = secrets.randbelow(2**31) if chat.seed is None else chat.seed
        answers = batcher.ask(
            ids,
            chat.n,
            adapter,
            temperature=chat.temperature,
            top_p=chat.top_p,
            max_new_tokens=_new_tokens(engine, chat, len(ids), limits),
            seed=seed,
            # Two programs, not one for every number.
            top_logprobs=_LIKELIEST if chat.top_logprobs else 0,
        )
        return cls(engine, chat, len(ids), seed, answers)

    def close(self) -> None:
        """Ends it, also where the client is gone."""
        self._answers.close()

    async def whole(self) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        async for _ in self._grow():
            pass
        choices = [
            {
                "index": sample,
                "message": {"role": "assistant", "content": growing.text, "refusal": None},
                "logprobs": self._logprobs(growing, 0, len(growing.tokens)),
                "finish_reason": growing.finish_reason,
            }
            for sample, growing in enumerate(self._growing)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a request with `stream`."""
        for sample in range(self._chat.n):
            yield self._event(sample, {"role": "assistant", "content": ""}, None, None)
        characters, tokens = [0] * self._chat.n, [0] * self._chat.n
        async for sample in self._grow():
            growing = self._growing[sample]
            new = growing.text[characters[sample] :]
            until = growing.shown() if self._chat.logprobs else 0
            logprobs = self._logprobs(growing, tokens[sample], until)
            characters[sample], tokens[sample] = len(growing.text), until
            if new:
                yield self._event(sample, {"content": new}, logprobs, None)
                logprobs = None
            if growing.finish_reason:
                yield self._event(sample, {}, logprobs, growing.finish_reason)
        if self._chat.include_usage:
            yield self._chunk([]) | {"usage": self._usage()}

    async def _grow(self) -> AsyncIterator[int]:
        """Adds pieces to the answers; yields which one grew."""
        async for chunk in self._answers.chunks():
            growing = self._growing[chunk.request.sample]
            growing.add(chunk)
            if growing.finish_reason:
                self._answers.end([chunk.request.sample])
            yield chunk.request.sample

    def _event(self, sample: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return self._chunk([{"index": sample, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._chat.include_usage else {}
        return self._head | {"object": "chat.completion.chunk", "choices": choices} | usage

    def _usage(self) -> dict[str, int]:
        spent = sum(growing.spent for growing in self._growing)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": spent,
            "total_tokens": self._prompt_tokens + spent,
        }

    def _logprobs(self, growing: Detokenizer, start: int, end: int) -> dict[str, Any] | None:
        """Tokens `start` to `end` of an answer with their log-probabilities under the model at temperature 1."""
        if not self._chat.logprobs:
            return None
        top = self._chat.top_logprobs
        content = []
        for place in range(start, end):
            top_logprobs = growing.top_logprobs[place][:top]
            content.append(
                self._token(growing.tokens[place], growing.logprobs[place])
                | {"top_logprobs": [self._token(token, logprob) for token, logprob in top_logprobs]}
            )
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._engine.tokenizer.piece(token)
        # Part of a character has no text of its own, and its bytes are not told.
        whole = None if INCOMPLETE in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": whole}


_LIKELIEST = 20
_LEAST = -9999.0
"""OpenAI's word for a token of no probability: JSON has no infinity."""


def _new_tokens(engine: Engine, chat: Chat, prompt: int, limits: Limits) -> int:
    """How long an answer may become."""
    code = "context_length_exceeded"
    if prompt > limits.prompt_tokens:
        found = f"the messages have {prompt} tokens"
        raise Refusal(400, f"{found}, this server takes up to {limits.prompt_tokens}", "messages", code)
    positions = engine.model.config.max_position_embeddings
    if prompt >= positions:
        raise Refusal(400, f"the messages have {prompt} tokens, the model {positions} positions", "messages", code)
    if chat.new_tokens is None:
        return min(limits.default_tokens, limits.new_tokens, positions - prompt)
    if chat.new_tokens > limits.new_tokens:
        asked = f"max_tokens: expected at most {limits.new_tokens}, found {chat.new_tokens}"
        raise Refusal(400, asked, "max_tokens", "invalid_value")
    if prompt + chat.new_tokens > positions:
        raise Refusal(
            400,
            f"the messages have {prompt} tokens and the answer may have {chat.new_tokens}, but the model has "
            f"{positions} positions: shorten the messages or lower max_tokens",
            "max_tokens",
            code,
        )
    return chat.new_tokens
