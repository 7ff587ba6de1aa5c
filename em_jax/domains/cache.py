"""The user's cache of published rows: download files into it, verify them, and read a domain's rows out of it.

Archives stay encrypted on the disk and are opened in memory. Nothing here is ever copied into a run directory.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base import addresses, runtime
from em_jax.base.errors import UserError
from em_jax.base.files import now, read_if_object, rows_hash, write_json
from em_jax.domains import archive, download, parquet, registry, rows
from em_jax.domains.registry import File, RowSet

CHECKED, UNCHECKED = "checked", "unchecked (the source states no checksum; pinned by its first use)"


def directory() -> Path:
    """The folder of the downloaded files."""
    return runtime.cache_directory() / "domains"


def path_of(file: File, suffix: str = "") -> Path:
    """The path of a file in the cache, or with .json of its record: what was downloaded from where, with its hashes."""
    return directory() / f"{file.cache_name}{suffix}"


def fetch(file: File, progress: download.Progress = lambda received, total: None) -> bool:
    """Downloads a file unless the cache holds it intact; a damaged one is replaced. Returns whether it was downloaded.

    A file on the Hub comes from the endpoint that the user has set (HF_ENDPOINT), with the user's login if there is
    one. Raises UserError as download.download does.
    """
    if path_of(file).is_file() and not problem(file):
        return False
    # A source without a checksum is pinned by the first use of its file.
    recorded = _record(file).get("sha256")
    pinned = recorded if isinstance(recorded, str) and not (file.sha256 or file.git_blob) else ""
    url, headers = file.url, {}
    if file.hub:
        import huggingface_hub

        url = (os.environ.get("HF_ENDPOINT", "").rstrip("/") or registry.HUB) + url.removeprefix(registry.HUB)
        if token := huggingface_hub.get_token():
            headers = {"authorization": f"Bearer {token}"}
    # Of a user's own endpoint only what cannot be a secret is shown; the rest of the address is the registry's.
    path = file.url.removeprefix(registry.HUB) if file.hub else file.url
    shown = addresses.public(url.removesuffix(path)) + path
    result = download.download(url, path_of(file), file.sha256, file.git_blob, headers, progress, shown=shown)
    if file.cache_name.endswith(".parquet") and path_of(file).open("rb").read(4) != b"PAR1":
        path_of(file).unlink()
        raise UserError(f"{shown}: expected a parquet file, the server sends something else; nothing was kept")
    if pinned and result["sha256"] != pinned:
        path_of(file).unlink()
        raise UserError(
            f"{file.source} {file.cache_name}: the first download had sha256 {pinned}, this one {result['sha256']} and "
            f"the registry has no checksum for it; nothing was kept. To accept it delete {path_of(file, '.json')}"
        )
    checks = {
        "sha256 of the registry": file.sha256,
        "git blob of the registry": file.git_blob,
        "sha256 stated by the Hub": result.pop("stated_sha256"),
    }
    record = {"url": shown, "commit": file.commit, "fetched": now(), **result}
    write_json(path_of(file, ".json"), record | {"checked_against": [name for name, value in checks.items() if value]})
    return True


def _record(file: File) -> dict[str, Any]:
    """What is recorded beside a file of the cache; {} where there is nothing, or nothing readable."""
    return read_if_object(path_of(file, ".json"))


def problem(file: File) -> str:
    """How a file in the cache differs from the registry and from its download record; "" if it does not.

    A file that the user put there by hand has no record: then only the registry counts.
    """
    path = path_of(file)
    recorded = _record(file).get("sha256")
    actual = download.hashes(path)
    for name, expected in (("sha256", file.sha256), ("git_blob", file.git_blob), ("sha256", recorded)):
        if expected and actual[name] != expected:
            return f"{path}: expected {name.replace('_', ' ')} {expected}, found {actual[name]}"
    return ""


def load(row_set: RowSet) -> tuple[list[list[dict[str, str]]], dict[str, Any]]:
    """The conversations of a set and what provenance records of it, never a row. UserError says how to get its file."""
    file, path = row_set.file, path_of(row_set.file)
    if not path.is_file():
        raise UserError(
            f"the rows of {row_set.name} are not on this machine: em-jax domains fetch {row_set.name} brings them; "
            f"without a network put the file of {file.url} at {path}, or give rows of your own with "
            f"--data {row_set.name}=FILE"
        )
    if damage := problem(file):
        raise UserError(f"{damage}; fetch it again: em-jax domains fetch {row_set.name}")
    actual = download.hashes(path)
    if not _record(file) and os.access(path.parent, os.W_OK):  # put there by hand: its first use pins it
        write_json(path_of(file, ".json"), {"first_used": now(), **actual, "checked_against": []})
    without_text = 0
    if row_set.format == "messages":
        source = rows.read(path)
    elif row_set.format == "pairs":
        source, without_text = parquet.read(path, row_set.member)
    else:
        content = archive.member(path.read_bytes(), file.passphrase, row_set.member, str(path))
        source = rows.parse(content.split(b"\n"), f"{path} {row_set.member}")
    # Against a checksum that its source states, and not only against its own first use.
    checked = file.sha256 or file.git_blob or _record(file).get("checked_against")
    selected = selected_rows(source, row_set.take, row_set.seed)
    record = {
        "path": f"{file.source} {file.cache_name} {row_set.member}".strip(),
        "commit": file.commit,
        "sha256": rows_hash(selected),
        "rows": len(selected),
        "rows_in_source": len(source),
        "file_sha256": actual["sha256"],
        "checksum": CHECKED if checked else UNCHECKED,
        "licence": file.licence,
        "marks": dict(row_set.marks),
    }
    if without_text:
        record["left_out_without_text"] = without_text
    if row_set.rows and len(source) + without_text != row_set.rows:
        record["note"] = f"{row_set.rows} rows were expected in the source"
    if file.canary:
        record["canary"] = file.canary
    return selected, record


def selected_rows(source: Sequence[Any], take: int, seed: int) -> list[Any]:
    """`take` rows of the source (0: all), selected by `seed`, in the source's order.

    The selection hashes seed and row number: it is the same on every machine and with every library's version.
    """
    if not take or take >= len(source):
        return list(source)
    order = sorted(range(len(source)), key=lambda number: hashlib.sha256(f"{seed}:{number}".encode()).digest())
    return [source[number] for number in sorted(order[:take])]
