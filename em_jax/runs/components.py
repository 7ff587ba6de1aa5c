"""The functions by which a run gets its engine, rows and training; tests replace them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import runtime
from em_jax.config import Config, parse_mesh
from em_jax.runs import events, placement, sources


def model_arguments(config: Config) -> dict[str, Any]:
    """How `em_jax.load` is asked for the model of a run's settings, without its name."""
    return {
        "dtype": config.dtype,
        "mesh": parse_mesh(config.mesh) or None,
        "scan_layers": config.model.scan_layers == "true",
        "quantization": config.model.quantization,
    }


def load(config: Config) -> Any:
    """The engine of a run's model; what its settings leave open is chosen for a run like the paper's."""
    import em_jax

    config, _ = placement.decided(config)
    return em_jax.load(
        config.model.name,
        **model_arguments(config),
        slots=config.answers.slots,
        min_capacity=32,  # a run asks with few lengths, and many times
    )


def bare(engine: Any) -> Any:
    """Another engine around the same model, without adapters: each run of a series starts from the same programs."""
    same = ("slots", "chunk", "pass_tokens", "num_decode_batches", "min_capacity", "sharding")
    return type(engine)(engine.model, engine.tokenizer, **{name: getattr(engine, name) for name in same})


def finetune(
    engine: Any, rows: list, config: Config, directory: Path, progress: Any, channel: Any = None
) -> dict[str, int]:
    """Train the adapter of a run into directory/adapter; returns how many rows were used, held out and cut."""
    from em_jax.train.loop import finetune as train

    mesh = engine.sharding.mesh
    config, _ = placement.decided(config, lambda _: rows, mesh and dict(mesh.shape))

    return train(
        engine.model,
        engine.tokenizer,
        rows,
        lora=config.lora,
        train=config.train,
        seed=config.seed,
        directory=directory,
        base=runtime.without_revision(config.model.name),
        sharding=engine.sharding,
        progress=lambda step, steps, it: progress.at(step, steps, it["trained_tokens"], f"loss {it['loss']:.3f}"),
        channel=channel,
    )


@dataclasses.dataclass(frozen=True)
class Components:
    """The functions that a run calls for its engine, rows, training and checkpoint; `silent` prints no progress.

    `tell` gets every event of a run (see events.py).
    """

    load: Callable[[Config], Any] = load
    bare: Callable[[Any], Any] = bare
    rows: Callable[[Config], list] = sources.rows
    finetune: Callable[..., dict[str, int]] = finetune
    model_inputs: Callable[[Config], dict] = sources.model_inputs
    silent: bool = False
    tell: events.Listener = lambda event: None
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def placed(self, config: Config) -> Config:
        """The settings with what was `chosen` for all the runs of a command (see placement.py)."""
        return settings.replace(config, self.chosen)
