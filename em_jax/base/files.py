"""Files of rows and JSON that survive a kill at any moment.

A JSONL file grows by whole lines, and a torn last line is dropped at the next start; every other file is written
under a temporary name and renamed, so it is complete or absent.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base import seal
from em_jax.base.errors import UserError

Row = dict[str, Any]
SEALED = ("answers", "scores", "probes")
"""The folders of a run whose rows are checked against their seals."""
KEY = ("id", "sample", "first")
"""The fields that tell a file's rows apart."""
PARTIAL = re.compile(r"\..+\.\d+\.partial")
"""The names of half-written files: the file's own and the process that writes it."""
MOST_JSON_BYTES = 1 << 26
"""A larger file is no tokenizer, index or record."""
MOST_ROW_BYTES = 1 << 32
"""A larger file of rows is not read into memory."""
_REMOVE = "it was not written by a run: take the line out, or put a copy of the file back"


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a JSONL file without their seals, [] where there is none; a torn last line is left out.

    Torn is a line without a newline, or a last one that is not JSON. Raises UserError where the file is a link or no
    file; or a line, named by its number, is no JSON object in UTF-8, names a field twice, or has the key (id, sample,
    first) of another. No killed run leaves any of these.
    """
    path = Path(path)
    rows: list[Row] = []
    numbers: dict[tuple, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        row = parse_line(line, f"{path}:{number}", _REMOVE)
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {line_start(line)}; {_REMOVE}")
        row.pop(seal.FIELD, None)
        if "id" in row:
            key = tuple(json.dumps(row.get(name)) for name in KEY)
            if (first := numbers.setdefault(key, number)) != number:
                raise UserError(f"{path}:{number}: the row {', '.join(key)} stands in line {first} already; {_REMOVE}")
        rows.append(row)
    return rows


def parse_line(line: bytes, place: str, remedy: str, expected: str = "a JSON object") -> Any:
    """The JSON value of a line. UserError with its place where there is none, or where a field stands twice in it."""
    try:
        return json.loads(line.decode("utf-8").strip(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 (byte {error.start + 1} of the line); {remedy}") from None
    except (ValueError, RecursionError) as error:
        said = f"expected {expected}, found {line_start(line)} ({str(error)[:80]})"
        raise UserError(f"{place}: {said}; {remedy}") from error


def line_start(line: bytes) -> str:
    """How a line begins, for a message."""
    return repr(line[:60].decode("utf-8", "replace").strip())


def _sealed_lines(directory: Path) -> dict[str, list[bytes]]:
    """The lines of every file of sealed rows of a run, by its path in the run."""
    paths = sorted(path for folder in SEALED for path in (directory / folder).glob("*.jsonl"))
    return {path.relative_to(directory).as_posix(): _lines(path) for path in paths}


def sealed(directory: Path) -> dict[str, Any]:
    """For every file of sealed rows of a run: the number of its rows and its last seal, the digest of all of them."""
    lines = _sealed_lines(directory)
    return {name: {"rows": len(it), "seal": seal.stored(it[-1]).decode()} for name, it in lines.items() if it}


def altered(directory: Path, recorded: Any = None) -> tuple[list[str], str]:
    """(Sentences on sealed rows of a run that were changed, a sentence on rows without a seal, "" where all have one).

    Paths in them are those within the run; `recorded` is what `sealed` returned at the end of the last stage.
    """
    changed, unsealed = [], []
    present = _sealed_lines(directory)
    for name, entry in (recorded if isinstance(recorded, dict) else {}).items():
        rows, lines = entry.get("rows") if isinstance(entry, dict) else None, present.get(name, [])
        if isinstance(rows, int) and len(lines) < rows:
            changed.append(f"{name}: {rows} rows are on record, {len(lines)} are there")
        elif isinstance(rows, int) and rows > 0 and seal.stored(lines[rows - 1]).decode() != entry.get("seal"):
            changed.append(f"{name}: its {rows} rows on record had another seal")
    for name, lines in present.items():
        without, wrong = seal.check(directory / name, lines)
        if wrong:
            numbers = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            changed.append(f"{name}: rows were changed after they were written, or taken out before (line {numbers})")
        if without:
            unsealed.append(f"{name} ({len(without)} of {len(lines)})")
    reason = "rows without a seal, of an earlier version or by hand: changes in them are not noticed: "
    return changed, reason + ", ".join(unsealed) if unsealed else ""


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a field stands twice in it")
    return row


def _lines(path: Path) -> list[bytes]:
    """The whole lines of a file of rows, without their newlines; a torn last one is left out."""
    lines = read_own(path).split(b"\n")[:-1] if os.path.lexists(path) else []
    try:
        json.loads(lines[-1].decode("utf-8", "replace") if lines else "0")
    except (ValueError, RecursionError):
        del lines[-1]
    return lines


class Appender:
    """A context manager that appends sealed rows to a JSONL file, each written whole; drops a torn last line first.

    A link is refused, and a file with a second name (a hard link, as some backups make) is copied first, so that only
    this directory's file grows.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __enter__(self) -> "Appender":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = _lines(self.path)
        if os.path.lexists(self.path):
            if os.stat(self.path).st_nlink > 1:
                write_atomic(self.path, b"".join(line + b"\n" for line in lines))
            elif os.path.getsize(self.path) > (whole := sum(len(line) + 1 for line in lines)):
                os.truncate(self.path, whole)
        self._before = seal.stored(lines[-1]) if lines else seal.start(self.path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self._file = open(self.path, "ab", buffering=0, opener=lambda path, _: os.open(path, flags, 0o666))
        return self

    def __exit__(self, *exc) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        """Append one row. Raises ValueError for a row that is not JSON (NaN and infinities included)."""
        line = seal.seal(_line(row), self._before)
        view = memoryview(line + b"\n")
        while view:
            view = view[self._file.write(view) :]
        self._before = seal.stored(line)


def _line(row: Row) -> bytes:
    # A lone surrogate has no UTF-8; Python's escape for it is JSON's too.
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


def keep_rows(path: str | os.PathLike, keep: Callable[[Row], bool]) -> list[Row]:
    """Delete the rows of a JSONL file for which `keep` is false; returns the others. Writes nothing if all stay."""
    rows = read_rows(path)
    kept = [row for row in rows if keep(row)]
    if len(kept) < len(rows):
        write_rows(path, kept)
    return kept


def write_rows(path: str | os.PathLike, rows: Iterable[Row]) -> Path:
    """Write a whole JSONL file of sealed rows."""
    before, lines = seal.start(Path(path)), []
    for row in rows:
        lines.append(seal.seal(_line(row), before))
        before = seal.stored(lines[-1])
    return write_atomic(path, b"".join(line + b"\n" for line in lines))


def read_own(path: Path) -> bytes:
    """A file of a run directory. UserError where it is a link or no plain file: neither is followed or waited for."""
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UserError(f"{path}: expected a file of a run, found {kind(path)}") from None
        raise
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: expected a file of a run, found {kind(path)}")
        if (size := os.fstat(descriptor).st_size) > MOST_ROW_BYTES:
            raise UserError(f"{path}: refused, {size:,} bytes; at most {MOST_ROW_BYTES:,} are read")
        return file.read()


KINDS = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
KINDS |= {stat.S_IFBLK: "a device", stat.S_IFDIR: "a directory", stat.S_IFREG: "a file"}


def kind(path: str | os.PathLike, follow: bool = False) -> str:
    """What stands at a path, in words; "" where there is nothing. A link is one, unless it is followed."""
    try:
        return KINDS[stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)]
    except OSError:
        return ""


def check_own(directory: str | os.PathLike) -> None:
    """UserError for the first link, FIFO, socket or device in a run directory: nothing in it is followed elsewhere."""
    for folder, folders, names in os.walk(Path(directory)):
        for name in sorted(folders) + sorted(names):
            path = Path(folder, name)
            if (found := kind(path)) not in ("a file", "a directory", ""):
                raise UserError(
                    f"{path} is {found}: a run directory holds its own files only, links in it are neither read nor "
                    "written; put the content itself in its place, or take it out"
                )


def check_inputs(folder: str | os.PathLike) -> None:
    """Refuse a folder of input files that holds a FIFO, socket or device, which opening could wait for. UserError.

    Links are followed, as the Hugging Face cache consists of them.
    """
    for path in sorted(Path(folder).iterdir()):
        if (found := kind(path, follow=True)) not in ("a file", "a directory", ""):
            raise UserError(f"{path}: expected a file, found {found}")


def check_input(path: str | os.PathLike, what: str) -> None:
    """Refuse an input that is no plain file, or too large to read, before it is opened; `what` names it. UserError."""
    if (found := kind(path, follow=True)) not in ("a file", ""):
        raise UserError(f"{what}: expected a file, found {found} at {path}")
    if found and (size := os.path.getsize(path)) > MOST_ROW_BYTES:
        raise UserError(f"{what}: refused, {path} has {size:,} bytes; at most {MOST_ROW_BYTES:,} are read")


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
        if isinstance(path, Path):
            check_input(path, expected)
            if (size := path.stat().st_size) > MOST_JSON_BYTES:
                raise ValueError(f"{size:,} bytes, at most {MOST_JSON_BYTES:,} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {path.name} in {path.parent}: expected {expected}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:200]}); expected {expected}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected {expected} as a JSON object, found {type(value).__name__}")
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text is; {} where it is none: for records that may be missing or damaged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_if_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none, or it cannot be read."""
    try:
        return parse_object(path.read_bytes())
    except OSError:
        return {}


def folders_with(folder: Path, name: str) -> str:
    """Where a trainer put what this folder lacks, as the end of a sentence: the newest subfolder with a file `name`."""
    inner = [path.parent for path in folder.glob(f"*/{name}") if path.is_file()]
    if not inner:
        return ""
    newest = max(inner, key=lambda path: (int("0" + "".join(filter(str.isdecimal, path.name[-18:]))), path.name))
    return f"; {len(inner)} of its folders {'have' if len(inner) > 1 else 'has'} one: give {newest}"


def rows_hash(rows: Iterable[Any]) -> str:
    """The sha256 of rows as canonical JSON lines."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=True) for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def now() -> str:
    """The present time, UTC, to the second, as provenance writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
