"""Failures from below that a user can act on, told in one line: memory or disk that ran out."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from em_jax.base.errors import OutOfMemory, Unfinished, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Within, memory or disk that runs out raises OutOfMemory or Unfinished, which say what to do; others pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and jax raise what their storage and their compilers raise
        if _of_memory(error):
            raise OutOfMemory(
                f"out of memory ({_first_line(error)}): training needs less with --set train.rows_per_pass=1 or "
                "--set train.remat=full, sampling with a smaller answers.slots, the model with "
                "--set model.quantization=int8 (in another --run_dir), each device with --mesh over more of them"
            ) from error
        if full := _of_disk(error):
            raise Unfinished(f"no room on the disk ({full}): free some, or have the quota raised") from error
        raise


def _of_memory(error: Exception) -> bool:
    """Whether a device's or this machine's memory ran out, as a program was compiled or as it ran."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return isinstance(error, MemoryError)
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def _of_disk(error: Exception) -> str:
    """How the system says that a write found no room, else ""; native code has that in the text of its own errors."""
    return next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
