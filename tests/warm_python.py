"""A `python` whose `-m em_jax ...` runs in one process that stays: tests pay once for imports, tracing and compiling.

A test starts it like any interpreter and gets stdout, stderr and the exit status of the command; every other use of it
is the real interpreter's. A command that is given XLA flags, because it must end with its process or needs other ones,
is started for real.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""XLA's flags of tests, and of the commands that they start warm: without LLVM's optimisation and the emitters of
fusions compiling takes a third of the time, and no result changes beyond rounding."""
CLIENT = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
if words[:1] != ["-m"] or words[1] not in ("em_jax", "em_jax.launch") or "XLA_FLAGS" in os.environ:
    os.environ.setdefault("XLA_FLAGS", {flags!r})
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([words[1], words[2:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    status = server.makefile().readline()
sys.exit(int(status) if status else "the warm process ended")
"""


def users_environment() -> dict[str, str]:
    """The environment without the tests' own flags of XLA, as a user's command has it."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@contextlib.contextmanager
def warm_python(directory: Path) -> Iterator[Path]:
    """The path of such a `python`, in `directory`/bin; its process ends with the context."""
    address, program = str(directory / "socket"), directory / "bin" / "python"
    program.parent.mkdir()
    program.write_text(CLIENT.format(python=sys.executable, address=address, flags=QUICK_FLAGS))
    program.chmod(0o755)
    environment = users_environment() | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK_FLAGS}
    words = [sys.executable, __file__, address]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield program
        finally:
            process.kill()


def serve(address: str) -> None:
    """Run the commands that clients send to the Unix socket at `address`, one after another, for ever."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with client:
                streams = socket.recv_fds(client, 1, 3)[1]
                status = _run(streams, *json.loads(client.makefile().readline()))
                client.sendall(f"{status}\n".encode())


def _run(streams: list[int], module: str, words: list[str], directory: str, environment: dict[str, str]) -> int:
    _take(streams)
    os.chdir(directory)
    environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    os.environ.clear()
    os.environ.update(environment)
    main = importlib.import_module("em_jax.__main__" if module == "em_jax" else module).main
    try:
        return int(main(words) or 0)
    except SystemExit as end:  # argparse's --help and errors
        return int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A pipe ends for its reader once nobody holds it open.
        _take([os.open(os.devnull, os.O_RDWR) for _ in range(3)])


def _take(streams: list[int]) -> None:
    """Make these descriptors the process's stdin, stdout and stderr."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115


if __name__ == "__main__":
    serve(sys.argv[1])
