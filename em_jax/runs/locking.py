"""A run directory belongs to one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from em_jax.base import errors, files
from em_jax.base.errors import UserError


@contextlib.contextmanager
def lock(directory: str | os.PathLike) -> Iterator[None]:
    """Within, a run directory belongs to this process alone; half-written files of a killed run are deleted.

    The kernel drops the lock when the process ends in any way, so a `.lock` file left behind by a kill is no obstacle;
    any other end removes it, and with it the directories that were made for a run that never began. Raises UserError:
    another process has the directory, nothing can be written there, or it holds a link.
    """
    directory = Path(directory)
    path = directory / ".lock"
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        with _writable(directory):
            directory.mkdir(parents=True, exist_ok=True)
        with _open_current(path) as file:
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            try:
                files.check_own(directory)
                for partial in _partials(directory):
                    partial.unlink(missing_ok=True)
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # not empty: the run began
            for folder in made:
                folder.rmdir()


def _open_current(path: Path) -> IO[str]:
    """The lock file, locked. One that its last holder removed meanwhile is opened anew."""
    while True:
        with _writable(path.parent):
            # Following a link of that name, in a directory from elsewhere, would overwrite another file.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            file = open(os.open(path, flags, 0o666), "a+")  # noqa: SIM115 (closed by the caller)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                if os.fstat(file.fileno()).st_nlink > 1:  # the other name's content is not ours to overwrite
                    raise UserError(f"{path} has a second name (a hard link): take it out")
                return file
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{path.parent} is in use by {holder}: one run at a time holds a directory; "
                "wait for it, or name another directory"
            ) from error
        file.close()


@contextlib.contextmanager
def _writable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in errors.FULL:
            raise
        raise UserError(
            f"expected a directory that can be written, found {directory}: {error.strerror}; free it, or name another"
        ) from error


def _partials(directory: Path) -> Iterator[Path]:
    """Half-written files of this run: a folder below that is a run of its own, or in use, is left alone."""
    for folder, folders, names in os.walk(directory):
        here = Path(folder)
        folders[:] = [name for name in folders if not {"config.toml", ".lock"} & set(os.listdir(here / name))]
        yield from (here / name for name in names if files.PARTIAL.fullmatch(name))
