"""What a notebook calls: `em_jax.run` and `em_jax.finetune`, as `python -m em_jax.launch`, and `Run`, a finished run.

The arguments of the calls are the command's flags and go through its parser, so that both have the same checks, run
directory and messages.
"""

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings_of
from em_jax.base import errors, multihost
from em_jax.base.errors import UsageError, UserError
from em_jax.runs import export, flags, series, stored
from em_jax.runs.processes import choose_model, run_plan


class Run:
    """A run directory: its verdict and figures, and its rows as tables.

    It reads the files when they are asked for, and loads no model but for `engine`.

    Raises UsageError where `path` is no run directory.
    """

    def __init__(self, path: str | Path):
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"Run: path expects a run directory, found {path!r}")
        self.directory = Path(path)
        self._run = stored.open_run(self.directory, with_base=False)
        self.config = self._run.config

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json. UserError where the run has not got so far."""
        if (summary := stored.read_summary(self.directory)) is None:
            path = self.directory / "summary.json"
            raise UserError(f"no {path}: expected a finished run, start its command again to finish it")
        return summary

    @property
    def figures(self) -> "Figures":
        """{name: {"base", "finetuned", "difference": {"value", "ci_low", "ci_high", "n"}}}, shown as a table."""
        return Figures(self.summary["figures"])

    @property
    def verdict(self) -> dict[str, Any]:
        """{"label", "why": sentences, "reasons": some of them, "cautions": [{"code", "sentence"}], "nearest"}."""
        return self.summary["verdict"]

    def answers(self) -> Any:
        """A pandas DataFrame of all answers, with `condition` and the `score` of the figures' judge (NaN without)."""
        return _table({**row, "condition": each} for each in self._run.conditions for row in self._run.judged(each))

    def probes(self) -> Any:
        """A pandas DataFrame of all questions of the probes, with `condition` and `probe`."""
        return _table(export.table_rows(self.directory, "probes"))

    @property
    def adapter(self) -> Path | None:
        """The directory of the adapter, in PEFT's format: the run's own or the one it was given; None without."""
        return self._run.adapter

    def engine(self) -> Any:
        """The run's model as an Engine, its adapter the default of every method; adapter="base" switches it off.

        Raises UserError where the adapter is not trained yet, or the model is not what the run was made with.
        """
        from em_jax.runs import components, sources
        from em_jax.runs.loading import load

        run = stored.open_run(self.directory)
        run.require_adapter()
        config = sources.pinned(run.config, self.directory)
        return load(config.model.name, adapter=run.adapter, **components.model_arguments(config))

    def report(self) -> Path:
        """The path of the report, drawn again from the run's files."""
        from em_jax import report

        return Path(report.write(self.directory))

    def __repr__(self) -> str:
        summary = stored.read_summary(self.directory)
        return f"Run({str(self.directory)!r}, {summary['verdict']['label'] if summary else 'not finished'})"

    def _repr_html_(self) -> str:
        name, summary = html.escape(str(self.directory)), stored.read_summary(self.directory)
        if not summary:
            return f"<p><b>not finished</b> {name}</p>"
        verdict = summary["verdict"]
        sentences = [*verdict["why"], *(caution["sentence"] for caution in verdict["cautions"])]
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
        return f"<p><b>{html.escape(verdict['label'])}</b> {name}</p><ul>{items}</ul>"


class Figures(dict):
    """The figures of a run by name, shown as a table with intervals and numbers of questions."""

    def _repr_html_(self) -> str:
        columns = ("base", "finetuned", "difference")
        head = "".join(f"<th>{column}</th>" for column in columns)
        rows = (
            f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{_cell(each[column])}</td>' for column in columns)}</tr>"
            for name, each in self.items()
        )
        return f"<table><tr><th>value [95% interval], n</th>{head}</tr>{''.join(rows)}</table>"


def _cell(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "no data"
    low, high = figure["ci_low"], figure["ci_high"]
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{figure['value']:.2f}{interval}, {figure['n']}"


def _table(rows: Any) -> Any:
    """Rows, which are read without the seals of their lines, as a DataFrame."""
    try:
        import pandas
    except ImportError:
        raise UserError("tables need pandas, which is not installed: pip install 'em_jax[notebook]'") from None
    return pandas.DataFrame(list(rows))


Names = str | Sequence[str]
File = str | os.PathLike
REPEATED = ("data", "also_judge", "config")
"""The flags that are given once for each value; others take theirs with commas."""


def run(
    domain: Names | None = None,
    *,
    model: File | None = None,
    data: File | Mapping[str, File] | None = None,
    format: str | None = None,
    adapter: File | None = None,
    suite: File | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    also_judge: Names | None = None,
    seed: int | Sequence[int] | None = None,
    stages: Names | None = None,
    run_dir: File | None = None,
    mirror: File | None = None,
    config: File | Sequence[File] | None = None,
    mesh: str | Mapping[str, int] | None = None,
    dtype: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Fine-tunes on a domain, asks the probes and gives the verdict; returns the `Run`.

    The arguments are the flags of `python -m em_jax.launch` (docs/commands.md); `settings` are its --set, by name:
    {"train.epochs": 2} or {"train": {"epochs": 2}}. `data` is the file of rows, or {domain: file}. An existing run
    directory is resumed. Several domains or seeds give {folder's name: Run}.

    Raises UsageError for a wrong argument, UserError where the run fails: what is done is kept, and the same call
    continues from there.
    """
    return _launch("run", locals())


def finetune(
    domain: Names | None = None,
    *,
    model: File | None = None,
    data: File | Mapping[str, File] | None = None,
    format: str | None = None,
    seed: int | Sequence[int] | None = None,
    run_dir: File | None = None,
    mirror: File | None = None,
    config: File | Sequence[File] | None = None,
    mesh: str | Mapping[str, int] | None = None,
    dtype: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Does the first stage of `run` alone: the `Run` has the path `adapter` and `engine()`, ready to ask.

    `em_jax.run` with the same arguments goes on from there. Arguments and errors as of `run`.
    """
    return _launch("finetune", locals() | {"stages": "finetune"})


def _launch(call: str, values: dict[str, Any]) -> Any:
    """Do the runs that the arguments ask for, and print the command's lines."""
    try:
        given = values.pop("settings")
        if given is not None and not (isinstance(given, Mapping) and all(isinstance(name, str) for name in given)):
            raise UsageError(f"settings expects {{name: value}}, found {given!r}")
        plan, why = flags.plan(_words(values), choose_model, settings_of.dotted(given or {}))
        if multihost.size() > 1:
            raise UsageError("one process was expected; several start python -m em_jax.launch")
        with errors.translate_errors():
            run_plan(plan, why)
    except UsageError as error:
        # What the command calls --domain is an argument here.
        text = re.sub(r"(?<!\S)--(?=[a-z])", "", str(error))
        raise UsageError(f"{call}: {text}") from None
    runs = [Run(path) for path in series.places(plan.configs, plan.run_dir, plan.several)[0]]
    return {run.directory.name: run for run in runs} if plan.several else runs[0]


def _words(values: Mapping[str, Any]) -> list[str]:
    """The arguments as flags of the command."""
    domain, data = values["domain"], values["data"]
    if isinstance(domain, str) and "," not in domain and data is not None and not isinstance(data, Mapping):
        data = {domain: data}  # a domain of one's own is known by its file
    words = []
    for name, value in (dict(values) | {"data": data}).items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            parts = [f"{_text(name, key)}={_text(name, each)}" for key, each in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            parts = [_text(name, each) for each in value]
        else:
            parts = [_text(name, value)]
        words += [f"--{name}={part}" for part in (parts if name in REPEATED else [",".join(parts)])]
    return words


def _text(name: str, value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UsageError(f"{name} expects a text, a number, or several of these, found {value!r}")
