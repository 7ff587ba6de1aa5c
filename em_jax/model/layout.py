"""Shape letters: the axes of a weight, and einsum over them."""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp

einsum_f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
"""An einsum that accumulates and returns float32, whatever the dtype of its operands."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a weight: "D->NH" is a [D, N, H] array that maps width to heads.

    A table or a vector ("VD", "D") has outputs only. A `stacked` array holds all layers, with a leading L.
    """

    text: str
    stacked: bool = False

    @property
    def inputs(self) -> str:
        """The letters that a matmul sums over; empty for a table or a vector."""
        return self.text.rpartition("->")[0]

    @property
    def outputs(self) -> str:
        """The letters after the arrow, or all of them where there is none."""
        return self.text.rpartition("->")[2]

    @property
    def letters(self) -> str:
        """One letter for each axis of the array."""
        return "L" * self.stacked + self.inputs + self.outputs

    @property
    def scale(self) -> "Layout":
        """The layout of a quantised weight's scales: one for each output."""
        return Layout(self.outputs, self.stacked)

    def shape(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the array, given the size behind each letter."""
        return tuple(dims[letter] for letter in self.letters)
