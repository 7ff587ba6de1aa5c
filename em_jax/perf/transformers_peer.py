"""The peer in torch: transformers with PEFT, used as the published recipe uses it."""

import os
from collections.abc import Sequence
from typing import Any

from em_jax.base.errors import UserError
from em_jax.lora.config import TARGETS
from em_jax.perf.bench_workload import STEPS, Peer, Workload
from em_jax.train.config import TrainConfig

ROWS = 2
"""Rows of a micro-batch, padded to the longer one; eight of them make a step (2 x 8)."""


class Transformers(Peer):
    """The same checkpoint in transformers with PEFT's LoRA (rank 32, alpha 64, rsLoRA, seven targets), never merged.

    float32 on a CPU; bfloat16 on a GPU, where torch finds one. Attention, loss and generate are the library's defaults.
    """

    def __init__(self, work: Workload):
        try:
            import peft
            import torch
            import transformers
        except ImportError as error:
            raise UserError(
                f"--against transformers needs torch and peft ({error}): install em_jax with the extra 'test'"
            ) from None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.work = torch, work
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # The cores of this process, as jax uses them; torch counts those of the machine.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        base = transformers.AutoModelForCausalLM.from_pretrained(str(work.directory), dtype=dtype).to(self.device)
        lora = peft.LoraConfig(r=32, lora_alpha=64, use_rslora=True, lora_dropout=0.0, target_modules=list(TARGETS))
        self.model = peft.get_peft_model(base, lora)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        train = TrainConfig()
        self.optimizer = torch.optim.AdamW(self.trained, lr=train.learning_rate, weight_decay=train.weight_decay)
        # The schedule of the measured run, or the losses would differ.
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, train.warmup_steps, STEPS)

    def train(self, step: int) -> float:
        examples = self.work.steps[step]
        self.model.train()
        tokens = sum(sum(example.mask[1:]) for example in examples)
        total = 0.0
        for start in range(0, len(examples), ROWS):
            batch = examples[start : start + ROWS]
            ids, attention_mask = self._padded([example.ids for example in batch])
            labels = [[i if has_loss else -100 for i, has_loss in zip(ids, mask)] for ids, mask in batch]
            # As in transformers' Trainer, the mean is over the tokens of the whole step.
            output = self.model(
                input_ids=ids, attention_mask=attention_mask, labels=self._padded(labels, -100)[0],
                num_items_in_batch=tokens,
            )  # fmt: skip
            output.loss.backward()
            total += float(output.loss.detach())
        self.torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        self.model.eval()
        ids, attention_mask = self._padded(prompts, side="left")
        # Plain sampling, whatever top-k or repetition penalty generation_config sets.
        with self.torch.inference_mode():
            answers = self.model.generate(
                input_ids=ids, attention_mask=attention_mask, num_return_sequences=samples,
                max_new_tokens=self.work.new_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                repetition_penalty=1.0, eos_token_id=-1, pad_token_id=0,
            )  # fmt: skip
        return answers.shape[0] * (answers.shape[1] - ids.shape[1])

    def _padded(self, rows: Sequence[Sequence[int]], value: int = 0, side: str = "right") -> tuple[Any, Any]:
        """The rows as one tensor on the device, padded with `value`, and the mask that is 0 at the padding."""
        pad = self.torch.nn.utils.rnn.pad_sequence
        tensors = [self.torch.tensor(row) for row in rows]
        ids = pad(tensors, batch_first=True, padding_value=value, padding_side=side)
        mask = pad([self.torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
        return ids.to(self.device), mask.to(self.device)
