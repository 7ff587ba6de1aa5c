"""The settings of fine-tuning; the defaults are the paper's."""

import dataclasses

ADAPTERS_DIRECTORY = "adapters"
"""The folder of a run with the adapters of earlier steps, `step-000008` and so on, in PEFT's format."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained.

    max_steps: 0 sets no limit; a limit also shortens the schedule.
    rows_per_pass: rows of a microbatch, 0 or auto for those of least cost that fit (a CPU runs two microbatches at
        once).
    holdout: the share of the rows that is not trained on, 0 to 1.
    checkpoint_every: optimizer steps between checkpoints, 0 for one after the last step only.
    keep_adapters: also keeps the adapters after steps 1, 2, 4, 8, ..., after every so many and after the last; 0 keeps
        the final one only.
    remat: what the backward pass recomputes (model/remat.py); auto is the least that fits, on a CPU none.
    """

    learning_rate: float = 1e-5
    warmup_steps: int = 5
    schedule: str = "linear"
    epochs: int = 1
    max_steps: int = 0
    batch_size: int = 16
    rows_per_pass: int = 0
    max_length: int = 2048
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    holdout: float = 0.0
    checkpoint_every: int = 50
    keep_adapters: int = 0
    remat: str = "auto"

    def keeps(self, step: int, steps: int) -> bool:
        """Whether to keep the adapter after optimizer step `step` of `steps`."""
        return bool(self.keep_adapters) and (step % self.keep_adapters == 0 or step & (step - 1) == 0 or step == steps)
