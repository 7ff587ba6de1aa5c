"""The mirror of a run directory: finished files copied to another directory or a bucket, and back."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE = 1 << 24
"""How many bytes of a file are in memory while it is copied to or from a mirror."""


class Mirror:
    """Copies finished files of a run to another directory or bucket, and a fresh machine's run back from it.

    `target` is a directory or any address etils.epath understands (gs://bucket/path); empty makes every call do
    nothing. Lock files and half-written files stay behind; old checkpoints that the run cleared away go from the mirror
    too. A mirror that cannot be reached is said once on stderr and stops nothing. Where the run could not be brought
    back nothing is copied there either: a run that begins anew would overwrite the one it could not see.
    """

    def __init__(self, directory: str | os.PathLike, target: str = "", every_s: float = 60.0):
        self.directory = Path(directory)
        self.target = target
        self._every = every_s
        self._last = time.monotonic()
        self._copied: dict[str, tuple[int, int]] = {}
        self._told = self._unseen = False

    def push(self) -> int:
        """Copy every file of the run that changed since the last call; how many."""
        if not self.target or self._unseen:
            return 0
        self._last = time.monotonic()
        return self._reach(self._push)

    def push_sometimes(self) -> None:
        """Push where the last time was a while ago: for the middle of long stages."""
        if self.target and time.monotonic() - self._last >= self._every:
            self.push()

    def pull(self) -> int:
        """Bring back what the mirror holds and this directory lacks; how many files."""
        if not self.target:
            return 0
        # Until it is over: whatever is raised is said, and leaves this behind.
        self._unseen = True
        return self._reach(self._pull)

    def _reach(self, work: Callable[[], int]) -> int:
        try:
            return work()
        except Exception as error:  # buckets raise what their client libraries raise
            if not self._told:
                reason = (str(error).splitlines() or [""])[0][:200]
                print(f"mirror {self.target} cannot be reached, the run goes on without it: {reason}", file=sys.stderr)
            self._told = True
            return 0

    def _push(self) -> int:
        count = 0
        files = self._files()
        for path in files:
            name = path.relative_to(self.directory).as_posix()
            try:
                mark = _mark(path)
                if self._copied.get(name) == mark:
                    continue
                place = self._root() / name
                place.parent.mkdir(parents=True, exist_ok=True)
                beside = place.parent / f".{place.name}.partial"
                with path.open("rb") as source, beside.open("wb") as target:
                    shutil.copyfileobj(source, target, PIECE)
            except FileNotFoundError:
                if path.exists():
                    raise
                continue  # an old checkpoint, cleared away meanwhile
            beside.replace(place)
            self._copied[name] = mark
            count += 1
        # Only now that a newer one is in place, and only this run's own: a lost directory takes nothing with it.
        if any(_of_checkpoint(path.relative_to(self.directory).as_posix()) for path in files):
            for name in filter(_of_checkpoint, list(self._copied)):
                if not (self.directory / name).exists():
                    (self._root() / name).unlink(missing_ok=True)
                    del self._copied[name]
        return count

    def _pull(self) -> int:
        if not self._root().exists():
            self._unseen = False
            return 0
        brought = []
        for source in _walk(self._root()):
            name = source.relative_to(self._root()).as_posix()
            place = self.directory / name
            if _kept_out(name) or place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            beside = place.with_name(f".{place.name}.{os.getpid()}.partial")
            with source.open("rb") as far, open(beside, "wb") as near:
                shutil.copyfileobj(far, near, PIECE)
            brought.append((beside, place, name))
        # All or none: some files' being there promises that others are.
        for beside, place, name in brought:
            os.replace(beside, place)
            self._copied[name] = _mark(place)
        self._unseen = False
        return len(brought)

    def _root(self):
        from etils import epath

        return epath.Path(self.target)

    def _files(self) -> list[Path]:
        """In the order they were finished, checkpoints last.

        A mirror that was cut short then never holds a file whose being there promises others that are not, nor a
        checkpoint that is ahead of its rows of metrics.
        """
        found = []
        for path in self.directory.rglob("*"):
            name = path.relative_to(self.directory)
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not _kept_out(name.as_posix()):
                    found.append((_of_checkpoint(name.as_posix()), path.stat().st_mtime_ns, path))
        return [path for _, _, path in sorted(found)]


def _mark(path: Path) -> tuple[int, int]:
    """What tells a file from a later version of it."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _walk(root) -> Iterator:
    for path in sorted(root.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _of_checkpoint(name: str) -> bool:
    return "checkpoints" in name.split("/")


def _kept_out(name: str) -> bool:
    return name.endswith(".partial") or name.split("/")[-1] == ".lock" or "orbax-checkpoint-tmp" in name
