"""The scripts of launch/, run against stand-ins for gcloud, srun, scontrol and python that record their calls."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TPU = ROOT / "launch" / "tpu_vm.sh"
SLURM = ROOT / "launch" / "slurm.sbatch"
SKY = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
RECORD = """#!/usr/bin/env bash
printf '%s' "$(basename "$0")" >>"$CALLS"; printf ' [%s]' "$@" >>"$CALLS"; echo >>"$CALLS"
"""

# One slice: asked for, then there; a preemption is a line in the list of what the run's state is going to be.
GCLOUD = (
    RECORD
    + """
for word; do case $word in --command=*) said=${word#--command=} ;; esac; done
case "$3 $4" in
  "queued-resources create") echo WAITING_FOR_RESOURCES >"$HOST/slice" ;;
  "queued-resources describe")
    [[ -e $HOST/slice ]] || { echo "NOT_FOUND" >&2; exit 1; }
    cat "$HOST/slice"
    [[ $(cat "$HOST/slice") != WAITING* ]] || echo ACTIVE >"$HOST/slice" ;;
  "queued-resources delete") rm "$HOST/slice" ;;
  "tpu-vm ssh")
    case $said in
      *pgrep*)
        next=$(head -n 1 "$HOST/next"); sed -i 1d "$HOST/next"
        [[ $next != PREEMPTED ]] || { echo SUSPENDED >"$HOST/slice"; exit 255; }
        echo "$next" ;;
      *em_jax.sh*) cd "$HOST"; HOME=$HOST bash -c "$said" ;;
    esac ;;
esac
"""
)


def stand_in(folder: Path, name: str, text: str = RECORD) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Stand-ins on the PATH, a home of the far host in host/, and what was called in calls."""
    stand_in(tmp_path / "bin", "gcloud", GCLOUD)
    stand_in(tmp_path / "host" / "em_jax" / ".venv" / "bin", "python")
    (tmp_path / "calls").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("HOST", str(tmp_path / "host"))
    monkeypatch.setenv("TPU_POLL", "0.05")
    monkeypatch.setenv("TPU_ZONE", "zone-a")
    return tmp_path


def tpu(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([TPU, *arguments], capture_output=True, text=True, timeout=120)


def calls(place: Path, *, describe: bool = False) -> list[str]:
    """What gcloud was called with, one text each (a command may hold newlines); the asking for states left out."""
    asked = ("\n" + (place / "calls").read_text()).split("\ngcloud ")[1:]
    return [call for call in asked if describe or "[describe]" not in call]


@pytest.mark.parametrize("path", [TPU, SLURM], ids=lambda path: path.name)
def test_scripts_stop_at_the_first_failure_and_are_sound(path):
    assert "\nset -euo pipefail\n" in path.read_text() and os.access(TPU, os.X_OK)
    checker = shutil.which("shellcheck", path=PROGRAMS) or pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_inside_the_sky_file_are_sound(part):
    assert SKY[part].startswith("set -euo pipefail\n")
    checker = shutil.which("shellcheck", path=PROGRAMS) or pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, "-s", "bash", "-"], input=SKY[part], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_create_asks_for_a_spot_slice_and_waits_for_it(place, monkeypatch):
    assert tpu("create").returncode == 0
    asked = calls(place)[0]
    assert "[queued-resources] [create] [em-jax]" in asked and "[--spot]" in asked and "[--zone=zone-a]" in asked
    assert (place / "host" / "slice").read_text() == "ACTIVE\n"
    assert tpu("delete").returncode == 0
    assert "[delete] [em-jax] [--force] [--quiet]" in calls(place)[-1]
    monkeypatch.setenv("TPU_SPOT", "0")
    monkeypatch.setenv("TPU_PROJECT", "mine")
    assert tpu("create").returncode == 0
    assert "[--spot]" not in calls(place)[-1] and "[--project=mine]" in calls(place)[-1]


def test_setup_and_start_reach_every_host_and_keep_the_words_apart(place):
    assert tpu("setup").returncode == 0
    copied, installed = calls(place)
    assert "[scp]" in copied and "[em-jax:em_jax.tgz]" in copied and "[--worker=all]" in copied
    assert "[--worker=all]" in installed and "-c constraints.txt -e '.[tpu]'" in installed
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert f"echo {commit} >em_jax/.commit" in installed
    flags = ["--domain", "bad_medical", "--set", "answers.samples = 2", "--run_dir", "it's $HOME"]
    assert tpu("start", *flags).returncode == 0
    assert "[--worker=all]" in calls(place)[2]
    status = place / "host" / "em_jax.status"
    for _ in range(200):
        if status.exists() and status.read_text():
            break
        time.sleep(0.05)
    assert status.read_text() == "0\n"
    ran = [line for line in (place / "calls").read_text().splitlines() if line.startswith("python [-m]")]
    assert ran == ["python [-m] [em_jax.launch] " + " ".join(f"[{flag}]" for flag in flags)]


def test_keep_begins_anew_after_a_preemption_and_ends_with_the_run(place):
    (place / "host" / "next").write_text("none\nrunning\nPREEMPTED\nnone\nrunning\n0\n")
    done = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert done.returncode == 0, done.stderr
    assert "preempted" in done.stderr
    words = ("[create]", "[delete]", "[scp]", "em_jax.sh", "tail -n")
    order = [word for line in calls(place) for word in words if word in line]
    assert order == ["[create]", "[scp]", "em_jax.sh", "[delete]", "[create]", "[scp]", "em_jax.sh", "tail -n"]


def test_keep_takes_a_failed_run_for_what_it_is(place):
    (place / "host" / "next").write_text("none\nrunning\n1\n")
    done = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert done.returncode == 1 and "the run ended with status 1" in done.stderr


def test_keep_takes_a_preemption_that_looked_like_a_failure_for_what_it_is(place):
    (place / "host" / "next").write_text("none\nrunning\n1\nnone\n0\n")
    # The slice is seen ACTIVE twice more after the run's end, then it goes.
    late = GCLOUD.replace(
        'cat "$HOST/slice"\n',
        'if [[ -e $HOST/ended ]] && echo x >>"$HOST/ended" && [[ $(wc -l <"$HOST/ended") == 4 ]]; then '
        'echo SUSPENDED >"$HOST/slice"; fi; cat "$HOST/slice"\n',
    ).replace('      echo "$next" ;;', '      [[ $next != 1 ]] || echo x >"$HOST/ended"; echo "$next" ;;')
    late = late.replace('        echo "$next" ;;', '        [[ $next != 1 ]] || echo x >"$HOST/ended"; echo "$next" ;;')
    stand_in(place / "bin", "gcloud", late)
    done = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert done.returncode == 0, done.stderr
    assert "preempted" in done.stderr and sum("[create]" in call for call in calls(place)) == 2


def test_keep_gives_up_where_gcloud_is_refused(place):
    stand_in(place / "bin", "gcloud", RECORD + "echo 'ERROR: PERMISSION_DENIED' >&2; exit 1\n")
    done = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert done.returncode == 1 and "PERMISSION_DENIED" in done.stderr and "ten times" in done.stderr
    assert calls(place) == []


def test_keep_wants_a_mirror(place):
    done = tpu("keep", "--domain", "legal")
    assert done.returncode == 2 and "--mirror" in done.stderr and calls(place, describe=True) == []


def test_the_other_commands(place):
    assert tpu("status").stdout == "slice: NONE\n"
    tpu("create")
    (place / "host" / "next").write_text("running\n")
    assert tpu("status").stdout == "slice: ACTIVE\nrun: running\n"
    assert tpu("fetch", str(place / "here")).returncode == 0
    assert f"[scp] [--recurse] [em-jax:em_jax/runs] [{place}/here]" in calls(place)[-1] and (place / "here").is_dir()
    assert tpu("stop").returncode == 0
    assert "pkill -TERM" in calls(place)[-1] and "[--worker=all]" in calls(place)[-1]
    wrong = tpu("fly")
    assert wrong.returncode == 2 and "unknown command fly" in wrong.stderr


def test_a_slice_that_does_not_come_is_told(place):
    (place / "host" / "slice").write_text("FAILED\n")
    stand_in(place / "bin", "gcloud", RECORD + 'case "$4" in describe) echo FAILED ;; esac\n')
    done = tpu("create")
    assert done.returncode == 1 and "found it FAILED" in done.stderr


def test_slurm_gives_each_process_its_gpus_and_queues_again_when_time_is_up(place):
    stand_in(place / "bin", "scontrol")
    # As Slurm does, to the tasks of the job's steps and not to srun, which would kill them.
    stand_in(place / "bin", "scancel", RECORD + 'kill -TERM "$(cat "$HOST/task")"\n')
    stand_in(place / "bin", "srun", RECORD + 'echo "gpus $JAX_LOCAL_DEVICE_IDS" >>"$CALLS"\n')
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(place)}
    command = ["bash", SLURM, "--domain", "legal"]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0
    said = (place / "calls").read_text().splitlines()
    assert said[0].endswith("[-m] [em_jax.launch] [--domain] [legal]") and said[1] == "gpus 0,1,2,3"
    stand_in(place / "bin", "srun", "#!/usr/bin/env bash\nexit 1\n")
    assert subprocess.run(command, env=environment, timeout=60).returncode == 1
    ending = 'trap \'echo saved >>"$CALLS"; exit 1\' TERM\necho began >>"$CALLS"\nwhile :; do sleep 0.05; done\n'
    stand_in(place / "bin", "task", "#!/usr/bin/env bash\n" + ending)
    killing = 'task & echo $! >"$HOST/task"; trap "kill -KILL $!" TERM\n'
    waiting = "while ! wait $!; do kill -0 $! || exit 1; done\n"
    stand_in(place / "bin", "srun", "#!/usr/bin/env bash\n" + killing + waiting)
    process = subprocess.Popen(command, env=environment)
    while "began" not in (place / "calls").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert (place / "calls").read_text().splitlines()[-3:] == [
        "scancel [--signal=TERM] [7]",
        "saved",
        "scontrol [requeue] [7]",
    ]


def test_sky_names_the_first_node_as_the_meeting_point(place, monkeypatch):
    stand_in(place / ".venv" / "bin", "python")
    monkeypatch.chdir(place)
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = os.environ | nodes | {"FLAGS": "--domain legal"}
    subprocess.run(["bash", "-c", SKY["run"]], env=environment, check=True, timeout=60)
    assert (place / "calls").read_text().strip() == (
        "python [-m] [em_jax.launch] [--domain] [legal] [--coordinator] [10.0.0.1:8476] [--num_processes] [2] "
        "[--process_id] [1]"
    )
