"""Several processes of one run: how they find each other, what process 0 tells the others, and how all of them end.

Process 0 takes every decision and alone touches the run's files, so that a run directory may be local to its host. The
words between processes go through the store of jax.distributed, not through the devices: a process may wait there for
hours, and what is queued on its devices goes on meanwhile.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from em_jax.base import failures, runtime
from em_jax.base.errors import UserError

HEARTBEAT_S = 30
"""A process that has not been heard of for this long counts as dead, and the others end."""

GONE = "another process died or cannot be reached; what is done is kept, the same commands go on from there"

_STOP = "em_jax_stop"
JOINING_S = 300
_LEAVING_S = 60
_ENDING_S = 10


class Group(NamedTuple):
    """What --coordinator, --num_processes and --process_id say."""

    coordinator: str
    processes: int
    process: int


class ControlChannel:
    """What process 0 tells the others, in order: one JSON value after the other, each heard by every process.

    The words are numbered, so a process has one Words, which goes wherever something is said or heard.
    """

    def __init__(self):
        self._count = 0
        self._asked = False

    def send(self, value: Any) -> None:
        """Process 0 says the next word."""
        self._count += 1
        _store().key_value_set(f"em_jax/{self._count}", json.dumps(value, default=dict))

    def recv(self, within: float = math.inf) -> Any:
        """Waits, however long or for so many seconds, for the next word of process 0; TimeoutError without one."""
        self._count += 1
        last = time.monotonic() + within
        while True:
            if time.monotonic() > last:
                raise TimeoutError
            try:
                # Python sees a signal only between two waits.
                return json.loads(_store().blocking_key_value_get(f"em_jax/{self._count}", 2000))
            except Exception as error:  # jaxlib's own class, told apart by its text
                if "DEADLINE_EXCEEDED" not in str(error):
                    # Jax ends this process with its one line in a moment; not before that with another one.
                    time.sleep(_ENDING_S)
                    raise UserError(f"{_name()}: {GONE}") from error

    def share(self, value: Any) -> Any:
        """Process 0's value, in every process; the value itself where there is one process."""
        if size() == 1:
            return value
        if not is_first():
            return self.recv()
        self.send(value)
        return value

    def stopped(self, mine: bool) -> bool:
        """Whether any process was asked to stop, as process 0 knows it now; every process asks and hears the same."""
        if size() == 1:
            return mine
        if not is_first() and mine and not self._asked:
            self._asked = True
            _store().key_value_set(f"{_STOP}/{sys.modules['jax'].process_index()}", "1")
        return self.share(is_first() and (mine or bool(_store().key_value_dir_get(_STOP))))


def join(group: Group | None) -> None:
    """Makes this process one of several, where the flags, a TPU VM or SLURM say so; to be called before jax is used.

    From then on the death of any process ends this one with one line and status 1, after HEARTBEAT_S at the latest.
    Raises UserError where the others cannot be reached.
    """
    if group is None and not _started_together(os.environ):
        return
    if group and group.processes > 1 and group.process == 0:
        _check_port(group.coordinator)
    import jax

    # SIGTERM is ours (em_jax.base.signals).
    jax.config.update("jax_enable_preemption_service", False)
    # No handler of Python's runs while jax waits for the others.
    on_sigterm = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"waiting for the other processes, {JOINING_S} s at most", file=sys.stderr, flush=True)
    as_it_was = _one_line_at_the_end(
        f"process {group.process} of {group.processes}" if group else "a process of several"
    )
    try:
        if group is None:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=_LEAVING_S)
        elif group.processes > 1:
            jax.distributed.initialize(
                group.coordinator,
                group.processes,
                group.process,
                cluster_detection_method="deactivate",
                initialization_timeout=JOINING_S,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=_LEAVING_S,
            )
    except Exception as error:  # jaxlib's own classes
        if group is None and "coordinator_address should be defined" in str(error):
            return  # chips, but no slice that jax knows of
        where = f"{group.coordinator} as process {group.process} of {group.processes}" if group else "the others"
        raise UserError(f"could not join {where}: {str(error).splitlines()[0][:200]}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        if size() == 1:
            as_it_was()


def _check_port(coordinator: str) -> None:
    """UserError where something listens there already: jax would end without a word."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("", port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} ({error.strerror}): an earlier run may be on its way out; "
                "try again in a minute, or give another port"
            ) from None


def _started_together(environment: Mapping[str, str]) -> bool:
    """Whether SLURM started several tasks, or this is a TPU VM: jax.distributed then finds the others by itself."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_NODELIST" in environment and tasks.isdigit() and int(tasks) > 1:
        return True
    if not (environment.get("JAX_PLATFORMS") or "tpu").startswith("tpu"):
        return False
    if workers := environment.get("TPU_WORKER_HOSTNAMES"):
        return "," in workers
    from importlib.util import find_spec

    return bool(runtime.tpu_chips()) and find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment


def size() -> int:
    """How many processes the run has. Before they have joined it starts no backend of jax."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 1
    return jax.process_count()


def is_first() -> bool:
    """Whether this process takes the decisions and writes the files."""
    return size() == 1 or sys.modules["jax"].process_index() == 0


def _name() -> str:
    return f"process {sys.modules['jax'].process_index()} of {size()}"


@contextlib.contextmanager
def translate_failures() -> Iterator[None]:
    """Within, a computation of all processes that fails is one line about what it most likely means."""
    import jax

    try:
        with failures.translate_errors():
            yield
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"{_name()}: a computation of all processes failed ({str(error).splitlines()[0][:160]}); most likely {GONE}"
        ) from error


def leave(status: int) -> None:
    """Ends this process's part in the run: with status 0 together with the others, else at once."""
    if size() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        # An orderly end would wait for processes that wait for this one.
        os._exit(status)
    sys.modules["jax"].distributed.shutdown()


def _one_line_at_the_end(name: str) -> Callable[[], None]:
    """Has jax's abort at the death of another process print one line and end with status 1, not a stack of frames.

    What native code prints from now on, on stdout too, goes to a file without a name; its end is told where it aborts
    for another reason. Returns what puts all of this back.
    """
    with tempfile.TemporaryFile() as file:
        log = os.dup(file.fileno())
    out, err = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, encoding="utf-8") for file in (out, err))

    def ended(number: int) -> None:
        said = os.pread(log, 1 << 16, max(0, os.fstat(log).st_size - (1 << 16)))
        why = GONE
        if b"RegisterTask" in said:
            why = f"process 0 could not be reached within {JOINING_S} s; are all processes started, and the port open?"
        elif b"JAX distributed service" not in said:
            why = "native code aborted: " + " ".join(said.decode(errors="replace").split())[-500:]
        os.write(err, f"em_jax: {name}: {why}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(ended)
    # Native code points to it until the process ends.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handler))
    signals = ctypes.CDLL(None).signal
    signals.argtypes, signals.restype = [ctypes.c_int, type(handler)], ctypes.c_void_p
    signals(signal.SIGABRT, handler)

    def as_it_was() -> None:
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    return as_it_was


def _store() -> Any:
    """The key-value store of jax.distributed; jax has no public name for it, Orbax reaches for it the same way."""
    from jax._src import distributed

    return distributed.global_state.client
