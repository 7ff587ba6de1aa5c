"""The mirror of a run directory: finished files copied to another directory or a bucket, and back."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 24
"""How much of a file is in memory while it is copied."""


class Mirror:
    """Copies finished files of a run to another directory or bucket, and a fresh machine's run back from it.

    `target` is a directory or any address etils.epath understands (gs://bucket/path); without one every call does
    nothing. Lock files and half-written files are not copied; checkpoints that the run deleted are deleted in the
    mirror too. An unreachable mirror is reported once on stderr; the run continues. After a failed `pull` nothing is
    pushed: a run that starts anew would overwrite the one it could not read.
    """

    def __init__(self, directory: str | os.PathLike, target: str = "", every_s: float = 60.0):
        self.directory = Path(directory)
        self.target = target
        self._every_s = every_s
        self._last_push = time.monotonic()
        self._copied: dict[str, tuple[int, int]] = {}
        self._reported = self._pull_failed = False

    def push(self) -> int:
        """Copy every file of the run that changed since the last call; returns how many."""
        if not self.target or self._pull_failed:
            return 0
        self._last_push = time.monotonic()
        return self._try(self._push)

    def push_sometimes(self) -> None:
        """Push if the last push was `every_s` seconds ago: for the middle of long stages."""
        if self.target and time.monotonic() - self._last_push >= self._every_s:
            self.push()

    def pull(self) -> int:
        """Copy back what the mirror has and this directory lacks; returns how many files."""
        if not self.target:
            return 0
        self._pull_failed = True  # until it has succeeded
        return self._try(self._pull)

    def _try(self, work: Callable[[], int]) -> int:
        try:
            return work()
        except Exception as error:  # buckets raise what their client libraries raise
            if not self._reported:
                reason = (str(error).splitlines() or [""])[0][:200]
                print(f"mirror {self.target} cannot be reached, the run continues: {reason}", file=sys.stderr)
            self._reported = True
            return 0

    def _push(self) -> int:
        count = 0
        root, finished = self._root(), self._finished_files()
        for name, path in finished.items():
            try:
                version = _version(path)
                if self._copied.get(name) == version:
                    continue
                target = root / name
                partial = target.parent / f".{target.name}.partial"
                _copy(path, partial)
            except FileNotFoundError:
                if path.exists():
                    raise
                continue  # an old checkpoint, deleted meanwhile
            partial.replace(target)
            self._copied[name] = version
            count += 1
        # Only once a newer checkpoint is in place: a lost local directory must delete nothing in the mirror.
        if any(_of_checkpoint(name) for name in finished):
            for name in filter(_of_checkpoint, list(self._copied)):
                if not (self.directory / name).exists():
                    (root / name).unlink(missing_ok=True)
                    del self._copied[name]
        return count

    def _pull(self) -> int:
        root = self._root()
        copies = []
        for source in _walk(root) if root.exists() else ():
            name = source.relative_to(root).as_posix()
            target = self.directory / name
            if not (_is_excluded(name) or target.exists()):
                partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
                _copy(source, partial)
                copies.append((name, partial, target))
        # All or none: the presence of one file promises others.
        for name, partial, target in copies:
            os.replace(partial, target)
            self._copied[name] = _version(target)
        self._pull_failed = False
        return len(copies)

    def _root(self) -> Any:
        from etils import epath

        return epath.Path(self.target)

    def _finished_files(self) -> dict[str, Path]:
        """Name -> path, in the order the files were finished, checkpoints last.

        An interrupted push then leaves no file whose presence promises others that are missing, and no checkpoint
        without its rows of metrics.
        """
        finished = []
        for path in self.directory.rglob("*"):
            name = path.relative_to(self.directory).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not _is_excluded(name):
                    finished.append((_of_checkpoint(name), path.stat().st_mtime_ns, path, name))
        return {name: path for *_, path, name in sorted(finished)}


def _copy(source: Any, target: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, CHUNK_BYTES)


def _version(path: Path) -> tuple[int, int]:
    """Time and size, which differ between versions of a file."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _walk(root: Any) -> Iterator[Any]:
    for path in sorted(root.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _of_checkpoint(name: str) -> bool:
    return "checkpoints" in name.split("/")


def _is_excluded(name: str) -> bool:
    return name.endswith(".partial") or name.split("/")[-1] == ".lock" or "orbax-checkpoint-tmp" in name
