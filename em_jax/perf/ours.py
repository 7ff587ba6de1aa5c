"""em_jax's side of the comparison: the training step and the engine as the main command uses them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from em_jax.formats.checkpoint import load_model
from em_jax.lora.adapter import Adapter, init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.parameters import random_model
from em_jax.model.qwen2 import Qwen2
from em_jax.perf.bench_workload import BATCH, STEPS, Decoded, Workload
from em_jax.sample.engine import Engine
from em_jax.train.batches import microbatch_overhead, plan_microbatches
from em_jax.train.config import TrainConfig
from em_jax.train.step import TrainState, make_optimizer, optimizer_step


class Ours:
    """A checkpoint and a LoRA adapter in float32 (bfloat16 on an accelerator)."""

    def __init__(self, work: Workload):
        on_cpu = jax.default_backend() == "cpu"
        self.work = work
        made = {"dtype": jnp.float32 if on_cpu else jnp.bfloat16, "stacked": not on_cpu}
        if work.directory is None:
            self.model: Qwen2 = random_model(work.config, jax.random.key(0), **made)
        else:
            self.model = load_model(work.directory, **made)
        self.adapter = init_adapter(self.model.config, LoraConfig(), jax.random.key(0))
        self._trainer: Trainer | None = None
        self._engine: Engine | None = None

    def train(self, step: int) -> float:
        """One optimizer step on the examples of `step`; returns its loss."""
        self._trainer = self._trainer or Trainer(self.model, self.adapter, self.work)
        return self._trainer.step(step)

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        """Samples `samples` answers to each prompt, adapter not merged; returns the number of tokens drawn."""
        if self._engine is None:
            self._engine = Engine(self.model, Decoded())
            self._engine.add_adapter("default", self.adapter)
        asked = [[{"role": "user", "content": " ".join(map(str, prompt))}] for prompt in prompts]
        answers = self._engine.generate(asked, samples, max_new_tokens=self.work.new_tokens)
        return sum(len(answer.tokens) for each in answers for answer in each)


class Trainer:
    """The training step over a plan of all the steps, with the optimizer step of train/step.py, without its files."""

    def __init__(self, model: Qwen2, adapter: Adapter, work: Workload):
        self.model, self.scale = model, adapter.scale
        self.examples = [example for step in work.steps for example in step]
        indices = [list(range(i, i + BATCH)) for i in range(0, len(self.examples), BATCH)]
        self.plan = plan_microbatches(
            self.examples, indices, width=model.config.hidden_size, microbatch_overhead=microbatch_overhead()
        )
        self.remat = work.remat or ("none" if jax.default_backend() == "cpu" else "selective")
        self.optimizer = make_optimizer(TrainConfig(), STEPS)
        factors = jax.tree.map(lambda x: x.copy(), adapter.factors)
        self.state = TrainState(factors, self.optimizer.init(factors))

    def step(self, number: int) -> float:
        """One optimizer step; returns its loss."""
        self.state, metrics = optimizer_step(
            self.model, self.state, self.plan.steps[number], scale=self.scale, examples=self.examples,
            optimizer=self.optimizer, remat=self.remat
        )  # fmt: skip
        return float(metrics.loss)
