"""Errors that are shown to the user as one line: what was expected, what was found, what to do.

Memory or disk that ran out becomes one of them.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

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


class Permanent(UserError):
    """A run failed and the same command would fail again: something has to change first."""


class Stopping(UserError):
    """The run was asked to stop (SIGTERM) and did so at a moment that loses nothing."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRAINING = "training needs less with --set train.rows_per_pass=1 or --set train.remat=full"
SAMPLING = "sampling needs less with a smaller answers.slots"
ADVICE = {"finetune": TRAINING, "answer": SAMPLING, "judge": SAMPLING, "probe": SAMPLING}
"""What makes a stage need less memory."""
ANY_STAGE = (
    "the model needs less with --set model.quantization=int8 (in another --run_dir), each device with --mesh over more "
    "of them"
)


@contextlib.contextmanager
def translate_errors(stage: str = "") -> Iterator[None]:
    """Within, memory or disk that runs out raises Permanent or Unfinished, which say what to do; others pass.

    A file that cannot be used is a UserError with its name. The advice is that of the `stage`, without one of all.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and jax raise what their storage and their compilers raise
        if _is_memory(error):
            advice = [ADVICE[stage]] if stage in ADVICE else [] if stage else [TRAINING, SAMPLING]
            raise Permanent(f"out of memory ({first_line(error)}): {', '.join([*advice, ANY_STAGE])}") from error
        # Native code has the system's text in its own errors.
        if full := next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), ""):
            raise Unfinished(f"no room on the disk ({full}): free some, or have the quota raised") from error
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(f"{error.filename} cannot be read or written: {error.strerror}") from error
        raise


def _is_memory(error: Exception) -> bool:
    """Whether a device's or this machine's memory ran out, at compilation or at run time."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return isinstance(error, MemoryError)
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
