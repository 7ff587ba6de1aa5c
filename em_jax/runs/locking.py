"""A run directory belongs to one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from em_jax.base import failures
from em_jax.base.errors import UserError


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def lock(directory: str | os.PathLike) -> Iterator[None]:
    """Hold a run directory for this process alone.

    The lock belongs to the open file, so it ends with the process however that dies: a lock file left behind by a
    killed run is no obstacle. Files that such a run left half-written are cleared away.

    Raises:
      UserError: another process holds the directory, or nothing can be written there.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A link of that name, in a directory from elsewhere, would have another file written.
        file = open(directory / ".lock", "a+", opener=_no_link)  # noqa: SIM115 (closed below)
    except OSError as error:
        if error.errno in failures.FULL:
            raise
        raise UserError(
            f"expected a directory that can be written, found {directory}: {error.strerror}; name another --run_dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{directory} is in use by {holder}: one run at a time holds a directory; "
                "wait for it, or name another --run_dir"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        for left in directory.rglob(".*.partial"):
            left.unlink(missing_ok=True)
        yield
