"""What a request is told when it is not served, in OpenAI's shape."""

from typing import Any

from em_jax.base.sanitize import sanitize_line

LONGEST = 500
"""Characters of a message: what a client sent may be quoted in it."""


class Refusal(Exception):
    """A request is not served: an HTTP status, what was expected and found, and the parameter it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def kind(self) -> str:
        """The error's type by OpenAI's names."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        message = sanitize_line(str(self), LONGEST)
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}
