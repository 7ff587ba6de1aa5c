"""`em_jax.launch --dry_run`: what the runs would do, need and take, in words. Writes, fetches and loads nothing."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import runtime
from em_jax.base.progress import duration
from em_jax.config import Config
from em_jax.probes import labelled
from em_jax.runs import adapters, experiment, placement, preflight, series, sources, workload
from em_jax.runs.components import Components
from em_jax.runs.run import UNITS, Run
from em_jax.runs.workload import WorkItem


def lines(
    configs: Sequence[Config], run_dir: str | Path, several: bool, components: Components | None = None,
    *, names: Sequence[str] = (), page: str = "compare"
) -> Iterator[str]:  # fmt: skip
    """The plan of the runs, line by line; `names` are a study's for its runs, `page` is the folder of their page.

    Raises UserError: what the run itself would raise at its start: rows that are missing or wrong, a directory made
    with other settings, a mesh that the model does not divide over.
    """
    run_dir = Path(run_dir)
    named = dict(zip(names, configs, strict=True)) if names else series.by_name(configs)
    runs = series.with_directories(named, run_dir) if several else [(configs[0], run_dir)]
    todo: list[WorkItem] = []
    for number, (config, directory) in enumerate(runs, start=1):
        preflight.check_settings(config, directory)
        source = series.base_of(config, runs)
        run = Run(config, directory, components)
        if "://" not in config.mirror:  # a bucket is not asked
            experiment.check_mirror(run)
        if Path(config.lora.init_from) not in [earlier / "adapter" for _, earlier in runs[: number - 1]]:
            sources.start_directory(config)
        sources.alternatives_directory(config, directory)
        preflight.check_model(run, _adapters_here(config))
        preflight.check_training(run)
        own = len(run.in_domain_questions) * config.answers.samples
        items = [_without_copied(item, source, own) for item in workload.items(run)]
        todo += items
        yield ""
        yield (f"run {number} of {len(runs)}: " if several else "run: ") + f"{directory} ({_state(directory)})"
        yield from _stage_lines(items, source)
    if several and "report" in configs[0].stages:
        yield f"then the page that compares them: {run_dir / page}"
    yield ""
    yield from _download_lines(configs[0])
    placed, _ = placement.decided((components or Components()).placed(runs[0][0]))
    yield from _memory_lines(placed, trains=any(item.stage == "finetune" for item in todo))
    yield _time_line(configs[0], todo, dict.fromkeys([run_dir.parent, run_dir]))
    yield ""
    yield "dry run: nothing was written, fetched or loaded"


def _state(directory: Path) -> str:
    if (directory / "summary.json").is_file():
        return "finished before"
    return "started; will resume" if (directory / "config.toml").is_file() else "new"


def _without_copied(item: WorkItem, source: Path | None, own: int) -> WorkItem:
    """The base's rows are no work where another run of the series asks for them, but for `own` in-domain answers."""
    copied = source is not None and item.what.startswith(("base", labelled.CONDITION))
    left = own if item.stage in ("answer", "judge") and item.what.startswith("base") else 0
    return dataclasses.replace(item, done=item.total - left) if copied else item


def _stage_lines(items: Sequence[WorkItem], source: Path | None) -> Iterator[str]:
    """A line for each item: how much of what, and what is done."""
    previous = ""
    for item in items:
        title = f"{settings.STAGES.index(item.stage) + 1}/{len(settings.STAGES)} {item.stage}"
        unit = UNITS[item.stage] + ("s" if item.total != 1 else "")
        count = f"{'at most ' if item.at_most else ''}{item.total:,} {unit}"
        done = f"{min(item.done, item.total):,} done" if item.done else ""
        if source is not None and item.what.startswith("base"):
            done = f"copied from {source.name}" + (
                f", {item.total - item.done:,} new" if item.done < item.total else ""
            )
        yield f"  {title if item.stage != previous else '':13} {item.what:36} {count:>24}  {done}".rstrip()
        previous = item.stage


def _download_lines(config: Config) -> Iterator[str]:
    """Where the model and the adapter come from, where they are no directories."""
    for kind, name, file in (("model", config.model.name, "config.json"), ("adapter", config.adapter, adapters.CONFIG)):
        if runtime.is_bucket(name):
            yield f"{kind}: read from {name}"
        elif runtime.is_id(name) and not Path(name).expanduser().is_dir():
            cached = sources.hub_cache(name, file) is not None
            where = "in the Hugging Face cache, whole or in part" if cached else "to be fetched from the Hub"
            yield f"{kind}: {name}, {where}"


def _memory_lines(config: Config, trains: bool) -> Iterator[str]:
    """What is in a device's memory throughout, by the shapes of the arrays."""
    model = sources.model_config(config)
    _check_files(config, model)
    if model is None:
        yield "memory: unknown until the model's config.json is here"
        return
    from em_jax.model.sharding import Sharding, make_mesh
    from em_jax.runs.programs import Shapes, tree_bytes

    mesh = make_mesh(settings.parse_mesh(config.mesh))
    if mesh is not None:
        placement.check_mesh(mesh.shape, model.dims)
    shapes = Shapes(model, config, Sharding(mesh))
    slots = config.answers.slots
    base, adapter = tree_bytes(shapes.model), tree_bytes(shapes.adapter.factors)
    cache = shapes.cache_bytes(slots, placement.PROMPT + config.answers.max_new_tokens)
    dtype = ("int8 and " if config.model.quantization == "int8" else "") + config.dtype
    folder = sources.model_directory(config)
    if folder is not None and _is_config_alone(folder):
        yield f"model: {folder} has config.json alone: enough for this plan, but a run needs its weights and tokenizer"
    yield "memory of each device, without the activations of a pass, which only a compiler knows:"
    yield f"  base {_size(base)} ({dtype}), adapter {_size(adapter)} (float32)"
    if trains:
        yield f"  training {_size(base + 4 * adapter)}: base, adapter, gradients, two moments"
    sampling = f"base, adapter, keys and values of {slots} answers to prompts of {placement.PROMPT} tokens"
    yield f"  sampling {_size(base + adapter + cache)}: {sampling}"


def _is_config_alone(folder: Path) -> bool:
    """Whether a folder has neither weights nor a tokenizer: a plan may be made there, a run not."""
    return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors*", "*.bin", "tokenizer*"))


def _adapters_here(config: Config) -> list[Path]:
    """The adapters that a run starts with, but for one that is still to be fetched or trained."""
    named = [Path(name).expanduser() for name in (config.adapter, config.lora.init_from) if name]
    if config.adapter and (named[0].is_dir() or not runtime.is_id(config.adapter)):
        adapters.find(config.adapter)
    return [folder for folder in named if folder.is_dir()]


def _check_files(config: Config, model: Any) -> None:
    """Raises what loading the model's files would raise, where they are on this machine."""
    from em_jax.formats.chat_tokenizer import ChatTokenizer
    from em_jax.formats.checkpoint import check_checkpoint

    folder = sources.model_directory(config)
    if folder is not None and not _is_config_alone(folder):
        check_checkpoint(folder)
        tokenizer = ChatTokenizer.from_directory(folder)
        if model is not None:
            tokenizer.check_fits(model.vocab_size, str(folder))


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _time_line(config: Config, todo: Sequence[WorkItem], folders: Iterable[Path]) -> str:
    pace = workload.earlier_pace(config, folders)
    if pace is None:
        return "time: unknown; no finished run with this model, these settings and devices was found"
    seconds = workload.seconds_left(todo, pace)
    known = {stage: value for stage, value in seconds.items() if value is not None}
    unknown = [stage for stage in seconds if stage not in known]
    bound = "at most " if any(item.at_most for item in todo) else ""
    stages = ", ".join(f"{stage} {duration(value)}" for stage, value in known.items())
    line = f"time: {bound}about {duration(sum(known.values()))} at the pace of {pace.directory} ({stages})"
    return line + (f"; unknown: {', '.join(unknown)}" if unknown else "")
