"""`em_jax.launch --dry_run`: what the runs would do, need and take, in words. Writes, fetches and loads nothing."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.runs import adapters, preflight, paper_settings, eta, series, sources, workload
from em_jax.base import runtime
from em_jax import config as settings
from em_jax.config import Config
from em_jax.base.errors import UserError
from em_jax.base.progress import duration
from em_jax.runs.run import Run
from em_jax.runs.sources import Parts
from em_jax.runs.workload import Piece

PROMPT = 128
"""Tokens of a prompt, where room for its keys and values is reckoned."""


def lines(configs: Sequence[Config], run_dir: str | Path, several: bool, parts: Parts | None = None) -> Iterator[str]:
    """The plan of the runs, line by line.

    Raises:
      UserError: what the run itself would say at its start: rows that are missing or wrong, a directory made with other
        settings, a mesh that the model does not divide over.
    """
    run_dir = Path(run_dir)
    runs = series.laid_out(series.named(configs), run_dir) if several else [(configs[0], run_dir)]
    todo: list[Piece] = []
    for number, (config, place) in enumerate(runs, start=1):
        this = Run(config, place, parts or Parts(), _no_engine, "")
        preflight.check_settings(config, place)
        source = series.base_of(config, runs)
        pieces = [_taken_over(piece, source) for piece in workload.pieces(this)]
        todo += pieces
        yield ""
        yield (f"run {number} of {len(runs)}: " if several else "run: ") + f"{place} ({_state(place)})"
        yield from _stages(pieces, source)
    if several and "report" in configs[0].stages:
        yield f"then the page that compares them: {run_dir / 'compare'}"
    yield ""
    yield from _fetched(configs[0])
    yield from _settings(configs[0])
    yield from _memory(runs[0][0], trains=any(piece.stage == "finetune" for piece in todo))
    yield from _time(configs[0], todo, dict.fromkeys([run_dir.parent, run_dir]))
    yield ""
    yield "dry run: nothing was written, fetched or loaded"


def _no_engine() -> Any:
    raise UserError("a dry run loads no model")


def _state(place: Path) -> str:
    if (place / "summary.json").is_file():
        return "finished before"
    return "begun before; goes on" if (place / "config.toml").is_file() else "new"


def _taken_over(piece: Piece, source: Path | None) -> Piece:
    """The base's rows are no work where another run of the series asks for them."""
    if source is None or not piece.what.startswith("base"):
        return piece
    return dataclasses.replace(piece, done=piece.total)


def _stages(pieces: Sequence[Piece], source: Path | None) -> Iterator[str]:
    """A line per stage's piece: how much of what, and what is done."""
    for stage, group in itertools.groupby(pieces, key=lambda piece: piece.stage):
        title = f"{settings.STAGES.index(stage) + 1}/{len(settings.STAGES)} {stage}"
        for piece in group:
            unit = workload.UNITS[stage] + ("s" if piece.total != 1 else "")
            count = f"{'at most ' if piece.at_most else ''}{piece.total:,} {unit}"
            done = f"{min(piece.done, piece.total):,} done" if piece.done else ""
            if source is not None and piece.what.startswith("base"):
                done = f"taken over from {source.name}"
            yield f"  {title:13} {piece.what:36} {count:>24}  {done}".rstrip()
            title = ""


def _fetched(config: Config) -> Iterator[str]:
    """Where a model or an adapter that is no directory comes from."""
    if runtime.is_bucket(config.model.name):
        yield f"model: read from {config.model.name}"
    elif sources.model_directory(config) is None:
        yield f"model: {config.model.name}, {_hub_state(config.model.name, 'config.json')}"
    if config.adapter and not Path(config.adapter).expanduser().is_dir() and runtime.is_id(config.adapter):
        yield f"adapter: {config.adapter}, {_hub_state(config.adapter, adapters.CONFIG)}"
    elif config.adapter:
        adapters.find(config.adapter)


def _hub_state(identity: str, file: str) -> str:
    here = _cached(identity, file) is not None
    return "in the Hugging Face cache, whole or in part" if here else "to be fetched from the Hugging Face Hub"


def _cached(identity: str, file: str) -> Path | None:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(identity, file)
    return Path(found).parent if isinstance(found, str) else None


def _settings(config: Config) -> Iterator[str]:
    values = settings.flatten(config)
    differing = {name: mark for name, mark in paper_settings.SETTINGS.items() if not paper_settings.same(values[name], mark)}
    kinds = "known: it says so, read: its files do, ours: nobody does and we chose"
    yield "settings: those of the paper" if not differing else f"settings that differ from the paper's ({kinds}):"
    for name, mark in differing.items():
        yield f"  {name} = {_shown(values[name])} (paper: {_shown(mark.value)}, {mark.kind})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) if value != "" else '""'


def _memory(config: Config, trains: bool) -> Iterator[str]:
    """What lies in a device's memory throughout, by the shapes of the arrays."""
    model = _model_config(config)
    if model is None:
        yield "memory: unknown until the model's config.json is here"
        return
    from em_jax.model.sharding import Sharding, check_mesh, make_mesh
    from em_jax.runs.programs import Shapes, tree_bytes

    on_cpu = runtime.platform() == "cpu"
    mesh = make_mesh(settings.parse_mesh(config.mesh) or ({} if on_cpu else None))
    if mesh is not None:
        check_mesh(mesh.shape, model.dims)
    shapes = Shapes(model, config, Sharding(mesh))
    base, adapter = shapes.base_bytes(), tree_bytes(shapes.adapter.factors)
    cache = shapes.cache_bytes(config.answers.slots, PROMPT + config.answers.max_new_tokens)
    held = "int8 and " if config.model.quantization == "int8" else ""
    yield "memory of each device, without the activations of a pass, which only a compiler knows:"
    yield f"  base {_size(base)} ({held}{config.dtype}), adapter {_size(adapter)} (float32)"
    if trains:
        yield f"  training {_size(base + 4 * adapter)}: base, adapter, gradients, two moments"
    yield (
        f"  sampling {_size(base + adapter + cache)}: base, adapter, keys and values of {config.answers.slots} answers "
        f"to prompts of {PROMPT} tokens"
    )


def _model_config(config: Config) -> Any:
    """The model's Qwen2Config, from its files where they are here, from its name where that is a Qwen2.5's, or None."""
    from em_jax.model.config import Qwen2Config
    from em_jax.model.presets import model_config

    name = config.model.name
    if runtime.is_bucket(name):
        return None
    folder = sources.model_directory(config) or _cached(name, "config.json")
    if folder is not None:
        return Qwen2Config.from_directory(folder)
    try:
        return model_config(name)
    except UserError:
        return None


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _time(config: Config, todo: Sequence[Piece], places: Mapping[Path, Any]) -> Iterator[str]:
    found = eta.of_earlier(config, places)
    if found is None:
        yield "time: unknown; no finished run with this model, these settings and devices lies beside it to go by"
        return
    seconds = eta.left(todo, found)
    known = [value for value in seconds.values() if value is not None]
    unknown = [stage for stage, value in seconds.items() if value is None]
    bound = "at most " if any(piece.at_most for piece in todo) else ""
    parts = ", ".join(f"{stage} {duration(value)}" for stage, value in seconds.items() if value is not None)
    yield f"time: {bound}about {duration(sum(known))} at the pace of {found.directory} ({parts})" + (
        f"; unknown: {', '.join(unknown)}" if unknown else ""
    )
