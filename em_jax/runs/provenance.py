"""provenance.json: what made a run, so that its figures can be traced: versions, devices, inputs, seeds, times."""

import hashlib
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from em_jax.base import files, stage_timer

LIBRARIES = ["em_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers"]
LIBRARIES += ["sentencepiece", "safetensors", "numpy", "scipy", "scikit-learn", "libtpu", "jax-cuda12-plugin"]
ENVIRONMENT = ("versions", "devices", "git")
"""What a start runs with, and may differ between the starts of a run."""
OF_MODELS = {"model", "adapter", "init_from"}
WEIGHTS = (".safetensors", ".safetensors.index.json")
HASHED_UP_TO = 1 << 28
"""Bytes. Hashing a 60 GB checkpoint at each start would cost minutes: of a larger file only the size is recorded."""


def file_input(path: str | os.PathLike, hashed_up_to: float = HASHED_UP_TO) -> dict[str, Any]:
    """{"path", "sha256", "bytes", "rows"} of one file; rows only for JSONL, sha256 null above `hashed_up_to` bytes."""
    path = Path(path)
    size = path.stat().st_size
    entry: dict[str, Any] = {"path": str(path), "bytes": size, "sha256": None}
    if path.is_symlink() and (target := path.resolve()).parent.name == "blobs":
        entry["blob"] = target.name  # in the Hugging Face cache: of a large file the sha256 that the Hub states
    if size <= hashed_up_to:
        data = path.read_bytes()
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        if path.suffix == ".jsonl":
            entry["rows"] = sum(1 for line in data.splitlines() if line.strip())
    return entry


def rows_input(name: str, rows: Iterable[Any]) -> dict[str, Any]:
    """The same for rows that come from no file: the sha256 is that of their canonical JSON lines."""
    rows = list(rows)
    return {"path": name, "sha256": files.rows_hash(rows), "rows": len(rows)}


def directory_inputs(
    directory: str | os.PathLike, suffixes: tuple[str, ...], hashed_up_to: float = HASHED_UP_TO
) -> dict[str, dict[str, Any]]:
    """`file_input` of every file directly in a directory with one of the suffixes, by name."""
    paths = sorted(path for path in Path(directory).iterdir() if path.is_file() and path.suffix in suffixes)
    return {path.name: file_input(path, hashed_up_to) for path in paths}


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The inputs of both records whose content differs, wherever they lie, and files of weights that only one has."""

    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        if one.get("sha256") and one.get("sha256") == other.get("sha256"):
            return one.get("rows") == other.get("rows")
        both = [name for name in ("bytes", "blob") if name in one and name in other]
        return all(one.get(name) == other.get(name) for name in ("sha256", "rows", *both))

    def weights(record: dict[str, Any], kinds: set[str]) -> set[str]:
        return {name for name in record if name.partition("/")[0] in kinds and name.endswith(WEIGHTS)}

    # Weights in other files are other weights.
    kinds = {name.partition("/")[0] for name in before} & {name.partition("/")[0] for name in now} & OF_MODELS
    moved = weights(before, kinds) ^ weights(now, kinds)
    return sorted({name for name in set(before) & set(now) if not same(before[name], now[name])} | moved)


def extends(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file begins with the content that `file_input` recorded of it: it only got more rows."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(entry["bytes"])).hexdigest() == entry["sha256"]


def read(directory: Path) -> dict[str, Any]:
    """A run's provenance so far; {} where there is none or it cannot be read, without fields of a wrong type."""
    try:
        record = files.parse_object(files.read_own(directory / "provenance.json"))
    except OSError:
        return {}
    types = {"inputs": dict, "notes": dict, "wall_seconds": dict, "starts": list, "time_budget": dict}
    return {name: value for name, value in record.items() if isinstance(value, types.get(name, object))}


def write(directory: Path, inputs: dict[str, Any], seeds: dict[str, int], more_notes: dict[str, Any]) -> None:
    """Start or continue a run's record, which gets an id of its own; wall times are kept.

    Every start is added to `starts`. Versions, devices and commit of the latest are the record's own; those of an
    earlier one move to its entry.
    """
    record = read(directory)
    record.setdefault("run", uuid.uuid4().hex)
    starts = [start if isinstance(start, dict) else {"time": start} for start in record.get("starts", [])]
    if starts:
        starts[-1] |= {name: record[name] for name in ENVIRONMENT if name in record}
    record |= {"schema": 1, "inputs": record.get("inputs", {}) | inputs, "seeds": seeds}
    record |= {"notes": record.get("notes", {}) | more_notes, "starts": [*starts, {"time": files.now()}]}
    record |= {"versions": versions(), "devices": devices(), "git": git()}
    record.setdefault("wall_seconds", {})
    _store(directory, record)


def notes(directory: Path) -> dict[str, Any]:
    """A run's notes so far."""
    return read(directory).get("notes", {})


def revisions(directory: Path) -> dict[str, Any]:
    """The commits at which a run's model and adapter were first fetched from the Hugging Face Hub, by use."""
    value = notes(directory).get("revisions")
    return value if isinstance(value, dict) else {}


def add(directory: Path, inputs: Mapping[str, Any] | None = None, **notes: Any) -> None:
    """Add to a run's notes, and to the inputs that its later starts are checked against."""
    record = read(directory)
    for name, more in {"inputs": inputs or {}, "notes": notes}.items():
        record[name] = {**record.get(name, {}), **more}
    _store(directory, record)


def add_time(directory: Path, stage: str, seconds: float, more: Mapping[str, float]) -> None:
    """Add to a stage's wall time, over all starts of a run.

    `more` (seconds by kind, and how much was done in them) is added up in `time_budget`; of memory the most counts.
    """
    record = read(directory)
    times = record.setdefault("wall_seconds", {})
    record["sealed"] = files.sealed(directory)
    times[stage] = round(times.get(stage, 0.0) + seconds, 1)
    budget = record.setdefault("time_budget", {}).setdefault(stage, {})
    for name, amount in {"seconds": seconds, **more}.items():
        before = budget.get(name, 0)
        budget[name] = max(before, amount) if name in stage_timer.MEMORY else round(before + amount, 3)
    _store(directory, record)


def _store(directory: Path, record: dict[str, Any]) -> None:
    files.write_json(directory / "provenance.json", record)


def versions() -> dict[str, str]:
    """The interpreter's and the libraries' versions; a library that is not installed is left out."""
    numbers = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def devices() -> dict[str, Any]:
    """Kind and number of the devices jax sees, where jax is in use."""
    cores = {"cores": os.cpu_count()}
    jax = sys.modules.get("jax")
    if jax is None:
        return cores
    first, count = jax.devices()[0], len(jax.devices())
    kind = {"kind": first.device_kind, "platform": first.platform}
    return kind | {"count": count, "processes": jax.process_count()} | cores


def git() -> dict[str, Any] | None:
    """The commit of the checkout this package runs from, and whether it was changed; None outside a checkout.

    A copy without git has its commit in the file .commit, which launch/tpu_vm.sh writes; whether it was changed is then
    unknown.
    """
    top = Path(__file__).resolve().parent.parent.parent
    if not (top / ".git").exists():
        file = top / ".commit"
        return {"commit": file.read_text().strip(), "changed": None} if file.exists() else None

    def output(*words: str) -> str:
        return subprocess.run(["git", "-C", str(top), *words], capture_output=True, text=True, timeout=20).stdout

    try:
        commit = output("rev-parse", "HEAD").strip()
        return {"commit": commit or None, "changed": bool(output("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
