"""Rows to batches: every example exactly once, and the bookkeeping of segments, positions and loss."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from em_jax.base.errors import UserError
from em_jax.model.attention import PADDING
from em_jax.train.batches import (
    Example,
    Microbatch,
    MicrobatchCosts,
    Shape,
    collate,
    encode_rows,
    hold_out,
    plan_microbatches,
    step_indices,
)
from em_jax.train.config import TrainConfig

pytestmark = pytest.mark.fast


@st.composite
def plans(draw):
    """Examples, the steps over them and settings of a plan."""
    sizes = draw(st.lists(st.integers(2, 300), min_size=1, max_size=40))
    generator = np.random.default_rng(draw(st.integers(0, 9)))
    examples = [
        Example(generator.integers(1, 99, size).tolist(), (generator.random(size) < 0.5).tolist()) for size in sizes
    ]
    train = TrainConfig(batch_size=draw(st.integers(1, 9)), epochs=draw(st.integers(1, 2)))
    options = {
        "rows_per_pass": draw(st.integers(0, 5)),
        "divide_by": draw(st.sampled_from([1, 2, 8])),
        "width": draw(st.sampled_from([16, 1024])),
        "overhead": draw(st.sampled_from([0, 64, 16384])),
    }
    most_shapes = draw(st.sampled_from([1, 3]))
    return examples, step_indices(len(examples), train, 3), MicrobatchCosts(**options), most_shapes


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans())
def test_every_example_is_planned_once_in_a_row_that_holds_it(given_plan):
    examples, steps, costs, most_shapes = given_plan
    plan = plan_microbatches(*given_plan)
    assert len(plan.steps) == len(steps)
    for step, microbatches in zip(steps, plan.steps, strict=True):
        assert sorted(i for _, rows in microbatches for row in rows for i in row) == sorted(step)
        for shape, rows in microbatches:
            assert 0 < len(rows) <= shape.rows and shape.rows % costs.divide_by == 0
            for row in rows:
                assert sum(len(examples[i].ids) for i in row) <= shape.length
                assert sum(sum(examples[i].mask[1:]) for i in row) <= shape.labels
            if costs.rows_per_pass:
                assert shape.rows < costs.rows_per_pass + costs.divide_by
    assert len(plan.shapes) <= most_shapes
    assert plan == plan_microbatches(*given_plan)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(plans())
def test_a_microbatch_holds_its_examples_and_their_loss(given_plan):
    examples = given_plan[0]
    for microbatch in plan_microbatches(*given_plan).steps[0]:
        batch = collate(examples, microbatch)
        shape, rows = microbatch
        assert batch.tokens.shape == (shape.rows, shape.length) and batch.labels.shape == (shape.rows, shape.labels)
        used = 0
        for b, row in enumerate(rows):
            for segment, i in enumerate(row, 1):
                span = np.flatnonzero(batch.segments[b] == segment)
                assert batch.tokens[b, span].tolist() == list(examples[i].ids)
                assert batch.positions[b, span].tolist() == list(range(len(span)))
                # The labels predicted from a hidden state of this example.
                labels = np.flatnonzero((batch.weights[b] > 0) & np.isin(batch.loss_positions[b], span))
                predicted = batch.loss_positions[b, labels] - span[0] + 1
                assert predicted.tolist() == [t for t in range(1, len(span)) if examples[i].mask[t]]
                assert batch.labels[b, labels].tolist() == [examples[i].ids[t] for t in predicted]
                used += len(labels)
        assert batch.weights.sum() == used == sum(sum(examples[i].mask[1:]) for row in rows for i in row)
        filled = sum(len(examples[i].ids) for row in rows for i in row)
        assert (batch.segments != PADDING).sum() == filled


def test_a_batch_pinned():
    examples = [Example([5, 6, 7, 8], [True, False, True, True]), Example([9, 4], [False, True])]
    batch = collate(examples, Microbatch(Shape(2, 8, 4), ((0, 1),)))
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 4, 0, 0], [0] * 8]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 0], [0] * 8]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, -1, -1], [-1] * 8]
    assert batch.loss_positions.tolist() == [[1, 2, 4, 0], [0] * 4]
    assert batch.labels.tolist() == [[7, 8, 4, 0], [0] * 4]
    assert batch.weights.tolist() == [[1, 1, 1, 0], [0] * 4]


def test_a_microbatch_has_no_more_tokens_than_it_may():
    examples = [Example([1] * 30, [True] * 30)] * 64
    plan = plan_microbatches(examples, [list(range(64))], MicrobatchCosts(most_tokens=256))
    assert len(plan.steps[0]) > 1 and all(shape.rows * shape.length <= 256 for shape in plan.shapes)
    longer = plan_microbatches(
        [Example([1] * 300, [True] * 300)] * 4, [list(range(4))], MicrobatchCosts(most_tokens=256)
    )
    assert {shape.rows for shape in longer.shapes} == {1}
    fixed = plan_microbatches(examples, [list(range(64))], MicrobatchCosts(most_tokens=256, rows_per_pass=16))
    assert {shape.rows for shape in fixed.shapes} == {16}


def test_short_examples_share_rows():
    examples = [Example([1] * 30, [True] * 30)] * 16
    plan = plan_microbatches(examples, [list(range(16))], MicrobatchCosts(width=10**6))
    tokens = sum(shape.rows * shape.length for shape, _ in plan.steps[0])
    assert tokens <= 16 * 32


def test_one_long_example_does_not_pad_the_others():
    examples = [Example([1] * 40, [True] * 40)] * 63 + [Example([1] * 2000, [True] * 2000)]
    plan = plan_microbatches(examples, step_indices(64, TrainConfig(batch_size=16), 0), MicrobatchCosts())
    tokens = sum(shape.rows * shape.length for step in plan.steps for shape, _ in step)
    assert tokens < 3 * (63 * 40 + 2000)


def test_steps_take_every_row_once_an_epoch():
    train = TrainConfig(batch_size=16, epochs=2)
    steps = step_indices(70, train, 5)
    assert [len(step) for step in steps] == [16, 16, 16, 16, 6] * 2
    for epoch in (steps[:5], steps[5:]):
        assert sorted(i for step in epoch for i in step) == list(range(70))
    assert steps[:5] != steps[5:]
    assert steps == step_indices(70, train, 5)
    assert steps != step_indices(70, train, 6)
    assert step_indices(70, TrainConfig(batch_size=16, epochs=2, max_steps=7), 5) == steps[:7]
    assert len(step_indices(70, TrainConfig(batch_size=16, max_steps=99), 5)) == 5


@pytest.mark.parametrize("share, count", [(0.0, 0), (0.1, 5), (0.5, 25)])
def test_held_out_rows(share, count):
    kept, held_out = hold_out(50, share, 0)
    assert len(held_out) == count and sorted(kept + held_out) == list(range(50))
    assert (kept, held_out) == hold_out(50, share, 0)
    assert not count or held_out != hold_out(50, share, 1)[1]


class Refusing:
    def example(messages):
        raise UserError("the template says no")


def test_long_rows_are_cut_and_counted():
    examples = [Example(list(range(10)), [False] * 4 + [True] * 6), Example([1, 2, 3], [False, True, True])]
    rows = dict(enumerate(examples))
    cut, counts = encode_rows(rows, tiny.GivenExamples, 6)
    assert counts == {"cut": 1, "empty": 0}
    assert cut[0] == Example([0, 1, 2, 3, 4, 5], [False] * 4 + [True] * 2) and cut[1] == examples[1]
    assert encode_rows(rows, tiny.GivenExamples, 10)[1] == {"cut": 0, "empty": 0}
    assert encode_rows(rows, tiny.GivenExamples, 4)[1] == {"cut": 1, "empty": 1}
    with pytest.raises(UserError, match="^row 8 of the training rows: the template says no"):
        encode_rows({7: examples[0]}, Refusing, 4)
    with pytest.raises(UserError, match="no response token in 1 rows within train.max_length=4"):
        encode_rows({0: examples[0]}, tiny.GivenExamples, 4)
    # A first token is predicted by nothing: it is no response token to learn from.
    with pytest.raises(UserError, match="no response token"):
        encode_rows({0: Example([1, 2], [True, False])}, tiny.GivenExamples, 9)
