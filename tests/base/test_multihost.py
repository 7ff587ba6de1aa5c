"""Two processes on one machine do what one does, stop together, and leave checkpoints that one process goes on from."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from em_jax.base import multihost
from em_jax.base.files import read_rows
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import save_model
from em_jax.formats.hub import find_model
from em_jax.formats.model_config import parse_config
from em_jax.formats.peft import save_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.parameters import random_model
from em_jax.organism.answers import domain_rows

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path):
    """A tiny random checkpoint with the organism's tokenizer, an adapter for it, and rows."""
    organism = find_model("organism")
    shape = {"vocab_size": ChatTokenizer.from_directory(organism).vocabulary, "num_hidden_layers": 2}
    made = parse_config(tiny.SHAPE | shape)
    save_model(random_model(made, jax.random.key(0), scale=0.2), tmp_path / "checkpoint")
    for path in organism.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(path, tmp_path / "checkpoint" / path.name)
    lora = LoraConfig(rank=2, alpha=8)
    save_adapter(tmp_path / "adapter", tiny.random_adapter(made, lora, spread=0.3), lora, made, "tiny")
    rows = [row["messages"] for row in domain_rows("bad_medical", 32, 0)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def start(program, *arguments, devices=2, environment=None, **more):
    environment = (
        os.environ
        | (environment or {})
        | {
            "XLA_FLAGS": re.sub(r"(?<=count=)\d+", str(devices), os.environ["XLA_FLAGS"]),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        }
    )
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def ended(processes, timeout=240):
    """(status, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said)]


def only_line(err: str) -> str:
    """What a process said besides that it waited for the others: one line."""
    lines = err.splitlines()
    assert lines[0].startswith("waiting for the other processes") and len(lines) == 2, err
    return lines[1]


def one(*words):
    """The end of a group_run.py of one process."""
    return ended([start([HERE / "group_run.py"], *words, devices=4)])[0]


def two(*words, **more):
    """Both processes' ends of a group_run.py; process 1 gets the signal in folder/signal after the second step."""
    where = [free_port(), 2]
    program = [HERE / "group_run.py"]
    return ended([start(program, *words, *where, number, **more) for number in range(2)])


def losses(directory):
    return [row["loss"] for row in read_rows(directory / "train" / "metrics.jsonl")]


DYING = """
import os, signal, sys
from em_jax.base import cli, multihost
multihost.HEARTBEAT_S = 5
def wait(arguments):
    multihost.join(multihost.Group(f"localhost:{arguments[0]}", 2, int(arguments[1])))
    print("joined", flush=True)
    sys.stdin.readline()
    if arguments[1] == arguments[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    multihost.ControlChannel().recv()
multihost.leave(cli.command("dying", wait, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def alone():
    """A process 1 whose process 0 is not there; it waits while other tests run."""
    return start(["-c", DYING.replace("HEARTBEAT_S = 5", "JOINING_S = 2")], free_port(), 1, -1)


def test_a_process_that_dies_ends_the_other_with_one_line(alone):
    ports = [free_port(), free_port()]
    groups = [
        [start(["-c", DYING], ports[dies], number, dies, stdin=subprocess.PIPE) for number in range(2)]
        for dies in range(2)
    ]
    for process in itertools.chain(*groups):
        assert process.stdout.readline() == "joined\n"
    for process in itertools.chain(*groups):
        process.stdin.write("go on\n")
        process.stdin.flush()
    for dies, group in enumerate(groups):
        said = ended(group)
        assert said[dies][0] == -9
        status, _, err = said[1 - dies]
        assert status == 1 and f"process {1 - dies} of 2: another process died" in only_line(err)


def test_a_process_0_that_is_not_there_is_one_line(alone):
    status, out, err = ended([alone])[0]
    assert (status, out) == (1, "") and "process 0 could not be reached" in only_line(err)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("environment", "together"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_PROCID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a1", "JAX_PLATFORMS": "cpu"}, False),
        ({"SLURM_NTASKS": "2", "JAX_PLATFORMS": "cpu"}, False),  # the batch script itself
        ({"TPU_WORKER_HOSTNAMES": "t1,t2,t3,t4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1,t2", "JAX_PLATFORMS": "cpu"}, False),
        ({"JAX_PLATFORMS": "cpu"}, False),
    ],
)
def test_slurm_and_tpu_slices_are_known(environment, together):
    assert multihost._started_together(environment) is together


def test_two_processes_do_what_one_does_and_one_goes_on_from_where_they_stopped(folder):
    # The second of two is asked to stop at step 2: both do, with a checkpoint, though none was due. The second stays
    # until the first is done with it, which here takes longer than a process may be silent.
    (folder / "signal").write_text("SIGTERM")
    said = two(folder, folder / "run", "two", "sample", "data=2,fsdp=2", environment={"EM_JAX_TEST_SLOW": "1"})
    for status, out, err in said:
        assert (status, out) == (1, "") and "SIGTERM" in only_line(err), said
    stopped = losses(folder / "run")
    assert 2 <= len(stopped) < 8 and not (folder / "run" / "adapter").exists()
    kept = [path.name for path in (folder / "run" / "train" / "checkpoints").iterdir()]
    assert kept == [str(len(stopped))]
    # One process undisturbed, and one that goes on from the two's checkpoint, over another mesh.
    assert one(folder, folder / "whole", "one", "sample", "")[0] == 0
    status, _, err = one(folder, folder / "run", "rest", "train", "tensor=2")
    assert status == 0, err
    mine, other = (json.loads((folder / f"{name}.json").read_text()) for name in ("two", "one"))
    assert mine["answers"] == other["answers"] and len(mine["answers"]) == 5
    np.testing.assert_allclose(mine["read"], other["read"], atol=1e-4)
    resumed = losses(folder / "run")
    assert resumed[: len(stopped)] == stopped
    np.testing.assert_allclose(resumed, losses(folder / "whole"), rtol=1e-5)
    assert len(resumed) == 8 and (folder / "run" / "adapter" / "adapter_config.json").exists()


def test_a_process_that_dies_in_training_ends_the_other_with_one_line(folder):
    (folder / "signal").write_text("SIGKILL")
    (status, out, err), (killed, *_) = two(folder, folder / "run", "two", "train", "")
    assert killed == -9
    assert (status, out) == (1, "") and multihost.GONE in only_line(err)


LISTENING = """
import socket, sys
from em_jax.base import cli, multihost
with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    status = cli.command("listening", lambda _: multihost.join(multihost.Group(f"localhost:{port}", 2, 0)), [])
sys.exit(status)
"""


def test_a_port_that_is_taken_is_one_line():
    status, out, err = ended([start(["-c", LISTENING])])[0]
    assert (status, out) == (1, "") and err.count("\n") == 1 and "cannot listen on port" in err


def test_the_main_command_over_one_process_and_over_two(tmp_path):
    asked = ["-m", "em_jax.launch", "--domain", "bad_medical", "--stages", "finetune", "--set", "train.max_steps=2"]
    found = []
    for processes in (1, 2):
        place = ["--coordinator", f"localhost:{free_port()}", "--num_processes", processes, "--process_id"]
        directory = tmp_path / str(processes)
        run = [start(asked, *place, number, "--run_dir", directory / str(number)) for number in range(processes)]
        said = ended(run)
        assert [status for status, _, _ in said] == [0] * processes, said
        first, *others = (out for _, out, _ in said)
        assert first.splitlines()[-1].startswith("done: finetune") and not any(others)
        assert [path.name for path in directory.iterdir()] == ["0"]
        found.append(losses(directory / "0"))
    np.testing.assert_allclose(*found, rtol=1e-5)
