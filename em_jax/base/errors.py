"""The errors that reach a user as one line: what was expected, what was found, what to do."""

from em_jax.base.sanitize import sanitize_line

LONGEST = 2_000
"""Characters of a line: what a file holds may be quoted in it, and be a megabyte long."""


class UserError(Exception):
    """The run cannot go on for a reason the user can act on; exit status 1.

    Whatever of a file's content is quoted, the text is one line that does nothing to a terminal.
    """

    def __str__(self) -> str:
        return sanitize_line(super().__str__(), LONGEST)


class UsageError(UserError):
    """The command or a setting is wrong; exit status 2."""


class Unfinished(UserError):
    """A run failed after it had begun: what is done is kept, and the same command goes on from there."""


class OutOfMemory(UserError):
    """A device's or this machine's memory ran out: the same command would end the same way."""


class Stopping(UserError):
    """The run was asked to stop (SIGTERM) and did so at a moment that loses nothing."""
