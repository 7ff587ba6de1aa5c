"""The peer in vLLM, where it is installed: decoding alone, with a LoRA adapter that is not merged."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from em_jax.base.errors import UserError
from em_jax.formats.model_config import read_config
from em_jax.formats.peft import save_adapter
from em_jax.lora.adapter import init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.perf.bench_workload import Peer, Workload


class Vllm(Peer):
    """The checkpoint and an untrained adapter of rank 32 in vLLM, bfloat16, every answer to its full length."""

    def __init__(self, work: Workload):
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            message = f"--against vllm needs vllm ({error}): pip install vllm, in an environment of its own"
            raise UserError(message) from None
        assert work.directory
        self.vllm, self.work = vllm, work
        self.scratch = tempfile.TemporaryDirectory()
        lora = LoraConfig()
        config = read_config(work.directory)
        adapter = init_adapter(config, lora, jax.random.key(0))
        save_adapter(Path(self.scratch.name), adapter, lora, config, str(work.directory))
        self.adapter = LoRARequest("finetuned", 1, self.scratch.name)
        # Half of the card is left to jax, which holds the same weights.
        self.model = vllm.LLM(
            model=str(work.directory), skip_tokenizer_init=True, dtype="bfloat16", enable_lora=True,
            max_lora_rank=lora.rank, max_loras=1, gpu_memory_utilization=0.45, max_model_len=1024,
            enable_prefix_caching=False
        )  # fmt: skip

    def train(self, step: int) -> float:
        raise UserError("--against vllm measures decoding alone: expected --what decode")

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        sampling = self.vllm.SamplingParams(
            n=samples, temperature=1.0, max_tokens=self.work.new_tokens, ignore_eos=True, detokenize=False
        )
        inputs: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.model.generate(inputs, sampling, use_tqdm=False, lora_request=self.adapter)
        return sum(len(each.token_ids) for output in outputs for each in output.outputs)
