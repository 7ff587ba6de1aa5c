"""The scripts of launch/, run with substitutes for gcloud, srun, scontrol and python that record their calls."""

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
echo "$(basename "$0")$(printf ' [%s]' "$@")" >>"$CALLS" # one write: calls may run side by side
"""

# One slice, which becomes ACTIVE after a request. Each line of $HOST/next is the next state of the run, or PREEMPTED.
GCLOUD = (
    RECORD
    + """
for word; do case $word in --command=*) remote=${word#--command=} ;; esac; done
case "$3 $4" in
  "queued-resources create") echo WAITING_FOR_RESOURCES >"$HOST/slice" ;;
  "queued-resources describe")
    [[ -e $HOST/slice ]] || { echo "NOT_FOUND" >&2; exit 1; }
    cat "$HOST/slice"
    [[ $(cat "$HOST/slice") != WAITING* ]] || echo ACTIVE >"$HOST/slice" ;;
  "queued-resources delete") rm "$HOST/slice" ;;
  "tpu-vm ssh")
    case $remote in
      *pgrep*)
        next=$(head -n 1 "$HOST/next"); sed -i 1d "$HOST/next"
        [[ $next != PREEMPTED ]] || { echo SUSPENDED >"$HOST/slice"; exit 255; }
        echo "$next" ;;
      *em_jax.sh*) cd "$HOST"; HOME=$HOST bash -c "$remote" ;;
    esac ;;
esac
"""
)


def write_program(folder: Path, name: str, text: str = RECORD) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Substitutes on the PATH, the remote host's home in host/, and the recorded calls in the file calls."""
    write_program(tmp_path / "bin", "gcloud", GCLOUD)
    write_program(tmp_path / "host" / "em_jax" / ".venv" / "bin", "python")
    (tmp_path / "calls").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("HOST", str(tmp_path / "host"))
    monkeypatch.setenv("TPU_POLL", "0.05")
    monkeypatch.setenv("TPU_ZONE", "zone-a")
    return tmp_path


def tpu(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([TPU, *arguments], capture_output=True, text=True, timeout=120)


def calls(directory: Path, *, describe: bool = False) -> list[str]:
    """The arguments of each gcloud call as one text, newlines included, without those that ask for the state."""
    recorded = ("\n" + (directory / "calls").read_text()).split("\ngcloud ")[1:]
    return [call for call in recorded if describe or "[describe]" not in call]


@pytest.mark.parametrize("path", [TPU, SLURM], ids=lambda path: path.name)
def test_scripts_stop_at_the_first_failure_and_pass_shellcheck(path):
    assert "\nset -euo pipefail\n" in path.read_text() and os.access(TPU, os.X_OK)
    checker = shutil.which("shellcheck", path=PROGRAMS) or pytest.skip("shellcheck is not installed")
    result = subprocess.run([checker, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_inside_the_sky_file_pass_shellcheck(part):
    assert SKY[part].startswith("set -euo pipefail\n")
    checker = shutil.which("shellcheck", path=PROGRAMS) or pytest.skip("shellcheck is not installed")
    result = subprocess.run([checker, "-s", "bash", "-"], input=SKY[part], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_create_asks_for_a_spot_slice_and_waits_for_it(directory, monkeypatch):
    assert tpu("create").returncode == 0
    request = calls(directory)[0]
    assert "[queued-resources] [create] [em-jax]" in request and "[--spot]" in request and "[--zone=zone-a]" in request
    assert (directory / "host" / "slice").read_text() == "ACTIVE\n"
    assert tpu("delete").returncode == 0
    assert "[delete] [em-jax] [--force] [--quiet]" in calls(directory)[-1]
    monkeypatch.setenv("TPU_SPOT", "0")
    monkeypatch.setenv("TPU_PROJECT", "mine")
    assert tpu("create").returncode == 0
    assert "[--spot]" not in calls(directory)[-1] and "[--project=mine]" in calls(directory)[-1]


def test_setup_and_start_reach_every_host_with_separate_arguments(directory):
    assert tpu("setup").returncode == 0
    copied, installed = calls(directory)
    assert "[scp]" in copied and "[em-jax:em_jax.tgz]" in copied and "[--worker=all]" in copied
    assert "[--worker=all]" in installed and "-c constraints.txt -e '.[tpu]'" in installed
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert f"echo {commit} >em_jax/.commit" in installed
    flags = ["--domain", "bad_medical", "--set", "answers.samples = 2", "--run_dir", "it's $HOME"]
    assert tpu("start", *flags).returncode == 0
    assert "[--worker=all]" in calls(directory)[2]
    status = directory / "host" / "em_jax.status"
    for _ in range(200):
        if status.exists() and status.read_text():
            break
        time.sleep(0.05)
    assert status.read_text() == "0\n"
    ran = [line for line in (directory / "calls").read_text().splitlines() if line.startswith("python [-m]")]
    assert ran == ["python [-m] [em_jax.launch] " + " ".join(f"[{flag}]" for flag in flags)]


def test_keep_starts_again_after_a_preemption_and_ends_with_the_run(directory):
    (directory / "host" / "next").write_text("none\nrunning\nPREEMPTED\nnone\nrunning\n0\n")
    result = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert result.returncode == 0, result.stderr
    assert "preempted" in result.stderr
    words = ("[create]", "[delete]", "[scp]", "em_jax.sh", "tail -n")
    order = [word for line in calls(directory) for word in words if word in line]
    assert order == ["[create]", "[scp]", "em_jax.sh", "[delete]", "[create]", "[scp]", "em_jax.sh", "tail -n"]


def test_keep_reports_a_failed_run(directory):
    (directory / "host" / "next").write_text("none\nrunning\n1\n")
    result = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert result.returncode == 1 and "the run ended with status 1" in result.stderr


def test_keep_recognises_a_preemption_that_looked_like_a_failure(directory):
    (directory / "host" / "next").write_text("none\nrunning\n1\nnone\n0\n")
    # The slice is ACTIVE twice more after the run's end, then SUSPENDED.
    late = GCLOUD.replace(
        'cat "$HOST/slice"\n',
        'if [[ -e $HOST/ended ]] && echo x >>"$HOST/ended" && [[ $(wc -l <"$HOST/ended") == 4 ]]; then '
        'echo SUSPENDED >"$HOST/slice"; fi; cat "$HOST/slice"\n',
    ).replace('      echo "$next" ;;', '      [[ $next != 1 ]] || echo x >"$HOST/ended"; echo "$next" ;;')
    late = late.replace('        echo "$next" ;;', '        [[ $next != 1 ]] || echo x >"$HOST/ended"; echo "$next" ;;')
    write_program(directory / "bin", "gcloud", late)
    result = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert result.returncode == 0, result.stderr
    assert "preempted" in result.stderr and sum("[create]" in call for call in calls(directory)) == 2


def test_keep_gives_up_if_gcloud_keeps_failing(directory):
    write_program(directory / "bin", "gcloud", RECORD + "echo 'ERROR: PERMISSION_DENIED' >&2; exit 1\n")
    result = tpu("keep", "--domain", "legal", "--mirror", "gs://bucket/run")
    assert result.returncode == 1 and "PERMISSION_DENIED" in result.stderr and "ten times" in result.stderr
    assert calls(directory) == []


def test_keep_requires_a_mirror(directory):
    result = tpu("keep", "--domain", "legal")
    assert result.returncode == 2 and "--mirror" in result.stderr and calls(directory, describe=True) == []


def test_the_other_commands(directory):
    assert tpu("status").stdout == "slice: NONE\n"
    tpu("create")
    (directory / "host" / "next").write_text("running\n")
    assert tpu("status").stdout == "slice: ACTIVE\nrun: running\n"
    assert tpu("fetch", str(directory / "here")).returncode == 0
    assert (
        f"[scp] [--recurse] [em-jax:em_jax/runs] [{directory}/here]" in calls(directory)[-1]
        and (directory / "here").is_dir()
    )
    assert tpu("stop").returncode == 0
    assert "pkill -TERM" in calls(directory)[-1] and "[--worker=all]" in calls(directory)[-1]
    wrong = tpu("fly")
    assert wrong.returncode == 2 and "unknown command fly" in wrong.stderr


def test_a_slice_that_fails_is_reported(directory):
    (directory / "host" / "slice").write_text("FAILED\n")
    write_program(directory / "bin", "gcloud", RECORD + 'case "$4" in describe) echo FAILED ;; esac\n')
    result = tpu("create")
    assert result.returncode == 1 and "found it FAILED" in result.stderr


def test_slurm_gives_each_process_its_gpus_and_requeues_when_time_is_up(directory):
    write_program(directory / "bin", "scontrol")
    # Like SLURM, signals the tasks of the job's steps and not srun, which would kill them.
    write_program(directory / "bin", "scancel", RECORD + 'kill -TERM "$(cat "$HOST/task")"\n')
    write_program(directory / "bin", "srun", RECORD + 'echo "gpus $JAX_LOCAL_DEVICE_IDS" >>"$CALLS"\n')
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(directory)}
    command = ["bash", SLURM, "--domain", "legal"]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0
    output = (directory / "calls").read_text().splitlines()
    assert output[0].endswith("[-m] [em_jax.launch] [--domain] [legal]") and output[1] == "gpus 0,1,2,3"
    write_program(directory / "bin", "srun", "#!/usr/bin/env bash\nexit 1\n")
    assert subprocess.run(command, env=environment, timeout=60).returncode == 1
    ending = 'trap \'echo saved >>"$CALLS"; exit 1\' TERM\necho began >>"$CALLS"\nwhile :; do sleep 0.05; done\n'
    write_program(directory / "bin", "task", "#!/usr/bin/env bash\n" + ending)
    killing = 'task & echo $! >"$HOST/task"; trap "kill -KILL $!" TERM\n'
    waiting = "while ! wait $!; do kill -0 $! || exit 1; done\n"
    write_program(directory / "bin", "srun", "#!/usr/bin/env bash\n" + killing + waiting)
    process = subprocess.Popen(command, env=environment)
    while "began" not in (directory / "calls").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert (directory / "calls").read_text().splitlines()[-3:] == [
        "scancel [--signal=TERM] [7]",
        "saved",
        "scontrol [requeue] [7]",
    ]


def test_sky_uses_the_first_node_as_coordinator(directory, monkeypatch):
    write_program(directory / ".venv" / "bin", "python")
    monkeypatch.chdir(directory)
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = os.environ | nodes | {"FLAGS": "--domain legal"}
    subprocess.run(["bash", "-c", SKY["run"]], env=environment, check=True, timeout=60)
    assert (directory / "calls").read_text().strip() == (
        "python [-m] [em_jax.launch] [--domain] [legal] [--coordinator] [10.0.0.1:8476] [--num_processes] [2] "
        "[--process_id] [1]"
    )
