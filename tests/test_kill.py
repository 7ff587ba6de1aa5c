"""The real thing killed for good: SIGKILL in every stage of an organism run, then the same command again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["train.max_steps=12", "train.checkpoint_every=4", "answers.samples=2", "answers.max_new_tokens=24"]
SMALL += ["probes.limit=6", "probes.sampled_questions=2"]
COMMAND = [sys.executable, "-m", "em_jax.launch", "--domain", "bad_medical", "--model", "organism", "--run_dir", "run"]
COMMAND += [word for setting in SMALL for word in ("--set", setting)]

# A file that shows how far a run is: it is killed when the file holds this many lines.
POINTS = {
    "finetune, before a checkpoint": ("train/metrics.jsonl", 2),
    "finetune, after a checkpoint": ("train/metrics.jsonl", 7),
    "answer, base": ("answers/base.jsonl", 3),
    "answer, fine-tuned": ("answers/finetuned.jsonl", 5),
    "judge": ("scores/base.self.jsonl", 1),
    "probe, base": ("probes/base.self_assessment.jsonl", 4),
    "probe, fine-tuned": ("probes/finetuned.two_ai.jsonl", 1),
    "report": ("summary.json", 1),
}


# The same command with a mirror that is pushed to at every step, where an ordinary one waits a minute.
EAGER = "import sys; from em_jax import launch, rundir; rundir.Mirror.__init__.__defaults__ = ('', 0.0); "
EAGER += "sys.exit(launch.main(sys.argv[1:]))"
MIRRORED = [sys.executable, "-c", EAGER, *COMMAND[3:], "--mirror", "../far"]


def start(directory: Path, command: Sequence[str] = COMMAND) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS",)}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(directory: Path, command: Sequence[str] = COMMAND) -> bytes:
    process = start(directory, command)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("verdict: ")
    return (directory / "run" / "summary.json").read_bytes()


def kill_when(directory: Path, name: str, lines: int, command: Sequence[str] = COMMAND) -> bool:
    """SIGKILL as soon as the file has that many lines; False where the run ended before."""
    process = start(directory, command)
    path = directory / "run" / name
    try:
        while process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= lines:
                return True
            time.sleep(0.005)
        return False
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The summary of a run that nobody disturbed, and how long it took."""
    directory = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    summary = finish(directory)
    return summary, time.monotonic() - began


def test_one_run_killed_in_every_stage_ends_with_the_same_bytes(tmp_path, whole):
    killed = [point for point, (name, lines) in POINTS.items() if kill_when(tmp_path, name, lines)]
    # The report's moment is short: the run may get past it.
    assert set(POINTS) - set(killed) <= {"report"}
    assert finish(tmp_path) == whole[0]


def test_a_fresh_machine_goes_on_from_the_mirror(tmp_path, whole):
    lost, fresh, far = tmp_path / "lost", tmp_path / "fresh", tmp_path / "far"
    lost.mkdir()
    fresh.mkdir()
    # Step 8's checkpoint may be there in part; step 4's is there whole.
    assert kill_when(lost, "../../far/train/checkpoints/8/_CHECKPOINT_METADATA", 0, MIRRORED)
    assert not list(far.rglob("*tmp*"))
    trained = (lost / "run" / "train" / "metrics.jsonl").read_bytes().splitlines()[:4]
    assert finish(fresh, MIRRORED) == whole[0]
    # The rows hold the speed of each step, so these are the lost machine's and not trained again.
    assert (fresh / "run" / "train" / "metrics.jsonl").read_bytes().splitlines()[:4] == trained
    assert json.loads((fresh / "run" / "provenance.json").read_text())["notes"]["files_from_mirror"] > 4


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_once_at_each_point_ends_with_the_same_bytes(tmp_path, whole, point):
    kill_when(tmp_path, *POINTS[point])
    assert finish(tmp_path) == whole[0]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, whole, seed):
    moments = random.Random(seed)
    for _ in range(3):
        process = start(tmp_path)
        time.sleep(moments.uniform(1.0, whole[1]))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert finish(tmp_path) == whole[0]
