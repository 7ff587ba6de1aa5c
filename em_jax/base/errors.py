"""Errors that are shown to the user as one line: what was expected, what was found, what to do."""

from em_jax.base.sanitize import sanitize_line

LONGEST = 2_000
"""Characters of a line: it may quote a file's content, which may be a megabyte long."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class UserError(Exception):
    """The run cannot continue for a reason the user can act on; exit status 1. Its text is one sanitized line."""

    def __str__(self) -> str:
        return sanitize_line(super().__str__(), LONGEST)


class UsageError(UserError):
    """The command or a setting is wrong; exit status 2."""


class Unfinished(UserError):
    """A run failed after it had begun: what is done is kept, and the same command continues from there."""


class OutOfMemory(UserError):
    """A device's or this machine's memory ran out: the same command would fail again."""


class Stopping(UserError):
    """The run was asked to stop (SIGTERM) and did so at a moment that loses nothing."""
