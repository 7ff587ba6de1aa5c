"""The last quick result of a device, kept in the user's cache: what a change of the code is held against."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from em_jax import provenance, rundir, runtime

ROUNDS, NEW_TOKENS = 3, 32
"""What `--quick` measures: meant to end in two minutes, compilation included."""

WORKLOAD = 1
"""Raise it where the work itself changes, so that results of other work are never compared."""


def place(device: str, count: int, shape: str, config: Any) -> Path:
    """The file of one kind of device, how many of them, and one model shape."""
    asked = json.dumps([WORKLOAD, ROUNDS, NEW_TOKENS, count, shape, repr(config)])
    name = re.sub(r"[^\w.-]+", "_", f"{device}-{shape}")
    return runtime.cache_directory() / "bench" / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"


def speeds(results: dict[str, Any]) -> dict[str, float]:
    """Our tokens per second by kind of work."""
    found: dict[str, Any] = {name: results[name] for name in ("train", "decode") if name in results}
    if "decode" in found:
        found["ten_samples"] = found["decode"]["ten_samples"]
    return {name: row["ours_tokens_per_s"] for name, row in found.items()}


def compared(results: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The last result in `path` as {"when", "commit", "tokens_per_s", "ratio"} (now over then), or None without one.

    `results` then take its place there.
    """
    before, now = _read(path), speeds(results)
    # A run of one kind of work leaves the other's last result.
    commit = (provenance.git() or {}).get("commit")
    rundir.write_json(path, {"when": rundir.now(), "commit": commit, "tokens_per_s": _then(before) | now})
    if before is None:
        return None
    then = _then(before)
    return before | {"ratio": {name: round(now[name] / then[name], 3) for name in now if then.get(name)}}


def _then(before: dict[str, Any] | None) -> dict[str, float]:
    return before["tokens_per_s"] if before else {}


def _read(path: Path) -> dict[str, Any] | None:
    """A kept result; None where there is none, or the file holds something else."""
    try:
        found = json.loads(path.read_text())
        speeds = {str(name): float(speed) for name, speed in found["tokens_per_s"].items()}
        return {"when": str(found["when"]), "commit": found["commit"] and str(found["commit"]), "tokens_per_s": speeds}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def text(before: dict[str, Any] | None, path: Path) -> list[str]:
    """Lines for the table."""
    if before is None:
        return [f"first quick result of this device and shape, kept in {path}"]
    commit = f", commit {before['commit'][:10]}" if before["commit"] else ""
    lines = [f"against the last quick result ({before['when']}{commit}):"]
    for name, ratio in before["ratio"].items():
        lines.append(f"{name:12} {ratio:6.2f} x the {before['tokens_per_s'][name]:g} tokens/s of then")
    return [*lines, "rounds of a machine that does other things too differ by a tenth and more"]
