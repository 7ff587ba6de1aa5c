"""The body of POST /v1/chat/completions, checked field by field, and the error of a request that is not served.

A field that would change the answer and is not implemented is refused, never ignored; a field that changes nothing
about the answer is ignored.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from em_jax.base.sanitize import is_whole, sanitize_line

MAX_STOPS = 16
"""The most stop strings of a request; OpenAI accepts 4."""
MAX_STOP_LENGTH = 1000
"""The most characters of a stop string; every new token's text is searched for its beginnings."""
MAX_MESSAGES, MAX_PARTS = 4096, 1024
MAX_TOP_LOGPROBS = 20

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

THOUGHTS = ("reasoning_content", "reasoning")  # beside the content of an earlier answer

# Fields of OpenAI's protocol that do not change the text.
IGNORED = {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
IGNORED |= {"prompt_cache_retention", "parallel_tool_calls", "stream_options.include_obfuscation"}
IGNORED |= {"request_id", "priority", "keep_alive", "spaces_between_special_tokens", "prediction", "session_id"}
IGNORED |= {"cache_prompt", "cache_salt", "id_slot", "detokenize", "include_reasoning", "separate_reasoning"}

# Fields that would change the text, with the only values that leave it as it is: of OpenAI, vLLM, SGLang, llama.cpp and
# the clients made for them.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty presence_penalty min_p top_a mirostat min_tokens n_probs prompt_logprobs": (0,),
    "dry_multiplier xtc_probability": (0,),
    "typical_p repetition_penalty repeat_penalty length_penalty best_of": (1,),
    "use_beam_search early_stopping ignore_eos include_stop_str_in_output add_special_tokens": (False,),
    "continue_final_message echo return_tokens_as_token_ids return_token_ids enable_thinking think": (False,),
    "skip_special_tokens add_generation_prompt": (True,),
    "tools functions stop_token_ids bad_words documents": ([],),
    "tool_choice function_call": ("none", "auto"),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "top_k": (-1, 0),
    "chat_template_kwargs": ({}, {"enable_thinking": False}, {"thinking": False}),
    "thinking": ({"type": "disabled"},),
    "reasoning": ({"effort": "none"}, {"enabled": False}),
}
NEUTRAL = {name: values for names, values in _NEUTRAL.items() for name in names.split()}

MAX_MESSAGE = 500
"""Characters of a message, which may quote what a client sent."""


class Refusal(Exception):
    """A request is not served: the HTTP status, what was expected and found, the parameter and OpenAI's error code."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        message = sanitize_line(str(self), MAX_MESSAGE)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request for chat completions. `new_tokens` and `seed` are None where the server chooses them."""

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


def read_chat(raw: bytes, max_answers: int) -> Chat:
    """The request in a body. Raises Refusal where it cannot be served."""
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "expected a JSON object as the body of the request")
    fields = _Fields({name: value for name, value in body.items() if value is not None})
    for name, neutral in NEUTRAL.items():
        if name in fields.unread and (value := fields.unread.pop(name)) not in neutral:
            raise Refusal(400, f"{name} is not supported, found {_short(value)}", name, "unsupported_parameter")
    names = ("max_completion_tokens", "max_tokens")
    lengths = {fields.number(name, int, 1, math.inf, None) for name in names} - {None}
    if len(lengths) > 1:
        raise Refusal(400, "max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
    stream_options = fields.take("stream_options", dict, {})
    fields.unread |= {f"stream_options.{name}": value for name, value in stream_options.items()}
    chat = Chat(
        model=fields.take("model", str),
        messages=_messages(fields.take("messages", list)),
        n=fields.number("n", int, 1, max_answers, 1),
        temperature=fields.number("temperature", float, 0, 100, 1.0),
        # Below float32's range the likeliest token must stay, as it does for 1e-6.
        top_p=max(fields.number("top_p", float, 0, 1, 1.0), 1e-6),
        new_tokens=next(iter(lengths), None),
        seed=fields.number("seed", int, -(2**63), 2**63 - 1, None),
        stop=_stops(fields.unread.pop("stop", [])),
        logprobs=fields.take("logprobs", bool, False),
        top_logprobs=fields.number("top_logprobs", int, 0, MAX_TOP_LOGPROBS, 0),
        stream=fields.take("stream", bool, False),
        include_usage=fields.take("stream_options.include_usage", bool, False),
    )
    if chat.top_logprobs and not chat.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    for name in sorted(fields.unread.keys() - IGNORED):
        raise Refusal(400, f"unknown parameter {_short(name)}", sanitize_line(name, 100), "unknown_parameter")
    return chat


class _Fields:
    """The unread fields of an object; each is read once and checked."""

    def __init__(self, unread: dict[str, Any]):
        self.unread = unread

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        if name not in self.unread and default is not None:
            return default
        if not isinstance(value := self.unread.pop(name, None), kind):
            expected = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}[kind]
            raise _invalid(name, expected, value, "invalid_type")
        return value

    def number(self, name: str, kind: type, low: float, high: float, default: Any) -> Any:
        if name not in self.unread:
            return default
        value = self.unread.pop(name)
        if type(value) not in (int, kind) or not low <= value <= high:
            limits = f"from {low} to {high}" if high < math.inf else f"from {low} on"
            raise _invalid(name, f"a {'whole number' if kind is int else 'number'} {limits}", value)
        return kind(value)


def _messages(messages: list[Any]) -> list[dict[str, str]]:
    if not 0 < len(messages) <= MAX_MESSAGES:
        message = f"messages: expected 1 to {MAX_MESSAGES}, found {len(messages)}"
        raise Refusal(400, message, "messages", "invalid_value")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in list(ROLES):
        raise Refusal(400, f"{name}: expected an object whose role is one of {', '.join(ROLES)}", name)
    # "type" stands beside the role in the messages of lm-evaluation-harness.
    used = {field for field, value in message.items() if value not in (None, []) and (field, value) != ("type", "text")}
    if unsupported := sorted(used - {"role", "content", "name", *THOUGHTS}):
        raise Refusal(400, f"{name}: {_short(unsupported[0])} is not supported", name, "unsupported_parameter")
    content = message.get("content")
    if isinstance(content, list) and len(content) <= MAX_PARTS:
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        strings = [text for text in texts if isinstance(text, str)]
        content = "".join(strings) if len(strings) == len(content) else None
    if not isinstance(content, str) or not is_whole(content):
        name += ".content"
        raise Refusal(400, f"{name}: expected a text, or parts of type text", name, "invalid_type")
    # The template decides whether an earlier thought is written.
    thought = next((text for field in THOUGHTS if (text := message.get(field))), "")
    if not isinstance(thought, str) or not is_whole(thought):
        raise Refusal(400, f"{name}: expected a thought to be a text", name, "invalid_type")
    return {"role": ROLES[message["role"]], "content": content} | ({"reasoning_content": thought} if thought else {})


def _stops(stop: Any) -> tuple[str, ...]:
    stops = stop if isinstance(stop, list) else [stop]
    if len(stops) > MAX_STOPS or not all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH for text in stops):
        raise _invalid("stop", f"a text or up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters", stop)
    return tuple(stops)


def _invalid(name: str, expected: str, value: Any, code: str = "invalid_value") -> Refusal:
    found = "nothing" if value is None else _short(value)
    return Refusal(400, f"{name}: expected {expected}, found {found}", name, code)


def _refuse_constant(word: str) -> float:
    raise ValueError(word)


def _short(value: Any) -> str:
    # Not all of a long value is written out to be cut.
    value = value[:100] if isinstance(value, (str, list)) else value
    return json.dumps(value)[:80]
