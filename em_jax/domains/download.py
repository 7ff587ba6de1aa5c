"""One file over https: with progress, resumed where it was cut, checked, and under its name only when it is whole."""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from em_jax.base import files
from em_jax.base.errors import UserError

TRIES = 5
CHUNK = 1 << 18
# More than any of the sets by far: a server that never ends does not fill the disk.
LARGEST = 4 << 30
# Plain http serves tests and mirrors on this machine alone.
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """What came: its size and hashes, where from at last, and the sha256 the server itself states ("" if none)."""

    url: str
    bytes: int
    sha256: str
    git_blob: str
    stated_sha256: str


class _Gone(Exception):
    """The server says no in a way that another try does not change."""


class _Cut(Exception):
    """The connection ended early or the server is busy: worth another try."""


def download(
    url: str,
    place: Path,
    sha256: str = "",
    git_blob: str = "",
    headers: Mapping[str, str] | None = None,
    progress: Callable[[int, int | None], None] = lambda got, total: None,
    timeout_s: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Bring `url` to `place`, which appears complete and checked or not at all.

    What has come so far lies in <place>.partial and is gone on with by Range, within this call and by a later one.
    `sha256` and `git_blob` are checked where given, and a sha256 that the server states (the Hub does) always.
    `progress(bytes so far, bytes in all or None)`.

    Raises:
      UserError: the server has no such file, cannot be reached, sends something else than expected, or the disk is
        full; the line says what to do.
    """
    _https(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".partial")
    with _alone(place):
        problem = ""
        for number in range(TRIES):
            try:
                final = _continue(url, partial, headers or {}, bool(sha256 or git_blob), progress, timeout_s)
                break
            except _Cut as error:
                problem = str(error)
                if number + 1 < TRIES:
                    sleep(2.0**number)
            except _Gone as error:
                raise UserError(f"{url}: {error}") from None
            except OSError as error:
                raise UserError(f"{partial} could not be written: {error.strerror or error}") from None
        else:
            raise UserError(
                f"{url} could not be fetched: {problem}, {TRIES} tries; what came is kept, the same command goes on "
                f"from there. Without a network: bring that file to {place} by hand"
            )
        found = dataclasses.replace(final, **hashes(partial))  # type: ignore[arg-type]
        _check(found, sha256, git_blob, partial)
        os.replace(partial, place)
        _validator_path(partial).unlink(missing_ok=True)
    return found


def hashes(path: Path) -> dict[str, str | int]:
    """{"bytes", "sha256", "git_blob"} of a file, read in pieces."""
    size = path.stat().st_size
    plain, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            plain.update(piece)
            blob.update(piece)
    return {"bytes": size, "sha256": plain.hexdigest(), "git_blob": blob.hexdigest()}


def _check(found: Fetched, sha256: str, git_blob: str, partial: Path) -> None:
    wanted = [("sha256", sha256, found.sha256), ("git blob", git_blob, found.git_blob)]
    wanted.append(("sha256 the server states", found.stated_sha256, found.sha256))
    for name, expected, came in wanted:
        if expected and expected != came:
            partial.unlink()
            _validator_path(partial).unlink(missing_ok=True)
            raise UserError(
                f"wrong checksum from {found.url}: expected {name} {expected}, found {came}; nothing was kept. "
                "Fetch again; if it stays so, the source has changed"
            )


def _continue(
    url: str, partial: Path, headers: Mapping[str, str], checked: bool, progress, timeout_s: float
) -> Fetched:
    """One request, from where the partial file ends. Raises _Cut or _Gone."""
    start, validator = _state(partial, url, checked)
    # No compression on the way: Range counts the bytes as they are sent.
    asked = {**headers, "accept-encoding": "identity"}
    if start:
        asked |= {"range": f"bytes={start}-"} | ({"if-range": validator} if validator else {})
    try:
        # The hook sees every hop before it is asked: no redirect leads from https to plain http.
        hooks = {"request": [lambda request: _https(str(request.url))]}
        with httpx.Client(timeout=timeout_s, follow_redirects=True, max_redirects=8, event_hooks=hooks) as client:
            with client.stream("GET", url, headers=asked) as response:
                start, total = _begin(response, start)
                if start is None:
                    partial.unlink(missing_ok=True)
                    raise _Cut("the server would not go on from where it was")
                _write_validator(partial, url, response)
                _receive(response, partial, start, total, progress)
                return Fetched(str(response.url), 0, "", "", _stated(response))
    except httpx.TooManyRedirects:
        raise _Gone("too many redirects") from None
    except httpx.TimeoutException:
        raise _Cut(f"no answer within {timeout_s:g} s") from None
    except httpx.TransportError as error:
        raise _Cut(f"no connection to {urlsplit(url).hostname} ({type(error).__name__})") from None


def _begin(response: httpx.Response, start: int) -> tuple[int | None, int | None]:
    """(where the body begins, None to begin anew; size of the whole file where known). Raises _Cut or _Gone."""
    status = response.status_code
    if status == 416:
        return None, None
    if status in (408, 425, 429) or status >= 500:
        raise _Cut(f"the server answers with status {status}")
    if status in (401, 403):
        raise _Gone(f"the server refuses (status {status}); a gated set needs a login: huggingface-cli login")
    if status not in (200, 206):
        raise _Gone(f"expected the file, the server answers with status {status}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _Gone("expected the plain file, the server sends it compressed")
    if status == 200:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
    if not match or int(match[1]) != start:
        return None, None
    return start, None if match[3] == "*" else int(match[3])


def _receive(response: httpx.Response, partial: Path, start: int, total: int | None, progress) -> None:
    got = start
    with open(partial, "r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        for piece in response.iter_raw():
            file.write(piece)
            got += len(piece)
            if got > LARGEST:
                raise _Gone(f"refused, more than {LARGEST} bytes")
            progress(got, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and got < total:
        raise _Cut(f"the connection was cut at byte {got} of {total}")
    if total is not None and got > total:
        raise _Gone(f"expected {total} bytes, found {got}")


def _state(partial: Path, url: str, checked: bool) -> tuple[int, str]:
    """(bytes to go on from, validator for If-Range). A part of unknown origin is begun anew."""
    if not partial.is_file():
        return 0, ""
    try:
        kept = json.loads(_validator_path(partial).read_text())
        same, validator = kept["url"] == url, str(kept["validator"])
    except (OSError, ValueError, KeyError, TypeError):
        same, validator = False, ""
    if not same or not (validator or checked):
        return 0, ""
    return partial.stat().st_size, validator


def _write_validator(partial: Path, url: str, response: httpx.Response) -> None:
    tag = response.headers.get("etag", "")
    # A weak tag does not promise the same bytes.
    validator = response.headers.get("last-modified", "") if not tag or tag.startswith("W/") else tag
    files.write_json(_validator_path(partial), {"url": url, "validator": validator})


def _validator_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _stated(response: httpx.Response) -> str:
    """The sha256 that the Hub gives as the tag of a large file, on the way or at the end."""
    for hop in (*response.history, response):
        match = re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', hop.headers.get("x-linked-etag", ""))
        if match:
            return match[1]
    return ""


def _https(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise UserError(f"expected an https address, found {url}")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One download of a file at a time; the lock ends with the process."""
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{place} is being fetched by another process: wait for it") from None
        yield
