"""Checkpoints of training, by Orbax: the newest one that restores is the one that counts."""

import hashlib
import logging
import pathlib
import sys
from typing import Any, TypeVar

import jax
import numpy as np

from em_jax.base import host_arrays, multihost
from em_jax.base.errors import UserError

DIGEST = "sha256"
"""Under this name a checkpoint holds the `digest` of its other arrays: Orbax would not notice a changed number."""


def digest(state: Any) -> np.ndarray:
    """The sha256 of all arrays of a tree on the host, in the order of its leaves: 32 bytes."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return np.frombuffer(found.digest(), np.uint8)


State = TypeVar("State", bound=Any)
"""A NamedTuple of trees of arrays."""


class Checkpoints:
    """Saves and restores (step, state) in a directory; writing goes on in the background, the two newest are kept.

    Process 0 alone reads and writes, so that the directory may be local to its host: the others' shards are gathered
    to it and what it restores is shared. Every process must make the same calls.
    """

    def __init__(self, directory: pathlib.Path, channel: multihost.ControlChannel):
        self._directory = directory.absolute()
        self._words = channel
        if not multihost.is_first():
            self._manager = None
            return
        # Orbax takes half a second to import: only training pays for it.
        import orbax.checkpoint as ocp

        self._directory.mkdir(parents=True, exist_ok=True)
        # What fails in Orbax's threads is raised here as well; these would print it with a stack for each array.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._ocp = ocp
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="em_jax"
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=False, multiprocessing_options=alone),
        )

    def save(self, step: int, state: State) -> None:
        """Begins to write the state after `step` steps; the arrays are copied before this returns."""
        host = host_arrays.to_host(state._asdict())
        if self._manager is not None:
            self._manager.save(step, args=self._ocp.args.StandardSave({**host, DIGEST: digest(host)}))

    def restore(self, like: State) -> tuple[int, State] | None:
        """The newest state that restores, placed as the arrays of `like` are, or None where there is none.

        A step that is listed need not restore (a kill may have half-deleted it, a disk may have changed what it holds):
        the one before is then used, and said.
        Raises UserError where a step holds arrays of other shapes: it is of another model or adapter.
        """
        step, state, problem = self._newest(like._asdict()) if self._manager is not None else (0, None, "")
        step, problem = self._words.share([step, problem])
        if problem:
            raise UserError(problem)
        if not step:
            return None
        shardings = jax.tree.map(lambda x: x.sharding, like._asdict())
        return step, type(like)(**host_arrays.to_devices(host_arrays.broadcast(state, like._asdict()), shardings))

    def close(self) -> None:
        """Waits until everything is written."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()

    def _newest(self, like: dict[str, Any]) -> tuple[int, Any, str]:
        """(step, its arrays, "") of the newest one that restores, (0, None, "") or (0, None, why it is refused)."""
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                stored = dict(self._manager.item_metadata(step) or {})
                # Checkpoints of earlier versions have none.
                sealed = stored.pop(DIGEST, None) is not None
                # Orbax itself would cut or fill arrays of another shape.
                found, expected = (sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(x)) for x in (stored, like))
                if found and found != expected:
                    return 0, None, self._refusal(step, found, expected)
                whole = {**target, DIGEST: np.zeros(32, np.uint8)} if sealed else target
                state = self._manager.restore(step, args=self._ocp.args.StandardRestore(whole))
                if sealed and not np.array_equal(state.pop(DIGEST), digest(state)):
                    raise ValueError("its numbers are not those that were written")
                return step, state, ""
            except Exception as error:  # Orbax raises what its storage raises
                reason = " ".join(str(error).split())[:120]
                print(f"checkpoint of step {step} does not restore ({reason}); trying the one before", file=sys.stderr)
        return 0, None, ""

    def _refusal(self, step: int, found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> str:
        differ = next((pair for pair in zip(found, expected) if pair[0] != pair[1]), None)
        where = f", where it has shape {differ[0]} this one has {differ[1]}" if differ else ""
        return (
            f"the checkpoint of step {step} in {self._directory} is of another model or adapter: it holds {len(found)} "
            f"arrays, this one has {len(expected)}{where}; give the same model and settings, or another --run_dir"
        )
