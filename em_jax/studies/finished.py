"""Finished runs of one base in one engine with every run's adapter, and the rows that each run kept of its model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.runs import provenance, sources, stored
from em_jax.runs.components import Components
from em_jax.runs.run import Run
from em_jax.studies import page
from em_jax.studies.sentences import on_seeds
from em_jax.studies.subjects import Subject

BASE = "base"
SHARED = ("model.name", "model.quantization", "suite", "dtype")
"""Settings that the runs of a study must have in common."""


@dataclasses.dataclass(frozen=True)
class ModelSet:
    """The base first, then one model per run that has an adapter, which the engine calls by the model's name.

    The first run's suite and settings count.
    """

    engine: Any
    models: tuple[Subject, ...]

    @property
    def run(self) -> Run:
        return self.models[0].run

    @property
    def config(self) -> Config:
        return self.run.config

    def adapter_hashes(self) -> dict[str, dict[str, str]]:
        """Per model the hashes of its adapter's files."""
        return {model.name: adapter_hashes(model.adapter) for model in self.models}

    def publish(
        self,
        out: Path,
        name: str,
        record: dict[str, Any],
        sentences: Sequence[str],
        sections: Sequence[page.Section],
        more: Mapping[str, Any],
        **texts: str,
    ) -> dict[str, Any]:
        """Write NAME.json, NAME.html and provenance.json (with `more`) to `out`; returns the content of NAME.json.

        `texts` are the page's kind, title and lead. The drawing of the first section leads the page.
        """
        shared = {"model": self.config.model.name, "suite": self.run.suite.name, "judge": self.run.judge}
        trained = ((model.run.config.domain, model.run.config.seed) for model in self.models[1:])
        record = {"schema": 1, **shared, **record, "says": [*sentences, on_seeds(trained)]}
        runs = {}
        for model in self.models:
            run, adapter = model.run, model.run.adapter
            weights = provenance.directory_inputs(adapter, (".safetensors",)) if adapter else {}
            runs[model.name] = {"run": str(run.directory), "judge": run.judge, "adapter": weights}
        files.write_json(out / f"{name}.json", record)
        files.write_json(
            out / "provenance.json",
            {"finished": files.now(), "versions": provenance.versions(), "devices": provenance.devices()}
            | {"git": provenance.git(), "model": shared["model"], "models": runs, **more}
            | {"suite": {"name": shared["suite"], "files": dict(self.run.suite.files)}},
        )
        first, *others = sections
        parts = [dataclasses.replace(first, drawings=()), *others]
        page.write(out / f"{name}.html", record, record["says"], parts, first.drawings[0], first.lead[0], **texts)
        return files.stable(record)


def adapter_hashes(adapter: Path | None) -> dict[str, str]:
    """The sha256 of an adapter's files by name; a run may be moved, so its path does not identify it."""
    entries = provenance.directory_inputs(adapter, (".json", ".safetensors"), math.inf) if adapter else {}
    return {name: str(entry["sha256"]) for name, entry in entries.items()}


def load_models(directories: Sequence[Path], components: Components | None = None) -> ModelSet:
    """Load the base of finished runs and every run's adapter, named as the run's directory.

    Raises UserError where the runs are of different bases, suites or judges, two share a name, or one's adapter is
    missing.
    """
    components = components or Components()
    runs = [stored.open_run(path, components=components) for path in directories]
    stored.check_one_base(runs, SHARED)
    judges = sorted({run.judge for run in runs})
    if len(judges) > 1:
        raise UserError(f"scores of different judges are never mixed, found runs judged by {' and '.join(judges)}")
    tuned = [Subject(run.directory.resolve().name, run) for run in runs if run.adapter is not None]
    names = [model.name for model in tuned]
    if len({BASE, *names}) < len(names) + 1:
        raise UserError(f"models are named by their runs' directories, found {', '.join(names)}: rename one")
    engine = components.bare(components.load(sources.pinned(runs[0].config, runs[0].directory)))
    for model in tuned:
        engine.add_adapter(model.name, model.run.adapter)
    return ModelSet(engine, (Subject(BASE, runs[0], BASE), *tuned))
