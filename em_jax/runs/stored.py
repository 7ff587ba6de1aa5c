"""The one reader of a run that is on the disk: its settings, and the checks that its next start would make."""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.errors import UsageError, UserError
from em_jax.config import Config
from em_jax.runs import preflight, provenance
from em_jax.runs.components import Components
from em_jax.runs.run import Run


def is_run(directory: Path) -> bool:
    """Whether a directory has a run's settings, whatever they are: `open_run` says what is wrong with them."""
    return os.path.lexists(directory / "config.toml")


def find(paths: Iterable[str | Path], several: bool = False, finished: bool = False) -> list[Path]:
    """The runs at these paths; with `several` also those in a directory there, with `finished` those with a summary.

    UsageError for a path that has none, unless it is the page of an earlier comparison or study among several paths.
    """
    fits = (lambda directory: (directory / "summary.json").is_file()) if finished else is_run
    kind = "a finished run with summary.json" if finished else "a run directory with config.toml"
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*")) if several and not fits(path) else [path]
        runs = list(filter(fits, inside))
        is_page = several and not is_run(path) and any(path.glob("*.html"))  # a pattern such as runs/* takes pages in
        if not runs and not is_page:
            raise UsageError(f"{path}: expected {kind}{', or a directory of such' * several}, found none")
        found += runs
    if not found:
        raise UsageError(f"expected {kind}, found pages alone")
    return [*{run.resolve(): run for run in found}.values()]  # each once, however it is named


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The content of summary.json; None where a run has not got so far."""
    path = directory / "summary.json"
    return files.read_object(path, "the summary of a run") if path.exists() else None


def read_config(directory: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The settings of a run that this version knows, with `changes`. UsageError without a run or for a wrong type."""
    find([directory])
    known = settings.setting_types()
    values = {name: value for name, value in settings.read_toml(directory / "config.toml").items() if name in known}
    return settings.replace(Config(), values | (dict(changes) if changes else {}))


@contextlib.contextmanager
def expect_own_rows(directory: Path) -> Iterator[None]:
    """Within, rows or records of a run that are of another form than em_jax writes are a UserError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{directory}: expected the rows and records that em_jax writes, found others "
            f"({type(error).__name__}: {error}); --verbosity=1 shows where"
        ) from error


def check_one_base(runs: Sequence[Run], shared: Collection[str]) -> None:
    """UsageError where runs differ in a setting of `shared`, UserError where one has not trained its adapter yet."""
    first = settings.flatten(runs[0].config)
    for run in runs:
        for name, value in settings.flatten(run.config).items():
            if name in shared and value != first[name]:
                raise UsageError(
                    f"runs with one base in one engine share {name}, found {first[name]!r} in {runs[0].directory} and "
                    f"{value!r} in {run.directory}"
                )
        run.require_adapter()


def open_run(directory: Path, components: Components | None = None, with_base: bool = True) -> Run:
    """A run on the disk. Changed rows are reported on stderr; `with_base` checks the models that it starts with too.

    Raises UsageError: `directory` is no run. UserError: it holds a link; or its base or its adapter is not what the run
    was made with.
    """
    files.check_own(directory)
    run = Run(read_config(directory, {"mirror": ""}), directory, components)
    before = provenance.read(run.directory).get("inputs", {})
    preflight.check_trained(run, before, preflight.trained_adapter(run))
    changed = provenance.differing(before, preflight.model_inputs(run)) if with_base else []
    if changed:
        raise UserError(f"{run.directory} was made with other content of {', '.join(changed)}: bring those files back")
    run.report_altered()
    return run
