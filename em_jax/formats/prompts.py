"""What a caller may pass to the engine: prompts, made a list of checked chats, and how answers are sampled."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from em_jax.base.errors import UserError

Prompt = Sequence[Mapping[str, str]]
"""A list of chat messages, {"role", "content"} each."""
Prompts = str | Prompt | Sequence[str | Prompt]
"""A question (the content of a user's message), a chat, or a list of these."""

ROLES = ("system", "user", "assistant")
SAMPLING: Mapping[str, tuple[Any, float, float, str]] = {
    "n": (Integral, 1, math.inf, "n >= 1"),
    "temperature": (Real, 0, math.inf, "temperature >= 0"),
    "top_p": (Real, math.ulp(0), 1, "0 < top_p <= 1"),
    "max_new_tokens": (Integral, 1, math.inf, "max_new_tokens >= 1"),
    "seed": (Integral, -(2**63), 2**63 - 1, "a whole number of 64 bits as seed"),
}
"""The arguments of sampling: their type, the least and the greatest value, and what an error says."""


def chats(prompts: Prompts) -> list[Prompt]:
    """One chat per prompt; a single question or chat is a list of one. Raises UserError for anything else."""
    if isinstance(prompts, str | Mapping):
        return [chat(prompts if isinstance(prompts, str) else [prompts], "prompt 0")]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise UserError(f"prompts: expected a text, a chat or a list of these, found {type(prompts).__name__}")
    if prompts and all(isinstance(each, Mapping) for each in prompts):
        return [chat(prompts, "prompt 0")]
    return [chat(each, f"prompt {index}") for index, each in enumerate(prompts)]


def chat(prompt: object, where: str = "prompt") -> Prompt:
    """A chat from a question or a list of messages, each of which has a role and a content, both texts."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not prompt:
        found = "an empty list" if isinstance(prompt, Sequence) and not prompt else type(prompt).__name__
        raise UserError(f"{where}: expected a text or a list of messages, found {found}")
    for index, message in enumerate(prompt):
        place = f"{where}, message {index}"
        if not isinstance(message, Mapping):
            raise UserError(f'{place}: expected {{"role": ..., "content": ...}}, found {type(message).__name__}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                keys = f"only {', '.join(map(str, message))}" if message else "nothing"
                found = type(message[key]).__name__ if key in message else keys
                raise UserError(f"{place}: expected a text as {key!r}, found {found}")
        if message["role"] not in ROLES:
            raise UserError(f"{place}: expected one of {', '.join(ROLES)} as 'role', found {message['role']!r}")
    return prompt


def check_sampling(**given: Any) -> None:
    """UserError where an argument of `Engine.generate`, by its name in SAMPLING, has a wrong type or range."""
    for name, value in given.items():
        kind, low, high, expected = SAMPLING[name]
        if not isinstance(value, kind) or not low <= value <= high:
            raise UserError(f"expected {expected}, found {name} {value!r}")
