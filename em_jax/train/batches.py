"""Rows of chat -> optimizer batches: which examples a step sees, and how they are laid out in arrays.

Everything here is a pure function of rows, settings and seed, so a resumed run sees what it would have seen.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from em_jax.base.errors import UserError
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.model.attention import PADDING
from em_jax.train.config import TrainConfig


class Example(NamedTuple):
    """Token ids of one chat and whether each is the assistant's."""

    ids: Sequence[int]
    mask: Sequence[bool]


class Batch(NamedTuple):
    """One pass: B rows of length T with several examples each, and the M places of a row that carry loss.

    `segments` numbers a row's examples from 1 (PADDING elsewhere); `positions` restart with each. The hidden state at
    `loss_positions` predicts `labels`; `weights` is 1 for a real place, 0 for padding. `loss_inverse` is the inverse of
    `loss_positions`: for each place of the row its slot among the M, or M where there is none.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    segments: Int[np.ndarray, "B T"]
    loss_positions: Int[np.ndarray, "B M"]
    loss_inverse: Int[np.ndarray, "B T"]
    labels: Int[np.ndarray, "B M"]
    weights: Float[np.ndarray, "B M"]


class Shape(NamedTuple):
    """A pass's rows B, their length T and the loss places M each has room for."""

    rows: int
    length: int
    places: int


Microbatches = tuple[tuple[Shape, tuple[tuple[int, ...], ...]], ...]
"""The passes of an optimizer step: a shape, and the examples (by index) of each row."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The passes of every optimizer step."""

    steps: tuple[Microbatches, ...]

    @property
    def shapes(self) -> set[Shape]:
        """The distinct shapes: as many as there are programs to compile."""
        return {shape for step in self.steps for shape, _ in step}


def encode_rows(
    rows: Sequence[Sequence[Mapping[str, str]]], tokenizer: ChatTokenizer, max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """Examples of chats, cut at `max_length` tokens; how many were `cut`, and how many have no response left (`empty`).

    Raises UserError where the template refuses a chat, named by its number, and where no response token is left at all.
    """
    examples, cut = [], 0
    for number, messages in enumerate(rows, 1):
        try:
            ids, mask = tokenizer.example(messages)
        except UserError as error:
            raise UserError(f"training row {number} of {len(rows)}: {error}") from None
        cut += len(ids) > max_length
        examples.append(Example(ids[:max_length], mask[:max_length]))
    empty = sum(not any(example.mask[1:]) for example in examples)
    if empty == len(examples):
        raise UserError(f"no response token in {len(rows)} rows within train.max_length={max_length}")
    return examples, {"cut": cut, "empty": empty}


def hold_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices kept for training and held out, drawn by seed."""
    order = np.random.default_rng([seed, 0x401D]).permutation(count)
    held = set(order[: round(count * share)].tolist())
    return [i for i in range(count) if i not in held], sorted(held)


def step_indices(count: int, train: TrainConfig, seed: int) -> list[list[int]]:
    """The examples of every optimizer step: each epoch a new permutation, its last step the remainder."""
    steps = []
    for epoch in range(train.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
        steps += [order[i : i + train.batch_size] for i in range(0, count, train.batch_size)]
    return steps[: train.max_steps] if train.max_steps else steps


def plan_microbatches(
    examples: Sequence[Example],
    steps: Sequence[Sequence[int]],
    *,
    rows_per_pass: int = 0,
    divide_by: int = 1,
    width: int = 1024,
    microbatch_overhead: int = 64,
    most_shapes: int = 4,
) -> Plan:
    """Lays every step out in passes of a few shapes, several short examples to a row or one, whichever costs least.

    Examples are packed into rows of at most a capacity (longer ones are rows of their own), and a row is as long as the
    shortest length of the menu that holds it; capacity and menu are those that cost least. A pass costs
    `microbatch_overhead` + B x T x (1 + T / 6D), in tokens through the linear layers: attention sees whole rows,
    and half of each is masked. Each shape is a compilation, reckoned at two steps; a large overhead (weights gathered over a mesh in every pass)
    leads to one pass a step. Rows divide by `divide_by`, the mesh's batch parts; `width` is D.
    """
    sizes = [len(example.ids) for example in examples]
    lengths = _lengths(max(sizes[i] for step in steps for i in step))
    needed = next(j for j, length in enumerate(lengths) if length >= max(sizes[i] for step in steps for i in step))

    def price(counts: Int[np.ndarray, "steps"], length: int) -> tuple[float, int]:
        """The cost of `counts` rows of this length in each step, and the number of rows a pass that makes it least."""
        most = _round_up(max(1, int(counts.max())), divide_by)
        options = sorted({_round_up(-(-most // parts), divide_by) for parts in (1, 2, 3, 4, 6, 8, 12, 16)})
        options = [_round_up(rows_per_pass, divide_by)] if rows_per_pass else options
        passes = [float(np.sum(-(-counts // rows))) for rows in options]
        costs = [
            n * (microbatch_overhead + rows * length * (1 + length / (6 * width)))
            for n, rows in zip(passes, options, strict=True)
        ]
        return min(costs), options[int(np.argmin(costs))]

    def cheapest(capacity: int) -> tuple[float, tuple[int, ...]]:
        """The cost of the best menu (indices into `lengths`) for rows packed to a capacity, and that menu."""
        packed = [_pack(step, sizes, lengths[capacity]) for step in steps[:: -(-len(steps) // 32)]]
        filled = [[sum(sizes[i] for i in row) for row in step] for step in packed]
        below = np.array([[sum(fill <= length for fill in step) for length in lengths] for step in filled])
        last = max(capacity, needed)

        @functools.cache
        def group(shorter: int, j: int) -> float:
            """The cost of the rows that fit lengths[j] and not lengths[shorter] (-1: of all that fit)."""
            return price(below[:, j] - (below[:, shorter] if shorter >= 0 else 0), lengths[j])[0]

        menus = [(*menu, last) for count in range(most_shapes) for menu in itertools.combinations(range(last), count)]
        costs = [
            sum(group(*pair) for pair in itertools.pairwise((-1, *menu))) * (1 + 2 * (len(menu) - 1) / len(steps))
            for menu in menus
        ]
        return min(costs), menus[int(np.argmin(costs))]

    choices = {capacity: cheapest(capacity) for capacity in range(len(lengths))}
    capacity = min(choices, key=lambda capacity: choices[capacity][0])
    menu = [lengths[j] for j in choices[capacity][1]]
    packed = [_pack(step, sizes, lengths[capacity]) for step in steps]
    plans: list[list[tuple[int, int, list]]] = [[] for _ in steps]
    places = dict.fromkeys(menu, 1)
    for shorter, length in itertools.pairwise([0, *menu]):
        groups = [[row for row in step if shorter < sum(sizes[i] for i in row) <= length] for step in packed]
        _, rows = price(np.array([len(group) for group in groups]), length)
        for plan, group in zip(plans, groups, strict=True):
            plan += [(rows, length, group[i : i + rows]) for i in range(0, len(group), rows)]
            places[length] = max(places[length], *(sum(sum(examples[i].mask[1:]) for i in row) for row in group), 1)
    return Plan(
        tuple(
            tuple(
                (Shape(rows, length, _round_up(places[length], 32)), tuple(map(tuple, laid)))
                for rows, length, laid in plan
            )
            for plan in plans
        )
    )


def collate(examples: Sequence[Example], rows: Sequence[Sequence[int]], shape: Shape) -> Batch:
    """The arrays of one pass."""
    blank = (shape.rows, shape.length)
    tokens, positions = np.zeros(blank, np.int32), np.zeros(blank, np.int32)
    segments = np.full(blank, PADDING, np.int32)
    loss_inverse = np.full(blank, shape.places, np.int32)
    loss_positions, labels = (np.zeros((shape.rows, shape.places), np.int32) for _ in range(2))
    weights = np.zeros((shape.rows, shape.places), np.float32)
    for b, row in enumerate(rows):
        start = place = 0
        for segment, i in enumerate(row, 1):
            ids, mask = examples[i]
            span = slice(start, start + len(ids))
            tokens[b, span], positions[b, span], segments[b, span] = ids, np.arange(len(ids)), segment
            predicts = np.flatnonzero(mask[1:])
            slots = slice(place, place + len(predicts))
            loss_positions[b, slots] = start + predicts
            loss_inverse[b, start + predicts] = np.arange(place, place + len(predicts))
            labels[b, slots] = np.asarray(ids)[predicts + 1]
            weights[b, slots] = 1
            start, place = start + len(ids), place + len(predicts)
    return Batch(tokens, positions, segments, loss_positions, loss_inverse, labels, weights)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _lengths(longest: int) -> list[int]:
    """Candidate row lengths: multiples of 32 that grow by about a fifth, up to twice the longest example."""
    lengths = [32]
    while lengths[-1] < 2 * longest:
        lengths.append(_round_up(lengths[-1] + max(32, lengths[-1] // 5), 32))
    return lengths


def _pack(step: Sequence[int], sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` tokens, or of one example: first-fit decreasing, by length then index."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(step, key=lambda i: (-sizes[i], i)):
        at = next((j for j, left in enumerate(room) if left >= sizes[i]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(capacity)
        rows[at].append(i)
        room[at] -= sizes[i]
    return rows
