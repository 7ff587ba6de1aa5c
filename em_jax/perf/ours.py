"""em_jax's side of the comparison: the training step and the engine as the main command uses them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from em_jax.base import runtime
from em_jax.formats.checkpoint import load_model
from em_jax.lora.adapter import init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.parameters import random_model
from em_jax.perf.bench_workload import BATCH, STEPS, IdTokenizer, Peer, Workload
from em_jax.sample.engine import Engine
from em_jax.train.batches import microbatch_costs, plan_microbatches
from em_jax.train.config import TrainConfig
from em_jax.train.step import TrainState, make_optimizer, optimizer_step


class Ours(Peer):
    """A checkpoint and a LoRA adapter in float32 (bfloat16 on an accelerator)."""

    def __init__(self, work: Workload):
        on_cpu = jax.default_backend() == "cpu"
        self.work = work
        options: dict[str, Any] = {
            "dtype": jnp.float32 if on_cpu else jnp.bfloat16,
            "stacked": runtime.choose_scan("auto") == "true",
        }
        if work.directory is None:
            self.model = random_model(work.config, jax.random.key(0), **options)
        else:
            self.model = load_model(work.directory, quantization=work.quantization, **options)
        self.adapter = init_adapter(self.model.config, LoraConfig(), jax.random.key(0))
        self.remat = work.remat or ("none" if on_cpu else "selective")
        self.optimizer = make_optimizer(TrainConfig(), STEPS)
        self.examples = [example for step in work.steps for example in step]

    @cached_property
    def plan(self) -> Any:
        """The microbatches of all the workload's steps."""
        indices = [list(range(i, i + BATCH)) for i in range(0, len(self.examples), BATCH)]
        return plan_microbatches(self.examples, indices, microbatch_costs(self.model.config.hidden_size))

    @cached_property
    def state(self) -> TrainState:
        """The adapter's training state, updated by every step."""
        factors = jax.tree.map(lambda x: x.copy(), self.adapter.factors)
        return TrainState(factors, self.optimizer.init(factors))

    @cached_property
    def engine(self) -> Engine:
        """The engine with the untrained adapter."""
        tokenizer: Any = IdTokenizer()
        engine = Engine(self.model, tokenizer)
        engine.add_adapter("default", self.adapter)
        return engine

    def train(self, step: int) -> float:
        result = optimizer_step(
            self.model, self.state, self.plan.steps[step], scale=self.adapter.scale, examples=self.examples,
            optimizer=self.optimizer, remat=self.remat
        )  # fmt: skip
        assert result is not None  # nothing stops the step
        self.state, metrics = result
        return float(metrics.loss)

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        chats = [[{"role": "user", "content": " ".join(map(str, prompt))}] for prompt in prompts]
        answers = self.engine.generate(chats, samples, max_new_tokens=self.work.new_tokens)
        return sum(len(answer.tokens) for each in answers for answer in each)
