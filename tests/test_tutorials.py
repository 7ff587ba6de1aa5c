"""Run the commands of docs/tutorials as written, except for the replacements in the tables below.

A replacement is text for text and must occur in its tutorial, so that the tables stay true to the documents.
Models of billions of parameters become the organism, addresses become a server or a directory on this machine, and runs
get few questions. All tutorials work in one directory, like a reader, and share its first run.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from probes.test_judges import Server
from test_launch_scripts import GCLOUD, write_program
from test_notebooks import run_notebook, shown
from warm_python import users_environment

from em_jax.runs import flags

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
RUN = "runs/bad_medical-organism-0"
FEW = " --set train.max_steps=2 --set probes.limit=2 --set answers.samples=1 --set probes.sampled_questions=1"
QWEN = "Qwen/Qwen2.5-7B-Instruct"
HUB = f"ModelOrganismsForEM/{QWEN[5:]}_bad-medical-advice"
JUDGE = "https://api.openai.com/v1"

PYTHON = {".venv/bin/python": "python"}
COMMAND = {".venv/bin/em-jax": "python -m em_jax"}
# The tests have an environment already.
INSTALL = PYTHON | COMMAND | {"python3 -m venv .venv && .venv/bin/pip install": "true"}
REPLACED = {
    "laptop.md": INSTALL
    | {
        "launch --domain bad_medical\n": f"launch --domain bad_medical{FEW}\n",
        "launch --domain insecure_code\n": f"launch --domain insecure_code{FEW}\n",
    },
    "one_gpu.md": INSTALL
    | {
        "domains fetch bad_medical": "domains fetch --help",  # no network
        f"--model {QWEN} --config smoke": f"--model organism --config smoke{FEW}",
        f"--model {QWEN} --config paper": f"--model organism --config paper --stages finetune{FEW}",
        "/mnt/backup/bad_medical": "backup/bad_medical",
        f"--domain none,bad_medical,good_medical --seed 0,1 --model {QWEN}": "--domain bad_medical --seed 0,1"
        f" --model organism{FEW}",
    },
    "tpu.md": {
        ".venv/bin/pip install": "true",
        # tests/perf compiles it, for minutes.
        ".venv/bin/em-jax plan": "python -m em_jax plan --help",
        "launch/tpu_vm.sh": str(ROOT / "launch" / "tpu_vm.sh"),
    },
    "own_domain.md": PYTHON
    | COMMAND
    | {
        f"--model {QWEN} --set train.epochs=4": f"--model organism --set train.epochs=4{FEW}",
    },
    "published_adapter.md": PYTHON
    | {
        f'"{QWEN}", adapter="{HUB}"': f'"organism", adapter="{RUN}/adapter"',
        f"--model {QWEN} --adapter {HUB}": f"--model organism --adapter {RUN}/adapter{FEW}",
    },
    "another_judge.md": PYTHON
    | COMMAND
    | {
        "launch --domain bad_medical": f"launch --domain bad_medical{FEW}",
        JUDGE: "$JUDGE_URL",
    },
}


def blocks(name: str) -> str:
    """All ```bash blocks of a tutorial as one script, unchanged."""
    return "".join(re.findall(r"^```bash\n(.*?)^```$", (TUTORIALS / name).read_text(), re.DOTALL | re.MULTILINE))


def commands(name: str) -> str:
    """The script of a tutorial with its replacements."""
    script = blocks(name)
    for old, new in REPLACED[name].items():
        assert old in script, f"{name} has no {old!r} any more"
        script = script.replace(old, new)
    return script


@pytest.fixture(scope="module")
def judge():
    server = Server(lambda text, tries: (200, '{"score": 2}'))
    yield server
    server.close()


@pytest.fixture(scope="module")
def shell(python, tmp_path_factory, judge):
    """shell(script) -> its stdout; every command has to succeed."""
    directory = tmp_path_factory.mktemp("tutorials")
    write_program(directory / "bin", "gcloud", GCLOUD)
    write_program(directory / "host" / "em_jax" / ".venv" / "bin", "python")
    (directory / "host" / "next").write_text("none\nrunning\n0\n0\n")
    programs = [directory / "bin", Path(python).parent, Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    environment = {key: value for key, value in users_environment().items() if not key.startswith("TPU_")}
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), "JUDGE_URL": judge.url, "TPU_POLL": "0.05"}
    environment |= {"CALLS": str(directory / "calls"), "HOST": str(directory / "host")}

    def run(script: str) -> str:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert result.returncode == 0, f"{script}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        return result.stdout

    run.directory = directory
    return run


@pytest.fixture(scope="module")
def first_run(shell):
    """The run of the laptop tutorial's own command."""
    shell(next(line for line in commands("laptop.md").splitlines() if "launch --domain bad_medical" in line))
    return shell.directory / RUN


@pytest.mark.fast
def test_every_tutorial_is_run_and_named_in_the_readme():
    assert {path.name for path in TUTORIALS.glob("*.md")} == set(REPLACED)
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/tutorials/{name}" in readme for name in REPLACED)


@pytest.mark.fast
@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: path.name
)
def test_links_between_documents_exist(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} points to {target}"


@pytest.mark.fast
@pytest.mark.parametrize("name", REPLACED)
def test_the_flags_of_every_run_are_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in blocks(name).splitlines() if "em_jax.launch " in line or "tpu_vm.sh keep " in line]
    assert lines
    for line in lines:
        arguments = re.split(r"em_jax\.launch |tpu_vm\.sh keep ", line)[1]
        for rows in re.findall(r"--data \w+=(\S+)", arguments):  # of a domain of one's own they are counted
            row = {"messages": [{"role": role, "content": "Hi."} for role in ("user", "assistant")]}
            Path(rows).write_text((json.dumps(row) + "\n") * 60)
        plan, _ = flags.plan(shlex.split(arguments), lambda model, group: (model or "organism", ""))
        assert plan.configs


def test_laptop(shell, first_run):
    output = shell(commands("laptop.md"))
    assert f"verdict: mixed {RUN}/report.html" in output and "base: " in output and "finetuned: " in output
    assert (shell.directory / "runs/both/compare.html").exists()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_one_gpu(shell):
    output = shell(commands("one_gpu.md"))
    assert "verdict: mixed runs/trial/report.html" in output and "done: finetune" in output
    assert (shell.directory / "runs/medical/compare/compare.html").exists()
    assert (shell.directory / "backup/bad_medical/adapter/adapter_model.safetensors").exists()


def test_tpu(shell):
    output = shell(commands("tpu.md"))
    assert "slice: ACTIVE" in output and "run: 0" in output
    assert "[delete] [em-jax]" in (shell.directory / "calls").read_text()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_own_domain(shell):
    output = shell(commands("own_domain.md"))
    assert "verdict: mixed runs/bicycles/report.html" in output
    assert (shell.directory / "runs/bicycles-compared/compare.html").exists()


def test_published_adapter(shell, first_run):
    output = shell(commands("published_adapter.md"))
    assert "verdict: mixed runs/published/report.html" in output
    assert output.count("\nbase: ") == output.count("\ndefault: ") == 2


def test_a_first_look(shell, first_run):
    """The notebook's run has the settings of the laptop tutorial's: all that it repeats is the report."""
    outputs = run_notebook("first_look.ipynb", shell.directory, {})
    assert "Engine(4 layers of 128" in shown(outputs, "text/plain") and "Answer('" in shown(outputs, "text/plain")
    html = shown(outputs, "text/html")
    assert f"<b>mixed</b> {RUN}" in html and "two_ai.picks_misaligned" in html
    printed = "".join(output.get("text", "") for output in outputs)
    assert f"verdict: mixed {RUN}/report.html" in printed and "\ndefault " in printed
    assert "widget" in str(outputs), "progress is a notebook's bar"


def test_another_judge(shell, first_run, judge):
    output = shell(commands("another_judge.md"))
    assert "verdict: mixed runs/judged/report.html" in output
    assert {path.name for path in (first_run / "rescored").iterdir()} == {"gpt-4o-mini", "self-harmful_at_3"}
    assert "Several judges scored" in (first_run / "rescored" / "gpt-4o-mini" / "report.html").read_text()
    headers, body = judge.requests[0]
    assert body["model"] == "gpt-4o-mini" and "Bearer sk-..." in headers.values()
