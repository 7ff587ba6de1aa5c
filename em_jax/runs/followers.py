"""A run over several processes: process 0 does the run, the others repeat its calls to the engine.

A computation over several hosts needs every one of them to start the same programs in the same order. So process 0
sends each call that uses the devices, with its arguments as JSON, before it makes the call; the others receive it and
make the same call. Decisions that depend on rows, files or a judge are made by process 0 alone.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from em_jax import config as settings
from em_jax.base import host_arrays, signals
from em_jax.base.errors import Stopping, UserError
from em_jax.base.multihost import ControlChannel
from em_jax.config import Config
from em_jax.formats.peft import load_adapter
from em_jax.lora.adapter import Adapter, LoraParams
from em_jax.runs.components import Components

FAILURE_WAIT_S = 20
"""How long a follower that failed waits for process 0 to fail as well, before its exit ends the others."""


class LeaderEngine:
    """Process 0's engine: each call that a run makes is sent to the followers first."""

    def __init__(self, engine: Any, channel: ControlChannel):
        self.engine = engine
        self._channel = channel
        self._streams = itertools.count()

    def add_adapter(self, name: str, path: str | Path) -> None:
        """As Engine.add_adapter; only process 0 needs the files."""
        adapter = load_adapter(Path(path), self.engine.model.config)[0]
        shapes = {
            target: [list(array.shape) for array in (*factors, adapter.scale[target])]
            for target, factors in adapter.factors.items()
        }
        self._channel.send(["add_adapter", {"name": name, "shapes": shapes}])
        self.engine.add_adapter(name, host_arrays.broadcast(adapter, adapter))

    def choice_logprobs(self, prompts: Any, choices: Any, **options: Any) -> Any:
        """As Engine.choice_logprobs."""
        self._channel.send(["choice_logprobs", {"prompts": prompts, "choices": choices, **options}])
        return self.engine.choice_logprobs(prompts, choices, **options)

    def stream(self, prompts: Any, **options: Any) -> Iterator[Any]:
        """As Engine.stream. Each answer is a call of its own: the reader may stop, or make another call in between."""
        number = next(self._streams)
        plain = {name: sorted(value) if name == "done" else value for name, value in options.items()}
        self._channel.send(["stream", {"number": number, "prompts": prompts, **plain}])
        answers = self.engine.stream(prompts, **options)
        while True:
            self._channel.send(["next", {"number": number}])
            try:
                yield next(answers)
            except StopIteration:
                return


def leading(components: Components, channel: ControlChannel) -> Components:
    """The components of a run in process 0 of several."""

    def load(config: Config) -> LeaderEngine:
        channel.send(["load", {"config": settings.flatten(config)}])
        return LeaderEngine(components.load(config), channel)

    def bare(leader: LeaderEngine) -> LeaderEngine:
        channel.send(["bare", {}])
        return LeaderEngine(components.bare(leader.engine), channel)

    def finetune(leader: LeaderEngine, rows: Any, config: Config, directory: Path, progress: Any) -> dict[str, int]:
        channel.send(["finetune", {"rows": rows, "config": settings.flatten(config)}])
        return components.finetune(leader.engine, rows, config, directory, progress, channel=channel)

    return dataclasses.replace(components, load=load, bare=bare, finetune=finetune)


def run_follower(components: Components, channel: ControlChannel) -> None:
    """Repeat every call of process 0 until the run is over.

    SIGTERM is ignored: process 0 stops the run for all, and training checks for it in every process. A call that fails
    here usually fails in process 0 too; this process then stays until process 0 has written its files, because its own
    exit would end process 0.
    """
    with signals.on_sigterm(signal.SIG_IGN):
        try:
            failed = _repeat_calls(components, channel)
        except UserError as error:
            with contextlib.suppress(TimeoutError):
                while channel.recv(math.inf if isinstance(error, Stopping) else FAILURE_WAIT_S)[0] != "done":
                    pass
            raise
    if failed:
        raise UserError("process 0 ended the run; its own line says why")


def _repeat_calls(components: Components, channel: ControlChannel) -> bool:
    """Make every call that process 0 sends; returns whether the run failed, once it is over."""
    loaded: Any = None
    engine: Any = None
    streams: dict[int, Iterator[Any]] = {}
    train = functools.partial(components.finetune, channel=channel)
    while True:
        verb, options = channel.recv()
        config = settings.replace(Config(), options["config"]) if "config" in options else Config()
        if verb == "done":
            return options["failed"]
        if verb == "load":
            loaded = components.load(config)
        elif verb == "bare":
            engine = components.bare(loaded)
        elif verb == "finetune":
            # Nothing is read from or written to the directory here: it is process 0's.
            train(loaded, options["rows"], config, Path(), SimpleNamespace(at=lambda *values: None))
        elif verb == "add_adapter":
            like = _adapter_like(options["shapes"])
            engine.add_adapter(options["name"], host_arrays.broadcast(like, like))
        elif verb == "choice_logprobs":
            engine.choice_logprobs(**options)
        elif verb == "stream":
            number, done = options.pop("number"), frozenset(map(tuple, options.pop("done", ())))
            streams[number] = engine.stream(**options, done=done)
        elif verb == "next":
            if next(streams[options["number"]], None) is None:
                del streams[options["number"]]
        else:
            raise ValueError(f"process 0 sent {verb}, which this version does not know")


def _adapter_like(shapes: Mapping[str, Any]) -> Adapter:
    """An adapter of shapes, from those of A, B and scale by target."""
    arrays = {
        target: [jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for shape in each] for target, each in shapes.items()
    }
    factors = {target: LoraParams(a, b) for target, (a, b, _) in arrays.items()}
    return Adapter(factors, {target: scale for target, (_, _, scale) in arrays.items()})
