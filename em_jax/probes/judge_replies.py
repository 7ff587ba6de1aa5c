"""What a judge's server says: whether a response is a reply, a refusal of one answer, or a failure that may pass.

And the fields of a request in which servers differ: they follow what a server refuses.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from em_jax.base import thought_tags
from em_jax.base.sanitize import sanitize_line

MAX_SAID = 300
"""Characters kept of what a server says about a failure."""
_THIS_ANSWER = (400, 403, 413, 422, 451)
"""Statuses that may concern one request alone (moderation, too long)."""
_ABOUT_FIELDS = (400, 404, 422, 501)
_PASSING = (408, 409, 421, 424, 425, 429, 498, 499)
"""Statuses beside 5xx that another try may change."""
_ACCOUNT = re.compile(
    r"insufficient_quota|exceeded your current quota|billing|credit balance|invalid_api_key|api[ _]key not valid|"
    r"(?:incorrect|invalid|wrong|no|missing) api[ _-]?key|authentication_error|model_not_found|"
    r"model\b.{0,80}\bdoes not exist",
    re.IGNORECASE,
)
"""What no other request of this account would change either, whatever the status."""
_FILTERED = re.compile(
    r"content[ _-]?filter|content[ _-]?policy|content management policy|responsibleai|moderation|flagged|"
    r"usage policies|safety (?:system|reasons|filter)|prohibited|data_?inspection_?failed|exists risk|inappropriate|"
    r"context[ _]length|context window|maximum context|too many tokens|"
    r"(?:prompt|input|request) (?:is )?too (?:long|large)|string_above_max_length",
    re.IGNORECASE,
)
"""Of an answer refused for what it says, or for its length."""
_NEEDS_ROOM = re.compile(r"could not finish the message|higher max_(?:completion_)?tokens", re.IGNORECASE)
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded")
_WITHHELD = re.compile(r"filter|safety|sensitive|prohibited|recitation|blocklist|refus", re.IGNORECASE)
_BROKEN = re.compile(r"error|abort|cancel|insufficient|fail|time", re.IGNORECASE)
"""Ends of a reply other than its own: it is withheld for what it says, or broken off."""
_OPENING = re.compile(rf"^\s*(?:{thought_tags.OPENING}|<\|channel>thought)", re.MULTILINE)
_CLOSING = re.compile(rf"{thought_tags.CLOSING}|<channel\|>")
_TEXT = ("text", "output_text")
_FINAL_CHANNEL = "<|channel|>final<|message|>"

CUT, JUDGE_REFUSES, SERVER_REFUSES = "cut short", "the judge refuses", "the server refuses this answer"
"""How the reasons begin of rows whose `raw` is no whole reply of the judge: a score that stands in it is none."""
AGAIN, STOP, THIS_ANSWER, FILTERED, NEEDS_ROOM = "again", "stop", "this answer", "filtered", "needs room"

_KINDS = {STOP: _ACCOUNT, FILTERED: _FILTERED}
"""What an error within a 200 is by its words, where it is not worth another try."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a response holds no reply.

    `kind` is AGAIN (another try may succeed), STOP (no request will), THIS_ANSWER (the request is refused), FILTERED
    (it is refused for what its answer says or for its length) or NEEDS_ROOM (it is refused for the limit of tokens).
    `said` is what the server says, not made safe yet; `named` is where it names request fields, as
    it does with some statuses alone.
    """

    kind: str
    reason: str
    said: str = ""
    named: str = ""
    may_name_a_field: bool = False


@dataclasses.dataclass(frozen=True)
class Reply:
    """A judge's reply: its text without thoughts, whether it was cut, and why the judge itself gives none (or "")."""

    text: str
    cut: bool
    refusal: str
    logprobs: Any
    server: dict[str, str]


def read(status: int, content: bytes, room: int) -> Reply | Failure:
    """The reply in a response to a request of at most `room` tokens, or the failure that it is."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if status == 200:
        if body is None:
            return Failure(AGAIN, "a reply that is not JSON", _page(content))
        found = _reply(body, room)
        if isinstance(found, Reply) or found.said:
            return found
        return dataclasses.replace(found, said=_page(content))
    said, named = _error(body)
    return _failure(status, said or _page(content), named)


def _failure(status: int, said: str, named: str) -> Failure:
    evidence = f"{named} {said}"
    if status in (401, 402) or (status < 500 and _ACCOUNT.search(evidence)):
        kind = STOP
    elif status in _PASSING or status >= 500:
        kind = AGAIN
    elif status not in _THIS_ANSWER:
        kind = STOP
    elif _NEEDS_ROOM.search(said):
        kind = NEEDS_ROOM
    else:
        kind = FILTERED if status == 413 or _FILTERED.search(evidence) else THIS_ANSWER
    return Failure(kind, f"status {status}", said, named, status in _ABOUT_FIELDS)


def _reply(body: Any, room: int) -> Reply | Failure:
    if not isinstance(body, Mapping):
        return Failure(AGAIN, "a reply without choices")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    finish, message = str(choice.get("finish_reason") or ""), choice.get("message")
    failed = body.get("error") or choice.get("error")
    if failed or not choice:
        said, named = _error({"error": failed} if failed else body)
        refused = [kind for kind, words in _KINDS.items() if words.search(f"{named} {said}")]
        may_name_a_field = any(str(status) in named.split() for status in _ABOUT_FIELDS)
        reason = "an error in place of a reply" if failed else "a reply without choices"
        return Failure(refused[0] if refused else AGAIN, reason, said, named, may_name_a_field)
    # Names of the server and model go with the score: the same model name may later mean another model.
    server = {name: body[name] for name in ("model", "system_fingerprint") if isinstance(body.get(name), str)}
    if _WITHHELD.search(finish):
        return Failure(FILTERED, "content filter", said=f"the server withholds the reply ({finish[:100]})")
    if _BROKEN.search(finish):
        return Failure(AGAIN, "a reply that was broken off", said=f"the reply ended by {finish[:100]}")
    if not isinstance(message, Mapping):
        return Failure(AGAIN, "a reply without a message")
    content = _text(message.get("content"))
    if content is None:
        return Failure(AGAIN, "a reply without a message")
    if not content and isinstance(refusal := message.get("refusal"), str) and refusal:
        return Reply(refusal, False, JUDGE_REFUSES, None, server)
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details"))
    final = final_text(content)
    cut = finish.lower() in _CUT or final is None or (not final.strip() and (thought or content.strip() != ""))
    if not finish and not cut:
        usage = body.get("usage")
        used = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
        cut = isinstance(used, int) and used >= room
    return Reply(content if final is None else final, cut, "", choice.get("logprobs"), server)


def _text(content: Any) -> str | None:
    """A message's content, of which a list's parts of type text count; None where it is neither."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") in _TEXT]
        content = "".join(part for part in parts if isinstance(part, str))
    return "" if content is None else content if isinstance(content, str) else None


def final_text(content: str) -> str | None:
    """A reply after its thoughts; None where a thought is not finished.

    Thoughts stand between <think> and </think> (or the other names), before a </think> whose opening was in the
    prompt, or in another channel than the final one.
    """
    if "<|channel|>" in content:
        _, found, final = content.rpartition(_FINAL_CHANNEL)
        return re.split(r"<\|(?:end|return|start)\|>", final, maxsplit=1)[0] if found else None
    final = _CLOSING.split(content)[-1]
    return None if _OPENING.search(final) else final


def _error(body: Any) -> tuple[str, str]:
    """(what an error body says, where it names fields and kinds), in the shapes that servers use."""
    error = body
    if isinstance(body, Mapping):
        error = next((body[name] for name in ("error", "errors", "detail", "message") if body.get(name)), None)
    if isinstance(error, list):  # a list of faults, each with the place it is at
        faults = [fault if isinstance(fault, Mapping) else {"msg": fault} for fault in error[:20]]
        places = [word for fault in faults for word in re.findall(r"\w+", str(fault.get("loc") or ""))]
        messages = [str(fault.get("msg") or fault.get("message") or "") for fault in faults]
        return "; ".join(filter(None, messages)), " ".join(places)
    if not isinstance(error, Mapping):
        return ("" if error is None else str(error)), ""
    said = str(error.get("message") or error.get("msg") or "")
    metadata, inner = error.get("metadata"), error.get("innererror")
    if isinstance(metadata, Mapping):  # a router's: what the provider behind it said
        said = " ".join([said, *(str(metadata[name])[:1000] for name in ("reasons", "raw") if metadata.get(name))])
    kinds = [error.get("param"), error.get("code"), error.get("type"), error.get("status")]
    kinds.append(inner.get("code") if isinstance(inner, Mapping) else None)
    return said, " ".join(str(kind) for kind in kinds if kind is not None)


def _page(content: bytes) -> str:
    """The words of a body that is no JSON, such as a proxy's page."""
    text = content[:4000].decode("utf-8", "replace")
    return re.sub(r"<[^<>]{0,200}>", " ", text)


def safe(text: str, secrets: Collection[str], limit: int = MAX_SAID) -> str:
    """What a server said as one line, without the secrets, their beginnings and ends, and words that look like keys."""
    for name in (secret for secret in secrets if secret):
        text = text.replace(name, "(a secret)")
    ends = [end for secret in secrets if len(secret) >= 12 for end in (secret[:6], secret[-6:])]

    def hide(match: re.Match) -> str:
        word = match.group()
        masked = "**" in word or re.match(r"(?:sk|gsk|xai|pk|rk|key|hf|AIza)[-_A-Z][\w-]{8,}", word)
        return "(a secret)" if masked or any(end in word for end in ends) else word

    return sanitize_line(re.sub(r"[^\s\"',;:()<>]+", hide, text[: 20 * limit]), limit)


# --- the request's fields, and how they follow what a server refuses ---


ROOMS = (24, 1024, 8192)
"""Tokens of a reply: for a score; for one after short thoughts; for one after long thoughts."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """`limit` is the name of the limit of tokens ("" sends none), `room` its value, `top` the top log-probabilities.

    Without `temperature` the server samples at its own default.
    """

    limit: str = "max_tokens"
    room: int = ROOMS[0]
    temperature: bool = True
    top: int = 10

    def body(self) -> dict[str, Any]:
        """The fields as a request has them."""
        body: dict[str, Any] = {"temperature": 0} if self.temperature else {}
        if self.limit:
            body[self.limit] = self.room
        return body | ({"logprobs": True, "top_logprobs": self.top} if self.top else {})

    def roomier(self) -> "Fields | None":
        """With more room for thoughts; None where there is no more."""
        larger = [room for room in ROOMS if room > self.room]
        return dataclasses.replace(self, room=larger[0]) if larger and self.limit else None

    def without(self, said: str, named: str) -> "Fields | None":
        """Without the field that a server refuses by name; None where it names none that is sent."""
        words = f"{named} {said}"

        def names(field: str) -> bool:
            return bool(field) and re.search(rf"(?<![a-z_]){field}(?![a-z_])", words, re.IGNORECASE) is not None

        # A name that took a smaller number is known: the number is too large, for the server or for its context.
        if self.room > ROOMS[0] and (names(self.limit) or re.search("context", said, re.IGNORECASE)):
            return dataclasses.replace(self, room=max(self.room // 2, ROOMS[0]))
        if self.limit == "max_tokens" and names("max_tokens"):
            return dataclasses.replace(self, limit="max_completion_tokens")
        if names(self.limit):
            return dataclasses.replace(self, limit="")
        if self.temperature and names("temperature"):
            return dataclasses.replace(self, temperature=False)
        if self.top > 5 and names("top_logprobs"):
            return dataclasses.replace(self, top=5)
        if self.top and (names("top_logprobs") or re.search("log[ _-]?prob", words, re.IGNORECASE)):
            return dataclasses.replace(self, top=0)
        return None

    def left_out(self) -> str:
        """The usual fields that are not sent, for the record beside a score."""
        usual = {"max_tokens": self.limit, "temperature": self.temperature, "logprobs": self.top}
        return ", ".join(name for name, sent in usual.items() if not sent)
