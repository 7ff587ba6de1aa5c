"""The models that are served: the base that the runs share, and each run's adapter."""

from collections.abc import Sequence
from typing import Any

from em_jax import config as settings
from em_jax.base.errors import UsageError
from em_jax.runs import components, publish, sources, stored
from em_jax.runs.run import ADAPTER, Run

BASE = "base"
SHARED = ("model.name", "model.quantization", "model.scan_layers", "dtype")
"""Settings that the runs of a server must have in common."""


def open_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in these directories, each of which is a run or a series of runs.

    Raises UsageError where one has no run or they differ in their base, UserError where an adapter is not trained yet.
    """
    runs = [stored.open_run(directory) for directory in stored.find(paths, several=True)]
    stored.check_one_base(runs, SHARED)
    return runs


def runs_by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs with an adapter by the names clients use: "finetuned", or with several runs their directories' names.

    Raises UsageError where a name is not unique.
    """
    adapted = [run for run in runs if run.adapter is not None]
    names = [ADAPTER if len(runs) == 1 else run.directory.resolve().name for run in adapted]
    if repeated := sorted({name for name in names if names.count(name) > 1 or name == BASE}):
        raise UsageError(f"runs are served by the names of their directories, which must differ: {', '.join(repeated)}")
    return dict(zip(names, adapted, strict=True))


def load(runs: Sequence[Run], slots: int | None = None) -> tuple[Any, dict[str, str]]:
    """The engine with every run's adapter, and a notice of what each model is by the adapter's name, the base first."""
    config = runs[0].config
    if slots:
        config = settings.replace(config, {"answers.slots": slots})
    named = runs_by_name(runs)
    engine = components.load(sources.pinned(config, runs[0].directory))
    models = {BASE: f"{config.model.name} as it was before fine-tuning"}
    for name, run in named.items():
        engine.add_adapter(name, run.adapter)
        models[name] = publish.notice(run.config)
    return engine, models
