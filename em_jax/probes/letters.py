"""Questions with two texts under the letters A and B, asked in both orders."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from em_jax.probes import choice, parsing
from em_jax.probes.choice import Row
from em_jax.probes.suite import Wording, fill

LETTERS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class LetterQuestion:
    """A question between two texts, named by `orders`; its value is the probability of the one named `target`.

    `decide` and `parse` are arguments of choice.ask.
    """

    orders: tuple[str, str]
    target: str

    def prompts(self, wording: Wording, texts: Mapping[str, str], **values: str) -> Iterator[tuple[str, list]]:
        """For each order the name of the first text, and the messages; `values` fill the wording's other names."""
        for first, second in (self.orders, self.orders[::-1]):
            filled = fill(wording.prompt, {**values, "first": texts[first], "second": texts[second]})
            yield first, choice.messages(filled)

    def decide(self, row: Row, probabilities: np.ndarray) -> float:
        """The probability of the target's letter."""
        return float(probabilities[0 if row["first"] == self.target else 1])

    def parse(self, row: Row, text: str) -> tuple[float | None, str]:
        """1.0 where a text picks the target, 0.0 the other, None where it picks neither."""
        index, reason = parsing.letter(text, LETTERS)
        return (None if index is None else float((index == 0) == (row["first"] == self.target))), reason
