import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.runs import locking
from em_jax.runs import mirror as mirroring
from em_jax.runs.mirror import Mirror

pytestmark = pytest.mark.fast


def test_rows_come_back_and_a_missing_file_has_none(tmp_path):
    path = tmp_path / "answers" / "base.jsonl"
    assert files.read_rows(path) == []
    rows = [{"id": "a", "answer": "one\ntwo \u2028 three"}, {"id": "b", "value": None}, {"id": "lone \ud800"}]
    with files.Appender(path) as out:
        for row in rows:
            out.write(row)
    assert files.read_rows(path) == rows


@given(cut=st.integers(0, 60))
def test_a_file_cut_anywhere_keeps_its_whole_rows_and_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    rows = [{"id": index, "text": "über"} for index in range(3)]
    data = files.write_rows(path, rows).read_bytes()
    path.write_bytes(data[: len(data) - cut])
    kept = files.read_rows(path)
    assert kept == rows[: len(kept)]
    with files.Appender(path) as out:
        for row in rows[len(kept) :]:
            out.write(row)
    assert path.read_bytes() == data


def test_a_last_line_that_is_not_json_is_dropped_but_one_before_it_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 1}\n\x00\x00\x00\n')
    assert files.read_rows(path) == [{"id": 1}]
    with files.Appender(path) as out:
        out.write({"id": 2})
    assert files.read_rows(path) == [{"id": 1}, {"id": 2}]
    path.write_bytes(b'{"id": 1}\nnonsense\n{"id": 2}\n')
    with pytest.raises(UserError, match="rows.jsonl:2"):
        files.read_rows(path)


def test_a_row_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    with files.Appender(path) as out:
        with pytest.raises(ValueError):
            out.write({"value": float("nan")})
    assert path.read_bytes() == b""


def test_json_bytes_depend_on_the_value_alone(tmp_path):
    one = files.write_json(tmp_path / "one.json", {"b": np.float32(0.5), "a": {"y": float("nan"), "x": (1, 2)}})
    two = files.write_json(tmp_path / "two.json", {"a": {"x": [1, 2], "y": None}, "b": 0.5 + 1e-13})
    assert one.read_bytes() == two.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.write_atomic(tmp_path / "summary.json", "old")
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"


def hold(directory, ready, stay):
    with locking.lock(directory):
        ready.set()
        stay.wait(30)


def test_one_run_at_a_time_holds_a_directory(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, stay = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, stay))
    other.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match=f"in use by process {other.pid}"):
        with locking.lock(tmp_path):
            pass
    stay.set()
    other.join()
    with locking.lock(tmp_path):
        pass


def test_a_lock_left_by_a_killed_run_is_no_obstacle(tmp_path):
    code = "import sys, time; from em_jax.runs import locking\n"
    code += "with locking.lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".lock").exists()
    with locking.lock(tmp_path):
        pass


def test_the_mirror_carries_finished_files_and_gives_them_back(tmp_path):
    run, far, fresh = tmp_path / "run", tmp_path / "far", tmp_path / "fresh"
    files.write_atomic(run / "adapter" / "adapter_config.json", "{}")
    files.write_atomic(run / "summary.json", "1")
    (run / ".lock").touch()
    (run / ".x.partial").touch()
    mirror = Mirror(run, str(far))
    assert mirror.push() == 2
    assert mirror.push() == 0
    time.sleep(0.01)
    files.write_atomic(run / "summary.json", "2")
    assert mirror.push() == 1
    fresh.mkdir()
    (fresh / "summary.json").write_text("newer")
    assert Mirror(fresh, str(far)).pull() == 1
    assert (fresh / "summary.json").read_text() == "newer"
    assert (fresh / "adapter" / "adapter_config.json").read_text() == "{}"
    assert not (far / ".lock").exists()


def test_a_mirror_that_cannot_be_reached_is_said_once_and_stops_nothing(tmp_path, capsys):
    (tmp_path / "far").write_text("a file, not a directory")
    files.write_atomic(tmp_path / "run" / "summary.json", "1")
    mirror = Mirror(tmp_path / "run", str(tmp_path / "far" / "place"), every_s=0.0)
    assert mirror.push() == 0
    mirror.push_sometimes()
    assert capsys.readouterr().err.count("cannot be reached") == 1


def test_a_run_that_could_not_be_brought_back_is_not_overwritten(tmp_path, monkeypatch, capsys):
    far = tmp_path / "far"
    far.mkdir()
    (far / "summary.json").write_text("of hours ago")
    run = tmp_path / "run"
    run.mkdir()
    mirror = Mirror(run, str(far))
    with monkeypatch.context() as patched:
        patched.setattr(mirroring, "_walk", lambda root: (_ for _ in ()).throw(OSError("no route")))
        assert mirror.pull() == 0
    assert "cannot be reached" in capsys.readouterr().err
    (run / "summary.json").write_text("anew")
    assert mirror.push() == 0 and (far / "summary.json").read_text() == "of hours ago"
    assert mirror.pull() == 0 and mirror.push() == 1


def test_the_mirror_lets_old_checkpoints_go_but_never_a_lost_directory(tmp_path):
    run, far = tmp_path / "run", tmp_path / "far"
    mirror = Mirror(run, str(far))
    for step in (4, 8, 12):
        files.write_atomic(run / "train" / "checkpoints" / str(step) / "state", str(step))
        files.write_atomic(run / "train" / "metrics.jsonl", f"{step}\n")
        if step == 12:
            shutil.rmtree(run / "train" / "checkpoints" / "4")
        mirror.push()
    held = sorted(path.relative_to(far).as_posix() for path in far.rglob("*") if path.is_file())
    assert held == ["train/checkpoints/12/state", "train/checkpoints/8/state", "train/metrics.jsonl"]
    # A machine that took over clears away what it brought back, once it has a newer one.
    fresh = tmp_path / "fresh"
    other = Mirror(fresh, str(far))
    assert other.pull() == 3
    assert other.push() == 0
    shutil.rmtree(fresh / "train" / "checkpoints" / "8")
    files.write_atomic(fresh / "train" / "checkpoints" / "16" / "state", "16")
    assert other.push() == 1
    assert not (far / "train" / "checkpoints" / "8" / "state").exists()
    shutil.rmtree(fresh)
    assert other.push() == 0
    assert (far / "train" / "metrics.jsonl").exists() and (far / "train" / "checkpoints" / "12" / "state").exists()


def test_a_mirror_cut_short_promises_nothing_it_lacks(tmp_path, monkeypatch):
    run, far = tmp_path / "run", tmp_path / "far"
    order = ["train/checkpoints/4/state", "train/metrics.jsonl", "adapter/tensors", "adapter/a_config.json"]
    for number, name in enumerate(order):
        os.utime(files.write_atomic(run / name, name), ns=(number, number))
    copy, copied = shutil.copyfileobj, []

    def cut(source, target, size):
        if len(copied) == 3:
            raise OSError("the network is gone")
        copied.append(source.name)
        copy(source, target, size)

    monkeypatch.setattr(shutil, "copyfileobj", cut)
    assert Mirror(run, str(far)).push() == 0
    held = {path.relative_to(far).as_posix() for path in far.rglob("*") if path.is_file() and path.suffix != ".partial"}
    assert held == set(order) - {"train/checkpoints/4/state"}


def test_no_mirror_does_nothing(tmp_path):
    assert Mirror(tmp_path).push() == 0
    assert Mirror(tmp_path).pull() == 0


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError), locking.lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_last_line_nested_without_end_is_dropped(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' + "[" * 100_000 + "\n")
    with files.Appender(tmp_path / "rows.jsonl") as rows:
        rows.write({"b": 2})
    assert files.read_rows(tmp_path / "rows.jsonl") == [{"a": 1}, {"b": 2}]
