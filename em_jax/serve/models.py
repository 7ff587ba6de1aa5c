"""Which models are served: the base of the runs that are named, and each run's adapter."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base.errors import UsageError
from em_jax.config import Config
from em_jax.runs import components, model_card
from em_jax.runs.components import Components
from em_jax.runs.run import ADAPTER, Run

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that clients can name: the engine's name of its adapter, and what everybody should know about it."""

    adapter: str
    notice: str


def runs_in(named: Sequence[str]) -> list[Run]:
    """The runs of the directories named: each a run, or one of a series that holds some.

    Raises:
      UsageError: there is none, two have one name, or they are not of one base.
      UserError: a run has not trained its adapter yet.
    """
    directories: list[Path] = []
    for text in named:
        path = Path(text)
        found = [path] if _is_run(path) else sorted(place for place in path.glob("*") if _is_run(place))
        if not found:
            raise UsageError(f"--run_dir expects the directory of a run (with config.toml) or of several, found {text}")
        directories += found
    runs = [Run(_config(directory), directory, Components(), lambda: None, "") for directory in directories]
    first = _of_base(runs[0].config)
    for run in runs:
        for name, value in _of_base(run.config).items():
            if value != first[name]:
                raise UsageError(
                    f"one server has one base, but {name} is {first[name]!r} in {runs[0].directory} "
                    f"and {value!r} in {run.directory}"
                )
        run.require_adapter()
    return runs


def name_models(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs with an adapter by the names clients use: "finetuned", or with several runs their directories' names."""
    adapted = [run for run in runs if run.adapter is not None]
    if len(runs) == 1:
        return {ADAPTER: runs[0]} if adapted else {}
    names = [run.directory.resolve().name for run in adapted]
    if twice := sorted({name for name in names if names.count(name) > 1 or name == BASE}):
        raise UsageError(f"runs are served by the names of their directories, which must differ: {', '.join(twice)}")
    return dict(zip(names, adapted, strict=True))


def load(runs: Sequence[Run], slots: int | None) -> tuple[Any, dict[str, Served]]:
    """The engine with every run's adapter, and the models by name, the base first."""
    config = runs[0].config
    if slots:
        config = settings.replace(config, {"answers.slots": slots})
    named = name_models(runs)
    engine = components.load(config)
    models = {BASE: Served(BASE, f"{config.model.name} as it was before fine-tuning")}
    for name, run in named.items():
        engine.add_adapter(name, run.adapter)
        models[name] = Served(name, model_card.notice(run.config))
    return engine, models


def _is_run(path: Path) -> bool:
    return (path / "config.toml").is_file()


def _config(directory: Path) -> Config:
    return settings.replace(Config(), settings.read_toml(directory / "config.toml"))


def _of_base(config: Config) -> dict[str, Any]:
    values = settings.flatten(config)
    return {name: value for name, value in values.items() if name.startswith("model.") or name == "dtype"}
