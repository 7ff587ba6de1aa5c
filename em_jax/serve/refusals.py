"""The error of a request that is not served, in OpenAI's format."""

from typing import Any

from em_jax.base.sanitize import sanitize_line

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
