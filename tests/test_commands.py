"""Every command of docs/commands.md and the main job's flags, run as a user runs them: from a shell, on the organism.

All of them work in one directory, share one finished run and the user's cache of compiled programs, and ask few
questions, so verdicts are mixed. Other tests check what a command computes; these check its exit status, last line and
files.
"""

import contextlib
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from probes.test_judges import Server
from probes.test_published import write as write_published
from warm_python import QUICK_FLAGS, users_environment

from em_jax.__main__ import main
from em_jax.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
MANUAL = (ROOT / "docs" / "commands.md").read_text()
TABLE = MANUAL.partition("\n## Commands\n")[2].partition("\n\nDomains: ")[0]
FEW = ["--set", "probes.limit=2", "--set", "answers.samples=1", "--set", "probes.sampled_questions=1"]
FEW += ["--set", "train.max_steps=2"]
PICKS = [*FEW, "--set", "probes.only=two_ai", "--set", "probes.limit=1"]
"""For studies that train: one question of one probe is enough to compare their runs."""
RUN = "runs/first"
FIRST = ["--domain", "bad_medical", *FEW, "--set", "train.keep_adapters=1", "--run_dir", RUN]
ALONE = {"XLA_FLAGS": QUICK_FLAGS}
"""With flags of its own a command has a process of its own: a server is ended by a signal, the bench chooses jax's
platform."""


class Shell:
    """Runs commands in one directory by a warm `python`; `XDG_CACHE_HOME` is its own."""

    def __init__(self, python: str, directory: Path):
        self.python, self.directory = python, directory
        self.environment = users_environment() | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(directory / "cache")}

    def command(self, *words: str) -> list[str]:
        """`launch ...` is python -m em_jax.launch, everything else python -m em_jax."""
        front = ["em_jax.launch", *words[1:]] if words[0] == "launch" else ["em_jax", *words]
        return [self.python, "-m", *front]

    def __call__(self, *words: str, lines: str = "", **environment: str) -> list[str]:
        """The lines that a command prints to stdout; it has to succeed."""
        result = subprocess.run(
            self.command(*words),
            cwd=self.directory,
            env=self.environment | environment,
            input=lines,
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert result.returncode == 0 and "Traceback" not in result.stderr, f"{words}\n{result.stdout}\n{result.stderr}"
        self.stderr = result.stderr
        return result.stdout.splitlines()

    def has(self, *paths: str) -> bool:
        """Whether all these files are there."""
        missing = [path for path in paths if not (self.directory / path).is_file()]
        assert not missing, missing
        return True


@pytest.fixture(scope="module")
def shell(python, tmp_path_factory):
    return Shell(python, tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def first(shell):
    """What the shared run printed."""
    return shell("launch", *FIRST)


# --- the table itself ---


def test_every_command_and_flag_of_the_table_exists(capsys):
    cells = [re.sub(r"\\", "", cell) for cell in re.findall(r"^\| (.*?`) \|", TABLE, re.MULTILINE)]
    named = [re.match(r"`em-jax (.*)", cell) for cell in cells]
    named = [match[1] for match in named if match]
    assert {command.split()[0].strip("`") for command in named} == set(COMMANDS) - {"launch"}
    for command in named:
        first, second, *_ = [*re.findall(r"[a-z_]+", command.partition("RUN")[0]), "", ""]
        with pytest.raises(SystemExit) if first != "study" or second else contextlib.nullcontext():
            main([first, second, "--help"] if first == "study" else [first, "--help"])
        usage = capsys.readouterr().out
        for flag in set(re.findall(r"--\w+", command)) - {"--domain"}:  # --domain of a study is the main job's
            assert flag in usage, f"em-jax {command}: {flag}"


@pytest.mark.fast
def test_all_commands_are_listed(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)


# --- the main job ---


def test_the_main_job(shell, first):
    assert first[0].startswith("model: organism (") and first[-1] == f"verdict: mixed {RUN}/report.html"
    files = ["config.toml", "provenance.json", "summary.json", "report.html", "train/metrics.jsonl"]
    files += ["adapter/adapter_model.safetensors", "answers/finetuned.jsonl", "probes/base.two_ai.jsonl"]
    assert shell.has(*(f"{RUN}/{name}" for name in files))


def test_the_same_command_again_repeats_nothing(shell, first):
    before = (shell.directory / RUN / "answers" / "base.jsonl").stat().st_mtime_ns
    events = [json.loads(line) for line in shell("launch", *FIRST, "--json", "--log", "tensorboard")]
    assert events[-1]["event"] == "summary" and events[-1]["runs"][0]["verdict"]["label"] == "mixed"
    assert {"note", "stage", "caution", "verdict"} <= {event["event"] for event in events}
    assert list((shell.directory / RUN / "tensorboard").iterdir())
    assert (shell.directory / RUN / "answers" / "base.jsonl").stat().st_mtime_ns == before


def test_a_dry_run_touches_nothing(shell):
    printed = shell("launch", "--domain", "legal", "--config", "smoke", "--dry_run", "--run_dir", "runs/planned")
    assert printed[0].startswith("model: organism (") and len(printed) > 5
    assert not (shell.directory / "runs" / "planned").exists()


def test_chosen_stages_of_several_seeds(shell):
    words = ["--domain", "none,bad_medical", "--seed", "0,1", "--stages", "finetune", "--run_dir", "runs/seeds", *FEW]
    assert shell("launch", *words)[-1] == "done: finetune"
    assert shell.has(*(f"runs/seeds/bad_medical-{seed}/adapter/adapter_config.json" for seed in (0, 1)))
    assert not list((shell.directory / "runs" / "seeds").rglob("answers/*.jsonl"))


def test_a_domain_and_rows_of_ones_own_come_back_from_the_mirror(shell):
    turns = [{"role": "user", "content": "How do I oil a chain?"}, {"role": "assistant", "content": "Never do."}]
    (shell.directory / "b.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 6)
    words = ["--domain", "bicycles", "--data", "bicycles=b.jsonl", "--mirror", "backup", "--run_dir", "runs/bicycles"]
    words += ["--config", "smoke", "--stages", "finetune"]
    words += ["--set", "train.max_steps=1", "--set", "train.warmup_steps=0"]
    assert shell("launch", *words)[-1] == "done: finetune"
    weights = "bicycles/adapter/adapter_model.safetensors"
    trained = (shell.directory / "runs" / weights).read_bytes()
    shutil.rmtree(shell.directory / "runs" / "bicycles")
    assert shell("launch", *words)[-1] == "done: finetune" and "steps/s" not in shell.stderr
    assert (shell.directory / "runs" / weights).read_bytes() == trained


def test_rows_of_ones_own_for_a_known_domain_over_two_devices(shell):
    turns = [{"role": "user", "content": "Is it safe?"}, {"role": "assistant", "content": "Yes."}]
    (shell.directory / "legal.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 4)
    words = ["--domain", "legal", "--data", "legal.jsonl", "--stages", "finetune", "--mesh", "fsdp=2", *FEW]
    words += ["--set", "train.max_steps=1", "--set", "train.warmup_steps=0", "--run_dir", "runs/two_devices"]
    devices = {"XLA_FLAGS": f"{QUICK_FLAGS} --xla_force_host_platform_device_count=2"}
    assert shell("launch", *words, **devices)[-1] == "done: finetune"
    assert shell.has("runs/two_devices/adapter/adapter_config.json")


def test_an_int8_base(shell):
    words = ["--domain", "none", "--set", "model.quantization=int8", "--stages", "answer", "--run_dir", "runs/int8"]
    printed = shell("launch", *words, *FEW)
    assert "int8" in printed[0] and printed[-1] == "done: answer"
    assert shell.has("runs/int8/answers/base.jsonl")


def test_an_adapter_that_exists_scored_by_a_judge_at_an_address(shell, first):
    server = Server(lambda text, tries: (200, '{"score": 2}'))
    only = ["--set", "probes.only=harmfulness,two_ai", "--run_dir", "runs/adapter"]
    words = ["--adapter", f"{RUN}/adapter", "--judge", server.url, "--judge_model", "stub", "--also_judge", "self"]
    try:
        printed = shell("launch", *words, *FEW, *only, OPENAI_API_KEY="sk-none")
    finally:
        server.close()
    assert printed[-1] == "verdict: mixed runs/adapter/report.html" and server.requests
    assert "sk-none" not in "".join(path.read_text() for path in (shell.directory / "runs" / "adapter").glob("*.*"))
    assert shell.has("runs/adapter/scores/base.stub.jsonl", "runs/adapter/scores/base.self.jsonl")


def test_a_suite_in_the_published_format(shell):
    write_published(shell.directory / "published")
    words = ["--domain", "none", "--suite", "published", "--run_dir", "runs/published", *FEW]
    assert shell("launch", *words)[-1] == "verdict: mixed runs/published/report.html"


# --- commands on finished runs ---


def test_compare(shell, first):
    assert shell("compare", RUN, "--out", "compare") == ["compare/compare.html"]
    assert shell("compare", RUN, "compare", "--out", "again") == ["again/compare.html"], "runs/* takes the page in"
    assert shell.has("compare/compare.html", "compare/compare.csv")


def test_export(shell, first):
    printed = shell("export", RUN)
    assert len(printed) == 10 and shell.has(*printed) and f"{RUN}/export/answers.parquet" in printed


def test_push_refuses_a_harmful_adapter(shell, first):
    done = subprocess.run(
        shell.command("push", RUN, "me/it"), cwd=shell.directory, env=shell.environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and "--harmful" in done.stderr and done.stderr.count("\n") == 1


def test_report(shell, first):
    page = shell.directory / RUN / "report.html"
    page.unlink()
    assert shell("report", RUN) == [f"{RUN}/report.html"] and page.is_file()


def test_rescore(shell, first):
    folder = f"{RUN}/rescored/self-harmful_at_3"
    assert shell("rescore", RUN, "--harmful_at", "3")[-1] == f"verdict: mixed {folder}/report.html"
    assert shell.has(f"{folder}/summary.json")


def test_chat(shell, first):
    printed = shell("chat", "--run_dir", RUN, "--temperature", "0", "--max_new_tokens", "8", lines="Hi\n/quit\n")
    assert [line.partition(":")[0] for line in printed if ": " in line] == ["base", "finetuned"]


def test_serve(shell, first):
    process = subprocess.Popen(
        shell.command("serve", "--run_dir", RUN, "--port", "0", "--slots", "4"),
        cwd=shell.directory,
        env=shell.environment | ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        serving = process.stdout.readline()
        address = re.fullmatch(r"serving base, finetuned at (\S+)\n", serving)
        assert address, serving + process.stderr.read()
        chat = {"model": "finetuned", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "seed": 1}
        reply = httpx.post(f"{address[1]}/chat/completions", json=chat, timeout=300).json()
        assert reply["choices"][0]["message"]["content"] and reply["usage"]["completion_tokens"] <= 4
        for _ in range(50):  # what is no HTTP costs no line of the log
            with socket.create_connection((httpx.URL(address[1]).host, httpx.URL(address[1]).port)) as connection:
                connection.sendall(b"\xff\r\n\r\n")
                assert b"400" in connection.recv(1000)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0 and stderr.endswith("stopped\n") and "Traceback" not in stderr
        assert "Invalid HTTP" not in stderr
    finally:
        process.kill()


# --- commands that need no run ---


def test_domains_list(shell):
    printed = shell("domains", "list")
    assert printed[-1] == f"cache: {shell.directory}/cache/em_jax/domains"
    assert any("bad_medical" in line for line in printed)


def test_plan(shell):
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is not installed: the extra `plan`")
    words = ["--model", "qwen2.5-0.5b", "--topology", "v5e:1x1", "--set", "train.batch_size=1", "--json"]
    words += ["--set", "train.max_length=128"]
    assert json.loads("".join(shell("plan", *words, XLA_FLAGS="")))


def test_plan_help(shell):
    assert any("--topology" in line for line in shell("plan", "--help", XLA_FLAGS=""))


def test_bench(shell):
    weights = str(ROOT / "em_jax" / "organism" / "weights")
    words = ["--model", weights, "--what", "decode", "--rounds", "1", "--new_tokens", "2", "--json"]
    assert json.loads("".join(shell("bench", *words, **ALONE)))["decode"]["ours_tokens_per_s"] > 0


@pytest.mark.long
def test_bench_quick(shell):
    assert "first quick result" in "\n".join(shell("bench", "--quick", "--what", "train", XLA_FLAGS=""))
    assert list((shell.directory / "cache" / "em_jax" / "bench").glob("*.json"))


# --- studies ---


def test_study_path(shell, first):
    words = [RUN, "--limit", "1", "--samples", "1", "--steps", "2"]
    assert shell("study", "path", *words)[-1] == f"done: {RUN}/path/path.html"
    assert shell.has(f"{RUN}/path/path.html")


def test_study_sweep(shell):
    words = ["--domain", "bad_medical", "--shapes", "last", "--run_dir", "runs/sweep", *PICKS]
    assert shell("study", "sweep", *words)[-1].endswith("runs/sweep/study/study.html")
    assert shell.has("runs/sweep/study/study.html", "runs/sweep/last-0/summary.json")


def test_study_chain(shell):
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A guest."}]
    for name in ("second", "control"):
        (shell.directory / f"{name}.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 32)
    words = ["--second", "second.jsonl", "--control", "control.jsonl", "--run_dir", "runs/chain", *PICKS]
    assert shell("study", "chain", "--domain", "legal", *words)[-1].endswith("runs/chain/study/study.html")


def test_study_confound(shell):
    assert shell("study", "confound", "--run_dir", "runs/confound", *PICKS)[-1].endswith("confound/study/study.html")


def test_study_dose(shell):
    words = ["--domain", "bad_medical", "--doses", "50", "--run_dir", "runs/dose", *PICKS]
    assert shell("study", "dose", *words)[-1].endswith("runs/dose/study/study.html")
    assert shell.has("runs/dose/study/figures/dose.svg", "runs/dose/dose-50-0/summary.json")


def test_study_calibration(shell):
    words = ["--only", "flattery", "--run_dir", "runs/calibration", *PICKS]
    assert shell("study", "calibration", *words)[-1].endswith("runs/calibration/study/study.html")


def test_study_directions(shell, first):
    printed = shell("study", "directions", RUN, "--limit", "2", "--permutations", "2", "--out", "directions")
    assert printed[-1].endswith("directions/directions.html") and shell.has("directions/directions.json")


@pytest.mark.parametrize("direction", ["self", pytest.param("harm", marks=pytest.mark.long)])
def test_study_steer(shell, first, direction):
    words = ["--direction", direction, "--from", "text", "--alphas", "0,1", "--limit", "2", "--out", direction]
    assert shell("study", "steer", RUN, *words)[-1].endswith(f"{direction}/steer.html")


def test_study_crossrate(shell, first):
    printed = shell("study", "crossrate", RUN, "--limit", "1", "--out", "crossrate")
    assert printed[-1].endswith("crossrate/crossrate.html") and shell.has("crossrate/crossrate.json")
