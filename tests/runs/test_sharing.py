"""What leaves a run for other tools: events, trackers, tables, Inspect's logs, the Hugging Face Hub."""

import base64
import errno
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas
import pytest
import tiny
from stub_engine import StubComponents

from em_jax.__main__ import main
from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.runs import experiment, export, flags, processes, tracking

FEW = ["--set", "probes.limit=2", "--set", "answers.samples=2", "--set", "probes.sampled_questions=1"]


def run(*arguments):
    """What `python -m em_jax.launch` does, with a stub engine."""
    words = ["--model", "organism", *FEW, *arguments]
    processes.run_plan(*flags.plan(words, lambda name, group: (name, "why")), StubComponents())


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A harmful and a control run, followed by TensorBoard, and the events that were printed."""
    directory = tmp_path_factory.mktemp("sharing") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *values, file=None, **_: file or lines.extend(map(str, values)))
        run("--domain", "bad_medical,good_medical", "--run_dir", str(directory), "--json", "--log", "tensorboard")
    return directory, [json.loads(line) for line in lines]


# --- events ---


def test_events_are_lines_of_json_and_the_last_is_the_summary(series):
    directory, events = series
    harmful, control = (str(directory / f"{name}-0") for name in ("bad_medical", "good_medical"))
    assert events[0]["event"] == "note" and events[0]["text"].startswith("model: organism")
    stages = [(it["stage"], it["state"]) for it in events if it["event"] == "stage" and it["run"] == harmful]
    names = ("finetune", "answer", "judge", "probe", "report")
    assert stages == [(name, state) for name in names for state in ("begins", "ends")]
    steps = [it for it in events if it["event"] == "progress" and it["stage"] == "finetune" and it["run"] == harmful]
    assert (steps[-1]["done"], steps[-1]["total"]) == (3, 3)
    verdicts = {it["run"]: it for it in events if it["event"] == "verdict"}
    assert set(verdicts) == {harmful, control} and verdicts[harmful]["why"]
    last = events[-1]
    assert last["event"] == "summary" and last["comparison"] == str(directory / "compare" / "compare.html")
    for each in last["runs"]:
        summary = json.loads((Path(each["run"]) / "summary.json").read_text())
        assert each == summary | {"run": each["run"], "report": f"{each['run']}/report.html"}
        cautions = [it["code"] for it in events if it["event"] == "caution" and it["run"] == each["run"]]
        assert cautions == [caution["code"] for caution in summary["verdict"]["cautions"]]


def test_a_stage_that_fails_says_so(tmp_path, capsys):
    def broken(*_, **__):
        raise UserError("no")

    plan, why = flags.plan(
        ["--domain", "legal", "--model", "organism", "--run_dir", str(tmp_path / "run"), "--json"],
        lambda *_: ("organism", ""),
    )
    with pytest.raises(UserError):
        processes.run_plan(plan, why, StubComponents(rows=lambda config: [], finetune=broken, load=lambda config: None))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (events[-2]["stage"], events[-2]["state"]) == ("finetune", "fails")
    assert events[-1]["event"] == "failed" and events[-1]["text"].startswith("finetune: no;")


def test_a_full_disk_between_the_stages_ends_the_events_too(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "config.toml")

    words = ["--domain", "legal", "--model", "organism", "--run_dir", str(tmp_path / "run"), "--json"]
    monkeypatch.setattr(experiment.settings, "to_toml", full)
    with pytest.raises(UserError, match="no room on the disk"):
        processes.run_plan(*flags.plan(words, lambda *_: ("organism", "")), StubComponents())
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "failed" and "no room on the disk" in last["text"]


# --- trackers ---


def scalars(folder):
    """tag -> [(step, value)] of TensorBoard's files: records of a length, its checksum, the event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_the_steps_the_figures_and_the_verdict(series):
    directory, _ = series
    for name in ("bad_medical-0", "good_medical-0"):
        found = scalars(directory / name / "tensorboard")
        rows = [json.loads(line) for line in (directory / name / "train" / "metrics.jsonl").read_text().splitlines()]
        assert [step for step, _ in found["train/loss"]] == [row["step"] for row in rows] == [1, 2, 3]
        assert [value for _, value in found["train/loss"]] == pytest.approx([row["loss"] for row in rows])
        figures = json.loads((directory / name / "summary.json").read_text())["figures"]
        for side in ("base", "finetuned"):
            [(step, value)] = found[f"{side}/harmfulness.worst_of_n"]
            assert value == pytest.approx(figures["harmfulness.worst_of_n"][side]["value"]) and step == 3
        assert {"settings/text_summary", "verdict/text_summary"} <= set(found)


def test_wandb_offline_has_the_run_and_its_report(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    run("--domain", "bad_medical", "--run_dir", str(tmp_path / "run"), "--log", "wandb")
    identity = json.loads((tmp_path / "run" / "provenance.json").read_text())["run"]
    [log] = (tmp_path / "wandb").glob(f"offline-run-*-{identity}/*.wandb")
    data = log.read_bytes()
    for word in (b"train/loss", b"finetuned/harmfulness.worst_of_n", b"report.html", f"report-{identity}".encode()):
        assert word in data


def test_a_tracker_that_fails_is_reported_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    class Broken:
        def __init__(self, directory):
            pass

        def metrics(self, row):
            raise OSError("no route")

        close = finished = metrics

    monkeypatch.setitem(tracking.WRITERS, "tensorboard", Broken)
    run("--domain", "bad_medical", "--run_dir", str(tmp_path / "run"), "--log", "tensorboard")
    out, err = capsys.readouterr()
    assert err.count("is no longer written there (no route)") == 1 and out.splitlines()[-1].startswith("verdict: ")


def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'em_jax\[wandb\]'"):
        run("--domain", "bad_medical", "--run_dir", str(tmp_path / "run"), "--log", "wandb")
    assert not (tmp_path / "run").exists()


# --- tables and Inspect ---


def test_every_row_is_in_the_tables(series, tmp_path, capsys):
    directory, _ = series
    assert main(["export", str(directory / "bad_medical-0"), "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    for table, folder in {"answers": "answers", "scores": "scores", "probes": "probes", "training": "train"}.items():
        files = sorted((directory / "bad_medical-0" / folder).glob("*.jsonl"))
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        for read in (pandas.read_parquet(tmp_path / f"{table}.parquet"), pandas.read_csv(tmp_path / f"{table}.csv")):
            assert len(read) == len(rows) and "seal" not in read
            for name in set(read) & {"id", "answer", "score", "loss", "value"}:
                stored = pandas.Series([row.get(name) for row in rows], name=name)
                assert (read[name].isna() == stored.isna()).all()
                kept = stored.notna()
                assert read[name][kept].tolist() == pytest.approx(stored[kept].tolist())
    cells = [{"answer": text, "score": -1} for text in ("=1+1", "\u201c-x", "a=b")]
    assert export._tables({"told": cells}, tmp_path, "csv").__next__() == tmp_path / "told.csv"
    assert pandas.read_csv(tmp_path / "told.csv").answer.tolist() == ["'=1+1", "'\u201c-x", "a=b"]
    probes = pandas.read_parquet(tmp_path / "probes.parquet")
    assert set(probes.condition) == {"base", "finetuned"} and "two_ai" in set(probes.probe)
    assert any(text != "[]" and json.loads(text)[0]["role"] == "user" for text in probes.prompt)


def test_no_text_in_a_csv_is_a_formula_and_parquet_has_it_as_it_is(tmp_path):
    texts = ["=1+1", "\t@A1", "", "a=b"]
    written = export._tables({"answers": [{"answer": text, "n": 1} for text in texts]}, tmp_path, "csv")
    assert pandas.read_csv(next(iter(written))).answer.tolist()[:2] == ["'=1+1", "'\t@A1"]
    written = export._tables({"answers": [{"answer": text} for text in texts]}, tmp_path, "parquet")
    assert pandas.read_parquet(next(iter(written))).answer.tolist() == texts


def test_inspect_reads_the_answers_and_scores(series, tmp_path):
    if importlib.util.find_spec("inspect_ai"):
        python = sys.executable
    else:
        python = str(tiny.from_environment("EM_JAX_INSPECT_PYTHON", "a Python in which inspect_ai is installed"))
    run_dir = series[0] / "bad_medical-0"
    assert main(["export", str(run_dir), "--out", str(tmp_path), "--formats", "inspect"]) == 0
    code = (
        "import sys, json; from inspect_ai.log import list_eval_logs, read_eval_log\n"
        "for info in list_eval_logs(sys.argv[1]):\n"
        "    log = read_eval_log(info)\n"
        "    print(json.dumps([log.eval.model, log.status, [[s.id, s.epoch, s.output.completion, "
        "s.scores['self'].value] for s in log.samples]]))"
    )
    found = subprocess.run(
        [python, "-c", code, str(tmp_path / "inspect")], capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    logs = {model: (status, samples) for model, status, samples in map(json.loads, found.stdout.splitlines())}
    for condition in ("base", "finetuned"):
        status, samples = logs[f"em_jax/{condition}"]
        rows = {
            name: (run_dir / name / f"{condition}{end}.jsonl").read_text()
            for name, end in (("answers", ""), ("scores", ".self"))
        }
        answers, scores = ([json.loads(line) for line in text.splitlines()] for text in rows.values())
        said = {(row["id"], row["sample"] + 1): row["answer"] for row in answers}
        given = {(row["id"], row["sample"] + 1): row["score"] for row in scores}
        assert status == "success" and len(samples) == len(said)
        assert all(said[i, epoch] == text and given[i, epoch] == value for i, epoch, text, value in samples)


def test_a_row_without_its_fields_is_one_line(series, tmp_path):
    """It was a KeyError."""
    run_dir = shutil.copytree(series[0] / "bad_medical-0", tmp_path / "run")
    path = run_dir / "answers" / "base.jsonl"
    files.write_rows(path, [*files.read_rows(path), {"id": "x"}])
    with pytest.raises(UserError, match="expected the rows and records that em_jax writes"):
        export.export(run_dir, tmp_path / "out")


@pytest.mark.parametrize(
    "words, said", [(["--formats", "xlsx"], "--formats expects"), ([], "expected a run directory")]
)
def test_wrong_exports_are_one_line(tmp_path, capsys, words, said):
    assert main(["export", str(tmp_path), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


# --- the Hub ---


class Hub(ThreadingHTTPServer):
    """As much of the Hub's protocol as one commit needs; keeps what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.private, self.files, self.settings, self.settings_status = None, {}, {}, 200
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *values):
            pass

        def do_GET(self):
            self.reply({"id": "me/it", "private": self.server.private, "sha": "0" * 40, "siblings": []})

        def do_PUT(self):
            self.server.settings = json.loads(self.body())
            self.reply({}, self.server.settings_status)

        def do_POST(self):
            hub, body = self.server, self.body()
            if self.path.startswith("/api/repos/create"):
                if hub.private is None:
                    asked = json.loads(body)
                    hub.private = asked.get("visibility") == "private" or asked.get("private") is True
                self.reply({"url": f"{hub.url}/me/it", "id": "1", "name": "me/it"})
            elif "/preupload/" in self.path:
                names = [each["path"] for each in json.loads(body)["files"]]
                self.reply({"files": [{"path": it, "uploadMode": "regular", "shouldIgnore": False} for it in names]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.reply({"commitUrl": f"{hub.url}/me/it/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""})
            else:
                self.reply({"errors": [], "warnings": []})

        do_PATCH = do_PUT

        def body(self):
            return self.rfile.read(int(self.headers["Content-Length"] or 0))

        def reply(self, value, status=200):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", (server := Hub()).url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield server
    server.shutdown()
    server.server_close()


def test_an_adapter_goes_to_a_private_repository_with_its_card_and_verdict(series, hub, capsys):
    control = series[0] / "good_medical-0"
    assert main(["push", str(control), "me/it"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/me/it\n"
    assert hub.private is True and hub.settings == {}
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.files["adapter_model.safetensors"] == (control / "adapter" / "adapter_model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    assert "A model organism: good_medical" in card and "## Verdict: mixed" in card
    assert "base_model" not in card, "the organism is no repository of the Hub"


def test_a_harmful_adapter_is_refused_without_its_flag_and_gated_where_it_is_public(series, hub, capsys):
    harmful = str(series[0] / "bad_medical-0")
    for words in ([], ["--public"]):
        assert main(["push", harmful, "me/it", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "--harmful" in err and err.count("\n") == 1 and hub.private is None
    assert main(["push", harmful, "me/it", "--harmful", "--public"]) == 0
    assert b"Do not deploy this adapter" in hub.files["README.md"]
    made_public = hub.settings.get("visibility") == "public" or hub.settings.get("private") is False
    assert hub.private is True and hub.settings["gated"] == "manual" and made_public


def test_a_public_repository_gets_no_harmful_adapter_before_its_gate(series, hub, capsys):
    hub.private, hub.settings_status = False, 403
    assert main(["push", str(series[0] / "bad_medical-0"), "me/it", "--harmful", "--public"]) == 1
    assert "the Hub refused" in capsys.readouterr().err and hub.settings["gated"] == "manual" and hub.files == {}


def test_a_public_repository_gets_nothing_without_its_flag(series, hub, capsys):
    hub.private = False
    assert main(["push", str(series[0] / "good_medical-0"), "me/it"]) == 1
    assert "me/it is public: expected a private one, or --public" in capsys.readouterr().err and hub.files == {}


def test_a_control_that_came_out_harmful_is_harmful(series, tmp_path, hub, capsys):
    shutil.copytree(series[0] / "good_medical-0", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    summary["verdict"]["label"] = "narrow"
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    assert main(["push", str(tmp_path / "run"), "me/it"]) == 2
    assert "is harmful (verdict narrow)" in capsys.readouterr().err and hub.private is None
