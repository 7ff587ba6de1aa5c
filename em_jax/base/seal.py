"""Seals of rows: every line of a JSONL file ends with a digest of itself and of the line before it.

A line that was edited, moved, removed from the middle or put in by hand no longer agrees with its seal or its
neighbour's. Rows of versions without seals have none; a seal is no signature, since anyone can compute one.
"""

import hashlib
import re
from pathlib import Path

FIELD = "seal"
_SEAL = re.compile(rb'(?:, )?"seal": "([0-9a-f]{16})"\}$')
_KEY = re.compile(rb'"seal" ?:')  # within a text its quotes are escaped


def seal(line: bytes, before: bytes) -> bytes:
    """A JSON object's line (without its newline) with the seal as its last field; `before` is the last line's seal."""
    content = line[:-1]
    comma = b", " if len(content) > 1 else b""
    return content + comma + b'"seal": "' + _digest(line, before) + b'"}'


def stored(line: bytes) -> bytes:
    """The seal that a line holds, b"" for a line without one."""
    match = _at_the_end(line)
    return match[1] if match else b""


def start(path: Path) -> bytes:
    """What the first line of a file is sealed with: the file's place in a run, so that files cannot change places."""
    return f"{path.parent.name}/{path.name}".encode()


def check(path: Path, lines: list[bytes]) -> tuple[list[int], list[int]]:
    """(Numbers of lines of an earlier version, without a seal; of lines that do not agree with theirs) of a file."""
    before = start(path)
    unsealed: list[int] = []
    changed: list[int] = []
    for number, line in enumerate(lines, start=1):
        match = _at_the_end(line)
        if match is None:
            # In a sealed file, or with its seal elsewhere, it was not appended by a run.
            by_hand = len(unsealed) < number - 1 or _KEY.search(line)
            (changed if by_hand else unsealed).append(number)
        elif _digest(line[: match.start()] + b"}", before) != match[1]:
            changed.append(number)
        before = match[1] if match else b""
    return unsealed, changed


def _at_the_end(line: bytes) -> re.Match[bytes] | None:
    """The seal of a line, which is 29 bytes at most: a long line is not searched."""
    return _SEAL.search(line, max(0, len(line) - 29))


def _digest(line: bytes, before: bytes) -> bytes:
    return hashlib.sha256(before + b"\n" + line).hexdigest()[:16].encode()
