"""The mirror of a run directory: finished files copied to another directory or a bucket, and back.

A mirror is one run's, known by the id in its provenance.json; nothing is copied to or from another run's.
"""

import contextlib
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.errors import UsageError, UserError

CHUNK_BYTES = 1 << 24
"""How much of a file is in memory while it is copied."""
CONFIG, RECORD = "config.toml", "provenance.json"
"""The first files of every run: its settings, and the record with its id."""


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

    def check(self, differing: Callable[[dict[str, Any]], list[str]]) -> None:
        """Refuse a mirror that is not this run's, before anything is copied either way.

        `differing` names the settings in which a parsed config.toml differs from this run's. Raises UsageError: the
        mirror is in the run directory, or above it, or no directory. UserError: it holds another run, or other things
        than a run.
        """
        if not self.target:
            return
        local = "://" not in self.target
        if local:
            place, home = Path(self.target).resolve(), self.directory.resolve()
            if place == home or home in place.parents or place in home.parents:
                raise UsageError(
                    f"--mirror {self.target} is in the run directory {self.directory}, or holds it: name another place"
                )
            if (found := files.kind(place)) not in ("", "a directory"):
                raise UsageError(f"--mirror expects a directory or an address, found {found} at {self.target}")
            files.check_own(place)  # before any file is opened: a FIFO waits, a device never ends
        try:
            names = self._listing()
            texts = {name: (self._root() / name).read_text() for name in (CONFIG, RECORD) if name in names}
        except Exception as error:  # buckets raise what their client libraries raise
            self._pull_failed = True
            self._report(error)
            return
        if not names:
            return
        ours, theirs = files.read_if_object(self.directory / RECORD), files.parse_object(texts.get(RECORD, ""))
        if CONFIG not in names and not (ours and _same_run(ours, theirs)):
            raise UserError(
                f"--mirror {self.target} holds other things than a run ({min(names)}): name an empty place, or that of "
                "this run"
            )
        try:
            other = differing(tomllib.loads(texts.get(CONFIG, ""))) if CONFIG in names else []
        except (tomllib.TOMLDecodeError, UserError, RecursionError):
            other = [CONFIG]
        if other or not (set(names) == {CONFIG} or _same_run(ours, theirs)):
            what = f" with other settings ({', '.join(other[:8])})" if other else ", begun at another time"
            raise UserError(f"--mirror {self.target} is another run's{what}: name an empty place, or that of this run")

    def push(self) -> int:
        """Copy every file of the run that changed since the last call, or that the mirror lacks; returns how many."""
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
            self._report(error)
            return 0

    def _report(self, error: Exception) -> None:
        if not self._reported:
            reason = (str(error).splitlines() or [""])[0][:200]
            print(f"mirror {self.target} cannot be reached, the run continues: {reason}", file=sys.stderr)
        self._reported = True

    def _push(self) -> int:
        count = 0
        root, finished, there = self._root(), self._finished_files(), self._listing()
        if RECORD in there and not _same_run(
            files.read_if_object(self.directory / RECORD), files.parse_object((root / RECORD).read_text())
        ):
            raise OSError("it holds another run's files by now; nothing is copied to it")
        for name, path in finished.items():
            try:
                version = _version(path)
                # By looking: a mirror that was lost and came back is filled anew.
                if self._copied.get(name) == version and there.get(name) == version[1]:
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
        # Settings and record first: rows without them would be nobody's.
        for name in sorted(self._listing(), key=lambda name: (name not in (CONFIG, RECORD), name)):
            target = self.directory / name
            if not target.exists():
                partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
                _copy(root / name, partial)
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

    def _listing(self) -> dict[str, int]:
        """Name -> bytes of every file that the mirror holds."""
        root = self._root()
        names = {path.relative_to(root).as_posix(): path for path in (_walk(root) if root.exists() else ())}
        return {name: path.stat().length for name, path in names.items() if not _is_excluded(name)}

    def _finished_files(self) -> dict[str, Path]:
        """Name -> path, in the order the files were finished; settings and record first, checkpoints last.

        An interrupted push then leaves no file whose presence promises others that are missing, and no checkpoint
        without its rows of metrics.
        """
        finished = []
        for path in self.directory.rglob("*"):
            name = path.relative_to(self.directory).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not _is_excluded(name):
                    order = -1 if name in (CONFIG, RECORD) else int(_of_checkpoint(name))
                    finished.append((order, path.stat().st_mtime_ns, path, name))
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


def _same_run(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two records are of one run: by its id, or by its first start where an earlier version wrote no id.

    A directory without a record has not begun: with the same settings it goes on with the mirror's run.
    """
    if not (ours and theirs):
        return not ours
    for name in ("run", "starts"):
        one, other = ours.get(name), theirs.get(name)
        if one and other:
            return one == other if name == "run" else _first(one) == _first(other)
    return True


def _first(starts: Any) -> Any:
    first = starts[0] if isinstance(starts, list) and starts else None
    return first.get("time") if isinstance(first, dict) else first


def _of_checkpoint(name: str) -> bool:
    return name.startswith("train/checkpoints/")


def _is_excluded(name: str) -> bool:
    return name.endswith(".partial") or name.split("/")[-1] == ".lock" or "orbax-checkpoint-tmp" in name
