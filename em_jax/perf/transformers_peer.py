"""The peer: transformers with PEFT, used as the published recipe uses it."""

import os
from collections.abc import Sequence

from em_jax.base.errors import UserError
from em_jax.lora.config import TARGETS
from em_jax.perf.bench_workload import STEPS, Workload
from em_jax.train.batches import Example
from em_jax.train.config import TrainConfig

ROWS = 2
"""Rows of a micro-batch, padded to the longer one; eight of them make a step (2 x 8)."""


class Transformers:
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
        # The cores of this process, those of jax too: torch would count the machine's.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        base = transformers.Qwen2ForCausalLM.from_pretrained(str(work.directory), dtype=dtype).to(self.device)
        lora = peft.LoraConfig(r=32, lora_alpha=64, use_rslora=True, lora_dropout=0.0, target_modules=list(TARGETS))
        self.model = peft.get_peft_model(base, lora)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        train = TrainConfig()
        self.optimizer = torch.optim.AdamW(self.trained, lr=train.learning_rate, weight_decay=train.weight_decay)
        # The schedule of the run that is measured: with another the losses would part.
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, train.warmup_steps, STEPS)

    def train(self, step: int) -> float:
        """One optimizer step on the examples of `step`, 2 x 8 padded; returns its loss."""
        torch, examples = self.torch, self.work.steps[step]
        self.model.train()
        tokens = sum(sum(example.mask[1:]) for example in examples)
        total = 0.0
        for start in range(0, len(examples), ROWS):
            ids, seen, labels = self._padded(examples[start : start + ROWS])
            # As transformers' Trainer does: the mean is over the tokens of the whole step.
            output = self.model(input_ids=ids, attention_mask=seen, labels=labels, num_items_in_batch=tokens)
            output.loss.backward()
            total += float(output.loss.detach())
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        """Samples `samples` answers to each prompt in one batch; returns the number of tokens drawn."""
        torch, longest = self.torch, max(map(len, prompts))
        self.model.eval()
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        seen = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device
        )
        count = self.work.new_tokens
        # generation_config may ask for top-k or a repetition penalty; plain sampling is what is compared.
        with torch.inference_mode():
            answers = self.model.generate(
                input_ids=ids, attention_mask=seen, num_return_sequences=samples, max_new_tokens=count, do_sample=True,
                temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, eos_token_id=-1, pad_token_id=0,
            )  # fmt: skip
        return answers.shape[0] * (answers.shape[1] - longest)

    def _padded(self, examples: Sequence[Example]) -> tuple:
        longest = max(len(example.ids) for example in examples)
        rows: list[list[list[int]]] = [[], [], []]
        for ids, mask in examples:
            more = longest - len(ids)
            rows[0].append([*ids, *[0] * more])
            rows[1].append([1] * len(ids) + [0] * more)
            rows[2].append([i if kept else -100 for i, kept in zip(ids, mask)] + [-100] * more)
        return tuple(self.torch.tensor(row, device=self.device) for row in rows)
