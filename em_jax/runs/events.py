"""What a command's runs do, as they do it: events for those who listen (lines of JSON, trackers of experiments).

An event is a dict with `event` and, where it is one run's, `run`, the run's directory:

note      `text`: the model and why it is this one, and what was chosen for the machine
stage     `stage`, `state` (begins, ends, fails), `seconds` once it is over
progress  `stage`, `what` (condition and probe or judge), `done`, `total`, `tokens` of this start; at most one a second,
          and that at which `done` is `total`
caution   `code`, `sentence`
verdict   `label`, `why` (sentences), `report` (its path)
failed    `text`: why a run failed; no summary follows
summary   of the command, the last one: `stages`, `comparison` (the common page of several runs, or null), `runs`: for
          each its `run`, `report` and the content of its summary.json (nothing where no report was asked for)
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.config import Config

Event = Mapping[str, Any]
Listener = Callable[[Event], None]
INTERVAL_S = 1.0


class JsonLines:
    """A listener that prints every event as a line of JSON, with its time (UTC)."""

    def __init__(self) -> None:
        self._printed = float("-inf")

    def __call__(self, event: Event) -> None:
        if event["event"] == "progress" and event["done"] != event["total"]:
            if time.monotonic() - self._printed < INTERVAL_S:
                return
            self._printed = time.monotonic()
        # ASCII: what a model wrote cannot steer a terminal, nor end a line.
        print(json.dumps({"time": files.now(), **files.stable(event)}), flush=True)


def summary(config: Config, runs: Iterable[Path], comparison: Path | None) -> Event:
    """The last event of a command; `config` is any of its runs'."""
    has_report = "report" in config.stages
    return {
        "event": "summary",
        "stages": list(config.stages),
        "comparison": str(comparison) if comparison and has_report else None,
        "runs": [
            {"run": str(run), "report": str(run / "report.html")}
            | files.read_object(run / "summary.json", "the summary of a run")
            for run in runs
            if has_report
        ],
    }
