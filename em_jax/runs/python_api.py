"""`em_jax.run` and `em_jax.finetune`: what `python -m em_jax.launch` does, called from Python.

The arguments are the command's flags and go through its parser, so that both have the same checks, run directory and
messages.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from em_jax import config as settings_of
from em_jax.base import failures, multihost
from em_jax.base.errors import UsageError
from em_jax.runs import flags, series
from em_jax.runs.finished import Run
from em_jax.runs.processes import choose_model, run_plan

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
        with failures.translate_errors():
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
