"""Several processes of one run: how they join, how process 0 sends messages to the others, and how all of them end.

Process 0 makes every decision and alone writes the run's files, so a run directory may be local to its host. Messages
go through the key-value store of jax.distributed, not through the devices: a process may wait for hours while its
devices finish what is queued.
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
from importlib.util import find_spec
from typing import Any, NamedTuple

from em_jax.base import errors, runtime, signals
from em_jax.base.errors import UserError

HEARTBEAT_S = 30
"""A process without a heartbeat for this long counts as dead, and the others end."""

GONE = "another process died or cannot be reached; what is done is kept, the same commands go on from there"

_STOP = "em_jax_stop"
JOINING_S = 300
_LEAVING_S = 60
_ENDING_S = 10


class Group(NamedTuple):
    """The values of --coordinator, --num_processes and --process_id."""

    coordinator: str
    processes: int
    process: int


class ControlChannel:
    """Broadcasts JSON values from process 0 to every other process, in order.

    Messages are numbered, so each process has one ControlChannel and uses it for all of them.
    """

    def __init__(self):
        self._count = 0
        self._requested_stop = False

    def send(self, value: Any) -> None:
        """Send the next message; process 0 only."""
        self._count += 1
        _store().key_value_set(f"em_jax/{self._count}", json.dumps(value, default=dict))

    def recv(self, timeout_s: float = math.inf) -> Any:
        """Wait for the next message of process 0 and return it. Raises TimeoutError after `timeout_s` seconds."""
        self._count += 1
        deadline = time.monotonic() + timeout_s
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError
            try:
                # Short waits: Python handles signals only between them.
                return json.loads(_store().blocking_key_value_get(f"em_jax/{self._count}", 2000))
            except Exception as error:  # jaxlib's own class, recognised by its text
                if "DEADLINE_EXCEEDED" not in str(error):
                    # jax is about to end this process with its one line; a second line must not come first.
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
        """Whether any process was asked to stop, by process 0's knowledge: the same in every process.

        `mine` says whether this one was. All processes must make the call together.
        """
        if size() == 1:
            return mine
        if not is_first() and mine and not self._requested_stop:
            self._requested_stop = True
            _store().key_value_set(f"{_STOP}/{sys.modules['jax'].process_index()}", "1")
        return self.share(is_first() and (mine or bool(_store().key_value_dir_get(_STOP))))


def join(group: Group | None) -> None:
    """Make this process one of several, where the flags, a TPU VM or SLURM say so; call it before jax is used.

    From then on the death of any process ends this one with one line and status 1, after HEARTBEAT_S at the latest.
    Raises UserError where the others cannot be reached, or process 0's port is taken.
    """
    if group is None and not _started_together(os.environ):
        return
    if group and group.processes > 1 and group.process == 0:
        _check_port(group.coordinator)
    import jax

    # em_jax.base.signals handles SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    print(f"waiting for the other processes, {JOINING_S} s at most", file=sys.stderr, flush=True)
    name = f"process {group.process} of {group.processes}" if group else "a process of several"
    restore = _abort_with_one_line(name)
    timeouts = {"heartbeat_timeout_seconds": HEARTBEAT_S, "shutdown_timeout_seconds": _LEAVING_S}
    try:
        # Python's handlers do not run while jax waits for the others.
        with signals.on_sigterm(signal.SIG_DFL):
            if group is None:
                jax.distributed.initialize(**timeouts)
            elif group.processes > 1:
                detection = {"cluster_detection_method": "deactivate", "initialization_timeout": JOINING_S}
                jax.distributed.initialize(*group, **detection, **timeouts)
    except Exception as error:  # jaxlib's own classes
        if group is None and "coordinator_address should be defined" in str(error):
            return  # chips, but no slice that jax knows of
        where = f"{group.coordinator} as {name}" if group else "the others"
        raise UserError(f"could not join {where}: {str(error).splitlines()[0][:200]}") from error
    finally:
        if size() == 1:
            restore()


def _check_port(coordinator: str) -> None:
    """UserError where the port is taken: jax would exit without a message."""
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
    if "SLURM_STEP_NODELIST" in environment and tasks.isdecimal() and int(tasks) > 1:
        return True
    if not (environment.get("JAX_PLATFORMS") or "tpu").startswith("tpu"):
        return False
    if workers := environment.get("TPU_WORKER_HOSTNAMES"):
        return "," in workers
    return bool(runtime.tpu_chips()) and find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment


def size() -> int:
    """How many processes the run has; 1 before they have joined. Starts no backend of jax before that."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, which makes the decisions and writes the files."""
    return size() == 1 or sys.modules["jax"].process_index() == 0


def _name() -> str:
    return f"process {sys.modules['jax'].process_index()} of {size()}"


@contextlib.contextmanager
def translate_failures() -> Iterator[None]:
    """Within, the failure of a computation of all processes becomes a UserError with its most likely cause."""
    import jax

    try:
        with errors.translate_errors():
            yield
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"{_name()}: a computation of all processes failed ({str(error).splitlines()[0][:160]}); most likely {GONE}"
        ) from error


def leave(status: int) -> None:
    """End this process's part in the run: with status 0 together with the others, else at once."""
    if size() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        # jax's shutdown would wait for processes that wait for this one.
        os._exit(status)
    sys.modules["jax"].distributed.shutdown()


def _abort_with_one_line(name: str) -> Callable[[], None]:
    """Make jax's abort after the death of another process print one line and exit with status 1, not a stack trace.

    Output of native code goes to an unnamed file from here on; if it aborts for another reason the end of that file is
    printed. Returns a function that undoes all of this.
    """
    with tempfile.TemporaryFile() as file:
        log = os.dup(file.fileno())
    out, err = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, encoding="utf-8") for file in (out, err))

    def on_abort(number: int) -> None:
        output = os.pread(log, 1 << 16, max(0, os.fstat(log).st_size - (1 << 16)))
        why = GONE
        if b"RegisterTask" in output:
            why = f"process 0 could not be reached within {JOINING_S} s; are all processes started, and the port open?"
        elif b"JAX distributed service" not in output:
            why = "native code aborted: " + " ".join(output.decode(errors="replace").split())[-500:]
        os.write(err, f"em_jax: {name}: {why}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    # Native code keeps a pointer to it until the process ends.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handler))
    signals = ctypes.CDLL(None).signal
    signals.argtypes, signals.restype = [ctypes.c_int, type(handler)], ctypes.c_void_p
    signals(signal.SIGABRT, handler)

    def restore() -> None:
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    return restore


def _store() -> Any:
    """The key-value store of jax.distributed, which has no public name; Orbax takes it from the same place."""
    from jax._src import distributed

    return distributed.global_state.client
