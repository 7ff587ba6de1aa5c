"""What lets a study continue where it stopped: its settings are checked, and only missing rows are asked for."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.probes.choice import Row

Key = tuple[Any, ...]


def check_settings(out: Path, settings: Mapping[str, Any], growing: str = "") -> None:
    """Write settings.json of a study, or refuse a directory that was begun with others.

    The mapping named `growing` may gain entries.

    Raises:
      UserError: naming what differs.
    """
    path, now = out / "settings.json", files.stable(settings)
    if path.is_file():
        before = files.read_object(path, "the settings of a study")
        if growing:
            before[growing] = now[growing] | before.get(growing, {})
            now[growing] = before[growing] | now[growing]
        differing = []
        for name, value in now.items():
            old = before.get(name)
            if old != value:
                inner = name in ("settings", "options") and [it for it in value if (old or {}).get(it) != value[it]]
                differing += inner or [name]
        if differing:
            raise UserError(f"{out} was begun with other {', '.join(differing)}: give the same, or name another --out")
    files.write_json(path, now)


def key(row: Row) -> Key:
    """What identifies a row in its file: id, sample and, for choice questions, the order of the options."""
    return tuple(row[name] for name in ("id", "sample", "first") if name in row)


def complete(path: Path, wanted: Collection[Key], ask: Callable[[set[Key]], Iterable[Row]]) -> list[Row]:
    """The rows of a file, after `ask(keys that are done)` has appended those of the keys `wanted` that are missing."""
    done = {key(row) for row in files.read_rows(path)}
    if not done.issuperset(wanted):
        with files.Appender(path) as output:
            for row in ask(done):
                output.write(row)
    return files.read_rows(path)
