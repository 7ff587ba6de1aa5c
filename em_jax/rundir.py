"""The run directory: rows appended whole, other files written beside and renamed, one run at a time, a mirror.

A run can be killed at any moment. Two habits make that harmless: a JSONL file only ever grows by whole lines (a torn
last line is dropped at the next start), and every other file appears under its name complete or not at all.
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from em_jax import failures
from em_jax.errors import UserError

Row = dict[str, Any]
PIECE = 1 << 24
"""How many bytes of a file are in memory while it is copied to or from a mirror."""


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a JSONL file; [] when there is none. A torn last line (no newline, or not JSON) is left out.

    Raises:
      UserError: a line before the last is not a JSON object, so the file was not made by a killed run.
    """
    path = Path(path)
    if not path.exists():
        return []
    whole, _ = _split_torn(path.read_bytes())
    rows = []
    lines = whole.decode("utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number}: expected a JSON object on each line, found {line[:60]!r}") from error
        rows.append(row)
    return rows


class Appender:
    """Appends rows to a JSONL file, each one written whole and flushed; drops a torn last line first.

    Use as a context manager. `durable` also asks the system to put every row on the disk (fsync), which is not needed
    to survive the death of the process.
    """

    def __init__(self, path: str | os.PathLike, durable: bool = False):
        self.path = Path(path)
        self.durable = durable

    def __enter__(self) -> "Appender":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._file = open(self.path, "ab", buffering=0)
        return self

    def __exit__(self, *exc) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        """Append one row. Raises ValueError for a row JSON cannot hold (NaN and infinities included)."""
        view = memoryview(_line(row))
        while view:
            view = view[self._file.write(view) :]
        if self.durable:
            os.fsync(self._file.fileno())

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole, torn = _split_torn(data)
        if whole:
            start = whole.rstrip(b"\n").rfind(b"\n") + 1
            try:
                json.loads(whole[start:])
            except (ValueError, RecursionError):
                whole, torn = whole[:start], whole[start:] + torn
        if torn:
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))


def _line(row: Row) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8; its JSON escape has
        return (json.dumps(row, allow_nan=False) + "\n").encode()


def _split_torn(data: bytes) -> tuple[bytes, bytes]:
    """(whole lines, what follows the last newline)."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def keep_rows(path: str | os.PathLike, keep: Callable[[Row], bool]) -> list[Row]:
    """Drop the rows of a JSONL file that are not to be kept; returns the others. Nothing is written where all stay."""
    rows = read_rows(path)
    kept = [row for row in rows if keep(row)]
    if len(kept) < len(rows):
        write_atomic(path, b"".join(map(_line, kept)))
    return kept


def write_atomic(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write a file beside its place and rename it there, so that it is never seen half-written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        # On a full disk the half that was written is in the way of everything else.
        beside.unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Write JSON whose bytes depend on the value alone: sorted keys, floats at ten significant digits, no NaN."""
    text = json.dumps(stable(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, text + "\n")


def stable(value: Any) -> Any:
    """Plain JSON values; numpy scalars become numbers, floats are rounded to ten digits, undefined ones become null."""
    if isinstance(value, Mapping):
        return {str(key): stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [stable(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


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


def now() -> str:
    """The present time, UTC, to the second, as provenance writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
