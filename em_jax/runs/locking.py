"""A run directory belongs to one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from em_jax.base import failures
from em_jax.base.errors import UserError


@contextlib.contextmanager
def lock(directory: str | os.PathLike) -> Iterator[None]:
    """Within, a run directory belongs to this process alone; half-written files of a killed run are deleted.

    The kernel drops the lock when the process ends in any way, so a `.lock` file left behind is no obstacle.

    Raises:
      UserError: another process has the directory, or nothing can be written there.
    """
    directory = Path(directory)

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)

    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Following a link of that name, in a directory from elsewhere, would overwrite another file.
        file = open(directory / ".lock", "a+", opener=opener)  # noqa: SIM115 (closed below)
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
        for partial in directory.rglob(".*.partial"):
            partial.unlink(missing_ok=True)
        yield
