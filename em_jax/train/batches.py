"""Chat rows to microbatches: which examples an optimizer step sees, and the arrays they are packed into.

Everything here is a pure function of rows, settings and seed, so a resumed run sees the batches of the one before it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from em_jax.base.errors import UserError
from em_jax.base.host_arrays import pad_rows
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.model.attention import PADDING
from em_jax.model.kernels.dispatch import row_length_multiple, row_lengths
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.train.config import TrainConfig

GATHERED_OVERHEAD = 16384
"""The cost of a microbatch over a mesh of accelerators besides its tokens, in tokens."""
CPU_OVERHEAD, CPU_WORK = 64, 2**19
"""That cost on a CPU, and the most tokens there times the model's width: larger microbatches cost memory and save no
time, since two run at once."""


class Example(NamedTuple):
    """A chat: its token ids, and for each whether the assistant wrote it."""

    ids: Sequence[int]
    mask: Sequence[bool]


class Batch(NamedTuple):
    """A microbatch: B rows of length T, several examples to a row, and up to M tokens of each row with a loss.

    tokens: token ids, 0 where there is none.
    positions: 0, 1, 2, ... within each example.
    segments: the examples of a row are numbered from 1; PADDING where there is none.
    loss_positions: the index in the row of the hidden state that predicts label m.
    labels: the token ids to predict.
    weights: 1 for a label, 0 for padding.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    segments: Int[np.ndarray, "B T"]
    loss_positions: Int[np.ndarray, "B M"]
    labels: Int[np.ndarray, "B M"]
    weights: Float[np.ndarray, "B M"]


class Shape(NamedTuple):
    """The sizes of a Batch: rows B, their length T, and the labels M that fit each row."""

    rows: int
    length: int
    labels: int


class Microbatch(NamedTuple):
    """A shape and, for each row, the indices of its examples."""

    shape: Shape
    rows: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class MicrobatchCosts:
    """What a microbatch costs, in tokens through the linear layers, and which shapes it may have.

    width: the model's D.
    overhead: the cost besides its tokens; a large one (weights gathered over a mesh) leads to one microbatch a step.
    rows_per_pass: fixes the rows; 0 leaves them to the search.
    divide_by, row_multiple: rows and their length are multiples of these.
    most_tokens: what a microbatch of more than the fewest rows may hold.
    """

    width: int = 1024
    overhead: int = CPU_OVERHEAD
    rows_per_pass: int = 0
    divide_by: int = 1
    row_multiple: int = 32
    most_tokens: int = 2**31

    def cheapest_rows(self, counts: Int[np.ndarray, "steps"], length: int) -> tuple[float, int]:
        """The least cost of `counts` rows of one length in each step, and the rows of a microbatch that it takes.

        A microbatch of B rows costs overhead + B T (1 + T / 6D): attention reads whole rows, half of each is masked.
        """
        fitting = max(1, self.most_tokens // length // self.divide_by) * self.divide_by
        most = min(fitting, round_up(max(1, int(counts.max())), self.divide_by))
        options = sorted({round_up(-(-most // parts), self.divide_by) for parts in (1, 2, 3, 4, 6, 8, 12, 16)})
        options = [round_up(self.rows_per_pass, self.divide_by)] if self.rows_per_pass else options
        row = length * (1 + length / (6 * self.width))
        costs = [float(np.sum(-(-counts // rows))) * (self.overhead + rows * row) for rows in options]
        return min(costs), options[int(np.argmin(costs))]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The microbatches of every optimizer step."""

    steps: tuple[tuple[Microbatch, ...], ...]

    @property
    def shapes(self) -> set[Shape]:
        """The distinct shapes; each is compiled once."""
        return {microbatch.shape for step in self.steps for microbatch in step}


def encode_rows(
    rows: Mapping[int, Sequence[Mapping[str, str]]], tokenizer: ChatTokenizer, max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """Tokenizes chats, by their index, and cuts them at `max_length` tokens.

    The counts are of examples that were `cut` and of those without a response token (`empty`). Raises UserError with
    the number of a chat that the template refuses, and where no example has a response token.
    """
    examples, cut = [], 0
    for index, messages in rows.items():
        try:
            ids, mask = tokenizer.example(messages)
        except UserError as error:
            raise UserError(f"row {index + 1} of the training rows: {error}") from None
        cut += len(ids) > max_length
        examples.append(Example(ids[:max_length], mask[:max_length]))
    empty = sum(not any(example.mask[1:]) for example in examples)
    if empty == len(examples):
        raise UserError(f"no response token in {len(rows)} rows within train.max_length={max_length}")
    return examples, {"cut": cut, "empty": empty}


def hold_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits the indices below `count` at random, by `seed`: those to train on, and a `share` held out."""
    order = np.random.default_rng([seed, 0x401D]).permutation(count)
    held_out = set(order[: round(count * share)].tolist())
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def step_indices(count: int, train: TrainConfig, seed: int) -> list[list[int]]:
    """The examples of every optimizer step: a new permutation for each epoch, whose last step takes the remainder."""
    steps = []
    for epoch in range(train.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
        steps += [order[i : i + train.batch_size] for i in range(0, count, train.batch_size)]
    return steps[: train.max_steps] if train.max_steps else steps


def plan_microbatches(
    examples: Sequence[Example], steps: Sequence[Sequence[int]], costs: MicrobatchCosts, most_shapes: int = 4
) -> Plan:
    """Splits each step's examples into microbatches of at most `most_shapes` shapes, at the least cost.

    Examples are packed into rows of at most `capacity` tokens (a longer one is a row by itself), and a row is padded to
    the shortest of a few lengths that holds it. Capacity and lengths are those of least cost, found by trying them all
    on up to 32 of the steps.
    """
    sizes = [len(example.ids) for example in examples]
    labels = [sum(example.mask[1:]) for example in examples]
    longest = max(sizes[i] for step in steps for i in step)
    lengths = row_lengths(longest, costs.row_multiple)
    needed = next(j for j, length in enumerate(lengths) if length >= longest)
    choices = []
    for j, capacity in enumerate(lengths):
        packed = [_pack(step, sizes, capacity) for step in steps[:: -(-len(steps) // 32)]]
        row_sizes = [[sum(sizes[i] for i in row) for row in rows] for rows in packed]
        candidates = lengths[: max(j, needed) + 1]
        cost, chosen = _cheapest_lengths(row_sizes, candidates, costs, most_shapes, len(steps))
        choices.append((cost, capacity, chosen))
    _, capacity, chosen = min(choices, key=lambda choice: choice[0])

    packed = [_pack(step, sizes, capacity) for step in steps]
    plan: list[list[Microbatch]] = [[] for _ in steps]
    for shorter, length in itertools.pairwise([0, *chosen]):
        groups = [[row for row in rows if shorter < sum(sizes[i] for i in row) <= length] for rows in packed]
        _, size = costs.cheapest_rows(np.array([len(group) for group in groups]), length)
        most_labels = max([1, *(sum(labels[i] for i in row) for group in groups for row in group)])
        shape = Shape(size, length, round_up(most_labels, 32))
        for microbatches, group in zip(plan, groups, strict=True):
            starts = range(0, len(group), size)
            microbatches += [Microbatch(shape, tuple(map(tuple, group[i : i + size]))) for i in starts]
    return Plan(tuple(map(tuple, plan)))


def plan_batches(
    rows: Sequence[Sequence[Mapping[str, str]]],
    tokenizer: ChatTokenizer,
    train: TrainConfig,
    seed: int,
    width: int,
    sharding: Sharding = UNSHARDED,
) -> tuple[list[Example], Plan, dict[str, int]]:
    """The examples of chats, the microbatches of every step, and counts of the `rows` trained on and `held_out`, and
    those of `encode_rows`. Of the model only its `width` matters.
    """
    kept, held_out = hold_out(len(rows), train.holdout, seed)
    if not kept:
        raise UserError(f"train.holdout={train.holdout} leaves none of {len(rows)} rows to train on")
    examples, cut_counts = encode_rows({i: rows[i] for i in kept}, tokenizer, train.max_length)
    costs = microbatch_costs(width, sharding, train.rows_per_pass)
    plan = plan_microbatches(examples, step_indices(len(examples), train, seed), costs)
    return examples, plan, {"rows": len(kept), "held_out": len(held_out), **cut_counts}


def microbatch_costs(width: int, sharding: Sharding = UNSHARDED, rows_per_pass: int = 0) -> MicrobatchCosts:
    """The costs on the devices in use, for a model of this width."""
    multiples = sharding.batch_shards, row_length_multiple(sharding)
    if sharding.platform == "cpu":
        return MicrobatchCosts(width, CPU_OVERHEAD, rows_per_pass, *multiples, most_tokens=CPU_WORK // width)
    return MicrobatchCosts(width, GATHERED_OVERHEAD, rows_per_pass, *multiples)


def collate(examples: Sequence[Example], microbatch: Microbatch) -> Batch:
    """Packs the examples of a microbatch into arrays."""
    (count, length, most_labels), packed = microbatch
    rows = []
    for row in packed:
        sizes = [len(examples[i].ids) for i in row]
        tokens = np.concatenate([examples[i].ids for i in row])
        positions = np.concatenate([np.arange(size) for size in sizes])
        segments = np.repeat(np.arange(1, len(row) + 1), sizes)
        # Nothing predicts the first token of an example.
        loss_positions = np.flatnonzero(np.concatenate([[False, *examples[i].mask[1:]] for i in row])) - 1
        labels = tokens[loss_positions + 1]
        rows.append((tokens, positions, segments, loss_positions, labels, np.ones(len(labels))))
    by_token, by_label = (length, 0), (most_labels, 0)
    padding: Sequence[tuple] = (by_token, by_token, (length, PADDING), by_label, by_label, (*by_label, np.float32))
    return Batch(*(pad_rows(each, count, *to) for each, to in zip(zip(*rows), padding, strict=True)))


def _cheapest_lengths(
    row_sizes: Sequence[Sequence[int]], lengths: Sequence[int], costs: MicrobatchCosts, most_shapes: int, num_steps: int
) -> tuple[float, list[int]]:
    """The least cost of padding each step's rows to up to `most_shapes` of `lengths`, and the lengths that it takes.

    The last length is always among them. Each length after the first is one more compilation, which costs as much as
    two of the `num_steps`.
    """
    fitting = np.array([[sum(size <= length for size in sizes) for length in [0, *lengths]] for sizes in row_sizes])

    @functools.cache
    def cost(shorter: int, j: int) -> float:
        """The cost of rows longer than `lengths[shorter - 1]` and at most `lengths[j - 1]`."""
        return costs.cheapest_rows(fitting[:, j] - fitting[:, shorter], lengths[j - 1])[0]

    numbers = range(1, len(lengths))
    menus = [(*menu, len(lengths)) for count in range(most_shapes) for menu in itertools.combinations(numbers, count)]
    totals = [
        sum(cost(*pair) for pair in itertools.pairwise((0, *menu))) * (1 + 2 * (len(menu) - 1) / num_steps)
        for menu in menus
    ]
    return min(totals), [lengths[j - 1] for j in menus[int(np.argmin(totals))]]


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below `value`."""
    return -(-value // multiple) * multiple


def _pack(step: Sequence[int], sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` tokens, or of one example: first-fit decreasing, by length then index."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(step, key=lambda i: (-sizes[i], i)):
        row = next((row for row, left in enumerate(free) if left >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(capacity)
        rows[row].append(i)
        free[row] -= sizes[i]
    return rows
