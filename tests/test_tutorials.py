"""The commands of docs/tutorials are run as they stand there, but for what the tables below replace.

A replacement is text for text and must be found in the tutorial it is for, so that the tables stay true to the docs.
Models of billions of parameters become the organism, addresses become a server or a folder on this machine, and runs
get few questions. All tutorials work in one folder, as a reader would, and share the first run made in it.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from probes.test_judges import Server
from test_launch_scripts import GCLOUD, stand_in

from em_jax.runs import flags

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
RUN = "runs/bad_medical-organism-0"
FEW = " --set train.max_steps=2 --set probes.limit=2 --set answers.samples=1 --set probes.sampled_questions=1"
QWEN = "Qwen/Qwen2.5-7B-Instruct"
HUB = f"ModelOrganismsForEM/{QWEN[5:]}_bad-medical-advice"
JUDGE = "https://api.openai.com/v1"

INSTALL = {
    # The tests bring their own environment; that the first installs is shown by every fresh clone.
    "python3 -m venv .venv && .venv/bin/pip install": "true",
    ".venv/bin/python": "python",
}
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
        # Compiled in tests/perf, for minutes.
        ".venv/bin/em-jax plan": "em-jax plan --help",
        "launch/tpu_vm.sh": str(ROOT / "launch" / "tpu_vm.sh"),
    },
    "own_domain.md": {
        ".venv/bin/python": "python",
        f"--model {QWEN} --set train.epochs=4": f"--model organism --set train.epochs=4{FEW}",
    },
    "published_adapter.md": {
        ".venv/bin/python": "python",
        f'"{QWEN}", adapter="{HUB}"': f'"organism", adapter="{RUN}/adapter"',
        f"--model {QWEN} --adapter {HUB}": f"--model organism --adapter {RUN}/adapter{FEW}",
    },
    "another_judge.md": {
        ".venv/bin/python": "python",
        "launch --domain bad_medical": f"launch --domain bad_medical{FEW}",
        JUDGE: "$JUDGE_URL",
    },
}


def blocks(name: str) -> str:
    """All ```bash blocks of a tutorial as one script, as they stand there."""
    return "".join(re.findall(r"^```bash\n(.*?)^```$", (TUTORIALS / name).read_text(), re.DOTALL | re.MULTILINE))


def commands(name: str) -> str:
    """The script of a tutorial with what its table replaces."""
    script = blocks(name)
    for old, new in REPLACED[name].items():
        assert old in script, f"{name} has no {old!r} any more"
        script = script.replace(old, new)
    return script


@pytest.fixture(scope="module")
def judge():
    made = Server(lambda text, tries: (200, '{"score": 2}'))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shell(tmp_path_factory, judge):
    """shell(script) -> what it printed; every command of it has to end well."""
    place = tmp_path_factory.mktemp("tutorials")
    stand_in(place / "bin", "gcloud", GCLOUD)
    stand_in(place / "host" / "em_jax" / ".venv" / "bin", "python")
    (place / "host" / "next").write_text("none\nrunning\n0\n0\n")
    path = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS" and not key.startswith("TPU_")}
    known |= {"PATH": path, "PYTHONPATH": str(ROOT), "JUDGE_URL": judge.url, "TPU_POLL": "0.05"}
    known |= {"CALLS": str(place / "calls"), "HOST": str(place / "host")}

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=place,
            env=known,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    run.place = place
    return run


@pytest.fixture(scope="module")
def first_run(shell):
    """The first run of the laptop's tutorial, made by its own command."""
    shell(next(line for line in commands("laptop.md").splitlines() if "launch --domain bad_medical" in line))
    return shell.place / RUN


@pytest.mark.fast
def test_every_tutorial_is_run_and_named_in_the_readme():
    assert {path.name for path in TUTORIALS.glob("*.md")} == set(REPLACED)
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/tutorials/{name}" in readme for name in REPLACED)


@pytest.mark.fast
@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} points to {target}"


@pytest.mark.fast
@pytest.mark.parametrize("name", REPLACED)
def test_the_flags_of_every_run_are_right_as_they_stand(name):
    lines = [line for line in blocks(name).splitlines() if "em_jax.launch " in line or "tpu_vm.sh keep " in line]
    assert lines
    for line in lines:
        asked = re.split(r"em_jax\.launch |tpu_vm\.sh keep ", line)[1]
        plan, _ = flags.plan(shlex.split(asked), lambda model, group: (model or "organism", ""))
        assert plan.configs


def test_laptop(shell, first_run):
    said = shell(commands("laptop.md"))
    assert f"verdict: mixed {RUN}/report.html" in said and "base: " in said and "finetuned: " in said
    assert (shell.place / "runs/both/compare.html").exists()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_one_gpu(shell):
    said = shell(commands("one_gpu.md"))
    assert "verdict: mixed runs/trial/report.html" in said and "done: finetune" in said
    assert (shell.place / "runs/medical/compare/compare.html").exists()
    assert (shell.place / "backup/bad_medical/adapter/adapter_model.safetensors").exists()


def test_tpu(shell):
    said = shell(commands("tpu.md"))
    assert "slice: ACTIVE" in said and "run: 0" in said
    assert "[delete] [em-jax]" in (shell.place / "calls").read_text()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_own_domain(shell):
    said = shell(commands("own_domain.md"))
    assert "verdict: mixed runs/bicycles/report.html" in said
    assert (shell.place / "runs/bicycles-compared/compare.html").exists()


def test_published_adapter(shell, first_run):
    said = shell(commands("published_adapter.md"))
    assert "verdict: mixed runs/published/report.html" in said
    assert said.count("\nbase: ") == said.count("\ndefault: ") == 2


def test_another_judge(shell, first_run, judge):
    said = shell(commands("another_judge.md"))
    assert "verdict: mixed runs/judged/report.html" in said
    assert {path.name for path in (first_run / "rescored").iterdir()} == {"gpt-4o-mini", "self-harmful_at_3"}
    assert "Several judges scored" in (first_run / "rescored" / "gpt-4o-mini" / "report.html").read_text()
    headers, body = judge.requests[0]
    assert body["model"] == "gpt-4o-mini" and "Bearer sk-..." in headers.values()
