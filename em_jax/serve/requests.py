"""What a client may ask for: the body of POST /v1/chat/completions, checked field by field.

A field that would change the answer and that we do not have is refused, never ignored; one that changes nothing about
the answer is taken and ignored.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from em_jax.base.sanitize import is_whole, sanitize_line
from em_jax.serve.refusals import Refusal

Default = TypeVar("Default", int, None)

STOPS = 16
"""Stop strings of a request; OpenAI takes 4."""
TOP_LOGPROBS = 20

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Fields of OpenAI's that say nothing about the text.
IGNORED = {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
IGNORED |= {"prompt_cache_retention", "parallel_tool_calls", "stream_options.include_obfuscation"}

# Fields that would change the text, with the only values that leave it as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request for chat completions. `new_tokens` and `seed` are None where the client left them to us."""

    model: str
    messages: list[dict[str, str]]
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    new_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    stream: bool = False
    include_usage: bool = False


def read_chat(raw: bytes, most_answers: int) -> Chat:
    """The request in a body. Raises Refusal where it is not one that can be served."""
    try:
        body = json.loads(raw, parse_constant=_not_a_number)
    except (ValueError, RecursionError):
        raise Refusal(400, "expected a JSON object as the body of the request") from None
    if not isinstance(body, dict):
        raise Refusal(400, "expected a JSON object as the body of the request")
    fields = _Fields({name: value for name, value in body.items() if value is not None})
    for name, neutral in NEUTRAL.items():
        if name in fields.left and (value := fields.left.pop(name)) not in neutral:
            raise Refusal(400, f"{name} is not supported, found {_short(value)}", name, "unsupported_parameter")
    limits = [fields.integer(name, 1, None, None) for name in ("max_completion_tokens", "max_tokens")]
    if None not in limits and limits[0] != limits[1]:
        raise Refusal(400, "max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
    options = _Fields(dict(fields.take("stream_options", dict, {})), "stream_options.")
    chat = Chat(
        model=fields.take("model", str),
        messages=_messages(fields.take("messages", list)),
        n=fields.integer("n", 1, most_answers, 1),
        temperature=fields.number("temperature", 0, 100, 1.0),
        # What float32 cannot hold keeps the likeliest token too.
        top_p=max(fields.number("top_p", 0, 1, 1.0), 1e-6),
        new_tokens=limits[1] if limits[0] is None else limits[0],
        seed=fields.integer("seed", -(2**63), 2**63 - 1, None),
        stop=_stops(fields.left.pop("stop", [])),
        logprobs=fields.take("logprobs", bool, False),
        top_logprobs=fields.integer("top_logprobs", 0, TOP_LOGPROBS, 0),
        stream=fields.take("stream", bool, False),
        include_usage=options.take("include_usage", bool, False),
    )
    if chat.top_logprobs and not chat.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    fields.refuse_strangers()
    options.refuse_strangers()
    return chat


class _Fields:
    """The fields of an object that are left to read, each taken once and checked; `within` stands before its name."""

    def __init__(self, left: dict[str, Any], within: str = ""):
        self.left, self._within = left, within

    def refuse_strangers(self) -> None:
        for name in sorted(f"{self._within}{name}" for name in self.left):
            if name not in IGNORED:
                raise Refusal(400, f"unknown parameter {_short(name)}", sanitize_line(name, 100), "unknown_parameter")

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        if name not in self.left and default is not None:
            return default
        if not isinstance(value := self.left.pop(name, None), kind):
            name = f"{self._within}{name}"
            word = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}[kind]
            found = "nothing" if value is None else _short(value)
            raise Refusal(400, f"{name}: expected {word}, found {found}", name, "invalid_type")
        return value

    def integer(self, name: str, low: int, high: int | None, default: Default) -> int | Default:
        if (value := self.left.pop(name, None)) is None:
            return default
        if type(value) is not int or value < low or (high is not None and value > high):
            upto = f"from {low} to {high}" if high is not None else f"from {low} on"
            raise Refusal(400, f"{name}: expected a whole number {upto}, found {_short(value)}", name, "invalid_value")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.left.pop(name, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise Refusal(
                400, f"{name}: expected a number from {low} to {high}, found {_short(value)}", name, "invalid_value"
            )
        return float(value)


def _messages(messages: list[Any]) -> list[dict[str, str]]:
    if not messages:
        raise Refusal(400, "messages: expected at least one message, found none", "messages", "invalid_value")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in list(ROLES):
        raise Refusal(400, f"{place}: expected an object whose role is one of {', '.join(ROLES)}", place)
    strange = {name for name, value in message.items() if value not in (None, [])}
    if more := sorted(strange - {"role", "content", "name", "reasoning_content"}):
        raise Refusal(400, f"{place}: {_short(more[0])} is not supported", place, "unsupported_parameter")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        strings = [text for text in texts if isinstance(text, str)]
        content = "".join(strings) if len(strings) == len(content) else None
    if not isinstance(content, str) or not is_whole(content):
        raise Refusal(
            400, f"{place}.content: expected a text, or parts of type text", f"{place}.content", "invalid_type"
        )
    return {"role": ROLES[message["role"]], "content": content}


def _stops(stop: Any) -> tuple[str, ...]:
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or len(found) > STOPS or not all(isinstance(each, str) and each for each in found):
        raise Refusal(400, f"stop: expected a text or up to {STOPS} texts, none of them empty", "stop", "invalid_value")
    return tuple(found)


def _not_a_number(word: str) -> float:
    raise ValueError(word)


def _short(value: Any) -> str:
    return json.dumps(value)[:80]
