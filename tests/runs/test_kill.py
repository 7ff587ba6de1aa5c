"""The real thing killed for good: SIGKILL in every stage of an organism run, then the same command again.

Also asked to stop (SIGTERM), and left without room on the disk.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from warm_python import QUICK_FLAGS

ROOT = Path(__file__).resolve().parent.parent.parent
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
EAGER = "import sys; from em_jax import launch; from em_jax.runs.mirror import Mirror; "
EAGER += "Mirror.__init__.__defaults__ = ('', 0.0); "
EAGER += "sys.exit(launch.main(sys.argv[1:]))"
MIRRORED = [sys.executable, "-c", EAGER, *COMMAND[3:], "--mirror", "../far"]


def start(directory: Path, command: Sequence[str] = COMMAND) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": QUICK_FLAGS, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(directory: Path, command: Sequence[str] = COMMAND) -> bytes:
    process = start(directory, command)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("verdict: ")
    return (directory / "run" / "summary.json").read_bytes()


def end_when(
    directory: Path,
    until: Callable[[], bool],
    number: int = signal.SIGKILL,
    command: Sequence[str] = COMMAND,
    delay: float = 0.0,
) -> tuple[bool, int, str]:
    """Sends a signal so long after `until` comes true: whether the run was still on, its exit status, its stderr."""
    process = start(directory, command)
    reached = False
    try:
        while process.poll() is None and not reached:
            reached = until()
            time.sleep(delay if reached else 0.005)
    finally:
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    return reached, process.returncode, err


def has_lines(path: Path, lines: int) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= lines


def kill_when(directory: Path, name: str, lines: int, command: Sequence[str] = COMMAND) -> bool:
    """SIGKILL as soon as the file has that many lines; False where the run ended before."""
    return end_when(directory, has_lines(directory / "run" / name, lines), command=command)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The summary of a run that nobody disturbed, and how long it took."""
    directory = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    summary = finish(directory)
    return summary, time.monotonic() - began


@pytest.mark.long
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


# About how many rows each stage writes; before the first one a stage loads and compiles.
STAGES = {"train": 12, "answers": 24, "scores": 24, "probes": 130, "summary.json": 1}


def rows_of(directory: Path, stage: str) -> int:
    place = directory / "run" / stage
    if stage == "summary.json":
        return int(place.exists())
    return sum(path.read_bytes().count(b"\n") for path in place.glob("*.jsonl"))


def random_moments(chances: random.Random, count: int) -> list[tuple[str, int, float]]:
    """(stage, rows it has written, seconds after that), as a run gets there; every stage equally often."""
    names = [list(STAGES)[number % len(STAGES)] for number in range(count)]
    moments = [(name, chances.randint(0, STAGES[name]), chances.uniform(0.0, 0.3)) for name in names]
    return sorted(moments, key=lambda moment: (list(STAGES).index(moment[0]), *moment[1:]))


def kill_at_random(directory: Path, seed: int, count: int) -> int:
    """Kills one run at random moments: how many kills met it alive."""
    survived = 0
    for stage, rows, delay in random_moments(random.Random(seed), count):
        # A stage of no rows yet begins when the one before is done; the first one with the process.
        before = list(STAGES)[max(0, list(STAGES).index(stage) - 1)] if rows == 0 else stage
        until = lambda at=before, least=rows or STAGES[before]: rows_of(directory, at) >= least  # noqa: E731
        if rows == 0 and before == stage:
            until, delay = (lambda: True), 10 * delay
        survived += end_when(directory, until, delay=delay)[0]
    return survived


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_kills_at_random_moments_lose_nothing(tmp_path, whole, capsys):
    survived, seed = 0, 0
    while survived < 100:
        seed += 1
        directory = tmp_path / str(seed)
        directory.mkdir()
        survived += kill_at_random(directory, seed, 10)
        assert finish(directory) == whole[0]
        assert not list(directory.rglob("*.partial"))
    with capsys.disabled():
        print(f"\nSIGKILL: faults survived {survived}, lost 0")


def stopped_when(directory: Path, name: str, lines: int) -> bool:
    """SIGTERM at a point of a run: it must end with one line that says how to go on. False where it ended before."""
    reached, status, err = end_when(directory, has_lines(directory / "run" / name, lines), signal.SIGTERM)
    if reached and status != 0:
        said = [line for line in err.splitlines() if not re.match(r"\d/5 |loading |going on with |time: ", line)]
        assert status == 1 and len(said) == 1, err
        assert "asked to stop (SIGTERM" in said[0] and "go on with: " in said[0], err
    return reached and status != 0


def test_a_run_asked_to_stop_and_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, whole):
    assert stopped_when(tmp_path, *POINTS["finetune, before a checkpoint"])
    assert kill_at_random(tmp_path, 0, 2) == 2
    assert stopped_when(tmp_path, *POINTS["probe, base"])
    # The step it was in when asked to stop is finished and kept.
    assert finish(tmp_path) == whole[0]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.long
def test_a_run_asked_to_stop_in_every_stage_goes_on(tmp_path, whole, capsys):
    stopped = [point for point, place in POINTS.items() if stopped_when(tmp_path, *place)]
    assert set(POINTS) - set(stopped) <= {"report"}
    assert finish(tmp_path) == whole[0]
    with capsys.disabled():
        print(f"\nSIGTERM: faults survived {len(stopped)}, lost 0")


# The same command where no file may grow beyond so many bytes.
LIMITED = "import resource, sys; from em_jax import launch; limit = int(sys.argv[1]); "
LIMITED += "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); sys.exit(launch.main(sys.argv[2:]))"


def no_room(status: int, err: str) -> None:
    said = [line for line in err.splitlines() if not re.match(r"\d/5 |loading |going on with |time: ", line)]
    assert status == 1 and len(said) == 1, err
    assert "no room on the disk" in said[0] and "go on with: " in said[0], err


@pytest.mark.long
def test_a_run_that_may_write_no_large_file_says_so_and_goes_on_where_it_may(tmp_path, whole):
    for limit in (1000, 300_000):
        no_room(
            *end_when(tmp_path, lambda: False, command=[sys.executable, "-c", LIMITED, str(limit), *COMMAND[3:]])[1:]
        )
    assert finish(tmp_path) == whole[0]


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_at_every_stage_loses_nothing(tmp_path, whole, capsys):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], capture_output=True).returncode:
        pytest.skip("root, and may not mount")
    ballast = small / "ballast"

    def full(reached):
        def fill():
            if reached():
                with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
                    for size in (1 << 20, 1 << 12):
                        with contextlib.suppress(OSError):
                            while file.write(b"0" * size) == size:
                                pass
            return False

        return fill

    try:
        survived = 0
        for name, lines in POINTS.values():
            _, status, err = end_when(small, full(has_lines(small / "run" / name, lines)))
            ballast.unlink(missing_ok=True)
            # What is left of the report may fit into the pages that its files have.
            if status != 0:
                no_room(status, err)
                survived += 1
        assert survived >= len(POINTS) - 1
        assert finish(small) == whole[0]
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    with capsys.disabled():
        print(f"\nfull disk: faults survived {survived}, lost 0")
