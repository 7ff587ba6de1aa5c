"""The peer in JAX: Google's tunix with LoRA by qwix, used as in its own examples."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from em_jax.base.errors import UserError
from em_jax.base.host_arrays import pad_rows
from em_jax.lora.config import TARGETS
from em_jax.perf.bench_workload import STEPS, IdTokenizer, Peer, Workload
from em_jax.train.batches import Example, round_up
from em_jax.train.config import TrainConfig
from em_jax.train.step import learning_rate

RANK, SCALE = 32, 64 / math.sqrt(32)
LENGTHS = 128
"""Rows are padded to a multiple of so many tokens: tunix compiles its step once for each length."""
PAD = 0
"""tunix recognises padding by the token; the workload's random ids begin at 3."""


class SamplerTokenizer(IdTokenizer):
    """A tokenizer as tunix's sampler wants one: a text is its ids, none begins a prompt, and none ends an answer."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return PAD


class Tunix(Peer):
    """The same checkpoint in tunix's Qwen2 with qwix's LoRA (rank 32, scaled as rsLoRA scales it), never merged.

    float32 on a CPU, bfloat16 with its decoder layers recomputed elsewhere. A step is one batch of 16 padded rows, by
    the compiled step, the default loss and the inputs of its PeftTrainer; answers come from its Sampler.
    """

    def __init__(self, work: Workload):
        try:
            import qwix
            from tunix.models.qwen2 import model, params
            from tunix.sft import peft_trainer
            from tunix.sft import utils as inputs
        except ImportError as error:
            raise UserError(
                f"--against tunix needs google-tunix ({error}): pip install google-tunix, in an environment of its own"
            ) from None
        self.work, config = work, work.config
        if config.qk_norm or not config.qkv_bias:
            raise UserError("--against tunix compares Qwen2 models alone; found one of another architecture")
        on_cpu = jax.default_backend() == "cpu"
        dtype = jnp.float32 if on_cpu else jnp.bfloat16
        shape = model.ModelConfig(
            num_layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
            embed_dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            num_kv_heads=config.num_key_value_heads,
            rope_theta=config.rope_theta,
            norm_eps=config.rms_norm_eps,
            use_tied_embedding=config.tie_word_embeddings,
            remat_config=model.RematConfig.NONE if on_cpu else model.RematConfig.DECODER,
            dtype=dtype,
            param_dtype=dtype,
        )
        base = params.create_model_from_safe_tensors(str(work.directory), shape, dtype=dtype)
        # qwix scales by alpha / rank.
        lora = qwix.LoraProvider(module_path=".*(" + "|".join(TARGETS) + ")", rank=RANK, alpha=SCALE * RANK)
        self.model = qwix.apply_lora_to_model(base, lora, **base.get_model_input(), rngs=nnx.Rngs(0))
        train = TrainConfig()
        rate = learning_rate(train, STEPS)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=train.weight_decay))
        trainer = peft_trainer.PeftTrainer(
            self.model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=1 << 30)
        )

        def model_input(batch: peft_trainer.TrainingInput) -> dict[str, jax.Array]:
            mask = batch.input_tokens != PAD
            return {
                "input_tokens": batch.input_tokens,
                "input_mask": batch.input_mask,
                "positions": inputs.build_positions_from_mask(mask),
                "attention_mask": inputs.make_causal_attn_mask(mask),
            }

        self._trainer = trainer.with_gen_model_input_fn(model_input)
        self._batch = peft_trainer.TrainingInput
        self._sampler: Any = None

    def prepare(self, steps: Sequence[int]) -> None:
        # The model and the optimizer are as before afterwards.
        states = [(self.model, nnx.LoRAParam), (self._trainer.optimizer, nnx.OptState)]
        before = [jax.tree.map(jnp.copy, nnx.state(*state)) for state in states]
        lengths = list({padded(self.work.steps[step])[0].shape: step for step in steps}.values())
        for step in (lengths[0], *lengths):  # the first one twice: jit compiles again for the state that a step returns
            self.train(step)
        for (owner, _), state in zip(states, before, strict=True):
            nnx.update(owner, state)

    def train(self, step: int) -> float:
        train_step, _ = self._trainer.jit_train_and_eval_step(cache_nnx_graph=True)
        return float(train_step(self._batch(*padded(self.work.steps[step])))[0])

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        from tunix.generate import sampler

        config, count = self.work.config, self.work.new_tokens
        if self._sampler is None:
            longest = max(map(len, self.work.prompts))
            capacity = (1 << (longest - 1).bit_length()) + count
            cache = sampler.CacheConfig(capacity, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
            self._sampler = sampler.Sampler(self.model, SamplerTokenizer(), cache)
        texts = [" ".join(map(str, prompt)) for prompt in prompts for _ in range(samples)]
        output = self._sampler(
            texts, count, eos_tokens=[SamplerTokenizer().eos_id()], temperature=1.0, top_p=1.0, seed=0
        )
        return sum(len(tokens) for tokens in output.tokens)


def padded(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids and bool loss masks of the examples, one to a row, as long as the longest rounded up to LENGTHS."""
    length = round_up(max(len(example.ids) for example in examples), LENGTHS)
    ids = pad_rows([example.ids for example in examples], len(examples), length, PAD)
    return ids, pad_rows([example.mask for example in examples], len(examples), length, dtype=bool)
