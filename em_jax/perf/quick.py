"""The last quick result of a device, kept in the user's cache to measure a change of the code against."""

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


def result_path(device: str, count: int, shape: str, config: Any) -> Path:
    """The file of one kind of device, how many of them, and one model shape."""
    key = json.dumps([WORKLOAD, ROUNDS, NEW_TOKENS, count, shape, repr(config)])
    name = re.sub(r"[^\w.-]+", "_", f"{device}-{shape}")
    return runtime.cache_directory() / "bench" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def by_work(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each kind of work, ten_samples beside decode."""
    rows = {name: results[name] for name in ("train", "decode") if name in results}
    return rows | ({"ten_samples": rows["decode"]["ten_samples"]} if "ten_samples" in rows.get("decode", {}) else {})


def keep(results: dict[str, Any], path: Path) -> None:
    """Write the results so far to `path`; kinds of work that they lack stay as they were."""
    commit = (provenance.git() or {}).get("commit")
    now = {
        name: {"when": files.now(), "commit": commit, "tokens_per_s": row["ours_tokens_per_s"]}
        for name, row in by_work(results).items()
    }
    files.write_json(path, read(path) | now)


def compare(results: dict[str, Any], last: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Earlier results by kind of work {"when", "commit", "tokens_per_s", "ratio"} (now over then); None without any."""
    if not last:
        return None
    now = by_work(results)
    return {
        name: then | {"ratio": round(now[name]["ours_tokens_per_s"] / then["tokens_per_s"], 3)}
        for name, then in last.items()
        if name in now and then["tokens_per_s"]
    }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The results in a file by kind of work; {} where there is none, or the file has another form."""
    rows = files.read_if_object(path)
    fields = {"when", "commit", "tokens_per_s"}
    return rows if all(isinstance(row, dict) and fields == row.keys() for row in rows.values()) else {}


def lines(before: dict[str, Any] | None, path: Path) -> list[str]:
    """The lines under the table: how the result compares with the last one."""
    if before is None:
        return [f"first quick result of this device and shape, kept in {path}"]
    text = ["against the last quick result:"]
    for name, then in before.items():
        commit = f", commit {then['commit'][:10]}" if then["commit"] else ""
        text.append(f"{name:12} {then['ratio']:6.2f} x the {then['tokens_per_s']:g} tokens/s of {then['when']}{commit}")
    return [*text, "on a machine with other load, rounds differ by 10% and more"]
