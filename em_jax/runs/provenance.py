"""provenance.json: what made a run, so that its figures can be traced: versions, devices, inputs, seeds, times."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from em_jax.base import files

LIBRARIES = (
    "em_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "libtpu",
    "jax-cuda12-plugin",
)
# Hashing a 60 GB checkpoint at each start would cost minutes: larger files are recorded by size.
HASHED_UP_TO = 1 << 28


def file_input(path: str | os.PathLike, hashed_up_to: float = HASHED_UP_TO) -> dict[str, Any]:
    """{"path", "sha256", "bytes", "rows"} of one file; rows only for JSONL, sha256 null above so many bytes."""
    path = Path(path)
    size = path.stat().st_size
    entry: dict[str, Any] = {"path": str(path), "bytes": size, "sha256": None}
    if size <= hashed_up_to:
        data = path.read_bytes()
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        if path.suffix == ".jsonl":
            entry["rows"] = sum(1 for line in data.splitlines() if line.strip())
    return entry


def rows_input(name: str, rows: Iterable[Any]) -> dict[str, Any]:
    """The same for rows that were made and not read: the sha256 is that of their canonical JSON lines."""
    rows = list(rows)
    return {"path": name, "sha256": files.rows_hash(rows), "rows": len(rows)}


def directory_inputs(
    directory: str | os.PathLike, suffixes: tuple[str, ...], hashed_up_to: float = HASHED_UP_TO
) -> dict[str, dict[str, Any]]:
    """`file_input` of every file directly in a directory with one of the suffixes, by name."""
    files = sorted(path for path in Path(directory).iterdir() if path.is_file() and path.suffix in suffixes)
    return {path.name: file_input(path, hashed_up_to) for path in files}


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The inputs, known to both, whose content differs (paths may: a run can move between machines)."""

    def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
        if any(one.get(mark) != other.get(mark) for mark in ("sha256", "rows")):
            return True
        return "bytes" in one and "bytes" in other and one["bytes"] != other["bytes"]

    return [name for name in sorted(set(before) & set(now)) if differs(before[name], now[name])]


def has_grown(before: dict[str, Any], path: Path) -> bool:
    """Whether a file only got more rows: what `file_input` recorded of it is how it begins."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(before["bytes"])).hexdigest() == before["sha256"]


def read(directory: Path) -> dict[str, Any]:
    """A run's provenance so far; {} where there is none or it cannot be read, without fields of a wrong type."""
    try:
        record = json.loads((directory / "provenance.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    types = {"inputs": dict, "notes": dict, "wall_seconds": dict, "starts": list, "time_budget": dict}
    fields = record.items() if isinstance(record, dict) else ()
    return {name: value for name, value in fields if isinstance(value, types.get(name, object))}


def write(directory: Path, inputs: dict[str, Any], seeds: dict[str, int], notes: dict[str, Any]) -> dict[str, Any]:
    """Begin or go on with a run's record; every start is added to `starts`, wall times are kept. Returns it."""
    record = read(directory)
    record |= {"schema": 1, "inputs": record.get("inputs", {}) | inputs, "seeds": seeds}
    record |= {"versions": versions(), "devices": devices(), "git": git(), "notes": record.get("notes", {}) | notes}
    record.setdefault("wall_seconds", {})
    record["starts"] = [*record.get("starts", []), files.now()]
    files.write_json(directory / "provenance.json", record)
    return record


def notes(directory: Path) -> dict[str, Any]:
    """A run's notes so far."""
    return read(directory).get("notes", {})


def note(directory: Path, **more: Any) -> None:
    """Add to a run's notes."""
    record = read(directory)
    record["notes"] = record.get("notes", {}) | more
    files.write_json(directory / "provenance.json", record)


def add_inputs(directory: Path, inputs: dict[str, Any]) -> None:
    """Add to what a run's later starts are checked against."""
    record = read(directory)
    record["inputs"] = record.get("inputs", {}) | inputs
    files.write_json(directory / "provenance.json", record)


def add_time(directory: Path, stage: str, seconds: float, more: Mapping[str, float] | None = None) -> None:
    """Add to a stage's wall time: a run that was stopped and resumed sums its parts.

    `more` says what the time went to and how much was done in it: it is summed in `time_budget`.
    """
    record = read(directory)
    times = record.setdefault("wall_seconds", {})
    times[stage] = round(times.get(stage, 0.0) + seconds, 1)
    if more:
        budget = record.setdefault("time_budget", {}).setdefault(stage, {})
        for name, amount in {"seconds": seconds, **more}.items():
            budget[name] = round(budget.get(name, 0) + amount, 3)
    files.write_json(directory / "provenance.json", record)


def versions() -> dict[str, str]:
    """The interpreter's and the libraries' versions; a library that is not installed is left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def devices() -> dict[str, Any]:
    """Kind and number of the devices jax sees, where jax is in use."""
    jax = sys.modules.get("jax")
    if jax is None:
        return {"cores": os.cpu_count()}
    found = jax.devices()
    return {
        "kind": found[0].device_kind,
        "platform": found[0].platform,
        "count": len(found),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
    }


def git() -> dict[str, Any] | None:
    """The commit of the checkout this package is run from, and whether it was changed; None outside a checkout.

    A copy without git names its commit in a file, as launch/tpu_vm.sh leaves it; what was changed is then unknown.
    """
    top = Path(__file__).resolve().parent.parent.parent
    if not (top / ".git").exists():
        named = top / ".commit"
        return {"commit": named.read_text().strip(), "changed": None} if named.exists() else None

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(top), *words], capture_output=True, text=True, timeout=20).stdout

    try:
        commit = ask("rev-parse", "HEAD").strip()
        return {"commit": commit or None, "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
