"""The metrics of training: a row for each optimizer step."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from em_jax.base import host_arrays
from em_jax.base.errors import UserError
from em_jax.base.files import Appender
from em_jax.train.config import TrainConfig
from em_jax.train.step import Metrics, learning_rate

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every optimizer step with its number, the number of all steps, and its row of metrics.

The row also has `trained_tokens`, all tokens of its examples; `tokens` are those with a loss."""


@dataclasses.dataclass
class MetricsLog:
    """Writes a row of metrics for each step. Reading metrics waits for the device: `flush` when the next step runs.

    `directory` holds the checkpoints; `step_tokens` are the tokens of every step; `out` is None in a process that does
    not write.
    """

    directory: pathlib.Path
    out: Appender | None
    train: TrainConfig
    step_tokens: Sequence[int]
    progress: Progress | None
    _pending: tuple[int, Metrics] | None = None
    _clock: float = dataclasses.field(default_factory=time.perf_counter)

    def add(self, step: int, metrics: Metrics) -> None:
        """Leaves the metrics of a step to the next `flush`."""
        self._pending = step, metrics

    def flush(self) -> None:
        """Writes the row of the step last added. Raises UserError where its loss or gradient is not finite."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        loss, norm, tokens = (float(value) for value in host_arrays.to_host(metrics))
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        steps, trained_tokens = len(self.step_tokens), self.step_tokens[step - 1]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"step {step} of {steps}: loss {loss}, gradient norm {norm}; stopped, the checkpoints before are kept"
                f" in {self.directory / 'checkpoints'}. A smaller train.learning_rate may help"
            )
        row = {
            "step": step,
            "loss": loss,
            "lr": float(learning_rate(self.train, steps)(step - 1)),
            "grad_norm": norm,
            "tokens": int(tokens),
            "tokens_per_s": round(trained_tokens / max(seconds, 1e-9), 1),
        }
        if self.out is not None:
            self.out.write(row)
        if self.progress:
            self.progress(step, steps, row | {"trained_tokens": trained_tokens})
