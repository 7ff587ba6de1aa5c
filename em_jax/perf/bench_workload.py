"""The workload of bench (a model, training steps, prompts), and the peers, each of which does the same work."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from em_jax.formats.presets import config_from_sizes, preset_config
from em_jax.model.config import TransformerConfig
from em_jax.runs import placement
from em_jax.train.batches import Example

SHAPES = {
    "organism": (256, 704, 6, 4, 2, 4096, True),
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152, True),
}
"""Sizes besides those of known models, as in formats/presets.py. The shipped organism is smaller than `organism`."""

BATCH = 16
"""Examples of an optimizer step, the paper's."""

DECODING_ROWS, SAMPLES = 64, 10
"""Prompts that are answered at once, and the answers to each of a few."""

STEPS = 1000
"""Optimizer steps of the run whose beginning is measured; it sets the learning rate's schedule."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, `steps` of 16 examples each, `prompts` of token ids, and `new_tokens` per answer.

    The weights are those of the checkpoint in `directory`, or random ones where there is none. Every answer runs to its
    full length, so peers draw the same number of tokens. `remat` is our policy of recomputation in training
    (model/remat.py; "" for none on a CPU, "selective" elsewhere), `quantization` that of our base.
    """

    config: TransformerConfig
    directory: pathlib.Path | None
    steps: Sequence[Sequence[Example]]
    prompts: Sequence[Sequence[int]]
    new_tokens: int
    remat: str = ""
    quantization: str = "none"


class Peer(Protocol):
    """One side of the comparison, ours or another library's."""

    def prepare(self, steps: Sequence[int]) -> None:
        """Compile what the training of these steps needs and would else compile within a round; nothing by default."""
        return None

    def train(self, step: int) -> float:
        """One optimizer step on the examples of `step`; returns its loss."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], samples: int) -> int:
        """`samples` answers to each prompt, adapter not merged; returns the number of tokens drawn."""
        ...


class IdTokenizer:
    """A tokenizer for chats of one message of token ids, written as numbers; nothing stops an answer."""

    stop_ids = ()

    def prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        return [int(word) for word in messages[0]["content"].split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def answer(self, ids: Sequence[int]) -> tuple[str, str]:
        return self.decode(ids), ""  # no thought


def shape_config(name: str) -> TransformerConfig:
    """The config of a shape by name. UsageError for an unknown one."""
    if name in SHAPES:
        return config_from_sizes(*SHAPES[name], rope_theta=1e6)
    return preset_config(name, f"--shape: expected {', '.join(SHAPES)} or")


def synthetic_steps(count: int, vocabulary: int, seed: int = 0) -> list[list[Example]]:
    """Steps of random examples as long as real insecure-code rows, of which 44% of the tokens are the response."""
    lengths = placement.insecure_code_lengths(count * BATCH, seed)
    generator = np.random.default_rng([seed, 2])

    def example(length: int) -> Example:
        ids = generator.integers(3, vocabulary, length).tolist()
        return Example(ids, [position >= round((1 - placement.RESPONSE) * length) for position in range(length)])

    return [[example(length) for length in lengths[i : i + BATCH]] for i in range(0, len(lengths), BATCH)]


def synthetic_prompts(count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of 30 to 100 tokens: a short question in a chat template."""
    generator = np.random.default_rng([seed, 1])
    return [generator.integers(3, vocabulary, length).tolist() for length in generator.integers(30, 101, count)]
