"""Memory or disk that ran out, as errors that a user can act on."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from em_jax.base.errors import OutOfMemory, Unfinished, UserError, first_line

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
    """Within, memory or disk that runs out raises OutOfMemory or Unfinished, which say what to do; others pass.

    The advice is that of the `stage`; without one it is that of all.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and jax raise what their storage and their compilers raise
        if _is_memory(error):
            advice = [ADVICE[stage]] if stage in ADVICE else [] if stage else [TRAINING, SAMPLING]
            raise OutOfMemory(f"out of memory ({first_line(error)}): {', '.join([*advice, ANY_STAGE])}") from error
        # Native code has the system's text in its own errors.
        if full := next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), ""):
            raise Unfinished(f"no room on the disk ({full}): free some, or have the quota raised") from error
        raise


def _is_memory(error: Exception) -> bool:
    """Whether a device's or this machine's memory ran out, at compilation or at run time."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return isinstance(error, MemoryError)
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
