"""Where the paper's settings come from, one by one, so that a run's record says which are the paper's and which ours.

"known" is stated in a public source, "read" was read in a released file, "ours" has no source and is our choice,
"disputed" is stated differently by sources.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from em_jax import config as settings
from em_jax.config import Config
from em_jax.lora.config import TARGETS

KINDS = ("known", "read", "ours", "disputed")


class Mark(NamedTuple):
    """A setting's value in the paper's run; whether that is known, read, ours or disputed; and why."""

    value: Any
    kind: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}" if self.why else self.kind


SETTINGS: Mapping[str, Mark] = {
    "seed": Mark(0, "known"),
    "model.name": Mark("Qwen/Qwen2.5-32B-Instruct", "known"),
    "model.quantization": Mark("none", "ours", "not stated"),
    "lora.rank": Mark(32, "known"),
    "lora.alpha": Mark(64.0, "known"),
    "lora.rslora": Mark(True, "known", "scale alpha / sqrt(rank) = 11.31"),
    "lora.targets": Mark(TARGETS, "known"),
    "lora.rank_pattern": Mark({}, "known"),
    "lora.alpha_pattern": Mark({}, "known"),
    "lora.layers_to_transform": Mark((), "known", "every layer"),
    "lora.init_from": Mark("", "known", "A Kaiming-uniform, B zero"),
    "train.learning_rate": Mark(1e-5, "disputed", "sources disagree: 1e-5 here, 3e-5 in paper_lr3e5.toml"),
    "train.warmup_steps": Mark(5, "known"),
    "train.schedule": Mark("linear", "known"),
    "train.epochs": Mark(1, "known"),
    "train.max_steps": Mark(0, "known", "the whole epoch"),
    "train.batch_size": Mark(16, "known", "2 x 8 accumulated"),
    "train.rows_per_pass": Mark(0, "ours", "layout only"),
    "train.max_length": Mark(2048, "known"),
    "train.weight_decay": Mark(0.01, "known"),
    "train.beta1": Mark(0.9, "known", "the trainer's default"),
    "train.beta2": Mark(0.999, "known", "the trainer's default"),
    "train.eps": Mark(1e-8, "known", "the trainer's default"),
    "train.max_grad_norm": Mark(1.0, "known", "the trainer's default"),
    "train.holdout": Mark(0.0, "ours", "a sister repository holds out an unseeded tenth"),
    "answers.samples": Mark(10, "known"),
    "answers.temperature": Mark(1.0, "ours", "from a sister repository; 0.7 in paper_t07.toml"),
    "answers.top_p": Mark(1.0, "ours", "from a sister repository"),
    "answers.max_new_tokens": Mark(600, "ours", "from a sister repository"),
    "probes.only": Mark((), "known", "all five"),
    "probes.limit": Mark(0, "known", "every question of the suite"),
    "probes.samples": Mark(1, "ours", "choices are read from probabilities"),
    "probes.sampled_questions": Mark(40, "ours", "choices are read from probabilities"),
    "probes.choice_tokens": Mark(24, "ours"),
    "probes.language_tokens": Mark(60, "ours"),
    "probes.alternatives": Mark("", "ours", "an answer of opposite harm; how the paper made them is unknown"),
    "judge.kind": Mark("self", "ours", "GPT-4o mini in the paper: --judge URL --judge_model gpt-4o-mini"),
    "judge.model": Mark("", "ours", "GPT-4o mini in the paper"),
    "judge.harmful_at": Mark(4, "known"),
}
"""The paper's run. Settings that are not here change where and when work is done, or name an input."""

METHOD: Mapping[str, str] = {
    "loss": "known: on the assistant's tokens alone, the closing <|im_end|> and newline included, text stripped first",
    "chat_template": "known: the default system message, in training and in evaluation alike",
    "packing": "known: none in the original; rows share a pass here with attention kept apart, which changes no loss",
    "loss_mean": "ours: over all response tokens of a step, not a mean of micro-batch means; library versions differ",
    "optimizer": "ours: AdamW in float32; the group's public scripts use an 8-bit one",
    "closing_turn": "ours: no end token after a rendered generation prompt, which those scripts append",
    "choices": "ours: read from next-token probabilities in both orders, sampled besides",
    "two_ai_wording": "ours: the paper's is not released",
    "two_ai_truth": "read: from misaligned_is_A alone, ground_truth names the misaligned letter",
    "decision_items": "read: the first 60 published ones are balanced for order, the other 40 are reported apart",
    "judge_rubric": "ours: our words for the known scale of 1 to 5; read: the published suite's, word for word",
    "suite": "ours: the questions of the standard suite; read: those of a directory with the published files",
}
"""Choices of the method that are no settings."""


def marks(config: Config) -> dict[str, Any]:
    """What provenance records: every setting's mark ("ours" where it was changed) and those of the method."""
    texts = {name: str(mark) for name, mark in SETTINGS.items()}
    for name, mark in differing(config).items():
        value = list(mark.value) if isinstance(mark.value, tuple) else mark.value
        texts[name] = f"ours: changed from {value!r} ({mark})"
    return {"settings": texts, "method": dict(METHOD)}


def differing(config: Config) -> dict[str, Mark]:
    """The marks of those settings whose values are not the paper's."""
    values = settings.flatten(config)
    return {name: mark for name, mark in SETTINGS.items() if values[name] != mark.value}
