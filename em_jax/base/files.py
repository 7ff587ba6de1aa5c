"""Files of rows and JSON that survive a kill at any moment.

A JSONL file grows by whole lines, and a torn last line is dropped at the next start; every other file is written
under a temporary name and renamed, so it is complete or absent.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError

Row = dict[str, Any]


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a JSONL file, [] where there is none; a torn last line (no newline, or not JSON) is left out.

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
    """A context manager that appends rows to a JSONL file, each written whole; drops a torn last line first.

    `durable` also calls fsync after every row, which is needed only to survive the machine's own crash.
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
        """Append one row. Raises ValueError for a row that is not JSON (NaN and infinities included)."""
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
    """(The whole lines, the rest after the last newline)."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def keep_rows(path: str | os.PathLike, keep: Callable[[Row], bool]) -> list[Row]:
    """Delete the rows of a JSONL file for which `keep` is false; returns the others. Writes nothing if all stay."""
    rows = read_rows(path)
    kept = [row for row in rows if keep(row)]
    if len(kept) < len(rows):
        write_rows(path, kept)
    return kept


def write_rows(path: str | os.PathLike, rows: Iterable[Row]) -> Path:
    """Write a whole JSONL file."""
    return write_atomic(path, b"".join(map(_line, rows)))


def write_atomic(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write a file under a temporary name and rename it, so that no reader sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # it would take room on a full disk
        raise
    return path


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Write JSON whose bytes depend on the value alone: sorted keys, floats with ten significant digits, no NaN."""
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


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, which names what was `expected`, for any other content."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {path.name} in {path.parent}: expected {expected}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:200]}); expected {expected}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected {expected} as a JSON object, found {type(value).__name__}")
    return value


def folders_with(folder: Path, name: str) -> str:
    """Where a trainer put what this folder lacks, as the end of a sentence: the newest subfolder with a file `name`."""
    inner = [path.parent for path in folder.glob(f"*/{name}") if path.is_file()]
    if not inner:
        return ""
    newest = max(inner, key=lambda path: (int("0" + "".join(filter(str.isdigit, path.name[-18:]))), path.name))
    return f"; {len(inner)} of its folders {'have' if len(inner) > 1 else 'has'} one: give {newest}"


def rows_hash(rows: Iterable[Any]) -> str:
    """The sha256 of rows as canonical JSON lines."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=True) for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def now() -> str:
    """The present time, UTC, to the second, as provenance writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
