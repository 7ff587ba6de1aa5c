"""What bench measures: an implementation that trains and decodes the same workload."""

from collections.abc import Sequence
from typing import Protocol


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
