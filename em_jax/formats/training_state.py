"""Checkpoints of training, by Orbax; resuming takes the newest one that can be restored."""

import hashlib
import logging
import math
import pathlib
import sys
from typing import Any, TypeVar

import jax
import numpy as np

from em_jax.base import host_arrays, multihost
from em_jax.base.errors import UserError

DIGEST = "sha256"
"""The name under which a checkpoint stores the `digest` of its other arrays: Orbax does not notice changed numbers."""


def digest(state: Any) -> np.ndarray:
    """The sha256 of all host arrays of a tree, in the order of its leaves: uint8[32]."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        sha256.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return np.frombuffer(sha256.digest(), np.uint8)


State = TypeVar("State", bound=Any)
"""A NamedTuple of trees of arrays."""


class Checkpoints:
    """Saves and restores (step, state) in a directory; it writes in the background and keeps the two newest.

    Only process 0 reads and writes, so the directory may be local to its host: it gathers the others' shards and sends
    what it restores. Every process must make the same calls.
    """

    def __init__(self, directory: pathlib.Path, channel: multihost.ControlChannel):
        self._directory = directory.absolute()
        self._channel = channel
        self._manager: Any = None
        if not multihost.is_first():
            return
        # Import late: Orbax takes half a second, and only training needs it.
        import orbax.checkpoint as ocp

        self._directory.mkdir(parents=True, exist_ok=True)
        # Errors in Orbax's threads are raised here as well; these loggers would print a stack for each array.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._ocp = ocp
        one_process = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="em_jax"
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=one_process),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=False, multiprocessing_options=one_process),
        )

    def save(self, step: int, state: State) -> None:
        """Starts to write the state after `step` steps; the arrays are copied before this returns."""
        host = host_arrays.to_host(state._asdict())
        if self._manager is not None:
            self._manager.save(step, args=self._ocp.args.StandardSave({**host, DIGEST: digest(host)}))

    def restore(self, like: State) -> tuple[int, State] | None:
        """The newest state that can be restored, sharded as the arrays of `like`, or None where there is none.

        A step that does not restore (a kill deleted half of it, a disk changed it) is reported on stderr and the one
        before it is used. Raises UserError where a step has arrays of other shapes: another model's or adapter's.
        """
        step, state, problem = self._newest(like._asdict()) if self._manager is not None else (0, None, "")
        step, problem = self._channel.share([step, problem])
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
        """(step, its arrays, "") of the newest step that restores; (0, None, "") without one; (0, None, error)."""
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        expected = sorted(x.shape for x in jax.tree.leaves(zeros))
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                metadata = dict(self._manager.item_metadata(step) or {})
                # Checkpoints of earlier versions have no digest.
                has_digest = metadata.pop(DIGEST, None) is not None
                # Compare shapes: Orbax itself would cut or fill arrays of another shape.
                stored = sorted(tuple(x.shape) for x in jax.tree.leaves(metadata))
                if stored and stored != expected:
                    found, own = (f"{len(x)} arrays of {sum(map(math.prod, x)):,} numbers" for x in (stored, expected))
                    message = (
                        f"the checkpoint of step {step} in {self._directory} is of another model or adapter: expected "
                        f"{own}, found {found}; give the same model and settings, or another --run_dir"
                    )
                    return 0, None, message
                target = {**zeros, DIGEST: np.zeros(32, np.uint8)} if has_digest else zeros
                state = self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
                if has_digest and not np.array_equal(state.pop(DIGEST), digest(state)):
                    raise ValueError("its numbers are not those that were written")
                return step, state, ""
            except Exception as error:  # Orbax raises what its storage raises
                reason = " ".join(str(error).split())[:120]
                print(f"checkpoint of step {step} does not restore ({reason}); trying the one before", file=sys.stderr)
        return 0, None, ""
