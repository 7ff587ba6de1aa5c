"""A run directory and its mirror are one run's: links, other runs' mirrors and rows changed by hand are seen."""

import json
import os
import shutil
import socket
import subprocess

import pytest
from runs.test_experiment import config
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax import launch, report
from em_jax.base import files, runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.commands import report as report_command
from em_jax.formats.model_config import config_fields
from em_jax.model.config import TransformerConfig
from em_jax.report.reading import changes, read_run
from em_jax.runs import components as parts
from em_jax.runs import experiment, provenance, rescore, series, stored
from em_jax.serve import models

ANSWERS = "answers/finetuned.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    experiment.run(config(), directory, StubComponents())
    return directory


@pytest.fixture
def run(finished, tmp_path):
    """A finished run to harm."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def drawn(monkeypatch):
    """No page is drawn: it takes most of a stub run's time."""
    monkeypatch.setattr(report, "write", lambda place: files.write_atomic(place / "report.html", "a page"))


def again(directory, **values):
    components = StubComponents()
    components.silent = False
    return experiment.run(config(**values), directory, components)


READERS = {
    "launch": again,
    "report": report.write,
    "rescore": lambda directory: rescore.rescore(directory, components=StubComponents()),
    "serve": lambda directory: models.open_runs([str(directory)]),
    "chat": lambda directory: models.open_runs([str(directory)]),
}


# --- what is no file of the run ---


def linked(path, elsewhere):
    path.unlink()
    path.symlink_to(elsewhere)


def linked_folder(path, elsewhere):
    shutil.move(path.parent, elsewhere.with_name("moved"))
    path.parent.symlink_to(elsewhere.with_name("moved"))


def fifo(path, elsewhere):
    path.unlink()
    os.mkfifo(path)


def bound_socket(path, elsewhere):
    path.unlink()
    os.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def dangling(path, elsewhere):
    path.unlink()
    path.symlink_to(elsewhere.with_name("nothing"))


@pytest.mark.parametrize("name", [ANSWERS, "scores/base.self.jsonl", "config.toml", "provenance.json"])
@pytest.mark.parametrize("put", [linked, linked_folder, fifo, bound_socket, dangling])
def test_nothing_in_a_run_is_followed_or_waited_for(run, tmp_path, put, name, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    if put is linked_folder and "/" not in name:
        name = "adapter/adapter_config.json"
    victim = tmp_path / "thesis.txt"
    victim.write_text("my only copy")
    put(run / name, victim)
    shown = "link|FIFO|socket"
    for reader in READERS.values():
        with pytest.raises(UserError, match=shown):
            reader(run)
    assert victim.read_text() == "my only copy" and not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match=shown):
        again(run, mirror=str(tmp_path / "mirror"))
    assert not (tmp_path / "mirror").exists() and not (run / ".lock").exists()


def test_a_backup_by_hard_links_does_not_grow_with_the_run(run, tmp_path, drawn):
    """As `cp -al` and rsnapshot make one."""
    shutil.copytree(run, tmp_path / "backup", copy_function=os.link)
    path = run / ANSWERS
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 1])
    cut = (tmp_path / "backup" / ANSWERS).read_bytes()
    again(run)
    assert path.read_bytes() == whole and (tmp_path / "backup" / ANSWERS).read_bytes() == cut


def test_cleaning_up_touches_only_files_of_this_run(run, drawn):
    kept = [run / "notes" / ".chapter.partial", run / "notes" / "movie.partial", run / "inner" / ".rows.7.partial"]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("another's")
    (run / "inner" / "config.toml").write_text("")
    ours = run / "scores" / ".base.self.jsonl.4242.partial"
    ours.write_text("half")
    again(run)
    assert all(path.exists() for path in kept) and not ours.exists()


def test_a_refused_start_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        again(tmp_path / "new" / "run", suite=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError):
        again(tmp_path / "new" / "run", mirror=str(tmp_path / "new" / "run" / "mirror"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("left", ["answers", "adapter", "provenance.json", "summary.json"])
def test_rows_without_their_settings_are_no_new_run(run, left, tmp_path):
    (tmp_path / "lost").mkdir()
    shutil.move(run / left, tmp_path / "lost" / left)
    with pytest.raises(UserError, match="no config.toml, which would say"):
        again(tmp_path / "lost")


# --- the mirror ---


@pytest.fixture
def mirrored(tmp_path, drawn):
    again(tmp_path / "b", mirror=str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def tree(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "begun at another time"),
        ({"seed": 1}, "with other settings .seed"),
        ({"train.learning_rate": 0.01}, "with other settings .train.learning_rate"),
        ({"domain": "good_medical"}, "with other settings .domain"),
    ],
)
def test_another_runs_mirror_is_refused(tmp_path, mirrored, values, why):
    again(tmp_path / "a", **values)
    before = tree(tmp_path / "a"), tree(mirrored)
    with pytest.raises(UserError, match=f"is another run's, {why}|is another run's {why}"):
        again(tmp_path / "a", mirror=str(mirrored), **values)
    assert (tree(tmp_path / "a"), tree(mirrored)) == before


def test_a_fresh_machine_takes_a_run_over_with_its_id(tmp_path, mirrored):
    known = provenance.read(tmp_path / "b")["run"]
    again(tmp_path / "fresh", mirror=str(mirrored))
    assert provenance.read(tmp_path / "fresh")["run"] == known
    assert (tmp_path / "fresh" / ANSWERS).read_bytes() == (tmp_path / "b" / ANSWERS).read_bytes()
    with pytest.raises(UserError, match="another run's with other settings .seed"):
        again(tmp_path / "other", mirror=str(mirrored), seed=3)


def test_runs_of_earlier_versions_are_known_by_their_first_start(tmp_path, mirrored):
    for place in (tmp_path / "b", mirrored):
        record = json.loads((place / "provenance.json").read_text())
        del record["run"]
        record["starts"] = ["2026-01-01T00:00:00Z"]
        (place / "provenance.json").write_text(json.dumps(record))
    again(tmp_path / "b", mirror=str(mirrored))
    again(tmp_path / "a")
    with pytest.raises(UserError, match="begun at another time"):
        again(tmp_path / "a", mirror=str(mirrored))


@pytest.mark.parametrize("kind", ["file", "fifo", "documents", "link to a key", "inside", "above", "itself",
                                  "itself by a link", "waits", "never ends", "a circle"])  # fmt: skip
def test_what_is_no_mirror_is_refused(run, tmp_path, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("a tar file, once")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "documents":
        files.write_atomic(place / "thesis.docx", "words")
    elif kind == "link to a key":
        shutil.copytree(run, place)
        (place / "notes").symlink_to("/etc/hostname")
    elif kind in ("waits", "never ends", "a circle"):
        place.mkdir()
        {
            "waits": lambda: os.mkfifo(place / "config.toml"),
            "never ends": lambda: (place / "provenance.json").symlink_to("/dev/zero"),
            "a circle": lambda: (place / "loop").symlink_to(".."),
        }[kind]()
    elif kind == "inside":
        place = run / "mirror"
    elif kind == "above":  # what a first start puts there: a pull brings it into the run, the next push over its files
        run = shutil.copytree(run, place / "run")
        for name in ("config.toml", "provenance.json"):
            shutil.copy(run / name, place)
    elif kind == "itself":
        place = run
    else:
        place.symlink_to(run)
    before = tree(run)
    with pytest.raises(UserError, match="--mirror|is a (link|FIFO)"):
        again(run, mirror=str(place))
    assert tree(run) == before


@pytest.mark.parametrize("lost", ["all", "scores", "summary.json", "half of a file"])
def test_a_mirror_that_was_lost_is_filled_anew(tmp_path, mirrored, lost):
    from em_jax.runs.mirror import Mirror

    mirror = Mirror(tmp_path / "b", str(mirrored))
    mirror.push()
    whole = tree(mirrored)
    if lost == "half of a file":
        (mirrored / ANSWERS).write_bytes(whole[(mirrored / ANSWERS).relative_to(mirrored)][:9])
    elif lost == "summary.json":
        (mirrored / lost).unlink()
    else:
        shutil.rmtree(mirrored / lost if lost != "all" else mirrored)
    assert mirror.push() > 0 and tree(mirrored) == whole
    assert mirror.push() == 0


# --- rows ---


def edited(lines):
    return [*lines[:1], lines[1].replace(b'"sample": ', b'"sample":  '), *lines[2:]]


def without_second(lines):
    return [lines[0], *lines[2:]]


def swapped(lines):
    return [lines[1], lines[0], *lines[2:]]


def written_again(lines):
    return [json.dumps(json.loads(line) | {"more": 1}).encode() for line in lines]


@pytest.mark.parametrize("harm", [edited, without_second, swapped, written_again])
@pytest.mark.parametrize("name", [ANSWERS, "scores/labelled.self.jsonl", "probes/finetuned.two_ai.jsonl"])
def test_rows_changed_by_hand_are_said_in_every_command_and_on_the_page(run, harm, name, capsys, drawn):
    (run / name).write_bytes(b"\n".join(harm((run / name).read_bytes().splitlines())) + b"\n")
    said = f"{name}: rows were changed"
    assert any(said in sentence for sentence in read_run(run).altered)
    report_command.main([str(run)])
    assert said in capsys.readouterr().err
    for command in ("serve", "rescore", "launch"):
        try:
            READERS[command](run)
        except UserError as error:  # what was taken out is asked again
            assert "rescor" in str(error)
        assert command == "rescore" or said in capsys.readouterr().err, command


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda lines: [*lines, lines[0]], "stands in line 1 already"),
        (lambda lines: [lines[0], b"[1, 2]", *lines[1:]], ":2: expected a JSON object"),
        (lambda lines: [lines[0], b'"text"', *lines[1:]], ":2: expected a JSON object"),
        (lambda lines: [*lines[:-1], b"42"], "expected a JSON object"),
        (lambda lines: [lines[0].replace(b'"id"', b'"\xff"'), *lines[1:]], ":1: not UTF-8"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b'"id"', b'"i\xed\xa0\x80d"')], "not UTF-8"),
        (lambda lines: [lines[0][:-1] + b', "sample": 0}', *lines[1:]], "a field stands twice"),
    ],
)
def test_rows_that_no_run_writes_name_file_and_line(run, harm, why, drawn):
    for name in (ANSWERS, "scores/base.self.jsonl"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(b"\n".join(harm(whole.splitlines())) + b"\n")
        with pytest.raises(UserError, match=f"{name}.*{why}|{name}{why}"):
            again(run)
        (run / name).write_bytes(whole)


def test_rows_of_earlier_versions_are_read_and_said_once(run, capsys, drawn):
    for path in (*run.glob("answers/*"), *run.glob("scores/*"), *run.glob("probes/*")):
        rows = files.read_rows(path)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    before = (run / "summary.json").read_bytes()
    again(run)
    lines = [line for line in capsys.readouterr().err.splitlines() if "without a seal" in line]
    assert len(lines) == 1 and ANSWERS in lines[0] and "changed after" not in lines[0]
    assert (run / "summary.json").read_bytes() == before and not read_run(run).altered


@pytest.mark.parametrize(
    "name", [ANSWERS, "scores/base.self.jsonl", "scores/labelled.self.jsonl", "probes/finetuned.two_ai.jsonl"]
)
def test_rows_that_are_gone_are_said_and_asked_again(run, name, capsys, drawn):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 1])
    again(run)
    count = whole.count(b"\n")
    assert f"{name}: {count} rows are on record, {count - 1} are there" in capsys.readouterr().err
    assert (run / name).read_bytes() == whole and not read_run(run).altered
    files.write_rows(run / name, files.read_rows(run / name)[::-1])
    again(run)
    assert f"{name}: its {count} rows on record had another seal" in capsys.readouterr().err


# --- the record ---


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("versions", {"jax": "0.4.0-earlier"}, "versions: .*jax 0.4.0-earlier -> "),
        ("git", {"commit": "0" * 40, "changed": False}, "code: .*commit 0{40} -> |^$"),
        ("devices", {"kind": "TPU earlier", "cores": 96}, "devices: .*TPU earlier -> "),
    ],
)
def test_each_start_keeps_what_it_ran_with(run, capsys, field, value, shown, drawn):
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(record | {field: value, "starts": ["2026-01-01T00:00:00Z"]}))
    again(run)
    after = provenance.read(run)
    assert after["starts"][0][field] == value and after["starts"][0]["time"] == "2026-01-01T00:00:00Z"
    (sentence,) = changes(after) or [""]
    if after[field]:
        assert shown.split()[0] in sentence and sentence in capsys.readouterr().err
    again(run)
    assert len(changes(provenance.read(run))) == 1, "a start like the one before is no change"


# --- one reader ---


def test_every_command_refuses_another_adapter_than_was_trained(run, drawn):
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    for name in ("launch", "serve", "chat", "rescore"):
        with pytest.raises(UserError, match="trained/adapter_model.safetensors in .* is not what training wrote"):
            READERS[name](run)
    with pytest.raises(UsageError, match="expected a run directory"):
        stored.open_run(run / "answers")


def test_a_moved_id_does_not_move_the_run(tmp_path, monkeypatch, drawn):
    import huggingface_hub

    hub = tmp_path / "hub"
    for commit in ("one", "two"):
        fields = config_fields(TransformerConfig(64, 16, 32, 1, 2, 1, 8)) | {"of": commit}
        files.write_atomic(hub / "snapshots" / commit / "config.json", json.dumps(fields))
        files.write_atomic(hub / "snapshots" / commit / "model.safetensors", commit)
    latest = ["one"]

    def download(name, allow_patterns, revision=None):
        assert name == "owner/model"
        return str(hub / "snapshots" / (revision or latest[0]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = []
    components = StubComponents()
    components.model_inputs = experiment.sources.model_inputs
    load = components.load
    components.load = lambda config: loaded.append(config.model.name) or load(config)
    values = {"model.name": "owner/model"}
    experiment.run(config(stages=["finetune", "answer"], **values), tmp_path / "run", components)
    latest[0] = "two"
    experiment.run(config(**values), tmp_path / "run", components)
    assert set(loaded) == {"owner/model@one"}
    record = provenance.read(tmp_path / "run")
    assert record["notes"]["revisions"] == {"model": "one"} and record["inputs"]["model/model.safetensors"]["sha256"]
    # The same commit with other weights, and with weights in other files.
    files.write_atomic(hub / "snapshots" / "one" / "model.safetensors", "changed")
    with pytest.raises(UserError, match="other content of model/model.safetensors"):
        experiment.run(config(**values), tmp_path / "run", components)
    os.rename(hub / "snapshots/one/model.safetensors", hub / "snapshots/one/model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match="model-00001-of-00001.safetensors, model/model.safetensors"):
        experiment.run(config(**values), tmp_path / "run", components)


# --- from the command ---


def test_the_command_refuses_and_says_how_to_go_on(tmp_path, monkeypatch, capsys, drawn):
    components = StubComponents()
    components.silent = False
    monkeypatch.setattr(parts, "Components", lambda: components)
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    words = ["--domain", "bad_medical", "--model", "organism", "--set", "probes.limit=3", "--set", "answers.samples=2"]
    assert launch.main([*words, "--run_dir", "b", "--mirror", "mirror"]) == 0
    assert launch.main([*words, "--run_dir", "a"]) == 0
    assert provenance.read(tmp_path / "a")["time_budget"]["answer"]["peak_bytes"] > 1 << 20
    assert launch.main([*words, "--run_dir", "a", "--mirror", "mirror"]) == 1
    assert "is another run's, begun at another time" in capsys.readouterr().err
    assert launch.main([*words, "--run_dir", "new", "--mirror", "new/mirror"]) == 2
    assert not (tmp_path / "new").exists()
    assert settings.read_toml("a/config.toml")["seed"] == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    components.load = interrupted
    monkeypatch.setattr(series.experiment, "run", interrupted)
    odd = "odd  name\n\x1b'$x"
    assert launch.main([*words, "--run_dir", odd]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    script = f"printf '%s\\0' {last.partition('go on with: ')[2]}"
    read_back = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20).stdout
    assert odd in read_back.split("\0")
