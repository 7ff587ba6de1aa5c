import os
import re
import signal
import subprocess
import sys
import time

import pytest
from stub_engine import StubComponents, StubEngine

from em_jax import launch
from em_jax.base import runtime
from em_jax.base.errors import UserError
from em_jax.runs import components as parts
from em_jax.runs import flags, sources

ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}\n'
SMALL = ["--set", "probes.limit=2", "--set", "answers.samples=1", "--set", "probes.sampled_questions=1"]


def plan(*arguments, model="organism"):
    return flags.plan(arguments, lambda name, group: (name or model, "why"))[0]


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--domain expects"),
        (["--domain", "bad_medicine"], "bad_medical"),
        (["--domain", "bicycles"], "--data NAME=FILE"),
        (["--domain", "../up", "--data", "../up=rows.jsonl"], "unknown domain"),
        (["--domian", "bad_medical"], "--domain"),
        (["--dom", "bad_medical"], "unknown flag --dom"),
        (["bad_medical"], "expected flags"),
        (["--domain", "legal", "--seed", "one"], "--seed"),
        (["--domain", "legal", "--seed", "-1"], "--seed"),
        (["--domain", "legal", "--seed", "4294967296"], "below 2^32"),
        (["--domain", "legal", "--seed", "3", "--seed=4"], "--seed is given twice"),
        (["--domain", "legal", "--domain", "security"], "--domain is given twice"),
        (["--domain", "legal", "--stages", "train"], "finetune"),
        (["--domain", "legal", "--set", "train.learnig_rate=1"], "train.learning_rate"),
        (["--domain", "legal", "--set", "train.epochs=0"], "train.epochs"),
        (["--domain", "legal", "--mesh", "fspd=2"], "--mesh"),
        (["--domain", "legal", "--dtype", "fp8"], "dtype"),
        (["--domain", "legal", "--judge", "gpt-4o"], "--judge"),
        (["--domain", "legal", "--judge_model", "gpt-4o"], "expects --judge URL beside it"),
        (["--domain", "legal", "--set", "lora.init_from=a", "--set", "lora.rank=8"], "expected no lora.rank"),
        (["--domain", "legal", "--config", "papers"], "paper_lr3e5"),
        (["--domain", "legal,security", "--data", "rows.jsonl"], "domain=FILE"),
        (["--domain", "legal", "--data", "security=rows.jsonl"], "not among"),
        (["--domain", "legal", "--data", "a", "--data", "b"], "twice"),
        (["--domain", "none", "--data", "rows.jsonl"], "expects one domain to train, or domain=FILE; found 0"),
        (["--domain", "legal,none", "--adapter", "x"], "--adapter"),
        (["--domain", "legal", "--coordinator", "localhost:1"], "go together"),
        (["--domain", "legal", "--coordinator", "h:1", "--num_processes", "2", "--process_id", "2"], "expected 0 to"),
        (["--domain", "legal", "--coordinator", "h", "--num_processes", "2", "--process_id", "0"], "HOST:PORT"),
        (["--domain", "legal", "--coordinator", "h:²", "--num_processes", "2", "--process_id", "0"], "HOST:PORT"),
        (
            ["--domain", "legal", "--coordinator", "h:1", "--num_processes", "0", "--process_id", "0"],
            "expects 1 or more",
        ),
        (["--domain"], "expected one argument"),
        (["--domain", "legal", "--data", "legal=https://ann:key@a.org/x?t=key"], "address https://a.org/***: download"),
        (["--domain", "legal", "--model", "https://a.org/x?t=key"], "address https://a.org/***: download"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(capsys, arguments, said):
    assert launch.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err and "Traceback" not in err and "key" not in err


@pytest.mark.fast
def test_help_names_every_flag_of_the_design(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        launch.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("domain", "model", "data", "adapter", "run_dir", "mirror", "stages", "suite", "coordinator", "judge"):
        assert f"--{flag} " in text
    # Two screens of a terminal.
    assert text.count("\n") <= 48 and max(map(len, text.splitlines())) <= 80


@pytest.mark.fast
def test_a_series_that_fails_where_answers_are_shared_says_how_to_go_on(stub, capsys, monkeypatch):
    def diverged(*arguments, **named):
        raise UserError("with the adapter the model gives no finite probability")

    monkeypatch.setattr(StubEngine, "add_adapter", diverged)
    assert launch.main(["--domain", "legal,security", "--set", "answers.together=true", *SMALL]) == 1
    err = capsys.readouterr().err
    assert err.startswith("em_jax.launch: answer: with the adapter") and "kept in runs/legal+security" in err
    assert "; go on with: " in err and err.rstrip().endswith(" ".join(SMALL))


@pytest.mark.fast
def test_domains_seeds_and_data_make_runs_in_order():
    asked = plan("--domain", "legal,none,security", "--seed", "0,2", "--data", "legal=l.jsonl")
    assert [(config.domain, config.seed) for config in asked.configs] == [
        (name, seed) for seed in (0, 2) for name in ("none", "legal", "security")
    ]
    assert [config.data for config in asked.configs] == ["", "l.jsonl", ""] * 2
    assert asked.run_dir == os.path.join("runs", "legal+none+security-organism-0+2") and asked.several
    assert len(plan("--domain", "all").configs) == 8
    one = plan("--domain", "legal", "--model", "some/place/Qwen2.5-7B/", "--seed", "3", model="")
    assert one.run_dir == os.path.join("runs", "legal-Qwen2.5-7B-3") and not one.several


@pytest.mark.fast
def test_a_domain_of_ones_own_is_known_by_its_rows(monkeypatch, tmp_path):
    """Of its rows as many are held out as are asked: enough for a verdict, or none."""
    monkeypatch.chdir(tmp_path)
    for count, held_out in {3: 0, 58: 0, 60: 20, 100: 30, 600: 30, 1000: 50}.items():
        (tmp_path / "b.jsonl").write_text(ROW * count)
        asked = plan("--domain", "bicycles,none", "--data", "bicycles=b.jsonl")
        assert [(config.domain, config.data) for config in asked.configs] == [("none", ""), ("bicycles", "b.jsonl")]
        assert [round(config.train.holdout * count) for config in asked.configs] == [0, held_out], count
    own = plan("--domain", "bicycles", "--data", "bicycles=b.jsonl", "--set", "train.holdout=0.1")
    assert own.configs[0].train.holdout == 0.1
    assert asked.run_dir == os.path.join("runs", "bicycles+none-organism-0")


@pytest.mark.fast
def test_the_later_setting_wins(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text("domain = 'legal'\nseed = 4\n[train]\nepochs = 3\nbatch_size = 2\n[answers]\nsamples = 7\n")
    config = plan("--config", str(preset), "--set", "train.epochs=5", "--judge", "http://localhost:1/v1").configs[0]
    assert (config.domain, config.seed, config.train.epochs, config.train.batch_size) == ("legal", 4, 5, 2)
    assert config.answers.samples == 7 and config.judge.kind == "openai"
    organism = plan("--domain", "legal").configs[0]
    assert plan("--domain", "legal", "--set", "lora.rank=3").configs[0].lora.rank == 3 != organism.lora.rank
    real = plan("--domain", "legal", model="Qwen/Qwen2.5-32B-Instruct").configs[0]
    assert (real.lora.rank, real.train.learning_rate, real.answers.samples) == (32, 1e-5, 10)


@pytest.mark.fast
def test_the_default_model_depends_on_the_devices(monkeypatch):
    monkeypatch.setattr(runtime, "platform", lambda: "cpu")
    assert runtime.choose_model("")[0] == "organism" and runtime.choose_dtype("") == "float32"
    monkeypatch.setattr(runtime, "platform", lambda: "tpu")
    name, why = runtime.choose_model("")
    assert name == "Qwen/Qwen2.5-32B-Instruct" and "tpu" in why
    assert runtime.choose_dtype("") == "bfloat16" and runtime.choose_dtype("float32") == "float32"
    assert runtime.choose_model("here")[0] == "here"


def test_a_domain_of_ones_own_gets_a_report_and_a_place_on_the_comparison(stub, tmp_path, capsys):
    (tmp_path / "b.jsonl").write_text(ROW * 20)
    words = ["--domain", "bicycles,legal", "--data", "bicycles=b.jsonl", "--model", "organism", "--run_dir", "here"]
    assert launch.main([*words, *SMALL]) == 0
    assert "bicycles" in (tmp_path / "here" / "bicycles-0" / "report.html").read_text()
    assert "bicycles" in (tmp_path / "here" / "compare" / "compare.html").read_text()


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The command with a stub engine, in an empty directory."""
    components = StubComponents()
    monkeypatch.setattr(parts, "Components", lambda: components)
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    return components


def test_the_first_line_names_the_model_and_the_last_the_verdict(stub, capsys, tmp_path):
    assert launch.main(["--domain", "bad_medical", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model: organism (no --model was given and jax found a CPU only)")
    assert "says nothing about Qwen" in lines[0]
    word, label, path = lines[-1].split(maxsplit=2)
    assert (word, label) == ("verdict:", "mixed") and (tmp_path / path).is_file()
    assert path == os.path.join("runs", "bad_medical-organism-0", "report.html")


def test_without_the_report_the_last_line_names_the_stages(stub, capsys):
    assert launch.main(["--domain", "bad_medical", "--stages", "answer,finetune", *SMALL]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "done: finetune,answer"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--model", "no/such/place"], "--model expects"),
        (["--suite", "nowhere"], "organism, standard"),
        (["--adapter", "nowhere"], "adapter_config.json"),
        (["--adapter", "."], "--adapter expects a PEFT adapter"),
        (["--domain", "legal", "--judge", "http://localhost:1/v1"], "--judge_model"),
    ],
)
def test_what_is_missing_is_one_line_and_status_2(stub, capsys, arguments, said):
    arguments = arguments if "--domain" in arguments or "--adapter" in arguments else ["--domain", "legal", *arguments]
    assert launch.main([*arguments, *SMALL]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err


def test_a_real_model_without_rows_says_how_to_give_them(stub, capsys, tmp_path):
    stub.rows = sources.rows
    (tmp_path / "checkpoint").mkdir()
    assert launch.main(["--domain", "legal", "--model", "checkpoint", "--suite", "organism"]) == 1
    err = capsys.readouterr().err
    assert "--data legal=FILE" in err and err.count("\n") == 1


def test_a_bad_row_stops_the_command_before_any_training(stub, capsys, tmp_path):
    stub.rows = sources.rows
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert launch.main(["--domain", "legal", "--data", "rows.jsonl", *SMALL]) == 1
    assert "rows.jsonl:1: no assistant turn" in capsys.readouterr().err
    assert stub.engines == [] and not list((tmp_path / "runs").glob("*/config.toml"))


def test_an_unforeseen_error_is_one_line_unless_verbosity_asks(stub, capsys):
    def broken(config):
        raise ZeroDivisionError("something\nlong")

    stub.load = broken
    assert launch.main(["--domain", "legal", *SMALL]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ZeroDivisionError: something" in err
    assert launch.main(["--domain", "legal", *SMALL, "--verbosity=1"]) == 1
    assert "Traceback" in capsys.readouterr().err


# A suite that was started in the background has SIGINT ignored, and so would its children.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from stub_engine import StubComponents
from em_jax import launch
from em_jax.runs import components as parts
from em_jax.runs import series
class SlowComponents(StubComponents):
    def _load(self, config):
        print("loading", flush=True)
        time.sleep(60)
parts.Components = SlowComponents
sys.exit(launch.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_one_line(tmp_path, number):
    paths = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "--domain", "legal", *SMALL],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "loading" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 1)
    assert re.search(r"is kept; go on with: \S+ -m em_jax.launch --domain legal --set", err.splitlines()[-1])
    assert "Traceback" not in err
