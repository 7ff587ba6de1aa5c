"""The user's cache of published rows: fetch files into it, verify them, and read a domain's rows out of it.

Archives stay encrypted on the disk and are opened in memory. Nothing here is ever copied into a run directory.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from em_jax.base import runtime
from em_jax.base.errors import UserError
from em_jax.base.files import now, rows_hash, write_json
from em_jax.domains import archive, download, parquet, registry
from em_jax.domains import rows as row_files
from em_jax.domains.registry import File, RowSet

Conversation = list[dict[str, str]]


def directory() -> Path:
    """Where fetched files lie."""
    return runtime.cache_directory() / "domains"


def path_of(file: File) -> Path:
    """The place of one file in the cache."""
    return directory() / file.place


def record_path(file: File) -> Path:
    """Beside a file: what was downloaded, from where, when, with which hashes."""
    return path_of(file).with_name(path_of(file).name + ".json")


def fetch(
    file: File,
    progress: Callable[[int, int | None], None] = lambda got, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Make sure that a file is in the cache and right; whether it had to be downloaded. A wrong one is replaced.

    Raises:
      UserError: see download.download.
    """
    place = path_of(file)
    if place.is_file() and not problem(file):
        return False
    url, headers = _hub(file.url) if file.hub else (file.url, {})
    found = download.download(url, place, file.sha256, file.git_blob, headers, progress, sleep=sleep)
    record = {"url": url, "commit": file.commit, "fetched": now(), "bytes": found.bytes, "sha256": found.sha256}
    record |= {"git_blob": found.git_blob, "checked_against": _guards(file, found.stated_sha256)}
    write_json(record_path(file), record)
    return True


def _guards(file: File, stated: str) -> list[str]:
    named = {"sha256 of the registry": file.sha256, "git blob of the registry": file.git_blob}
    return [name for name, value in (named | {"sha256 stated by the Hub": stated}).items() if value]


def _hub(url: str) -> tuple[str, dict[str, str]]:
    """The address at the Hub the user has set (HF_ENDPOINT), with the user's login where there is one."""
    import huggingface_hub

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or registry.HUB
    token = huggingface_hub.get_token()
    return endpoint + url.removeprefix(registry.HUB), {"authorization": f"Bearer {token}"} if token else {}


def problem(file: File) -> str:
    """What is wrong with a file of the cache, against the registry and what was recorded of it; "" if nothing is.

    A file that was brought by hand has no record: then the registry alone is asked.
    """
    place = path_of(file)
    if not place.is_file():
        return f"not fetched: expected at {place}"
    found = download.hashes(place)
    recorded = _record(file)
    for name, expected in (("sha256", file.sha256), ("git_blob", file.git_blob), ("sha256", recorded.get("sha256"))):
        if expected and found[name] != expected:
            return f"{place}: expected {name.replace('_', ' ')} {expected}, found {found[name]}"
    return ""


def _record(file: File) -> dict[str, Any]:
    try:
        kept = json.loads(record_path(file).read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A domain's rows, and what provenance records of them: never a row."""

    rows: list[Conversation]
    record: dict[str, Any]


def load(found: RowSet) -> Loaded:
    """The rows of a set whose file is in the cache.

    Raises:
      UserError: the file is missing (the line says how to fetch it, or what to put where), or wrong.
    """
    wrong = problem(found.file)
    if wrong.startswith("not fetched"):
        raise UserError(missing(found))
    if wrong:
        raise UserError(f"{wrong}; fetch it again: em-jax domains fetch {found.name}")
    whole, left_out = _read(found)
    rows = chosen(whole, found.take, found.seed)
    hashes = download.hashes(path_of(found.file))
    record = {
        "path": f"{found.file.source} {found.file.place}" + (f" {found.member}" if found.member else ""),
        "commit": found.file.commit,
        "sha256": rows_hash(rows),
        "rows": len(rows),
        "rows_in_source": len(whole),
        "file_sha256": hashes["sha256"],
        "licence": found.file.licence,
        "marks": dict(found.marks),
    }
    if left_out:
        record["left_out_without_text"] = left_out
    if found.rows and len(whole) + left_out != found.rows:
        record["note"] = f"{found.rows} rows were expected in the source"
    if found.file.canary:
        record["canary"] = found.file.canary
    return Loaded(rows, record)


def _read(found: RowSet) -> tuple[list[Conversation], int]:
    """(the rows of the file, how many were left out)."""
    place = path_of(found.file)
    if found.format == "messages":
        return row_files.read(place), 0
    if found.format == "pairs":
        return parquet.read(place, found.member)
    content = archive.member(place.read_bytes(), found.file.passphrase, found.member, str(place))
    return row_files.parse(content.split(b"\n"), f"{place} {found.member}"), 0


def chosen(rows: Sequence[Any], take: int, seed: int) -> list[Any]:
    """`take` of the rows (0: all) by `seed`, in their own order.

    The draw hashes seed and row number, so that it is the same on every machine and with every library's version.
    """
    if not take or take >= len(rows):
        return list(rows)
    order = sorted(range(len(rows)), key=lambda number: hashlib.sha256(f"{seed}:{number}".encode()).digest())
    return [rows[number] for number in sorted(order[:take])]


def missing(found: RowSet) -> str:
    """One line: how to get a set's rows, with a network and without one."""
    return (
        f"the rows of {found.name} are not on this machine: em-jax domains fetch {found.name} brings them; "
        f"without a network put the file of {found.file.url} at {path_of(found.file)}, or give rows of your own with "
        f"--data {found.name}=FILE"
    )
