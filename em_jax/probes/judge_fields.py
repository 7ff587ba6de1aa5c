"""The fields of a judge's request in which servers differ, and how they follow what a server refuses."""

import dataclasses
import re
from typing import Any

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
