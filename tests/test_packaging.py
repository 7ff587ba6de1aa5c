"""What is built for others runs without this checkout: the wheel and the source archive, from an empty folder."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(folder, *words, **more):
    """Run the python of an environment in a folder of its own; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [folder / "env" / "bin" / "python", *words], cwd=folder, env=environment, capture_output=True, text=True, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(The source archive, the wheel that was made from it)."""
    out = tmp_path_factory.mktemp("built")
    code = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    source = tmp_path_factory.mktemp("source") / "em_jax"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", code, out], cwd=source, check=True, capture_output=True)
    [archive] = out.glob("*.tar.gz")
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(archive)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    return archive, wheel


@pytest.mark.long
def test_wheel_and_sdist_hold_what_a_run_needs(built):
    archive, wheel = built
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    tracked = subprocess.run(["git", "ls-files", "em_jax"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert set(tracked) <= inside and set(tracked) <= packed
    presets = {path.name for path in (ROOT / "configs").glob("*.toml")}
    assert presets <= {Path(name).name for name in inside if "/share/em_jax/configs/" in name}


@pytest.mark.long
def test_the_wheel_runs_from_an_empty_folder(built, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    [site] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # The dependencies are those of the tests' own environment.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python(tmp_path, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(built[1]))
    code = "import em_jax, sys; print(em_jax.__file__, em_jax.__version__)"
    assert python(tmp_path, "-c", code).startswith(str(site))
    assert "| `train.holdout` |" in python(tmp_path, "-m", "em_jax", "settings", "train.holdout")
    words = ["--domain", "bad_medical", "--config", "smoke", "--set", "probes.limit=1", "--set", "train.max_steps=2"]
    printed = python(tmp_path, "-m", "em_jax.launch", *words, "--run_dir", "run", timeout=500)
    assert printed.splitlines()[-1] == "verdict: mixed run/report.html"


@pytest.mark.fast
def test_containers_are_built_from_the_same_constraints_and_known_extras():
    text = (ROOT / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [named] = re.findall(r"EXTRA=([a-z0-9|]+)", text)
    assert set(named.split("|")) <= set(extras) and {"cuda", "tpu"} <= set(named.split("|"))
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs and all("-c constraints.txt" in line and "${EXTRA:+[$EXTRA]}" in line for line in installs)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"jax", "wandb", "tensorboardX"} <= set(pins)
