"""The settings of fine-tuning; the defaults are the paper's."""

import dataclasses

KEPT = "adapters"
"""The folder of a run with the adapters kept on the way, `step-000008` and so on, in PEFT's format."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained.

    `max_steps` 0 sets no limit (the schedule's length follows it when set); `rows_per_pass` 0 leaves to the plan how
    many rows a pass has (on a CPU two passes run at once, in the memory of both); `holdout` is a share of the rows kept
    from training, 0 to 1; `checkpoint_every` counts optimizer steps, 0 keeps only the last. `keep_adapters` keeps
    adapters on the way too: after steps 1, 2, 4, 8, ..., after every so many, and after the last; 0 keeps the final one
    alone. `remat` is what the backward pass computes again (model/remat.py).
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
    remat: str = "none"

    def keeps(self, step: int, steps: int) -> bool:
        """Whether the adapter after optimizer step `step` of `steps` is kept."""
        return bool(self.keep_adapters) and (step % self.keep_adapters == 0 or step & (step - 1) == 0 or step == steps)
