"""Trackers of experiments (Weights & Biases, TensorBoard) that follow runs by reading the runs' own files.

A tracker gets the rows of train/metrics.jsonl as they are written, then the figures, the verdict and the report. A run
that is continued is the same run there: TensorBoard's files are written anew, W&B's goes on by the run's id.
"""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.errors import UserError, first_line
from em_jax.runs import provenance
from em_jax.runs.events import Event, Listener
from em_jax.runs.flags import TRACKERS

SIDES = ("base", "finetuned", "difference")
INTERVAL_S = 10.0


class Tensorboard:
    """Writes RUN/tensorboard; `tensorboard --logdir` reads it, and directories of such runs."""

    def __init__(self, directory: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(logdir=str(directory / "tensorboard"), purge_step=0)
        text = (directory / "config.toml").read_text(encoding="utf-8")
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        self._step = 0

    def metrics(self, row: dict[str, Any]) -> None:
        self._step = row["step"]
        for name, value in _values(row).items():
            self._writer.add_scalar(f"train/{name}", value, self._step)

    def finished(self, summary: dict[str, Any], report: Path) -> None:
        verdict = summary["verdict"]
        sentences = [*verdict["why"], *(f"caution, {each['code']}: {each['sentence']}" for each in verdict["cautions"])]
        lines = "\n".join(f"- {sentence}" for sentence in sentences)
        self._writer.add_text("verdict", f"**{verdict['label']}** ({report})\n\n{lines}", self._step)
        for name, side, figure in _figures(summary):
            self._writer.add_scalar(f"{side}/{name}", figure["value"], self._step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Writes a run of W&B, whose own variables say where (WANDB_MODE, WANDB_PROJECT, WANDB_DIR, ...)."""

    def __init__(self, directory: Path):
        import wandb

        self._wandb = wandb
        record = provenance.read(directory)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "em_jax",
            name=directory.name,
            id=record.get("run"),
            resume="allow",
            reinit="create_new",  # the runs of a series are open side by side
            config=settings.read_toml(directory / "config.toml"),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("train/*", step_metric="train/step")
        self._logged = int(self._run.summary.get("train/step") or 0)

    def metrics(self, row: dict[str, Any]) -> None:
        if row["step"] > self._logged:
            self._run.log({f"train/{name}": value for name, value in {**_values(row), "step": row["step"]}.items()})

    def finished(self, summary: dict[str, Any], report: Path) -> None:
        self._run.summary["verdict"] = summary["verdict"]["label"]
        self._run.summary["why"] = " ".join(summary["verdict"]["why"])
        table = self._wandb.Table(columns=["figure", "side", "value", "ci_low", "ci_high", "n"])
        for name, side, figure in _figures(summary):
            self._run.summary[f"{side}/{name}"] = figure["value"]
            table.add_data(name, side, *(figure[key] for key in ("value", "ci_low", "ci_high", "n")))
        self._run.log({"figures": table})
        artifact = self._wandb.Artifact(f"report-{self._run.id}", type="report")
        artifact.add_file(str(report))
        artifact.add_file(str(report.with_name("summary.json")))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


Writer = Wandb | Tensorboard
"""One run in one tracker: gets each row of train/metrics.jsonl, then the content of summary.json and the page."""
WRITERS: dict[str, Callable[[Path], Writer]] = {"wandb": Wandb, "tensorboard": Tensorboard}


class Tracker:
    """A listener that has every run of a command written by one tracker.

    A tracker that cannot begin stops the command before a run has done anything; one that fails later is reported once
    and left out from there.
    """

    def __init__(self, name: str):
        self.name = name
        self._open: dict[str, Writer] = {}
        self._done = Counter[str]()
        self._failed: set[str] = set()
        self._read = float("-inf")

    def __call__(self, event: Event) -> None:
        run = event.get("run")
        if run is None or run in self._failed:
            return
        directory = Path(run)
        if run not in self._open:
            try:
                self._open[run] = WRITERS[self.name](directory)
            except Exception as error:  # of libraries that document none
                offline = "; WANDB_MODE=offline needs no network and no key" if self.name == "wandb" else ""
                raise UserError(f"--log {self.name} could not begin ({first_line(error)}){offline}") from error
        ends = event["event"] == "stage" and event["state"] != "begins"
        trains = event.get("stage") == "finetune" and (ends or time.monotonic() - self._read >= INTERVAL_S)
        if not (trains or event["event"] == "verdict"):
            return
        with self._reported(run):
            for row in files.read_rows(directory / "train" / "metrics.jsonl")[self._done[run] :]:
                self._open[run].metrics(row)
                self._done[run] += 1
            self._read = time.monotonic()
            if event["event"] == "verdict":
                summary = files.read_object(directory / "summary.json", "the summary of a run")
                self._open[run].finished(summary, Path(event["report"]))

    def close(self) -> None:
        """Close every run."""
        for run, writer in self._open.items():
            with self._reported(run):
                writer.close()
        self._open.clear()

    @contextlib.contextmanager
    def _reported(self, run: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed.add(run)
            print(f"--log {self.name}: {run} is no longer written there ({first_line(error)})", file=sys.stderr)


@contextlib.contextmanager
def trackers(names: Sequence[str]) -> Iterator[list[Listener]]:
    """Within, the trackers of these names listen. UserError where the package of one is not installed."""
    for name in names:
        if not find_spec(package := TRACKERS[name]):
            raise UserError(f"--log {name} needs {package}, which is not installed: pip install 'em_jax[{name}]'")
    made = [Tracker(name) for name in names]
    try:
        yield list(made)
    finally:
        for tracker in made:
            tracker.close()


def _values(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}


def _figures(summary: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(Name, side, figure) of all figures that have a value."""
    for name, sides in summary["figures"].items():
        for side in SIDES:
            figure = sides.get(side)
            if figure and figure["value"] is not None:
                yield name, side, figure
