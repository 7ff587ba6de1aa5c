"""A run over several processes: process 0 does the run, the others repeat its calls to the engine.

A computation over several hosts needs every one of them to start the same programs in the same order. So process 0 says
each call that uses the devices before it makes it, with its arguments as JSON; the others hear it and make it too. What
is decided from rows, files or a judge is decided once, in process 0; the others see neither.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from em_jax import config as settings
from em_jax.base import multihost, signals
from em_jax.config import Config
from em_jax.base.errors import Stopping, UserError
from em_jax.lora.adapter import Adapter, LoraParams
from em_jax.formats.peft import load_adapter
from em_jax.base import host_arrays
from em_jax.runs.sources import Parts

ALONE_S = 20
"""How long a process that failed waits for process 0 to fail as well, before its end ends the others."""


class LeaderEngine:
    """Process 0's engine: the verbs that a run asks for, each said to the others first."""

    def __init__(self, engine: Any, channel: multihost.ControlChannel):
        self.engine = engine
        self._words = channel
        self._streams = itertools.count()

    def add_adapter(self, name: str, path: str | Path) -> None:
        """As Engine.add_adapter; only process 0 needs the files."""
        adapter = load_adapter(Path(path), self.engine.model.config)[0]
        shapes = {
            target: [list(part.shape) for part in (*factors, adapter.scale[target])]
            for target, factors in adapter.factors.items()
        }
        self._words.send(["add_adapter", {"name": name, "shapes": shapes}])
        self.engine.add_adapter(name, host_arrays.broadcast(adapter, adapter))

    def choice_logprobs(self, prompts: Any, choices: Any, **options: Any) -> Any:
        """As Engine.choice_logprobs."""
        self._words.send(["choice_logprobs", {"prompts": prompts, "choices": choices, **options}])
        return self.engine.choice_logprobs(prompts, choices, **options)

    def stream(self, prompts: Any, **options: Any) -> Iterator[Any]:
        """As Engine.stream. Each answer is asked for by itself: whoever reads them may stop, or ask something else."""
        number = next(self._streams)
        said = {name: sorted(value) if name == "done" else value for name, value in options.items()}
        self._words.send(["stream", {"number": number, "prompts": prompts, **said}])
        answers = self.engine.stream(prompts, **options)
        while True:
            self._words.send(["next", {"number": number}])
            try:
                yield next(answers)
            except StopIteration:
                return


def shared(parts: Parts, channel: multihost.ControlChannel) -> Parts:
    """The parts of a run whose training goes over several processes."""
    return dataclasses.replace(parts, finetune=functools.partial(parts.finetune, channel=channel))


def leading(parts: Parts, channel: multihost.ControlChannel) -> Parts:
    """The parts of a run in process 0 of several."""
    parts = shared(parts, channel)

    def load(config: Config) -> LeaderEngine:
        channel.send(["load", {"config": settings.flatten(config)}])
        return LeaderEngine(parts.load(config), channel)

    def bare(led: LeaderEngine) -> LeaderEngine:
        channel.send(["bare", {}])
        return LeaderEngine(parts.bare(led.engine), channel)

    def finetune(led: LeaderEngine, rows: Any, config: Config, directory: Path, progress: Any) -> dict[str, int]:
        channel.send(["finetune", {"rows": rows, "config": settings.flatten(config)}])
        return parts.finetune(led.engine, rows, config, directory, progress)

    return dataclasses.replace(parts, load=load, bare=bare, finetune=finetune)


def done(channel: multihost.ControlChannel, failed: bool) -> None:
    """Process 0 says that the run is over, all its files written."""
    channel.send(["done", {"failed": failed}])


def run_follower(parts: Parts, channel: multihost.ControlChannel) -> None:
    """What another process does: every call that process 0 says, until the run is over.

    SIGTERM is left to process 0, which ends the run for all; only training looks for it in every process. What fails
    here fails there as a rule: so this process stays until process 0 has written what it has; its end would cut that
    short.
    """
    parts = shared(parts, channel)
    with signals.ignore_signals():
        try:
            failed = _repeat(parts, channel)
        except UserError as error:
            with contextlib.suppress(TimeoutError):
                while channel.recv(math.inf if isinstance(error, Stopping) else ALONE_S)[0] != "done":
                    pass
            raise
    if failed:
        raise UserError("process 0 ended the run; its own line says why")


def _repeat(parts: Parts, channel: multihost.ControlChannel) -> bool:
    """Makes every call that process 0 says; whether the run failed, once it is over."""
    loaded = engine = None
    streams: dict[int, Iterator[Any]] = {}
    while True:
        verb, given = channel.recv()
        if verb == "done":
            return given["failed"]
        if verb == "load":
            loaded = parts.load(settings.replace(Config(), given["config"]))
        elif verb == "bare":
            engine = parts.bare(loaded)
        elif verb == "finetune":
            # The directory is process 0's: here nothing is read from it or written to it.
            parts.finetune(loaded, given["rows"], settings.replace(Config(), given["config"]), Path(), _NoProgress())
        elif verb == "add_adapter":
            like = _adapter_like(given["shapes"])
            engine.add_adapter(given["name"], host_arrays.broadcast(like, like))
        elif verb == "choice_logprobs":
            engine.choice_logprobs(**given)
        elif verb == "stream":
            number = given.pop("number")
            given["done"] = frozenset(map(tuple, given.get("done", ())))
            streams[number] = engine.stream(**given)
        elif verb == "next":
            if next(streams[given["number"]], None) is None:
                del streams[given["number"]]
        else:
            raise ValueError(f"process 0 said {verb}, which this version does not know")


class _NoProgress:
    def at(self, *given: Any, **more: Any) -> None:
        pass


def _adapter_like(shapes: Mapping[str, Any]) -> Adapter:
    """The shapes of an adapter, by target those of A, B and scale."""
    made = {
        target: [jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for shape in each] for target, each in shapes.items()
    }
    return Adapter(
        {target: LoraParams(a, b) for target, (a, b, _) in made.items()}, {t: s for t, (_, _, s) in made.items()}
    )
