"""What a run begins with, on record: a directory made with other settings, inputs or judges is refused."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from em_jax.runs import adapters, alternatives, paper_settings, provenance, sources
from em_jax.base import files
from em_jax import config as settings
from em_jax.config import Config
from em_jax.base.errors import UserError
from em_jax.probes.judge import Judge
from em_jax.runs.run import Run

BASE_ROWS, ASKED = "base_rows", "asked"
"""In a run's notes: whether it asked the base itself, so that its wall times are of all its rows."""


def check_settings(config: Config, directory: Path) -> None:
    """Refuse a directory whose config.toml differs from `config` in anything that changes figures."""
    stored = directory / "config.toml"
    if not stored.exists():
        return
    differing = settings.differing(settings.read_toml(stored), config)
    if differing:
        raise UserError(
            f"{directory} was made with other settings ({', '.join(differing)}): "
            "give the same ones to go on with it, or another --run_dir"
        )


def collect_inputs(this: Run) -> dict[str, Any]:
    """Every input of the run with sha256 and row count, checked against those it began with.

    Raises:
      UserError: an input is wrong or missing, or its content changed since the run began.
    """
    config = this.config
    inputs: dict[str, Any] = {}
    folder = sources.suite_directory(config.suite)
    for name in this.suite.files:
        inputs[f"suite/{name}"] = provenance.file_input(folder / name) | {"path": f"{config.suite}/{name}"}
    if this.trains:
        inputs["rows"] = sources.rows_input(config, this.rows)
    for kind, folder in brought_adapters(this).items():
        for name, entry in provenance.directory_inputs(folder, (".json", ".safetensors")).items():
            inputs[f"{kind}/{name}"] = entry
    others = files_of_others(this)
    inputs |= {f"alternatives/{name}": provenance.file_input(path) for name, path in others.items()}
    for name, entry in this.parts.model_inputs(config).items():
        inputs[f"model/{name}"] = entry
    own = trained_adapter(this)
    before = provenance.read(this.directory).get("inputs", {})
    if damaged := provenance.changed(before, own):
        raise UserError(
            f"{', '.join(damaged)} in {this.directory} is not what training wrote: delete {this.directory / 'adapter'} "
            "to have it written again from the last checkpoint, or name another --run_dir"
        )
    inputs |= own
    other = provenance.changed(before, inputs)
    if config.probes.alternatives == settings.SIBLINGS:
        # The other runs of a series may go on meanwhile; their rows so far stay.
        grown = {f"alternatives/{name}": path for name, path in others.items()}
        other = [name for name in other if not (name in grown and provenance.has_grown(before[name], grown[name]))]
    if other:
        raise UserError(
            f"{this.directory} was begun with other content of {', '.join(other)}: give the same files, "
            "or another --run_dir"
        )
    return inputs


def trained_adapter(this: Run) -> dict[str, Any]:
    """The files of the adapter that this run trained, all of them hashed; {} before it has."""
    if not this.trains or not sources.is_trained(this.directory):
        return {}
    found = provenance.directory_inputs(this.directory / "adapter", (".json", ".safetensors"), math.inf)
    return {f"trained/{name}": entry for name, entry in found.items()}


def brought_adapters(this: Run) -> dict[str, Path]:
    """The adapters a run is given, by what they are for: "adapter" to probe, "init_from" to train on from."""
    found = {"adapter": this.given_adapter} if this.config.adapter else {}
    start = sources.start_directory(this.config) if this.trains else None
    return found | ({"init_from": start} if start is not None else {})


def files_of_others(this: Run) -> dict[str, Path]:
    """The files of other runs that output recognition is going to use, by name."""
    folder = sources.alternatives_directory(this.config, this.directory)
    if folder is None or "probe" not in this.config.stages or not this.asks("output_recognition"):
        return {}
    return alternatives.files_used(folder, this.judge, leave_out=this.directory)


def begin_record(this: Run, inputs: dict[str, Any], pulled: int, base_from: Path | None = None) -> None:
    """Write provenance.json for this start; `base_from` is the run whose base rows this one took over."""
    notes: dict[str, Any] = {
        "judge": sources.judge(this.config, this.suite.judge, None).describe(),
        "judges": known_judges(this.directory, sources.judges(this.config, this.suite.judge, None)),
        "suite": f"{this.suite.name} {this.suite.version}",
        BASE_ROWS: ASKED if base_from is None else f"of {base_from.name}",
    }
    if not sources.is_organism(this.config):
        notes["marks"] = paper_settings.of(this.config)
    if pulled:
        notes["files_from_mirror"] = pulled
    for kind, folder in brought_adapters(this).items():
        notes[f"{kind}_in_force"] = adapters.in_force(folder)
    if this.config.adapter:
        base = sources.model_directory(this.config)
        notes["adapter_disagrees"] = adapters.disagreements(this.given_adapter, this.config.model.name, base)
        for sentence in notes["adapter_disagrees"]:
            this.say(sentence)
    seed = this.config.seed
    seeds = {"run": seed, "training": seed, "sampling": seed}
    provenance.write(this.directory, inputs, seeds, notes)


def known_judges(directory: Path, judges: Iterable[Judge]) -> dict[str, Any]:
    """Who every judge of a run is, by the name its files carry.

    Raises:
      UserError: a name stands for another judge already: another model, address or wording.
    """
    known = dict(provenance.notes(directory).get("judges", {}))
    for judge in judges:
        now = judge.describe()
        before = known.setdefault(judge.name, now)
        differing = [field for field in sorted(before | now) if before.get(field) != now.get(field)]
        if differing:
            raise UserError(
                f"{directory}: scores by {judge.name} were made with another {', '.join(differing)}; "
                "scores of different judges are never mixed"
            )
    return known


def take_base(this: Run, source: Path) -> None:
    """Copy another run's base rows, file by file, where this run has none yet."""
    patterns = ("answers/base.jsonl", "scores/base.*.jsonl", "probes/base.*.jsonl")
    for path in sorted(path for pattern in patterns for path in source.glob(pattern)):
        place = this.directory / path.relative_to(source)
        if not place.exists():
            files.write_atomic(place, path.read_bytes())
