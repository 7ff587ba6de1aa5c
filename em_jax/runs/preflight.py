"""Checks and records at the start of a run: a directory made with other settings, inputs or judges is refused."""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import addresses, files
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.formats import hub, thoughts
from em_jax.lora.config import CONFIG, LoraConfig
from em_jax.probes import harmfulness, in_domain
from em_jax.probes import suite_files as suites
from em_jax.report import reading
from em_jax.runs import adapters, paper_settings, provenance, sources
from em_jax.runs.run import Run
from em_jax.untrusted import chat_template

OF_A_RUN = (*files.SEALED, "train", "adapter", "summary.json", "provenance.json", "report.html")
"""What only a run puts into its directory."""
NOT_COMPARED = {"stages", "mesh", "mirror", "verbosity", "judge.also", "judge.concurrency", "judge.max_requests"}
NOT_COMPARED |= {"train.rows_per_pass", "train.remat", "answers.slots"}
"""What may differ between two starts of one run: where and when work is done and how much at once, and further judges,
which change no figure. A run that ran out of memory must be free to change these."""


def check_settings(config: Config, directory: Path) -> None:
    """Refuse a directory whose config.toml differs from `config` in anything that changes figures.

    A directory with rows but without config.toml is refused too: nobody knows which settings they are of. So is one
    that holds other runs: it would hide them from all that reads a directory of runs.
    """
    if (found := files.kind(directory, follow=True)) not in ("a directory", ""):
        raise UserError(f"expected a directory, found {found} at {directory}: name another --run_dir")
    stored = directory / "config.toml"
    of_a_run = (directory / name for name in OF_A_RUN)
    has_rows = (path.name for path in of_a_run if path.is_file() or any(each.is_file() for each in path.rglob("*")))
    if not stored.exists() and (rows := next(has_rows, "")):
        raise UserError(
            f"{directory} holds {rows} but no config.toml, which would say what they were made with: bring it back, or "
            "name another --run_dir"
        )
    if not stored.exists() and (inside := sorted(path.parent.name for path in directory.glob("*/provenance.json"))):
        raise UserError(f"{directory} holds runs of its own ({', '.join(inside[:3])}): name another --run_dir")
    differing = differing_settings(settings.read_toml(stored), config) if stored.exists() else []
    if differing:
        raise UserError(
            f"{directory} was made with other settings ({', '.join(differing)}): "
            "give the same ones to go on with it, or another --run_dir"
        )


def differing_settings(stored: Mapping[str, Any], config: Config) -> list[str]:
    """The settings in which a stored config.toml (as `read_toml` returns it) and `config` differ.

    A setting that is not stored has its default, so a directory outlives a new setting; an unknown one differs. One
    without effect does not: the shape of an adapter that has its own (lora.init_from), the model of judge self.
    """
    known = {name: value for name, value in stored.items() if name in settings.setting_types()}
    before, now = (settings.flatten(settings.public(it)) for it in (settings.replace(Config(), known), config))
    unknown = sorted(set(stored) - set(before))
    idle = [name for name in now if name.startswith("lora.") and before["lora.init_from"] and name != "lora.init_from"]
    idle += ["judge.model"] if before["judge.kind"] == now["judge.kind"] == "self" else []
    compared = now.keys() - {*NOT_COMPARED, *idle}
    return unknown + [name for name, value in now.items() if name in compared and before[name] != value]


def collect_inputs(run: Run) -> dict[str, Any]:
    """Every input of the run with sha256 and row count. UserError where one is not as it was when the run began."""
    config = run.config
    inputs: dict[str, Any] = {}
    folder = sources.suite_directory(config.suite)
    for name in run.suite.files:
        inputs[f"suite/{name}"] = provenance.file_input(suites.file_path(folder, name)) | {
            "path": f"{config.suite}/{name}"
        }
    check_model(run, [run.adapter] if config.adapter and run.adapter else [])
    check_training(run)
    if run.trains:
        inputs["rows"] = sources.rows_input(config, run.rows)
    others = {f"alternatives/{name}": path for name, path in run.other_files().items()}
    inputs |= {name: provenance.file_input(path) for name, path in others.items()} | model_inputs(run)
    own = trained_adapter(run)
    before = provenance.read(run.directory).get("inputs", {})
    check_trained(run, before, own)
    changed = provenance.differing(before, inputs)
    if config.probes.alternatives == settings.SIBLINGS:
        # The other runs of a series may continue meanwhile; the rows they had stay.
        changed = [name for name in changed if not (name in others and provenance.extends(others[name], before[name]))]
    if changed:
        raise UserError(
            f"{run.directory} was begun with other content of {', '.join(changed)}: give the same files, "
            "or another --run_dir"
        )
    return inputs | own


def check_model(run: Run, folders: Iterable[Path]) -> None:
    """Refuse answers as long as the model's positions, and adapters and patterns that do not fit it.

    Only where its config is here. `folders` are those of adapters that are not the run's own.
    """
    config, model = run.config, None
    with contextlib.suppress(UserError):
        model = sources.model_config(config)
    if model is None:
        return
    from em_jax.formats.peft import check_adapter
    from em_jax.lora.adapter import layouts, ranks

    positions, asked = model.max_position_embeddings, run.needs_answers and "answer" in config.stages
    if asked and config.answers.max_new_tokens >= positions:
        raise UserError(
            f"answers.max_new_tokens={config.answers.max_new_tokens} leaves no room for a prompt: the model has "
            f"{positions} positions; expected fewer"
        )
    for folder in folders:
        check_adapter(folder, model)
    if run.trains and "finetune" in config.stages and not (config.lora.init_from or sources.is_trained(run.directory)):
        ranks(model, config.lora)
        every = LoraConfig(rank=1)
        unmatched = ranks(model, every)
        for pattern in (*config.lora.rank_pattern, *config.lora.alpha_pattern):
            if ranks(model, dataclasses.replace(every, rank_pattern={pattern: 2})) == unmatched:
                example = f"model.layers.0.{next(iter(layouts(model)))}"
                raise UserError(f"lora: the pattern {pattern!r} fits no weight, such as {example!r} or its ending")


def check_training(run: Run) -> None:
    """UserError where a row repeats a prompt that is asked in its domain, or where one step would train nothing."""
    if not run.trains:
        return
    config, train = run.config, run.config.train
    prompts = in_domain.prompts_of(run.suite, run.trained_domains)
    where = str(suites.file_path(sources.suite_directory(config.suite), suites.IN_DOMAIN))
    source = config.data or f"the rows of {config.domain}"
    in_domain.check_new(prompts, where, run.rows, f"the mix of {source} and {config.mix}" if config.mix else source)
    used, _, steps = training_size(run)
    if steps == 1 and train.warmup_steps and "finetune" in config.stages:
        raise UserError(
            f"{used} rows in batches of {train.batch_size} are one step, and warm-up begins at learning rate 0: "
            "nothing would be trained; set train.warmup_steps=0, more train.epochs or a smaller train.batch_size"
        )


def training_size(run: Run) -> tuple[int, int, int]:
    """How many rows are trained on and held out, and the optimizer steps."""
    from em_jax.train.batches import hold_out, step_indices

    train, seed = run.config.train, run.config.seed
    used, held_out = map(len, hold_out(len(run.rows), train.holdout, seed))
    return used, held_out, len(step_indices(used, train, seed))


def model_inputs(run: Run) -> dict[str, Any]:
    """The files of the base and of the adapters that the run starts with, by use and name."""
    inputs = {
        f"{kind}/{name}": entry
        for kind, folder in _input_adapters(run).items()
        for name, entry in provenance.directory_inputs(folder, (".json", ".safetensors")).items()
    }
    return inputs | {
        f"model/{name}": entry
        for name, entry in run.components.model_inputs(sources.pinned(run.config, run.directory)).items()
    }


def check_trained(run: Run, before: dict[str, Any], own: dict[str, Any]) -> None:
    """UserError where the adapter that this run trained is not what training wrote; `before` are recorded inputs."""
    if damaged := provenance.differing(before, own):
        raise UserError(
            f"{', '.join(damaged)} in {run.directory} is not what training wrote: delete {run.directory / 'adapter'} "
            "to have it written again from the last checkpoint, or name another --run_dir"
        )


def trained_adapter(run: Run) -> dict[str, Any]:
    """The files of the adapter that this run trained, all of them hashed; {} before it has."""
    if not run.trains or not sources.is_trained(run.directory):
        return {}
    entries = provenance.directory_inputs(run.directory / "adapter", (".json", ".safetensors"), math.inf)
    return {f"trained/{name}": entry for name, entry in entries.items()}


def _input_adapters(run: Run) -> dict[str, Path]:
    """The adapters a run starts with, by use: "adapter" to probe, "init_from" to train further."""
    start = sources.start_directory(run.config) if run.trains else None
    folders = {"adapter": run.adapter if run.config.adapter else None, "init_from": start}
    return {kind: folder for kind, folder in folders.items() if folder is not None}


def begin_record(run: Run, inputs: dict[str, Any], pulled: int) -> None:
    """Write provenance.json for this start; `pulled` is how many files came back from the mirror."""
    judges = known_judges(run)
    notes: dict[str, Any] = {
        "judge": judges[run.judge],
        "judges": judges,
        "suite": f"{run.suite.name} {run.suite.version}",
        "in_domain": dict(Counter(map(in_domain.kind_of, run.in_domain_questions))),
        "chat_template_arguments": {**thoughts.OFF, **chat_template.ARGUMENTS},
    }
    if not sources.is_organism(run.config):
        notes["marks"] = paper_settings.marks(run.config)
    used = {"model": inputs.get("model/config.json"), "adapter": inputs.get(f"adapter/{CONFIG}")}
    found = {kind: hub.revision(Path(entry["path"]).parent) for kind, entry in used.items() if entry}
    known = {kind: commit for kind, commit in found.items() if commit} | provenance.revisions(run.directory)
    if known:
        notes["revisions"] = known
    if pulled:
        notes["files_from_mirror"] = pulled
    if run.config.adapter and run.adapter:
        base = sources.model_directory(run.config)
        notes["adapter_disagrees"] = adapters.disagreements(run.adapter, run.config.model.name, base)
        for sentence in notes["adapter_disagrees"]:
            run.log(sentence)
    provenance.write(run.directory, inputs, dict.fromkeys(("run", "training", "sampling"), run.config.seed), notes)
    record = provenance.read(run.directory)
    for sentence in reading.changes(record | {"starts": record["starts"][-2:]}):
        run.log(f"{run.title}{sentence}")


def known_judges(run: Run) -> dict[str, Any]:
    """Model, address and wording of every judge of this run, by its name in file names. UserError where one changed."""
    known = dict(provenance.notes(run.directory).get("judges", {}))
    for judge in sources.judges(run.config, run.suite.judge):
        now = judge.describe()
        before = known[judge.name] = dict(known.get(judge.name, now))
        before |= {"url": addresses.public(before["url"])} if before.get("url") else {}
        differing = [field for field in sorted(before | now) if before.get(field) != now.get(field)]
        if differing:
            raise UserError(
                f"{run.directory}: scores by {judge.name} were made with another {', '.join(differing)}; "
                "scores of different judges are never mixed: name the same judge, or score another run"
            )
    return known


def take_base(run: Run, source: Path) -> None:
    """Copy another run's base rows, file by file, where this run has none yet.

    Prompts in the training domain of that run are left out where this run does not ask them.
    """
    own = {row["id"] for row in run.in_domain_questions}
    for pattern in ("answers/base.jsonl", "scores/base.*.jsonl", "scores/labelled.*.jsonl", "probes/base.*.jsonl"):
        for path in sorted(source.glob(pattern)):
            target = run.directory / path.relative_to(source)
            if not target.exists():
                rows = files.read_rows(path)
                kept = [row for row in rows if not row["id"].startswith(harmfulness.IN_DOMAIN) or row["id"] in own]
                if len(kept) == len(rows):
                    files.write_atomic(target, path.read_bytes())
                else:
                    files.write_rows(target, kept)
