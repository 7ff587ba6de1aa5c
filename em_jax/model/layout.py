"""Shape letters: the axes of a weight, and einsum over them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

einsum_f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
"""An einsum that accumulates and returns float32, whatever the dtype of its operands."""


class Part(NamedTuple):
    """One of several weights side by side in an array: its name, its own output letters, and its share of the axis J.

    In "D->KJH" each of the K key/value heads has J columns of H: the N/K query heads that share it, its key, its value.
    """

    name: str
    outputs: str
    size: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a weight: "D->NH" is a [D, N, H] array that maps width to heads.

    A table or a vector ("VD", "D") has outputs only. A `stacked` array holds all layers, with a leading L. One with an
    axis J holds the weights of `parts` side by side along it.
    """

    text: str
    stacked: bool = False
    parts: tuple[Part, ...] = ()

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
        return Layout(self.outputs, self.stacked, self.parts)

    def targets(self, name: str) -> dict[str, str]:
        """The weights that the array holds, its parts or the one called `name`, each with its output letters."""
        return {part.name: part.outputs for part in self.parts} or {name: self.outputs}

    def shape(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the array, given the size behind each letter but J."""
        sizes = {**dims, "J": sum(part.size for part in self.parts)}
        return tuple(sizes[letter] for letter in self.letters)
