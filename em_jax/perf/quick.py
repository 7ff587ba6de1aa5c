"""The last quick result of a device, kept in the user's cache: what a change of the code is held against."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from em_jax.base import files, runtime
from em_jax.runs import provenance

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
    """The last results in `path`, by kind of work {"when", "commit", "tokens_per_s", "ratio"} (now over then).

    None where `path` holds no result. `results` then take their place there; what they lack is left as it was.
    """
    before, commit = _read(path), (provenance.git() or {}).get("commit")
    now = {
        name: {"when": files.now(), "commit": commit, "tokens_per_s": speed} for name, speed in speeds(results).items()
    }
    files.write_json(path, (before or {}) | now)
    if before is None:
        return None
    return {
        name: then | {"ratio": round(now[name]["tokens_per_s"] / then["tokens_per_s"], 3)}
        for name, then in before.items()
        if name in now and then["tokens_per_s"]
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Kept results by kind of work; None where there are none, or the file holds something else."""
    try:
        found = json.loads(path.read_text())
        return {
            str(name): {
                "when": str(row["when"]),
                "commit": row["commit"] and str(row["commit"]),
                "tokens_per_s": float(row["tokens_per_s"]),
            }
            for name, row in found.items()
        } or None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def text(before: dict[str, Any] | None, path: Path) -> list[str]:
    """Lines for the table."""
    if before is None:
        return [f"first quick result of this device and shape, kept in {path}"]
    lines = ["against the last quick result:"]
    for name, then in before.items():
        commit = f", commit {then['commit'][:10]}" if then["commit"] else ""
        lines.append(
            f"{name:12} {then['ratio']:6.2f} x the {then['tokens_per_s']:g} tokens/s of {then['when']}{commit}"
        )
    return [*lines, "rounds of a machine that does other things too differ by a tenth and more"]
