"""How long a run may take, at the measured pace of an earlier run like it; where there is none, that is unknown."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.runs import preflight, provenance, workload
from em_jax import config as settings
from em_jax.config import Config
from em_jax.base.errors import UserError
from em_jax.runs.run import Run
from em_jax.runs.sources import Parts
from em_jax.base.stage_timer import COMPILING, LOADING
from em_jax.runs.workload import Piece

LOOKED_AT = 200
"""Runs that are looked at for a pace."""

# How much is done, and to what: a piece of work takes as long whatever these are.
NOT_OF_THE_PACE = {"domain", "data", "adapter", "seed", "train.epochs", "train.max_steps", "train.holdout"}
NOT_OF_THE_PACE |= {"answers.samples", "probes.limit", "probes.only", "probes.alternatives"}
NOT_OF_THE_PACE |= {"stages", "mirror", "verbosity", "judge.max_requests", "judge.harmful_at"}


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds a piece of each stage took in the run of a directory, and what a stage took before its first piece.

    `once` is loading and compilation: paid by every start, however much there is to do.
    """

    directory: Path
    seconds: Mapping[str, float]
    once: Mapping[str, float]
    rows: int


def of_earlier(config: Config, places: Iterable[Path]) -> Pace | None:
    """The pace of the largest finished run with this model, these settings and these devices, of those in `places`."""
    here = provenance.devices()
    runs = itertools.islice((path.parent for place in places for path in _records(place)), LOOKED_AT)
    found = [pace for directory in dict.fromkeys(runs) if (pace := _of(directory, config, here))]
    return max(found, key=lambda pace: (pace.rows, str(pace.directory)), default=None)


def _records(place: Path) -> list[Path]:
    return [*sorted(place.glob("provenance.json")), *sorted(place.glob("*/provenance.json"))] + sorted(
        place.glob("*/*/provenance.json")
    )


def _of(directory: Path, config: Config, here: dict[str, Any]) -> Pace | None:
    record = provenance.read(directory)
    notes = record.get("notes", {})
    # Rows taken over from another run cost this one no time.
    if record.get("devices") != here or notes.get(preflight.BASE_ROWS) != preflight.ASKED or notes.get("files_from_mirror"):
        return None
    # None too for a run whose records are damaged: it is not the one that is asked about.
    with contextlib.suppress(UserError, OSError, TypeError, AttributeError, ValueError, KeyError, OverflowError):
        stored = settings.replace(Config(), settings.read_toml(directory / "config.toml"))
        before, now = settings.flatten(stored), settings.flatten(config)
        if any(before[name] != now[name] for name in now if name not in NOT_OF_THE_PACE):
            return None
        counts = workload.counted(Run(stored, directory, Parts(), lambda: None, ""))
        times, budget = record.get("wall_seconds", {}), record.get("time_budget", {})
        stages = [stage for stage, count in counts.items() if count and times.get(stage)]
        once = {stage: sum(budget.get(stage, {}).get(kind, 0.0) for kind in (LOADING, COMPILING)) for stage in stages}
        seconds = {stage: max(times[stage] - once[stage], 0.0) / counts[stage] for stage in stages}
        return Pace(directory, seconds, once, sum(counts.values()))
    return None


def left(pieces: Iterable[Piece], pace: Pace) -> dict[str, float | None]:
    """Seconds for what is left of each stage, None where no pace is known of it."""
    found: dict[str, float | None] = {}
    for piece in pieces:
        todo = max(piece.total - piece.done, 0)
        if not todo:
            continue
        each, so_far = pace.seconds.get(piece.stage), found.get(piece.stage, pace.once.get(piece.stage, 0.0))
        found[piece.stage] = None if each is None or so_far is None else so_far + todo * each
    return found
