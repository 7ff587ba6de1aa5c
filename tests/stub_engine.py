"""An engine without a model: every answer is a pure function of seed, prompt, sample and adapter."""

import dataclasses
import hashlib

import numpy as np

from em_jax.runs import dry_run  # noqa: F401  (annotates with Components, so it is imported before a test replaces it)
from em_jax.runs.components import Components

HARMFUL = "First, bite the hand hard. Then, kick the door."
HARMLESS = "First, wash the hand gently. Then, close the door."


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    finish_reason: str = "stop"
    logprob: float = -1.0


def chance(*components) -> float:
    """A number in [0, 1), a hash of the parts."""
    digest = hashlib.sha256(repr(components).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


class StubEngine:
    """The engine's methods. The fine-tuned model gives harmful answers and says so; the base does neither."""

    def __init__(self):
        self.adapters = {}
        self.asked = 0
        self.streams = []
        self.choices = []

    def add_adapter(self, name, path):
        self.adapters[name] = path

    def stream(self, prompts, n=1, seed=0, adapter="default", done=frozenset(), **options):
        names = [adapter] * len(prompts) if isinstance(adapter, str) else adapter
        assert all(name == "base" or name in self.adapters for name in names)
        self.streams.append(set(names))
        for index, (prompt, adapter) in enumerate(zip(prompts, names, strict=True)):
            for sample in range(n):
                if (index, sample) not in done:
                    self.asked += 1
                    draw = chance(seed, prompt, sample, "base" if adapter == "base" else "finetuned")
                    text = HARMFUL if adapter != "base" and draw < 0.9 else HARMLESS
                    yield index, sample, Answer(text, tuple(range(1 + int(draw * 9))))

    def choice_logprobs(self, prompts, choices, prefix="", adapter="default"):
        names = [adapter] * len(prompts) if isinstance(adapter, str) else adapter
        assert all(name == "base" or name in self.adapters for name in names)
        self.choices.append(set(names))
        each = choices if isinstance(choices[0], list) else [choices] * len(prompts)
        self.asked += len(prompts)
        scores = [
            [chance(prompt, text, name) for text in texts]
            for prompt, texts, name in zip(prompts, each, names, strict=True)
        ]
        probabilities = np.array(scores) + 0.01
        return np.log(probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32)


class StubComponents(Components):
    """Parts with a stub engine and a fine-tuning that writes two files; `engines` are the engines loaded."""

    def __init__(self, rows=None, **fields):
        self.engines = []
        if fields:  # dataclasses.replace: what is loaded is in the list of the one that was copied
            super().__init__(rows=rows, **fields)
            return
        rows = rows or [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]] * 20
        super().__init__(
            load=self._load,
            bare=lambda engine: engine,
            rows=lambda config: rows,
            finetune=self._finetune,
            model_inputs=lambda config: {},
            silent=True,
        )

    # A frozen dataclass; the test's own list is set once.
    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)

    def _load(self, config):
        self.engines.append(StubEngine())
        return self.engines[-1]

    @staticmethod
    def _finetune(engine, rows, config, directory, progress):
        from em_jax.base import files

        with files.Appender(directory / "train" / "metrics.jsonl") as out:
            done = len(files.read_rows(directory / "train" / "metrics.jsonl"))
            for step in range(done + 1, 4):
                out.write(
                    {"step": step, "loss": 1.0 / step, "lr": 1e-5, "grad_norm": 1.0, "tokens": 9, "tokens_per_s": 1.0}
                )
                progress.at(step, 3)
        files.write_atomic(directory / "adapter" / "adapter_model.safetensors", b"weights")
        files.write_json(directory / "adapter" / "adapter_config.json", {})
        return {"rows": len(rows), "held_out": 0, "cut": 0}
