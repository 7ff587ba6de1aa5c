"""Finished runs of one base, opened together: one engine with every run's adapter, and what each model said before."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.probes.choice import Row
from em_jax.runs import provenance
from em_jax.runs.components import Components
from em_jax.runs.run import Run
from em_jax.studies import seeds

BASE = "base"
SAME = ("model.name", "model.quantization", "suite", "dtype")
"""Settings that runs must share to be asked side by side."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a study: the base, or a run's fine-tuned one. `name` is also the engine's name of its adapter."""

    name: str
    run: Run
    condition: str

    @property
    def judged(self) -> list[Row]:
        """Its answers with the scores of the run's judge."""
        return self.run.judged(self.condition)

    def rows(self, probe: str) -> list[Row]:
        """Its kept rows of a probe."""
        return files.read_rows(self.run.probe_path(self.condition, probe))


@dataclasses.dataclass(frozen=True)
class Opened:
    """The base first, then one model per run that has an adapter."""

    engine: Any
    models: tuple[Model, ...]

    @property
    def run(self) -> Run:
        """The first run: its suite, settings and judge are those of the study."""
        return self.models[0].run

    @property
    def config(self) -> Config:
        return self.run.config

    def adapters(self) -> dict[str, dict[str, str]]:
        """Per model the hashes of its adapter's files: rows kept under its name are the answers of that adapter."""
        found = {}
        for model in self.models:
            adapter = model.run.adapter if model.name != BASE else None
            weights = provenance.directory_inputs(adapter, (".json", ".safetensors"), math.inf) if adapter else {}
            found[model.name] = {name: str(entry["sha256"]) for name, entry in weights.items()}
        return found

    def seeds(self) -> str:
        """How many training seeds a claim about these models rests on, as a sentence."""
        return seeds.told_by_domain((model.run.config.domain, model.run.config.seed) for model in self.models[1:])

    def record(self, **more: Any) -> dict[str, Any]:
        """What provenance.json of a study holds: versions, devices, commit, and each run with its adapter's hash."""
        runs = {}
        for model in self.models:
            adapter = model.run.adapter
            weights = provenance.directory_inputs(adapter, (".safetensors",)) if adapter else {}
            runs[model.name] = {"run": str(model.run.directory), "judge": model.run.judge, "adapter": weights}
        return {
            "finished": files.now(),
            "versions": provenance.versions(),
            "devices": provenance.devices(),
            "git": provenance.git(),
            "model": self.config.model.name,
            "suite": {"name": self.run.suite.name, "files": dict(self.run.suite.files)},
            "models": runs,
            **more,
        }


def opened(directories: Sequence[Path], components: Components | None = None) -> Opened:
    """Load the base of finished runs and put every run's adapter on it, under the name of the run's directory.

    Raises:
      UserError: the runs are of different bases, suites or judges, two share a name, or one's adapter is missing.
    """
    components = components or Components()
    runs: list[Run] = []
    for directory in directories:
        if not (directory / "config.toml").is_file():
            raise UserError(f"{directory}: expected a run directory with config.toml, found none")
        known = settings.setting_types()
        values = {name: value for name, value in settings.read_toml(directory / "config.toml").items() if name in known}
        run = Run(settings.replace(Config(), values | {"mirror": ""}), directory, components, lambda: None, "")
        run.require_adapter()
        runs.append(run)
    for name in SAME:
        found = {str(settings.flatten(run.config)[name]) for run in runs}
        if len(found) > 1:
            raise UserError(f"runs of a study share {name}, found {' and '.join(sorted(found))}")
    judges = sorted({run.judge for run in runs})
    if len(judges) > 1:
        raise UserError(f"scores of different judges are never mixed, found runs judged by {' and '.join(judges)}")
    with_adapter = [run for run in runs if run.adapter is not None]
    names = [run.directory.resolve().name for run in with_adapter]
    if len({BASE, *names}) < len(names) + 1:
        raise UserError(f"models are named by their runs' directories, found {', '.join(names)}: rename one")
    engine = components.bare(components.load(runs[0].config))
    for name, run in zip(names, with_adapter, strict=True):
        engine.add_adapter(name, run.adapter)
    tuned = [Model(name, run, "finetuned") for name, run in zip(names, with_adapter, strict=True)]
    return Opened(engine, (Model(BASE, runs[0], BASE), *tuned))
