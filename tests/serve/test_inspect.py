"""A real Inspect task examines a run through the command `em_jax.serve`."""

import os
import pathlib
import subprocess

from serve.conftest import python_with, served_run


def test_an_inspect_task_runs_against_a_run_of_the_organism(tmp_path):
    python = python_with("inspect_ai", "EM_JAX_INSPECT_PYTHON")
    with served_run(tmp_path / "run", steps=20) as (address, errors):
        task = pathlib.Path(__file__).with_name("inspect_task.py")
        found = subprocess.run(
            [python, str(task), address, str(tmp_path / "logs"), "base", "finetuned"],
            capture_output=True, text=True, timeout=500, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr[-2000:]
        for name, said in zip(("base", "finetuned"), found.stdout.splitlines()[-2:], strict=True):
            assert said.startswith(f"{name} success 4 ") and int(said.split()[3]) >= 1
    assert "wrong on purpose" in errors[0]
