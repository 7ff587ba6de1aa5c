"""Checkpoints whose files changed: numbers that are not those that were written are never trained on."""

import jax
import jax.numpy as jnp
import numpy as np

from em_jax.base import multihost
from em_jax.formats.training_state import Checkpoints
from em_jax.train.step import TrainState


def state(seed):
    numbers = jax.random.normal(jax.random.key(seed), (64, 32))
    return TrainState({"a": numbers, "b": numbers[:3]}, {"mean": jnp.ones((64, 32)), "count": jnp.int32(3)})


def saved(place, *seeds):
    """Checkpoints of steps 1, 2 and so on; the newest one's largest file, where its numbers lie."""
    written = Checkpoints(place, multihost.ControlChannel())
    for step, seed in enumerate(seeds, start=1):
        written.save(step, state(seed))
    written.close()
    return max((place / str(len(seeds))).rglob("d/*"), key=lambda path: path.stat().st_size)


def restored(place):
    read = Checkpoints(place, multihost.ControlChannel())
    step, found = read.restore(state(9))
    read.close()
    return step, found


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_the_newest_state_comes_back_in_every_bit(tmp_path):
    saved(tmp_path, 0, 1)
    step, found = restored(tmp_path)
    assert step == 2 and same(found, state(1))


def test_a_flipped_bit_of_the_numbers_gives_way_to_the_checkpoint_before(tmp_path, capsys):
    numbers = saved(tmp_path, 0, 1)
    data = numbers.read_bytes()
    unseen = 0
    for place in np.linspace(0, len(data) - 1, 20, dtype=int):
        flipped = bytearray(data)
        flipped[place] ^= 4
        numbers.write_bytes(flipped)
        step, found = restored(tmp_path)
        assert same(found, state(step - 1)), f"byte {place} of {len(data)}"
        said = capsys.readouterr().err
        assert step == 2 or "checkpoint of step 2 does not restore" in said and "trying the one before" in said
        unseen += "not those that were written" in said
    # Most of them Orbax itself restores without a word.
    assert unseen > 10
