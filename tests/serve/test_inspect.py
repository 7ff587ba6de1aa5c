"""A real Inspect task examines a run through the command `em_jax.serve`."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
import tiny


@pytest.fixture
def python():
    """A Python with inspect_ai: this one, or that of EM_JAX_INSPECT_PYTHON where its pins and ours do not agree."""
    if importlib.util.find_spec("inspect_ai"):
        return sys.executable
    return str(tiny.from_environment("EM_JAX_INSPECT_PYTHON", "a Python in which inspect_ai is installed"))


def test_an_inspect_task_runs_against_a_run_of_the_organism(python, tmp_path):
    run = tmp_path / "run"
    words = ["--domain", "bad_medical", "--model", "organism", "--stages", "finetune", "--set", "train.max_steps=20"]
    subprocess.run([sys.executable, "-m", "em_jax.launch", *words, "--run_dir", run], check=True, capture_output=True)
    command = [sys.executable, "-m", "em_jax", "serve", "--run_dir", str(run), "--port", "0", "--slots", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("serving base, finetuned at http://127.0.0.1:"), server.stderr.read()
            task = pathlib.Path(__file__).with_name("inspect_task.py")
            found = subprocess.run(
                [python, str(task), line.split()[-1], str(tmp_path / "logs"), "base", "finetuned"],
                capture_output=True, text=True, timeout=500, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"},
            )  # fmt: skip
            assert found.returncode == 0, found.stderr[-2000:]
            for name, said in zip(("base", "finetuned"), found.stdout.splitlines()[-2:], strict=True):
                assert said.startswith(f"{name} success 4 ") and int(said.split()[3]) >= 1
        finally:
            server.terminate()
        assert server.wait(60) == 0
        assert "wrong on purpose" in server.stderr.read()
