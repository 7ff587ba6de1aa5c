"""Download one file over HTTPS: resumed where it was cut, verified, and under its name only once it is complete.

huggingface_hub supplies the address and the login (see cache.py) but not the transfer: it deletes what it has received
when a download is interrupted.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from em_jax.base import addresses
from em_jax.base.errors import UserError

TRIES = 5
TIMEOUT_SECONDS = 30.0
MAX_BYTES = 4 << 30
"""Far more than any of the sets: a server that never ends does not fill the disk."""
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that may be reached by plain http: tests and mirrors on this machine."""
Progress = Callable[[int, int | None], None]


class _Temporary(Exception):
    """Another attempt may succeed: the connection ended early, the server is busy, or the partial file does not fit."""


def download(
    url: str,
    path: Path,
    sha256: str = "",
    git_blob: str = "",
    headers: Mapping[str, str] | None = None,
    progress: Progress = lambda received, total: None,
    sleep: Callable[[float], None] = time.sleep,
    shown: str = "",
) -> dict[str, Any]:
    """Downloads `url` to `path`, which appears complete and verified or not at all.

    The bytes received are kept in <path>.partial, from where an interrupted download resumes, in this call or a later
    one. Messages have `shown` in place of the address, by default its public parts.
    `sha256`, `git_blob` (git's id of the content) and a sha256 that the server states (the Hub does) are verified
    where known. A resumed file that fails, or for which no checksum is known, is downloaded again from its beginning.
    `progress(bytes received, bytes in all or None)`.

    Returns {"bytes", "sha256", "git_blob"} of the file and "stated_sha256", "" where the server states none. Raises
    UserError where the server has no such file, cannot be reached or sends other content, or the disk is full.
    """
    shown = shown or addresses.public(url)
    _require_https(url, shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    problem = ""
    # One download of a file at a time; the lock ends with the process.
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path} is being fetched by another process: wait for it") from None
        for attempt in range(TRIES):
            resumed = partial.is_file()
            try:
                stated = _receive(url, partial, headers or {}, progress, shown)
                result = hashes(partial) | {"stated_sha256": stated}
                expected = {"sha256": sha256 or stated, "git_blob": git_blob}
                wrong = [name for name, value in expected.items() if value and value != result[name]]
                if not wrong and (any(expected.values()) or not resumed):
                    os.replace(partial, path)
                    return result
                partial.unlink()
                if resumed:
                    raise _Temporary("the part on the disk does not belong to this file")
                name = wrong[0]
                raise UserError(
                    f"wrong checksum from {shown}: expected {name.replace('_', ' ')} {expected[name]}, found "
                    f"{result[name]}; nothing was kept. Fetch again; if it stays so, the source has changed"
                )
            except _Temporary as error:
                problem = str(error)
                if attempt + 1 < TRIES:
                    sleep(2.0**attempt)
            except OSError as error:
                raise UserError(f"{partial} could not be written: {error.strerror or error}") from None
    raise UserError(
        f"{shown} could not be fetched: {problem}, {TRIES} tries; what was received is kept, the same command resumes "
        f"from there. Without a network: bring that file to {path} by hand"
    )


def hashes(path: Path) -> dict[str, Any]:
    """{"bytes", "sha256", "git_blob"} of a file."""
    size = path.stat().st_size
    git_blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256")
        file.seek(0)
        hashlib.file_digest(file, lambda: git_blob)
    return {"bytes": size, "sha256": sha256.hexdigest(), "git_blob": git_blob.hexdigest()}


def _receive(url: str, partial: Path, headers: Mapping[str, str], progress: Progress, shown: str) -> str:
    """Requests what follows the partial file and appends it. Returns the sha256 that the server states, or ""."""
    start = partial.stat().st_size if partial.is_file() else 0
    # No compression on the way: Range counts the bytes as they are sent.
    headers = {**headers, "accept-encoding": "identity"} | ({"range": f"bytes={start}-"} if start else {})
    # The hook runs before every redirect: none leads from https to plain http.
    hooks = {"request": [lambda request: _require_https(str(request.url), shown)]}
    try:
        with (
            httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True, max_redirects=8, event_hooks=hooks) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            status, length = response.status_code, response.headers.get("content-length", "")
            resumes = response.headers.get("content-range", "").startswith(f"bytes {start}-")
            if status == 416 or (status == 206 and not resumes):
                partial.unlink(missing_ok=True)
                raise _Temporary(f"the server would not resume at byte {start}")
            if status in (408, 425, 429) or status >= 500:
                raise _Temporary(f"the server answers with status {status}")
            if status not in (200, 206):
                hint = "; a gated set needs a login: hf auth login" if status in (401, 403) else ""
                raise UserError(f"{shown}: expected the file, the server answers with status {status}{hint}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise UserError(f"{shown}: expected the plain file, the server sends it compressed")
            with open(partial, "ab" if status == 206 else "wb") as file:
                total = file.tell() + int(length) if length.isdecimal() else None
                progress(file.tell(), total)
                for piece in response.iter_raw():
                    file.write(piece)
                    if file.tell() > MAX_BYTES:
                        raise UserError(f"{shown}: refused, more than {MAX_BYTES} bytes")
                    progress(file.tell(), total)
                os.fsync(file.fileno())
            tags = [hop.headers.get("x-linked-etag", "") for hop in (*response.history, response)]
    except httpx.TooManyRedirects:
        raise UserError(f"{shown}: too many redirects") from None
    except httpx.TimeoutException:
        raise _Temporary(f"no answer within {TIMEOUT_SECONDS:g} s") from None
    except httpx.TransportError as error:
        raise _Temporary(f"no connection to {urlsplit(url).hostname} ({type(error).__name__})") from None
    matches = [re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', tag) for tag in tags]
    return next((match[1] for match in matches if match), "")


def _require_https(url: str, shown: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise UserError(f"expected an https address, found {parts.scheme}:// in, or behind, {shown}")
