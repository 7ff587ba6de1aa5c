"""What goes wrong around a run, put in its way on purpose: nothing is lost, and one line says what to do.

Here with a stub engine and in this process. tests/runs/test_kill.py does it to the real thing, tests/train/test_loop.py
to training, tests/runs/test_directory.py to single files.
"""

import errno
import inspect
import json
import os
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from probes.test_judges import SECRET, Server, completion
from stub_engine import HARMFUL, HARMLESS, StubComponents, StubEngine

from em_jax import launch, report
from em_jax.base import errors, files, runtime
from em_jax.base.errors import Permanent, Unfinished, UserError
from em_jax.formats.checkpoint import load_model, save_model
from em_jax.formats.model_config import parse_config
from em_jax.formats.peft import load_adapter, save_adapter
from em_jax.formats.tensor_files import SINGLE
from em_jax.lora.config import TENSORS, LoraConfig
from em_jax.model.parameters import random_model
from em_jax.runs import components as parts
from em_jax.runs import locking, sources

COMMAND = ["--domain", "bad_medical", "--model", "organism", "--run_dir", "run"]
COMMAND += ["--set", "probes.limit=3", "--set", "answers.samples=2", "--set", "probes.sampled_questions=2"]


class Page:
    """Stands for the report, which takes a second to draw: its files are written as the real one's are."""

    def write(self, place):
        files.write_atomic(place / "figures" / "plane.svg", "a figure that is longer than ten bytes")
        return files.write_atomic(place / "report.html", "a page that is longer than ten bytes")


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """Starts the command with a stub engine in an empty directory: its exit status and its lines on stderr."""
    components = StubComponents()
    monkeypatch.setattr(parts, "Components", lambda: start.components)
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)
    monkeypatch.setattr(report, "write", Page().write)
    monkeypatch.chdir(tmp_path)

    def start(*more, command=COMMAND):
        status = launch.main([*command, *more])
        return status, capsys.readouterr().err.splitlines()

    start.components = components
    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows and the summary of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "Components", StubComponents)
        patched.setattr(report, "write", Page().write)
        patched.chdir(tmp_path_factory.mktemp("whole"))
        assert launch.main(COMMAND) == 0
        return made()


def made():
    """What a run comes to, but for what the clock says."""
    kept = [path for path in Path("run").rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in kept if path.name not in (".lock", "provenance.json")}


def goes_on(start, whole):
    assert start() == (0, [])
    assert made() == whole


# Disk full.

FILES = {
    "settings": "config.toml",
    "provenance": "provenance.json",
    "metrics": "train/metrics.jsonl",
    "adapter": "adapter/adapter_model.safetensors",
    "model card": "adapter/README.md",
    "answers": "answers/base.jsonl",
    "scores": "scores/finetuned.self.jsonl",
    "probes": "probes/finetuned.two_ai.jsonl",
    "summary": "summary.json",
    "figures": "figures/plane.svg",
    "report": "report.html",
}


@pytest.fixture
def full_at(monkeypatch):
    """Has every write from the first one of a file on find no room: files end where the system lets them end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    append, replace = files.Appender.write, files.write_atomic
    awaited = []

    def fill(path, room):
        if awaited and str(path).endswith(awaited[0]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    def row(self, row):
        # Half of the second row finds its place.
        if self._file.tell():
            fill(self.path, self._file.tell() + 10)
        append(self, row)

    def file(path, content):
        fill(path, 3)
        return replace(path, content)

    monkeypatch.setattr(files.Appender, "write", row)
    monkeypatch.setattr(files, "write_atomic", file)
    yield awaited
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", FILES)
def test_a_full_disk_is_told_and_with_room_the_run_goes_on(start, whole, full_at, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full_at.append(FILES[kind])
    try:
        status, (line,) = start()
    finally:
        # At once: what pytest writes of a failure needs room too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        full_at.clear()
    assert status == 1 and "no room on the disk" in line and "free some" in line and "go on with: " in line
    assert not [name for name in made() if name.endswith(".partial")]
    goes_on(start, whole)


def test_whatever_says_that_the_disk_is_full_is_understood():
    for error in (
        OSError(errno.ENOSPC, "No space left on device", "run/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError('UNKNOWN: Error writing "x" [OS error 28: ENOSPC No space left on device]'),
    ):
        with pytest.raises(Unfinished, match="no room on the disk"), errors.translate_errors():
            raise error
    with pytest.raises(OSError, match="Input/output"), errors.translate_errors():
        raise OSError(errno.EIO, "Input/output error")


# Memory.

EXHAUSTED = {
    "at run time": "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 35211964416 bytes.\nmore",
    "at compile time": "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.05G of 15.75G hbm.\n\nTotal hbm usage >= 20.32G:",
    "in a kernel": "INTERNAL: Failed to launch CUDA kernel: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
}
SETTINGS = {"finetune": ("train.rows_per_pass", "train.remat"), "answer": ("answers.slots",)}
"""What a stage's memory depends on: the advice names this and not the other stage's."""


@pytest.mark.parametrize("stage", ["finetune", "answer"])
@pytest.mark.parametrize("message", EXHAUSTED.values(), ids=EXHAUSTED)
def test_memory_that_runs_out_is_one_line_that_says_what_to_set(start, stage, message, monkeypatch):
    def fail(*arguments, **named):
        raise jax.errors.JaxRuntimeError(message)

    if stage == "finetune":
        start.components.finetune = fail
    else:
        monkeypatch.setattr(StubEngine, "stream", fail)
    status, (line,) = start()
    assert status == 1 and f"{stage}: out of memory" in line and "model.quantization" in line and "--mesh" in line
    assert {at for at, names in SETTINGS.items() if all(name in line for name in names)} == {stage}, line
    # The same command would end the same way: it is not what the line ends with.
    assert "what is done is kept in run" in line and "go on with" not in line


def test_a_run_without_memory_goes_on_where_less_is_held_at_once(start, whole):
    def fail(*arguments, **named):
        raise jax.errors.JaxRuntimeError(EXHAUSTED["at run time"])

    finetune, start.components.finetune = start.components.finetune, fail
    assert start()[0] == 1
    start.components.finetune = finetune
    less = [f"--set={name}" for name in ("train.rows_per_pass=1", "train.remat=true", "answers.slots=8")]
    assert start(*less) == (0, [])
    assert made()["run/summary.json"] == whole["run/summary.json"]


def test_a_device_without_room_is_told_by_what_jax_raises_today():
    with pytest.raises(Permanent, match="Out of memory .* train.rows_per_pass=1"), errors.translate_errors():
        jnp.zeros(1 << 46).block_until_ready()
    with pytest.raises(Permanent), errors.translate_errors():
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError), errors.translate_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


# Places that cannot be written, and directories in use.


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UserError, match="gone/x cannot be read or written: No such file"), errors.translate_errors():
        (tmp_path / "gone" / "x").write_text("")


def read_only(place):
    """A directory in which nothing can be written; how it is undone. Skips where the system offers no way."""
    if os.geteuid():
        place.chmod(0o500)
        return lambda: place.chmod(0o700)
    for words in (["mount", "--bind", place, place], ["mount", "-o", "remount,ro,bind", place]):
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("root, and may not mount")
    return lambda: subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_directory_is_one_line_and_harms_nothing(start, whole, tmp_path, begun):
    place = tmp_path / "run"
    place.mkdir()
    if begun:
        assert start("--stages", "finetune,answer") == (0, [])
    before = made()
    undo = read_only(place)
    try:
        status, (line,) = start()
    finally:
        undo()
    assert status == 1 and "expected a directory that can be written, found run: " in line and "name another" in line
    assert made() == before
    goes_on(start, whole)


@pytest.mark.parametrize("place", ["file/run", "/proc/none/run", "/dev/null"])
def test_a_place_that_can_be_no_directory_is_one_line(start, tmp_path, place):
    (tmp_path / "file").touch()
    status, (line,) = start("--run_dir", place)
    assert status == 1 and f"expected a directory that can be written, found {place}: " in line


def test_a_second_run_on_one_directory_is_refused_and_disturbs_nothing(start, whole):
    with locking.lock("run"):
        status, (line,) = start()
        assert status == 1 and f"run is in use by process {os.getpid()}" in line
    goes_on(start, whole)


def test_what_a_crash_left_half_written_is_cleared_away(start, whole, tmp_path):
    files.write_atomic(tmp_path / "run" / "adapter" / ".adapter_model.safetensors.123.partial", b"half")
    files.write_atomic(tmp_path / "run" / ".lock", "process 123")
    goes_on(start, whole)


# Files that changed while nobody looked.


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path, place):
    path.write_bytes(path.read_bytes()[:place])


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_changed_since_training_is_refused_until_it_is_written_again(
    start, whole, tmp_path, harm, name
):
    assert start("--stages", "finetune,answer") == (0, [])
    rows = (tmp_path / "run" / "answers" / "finetuned.jsonl").read_bytes()
    harm(tmp_path / "run" / "adapter" / name, 1)
    status, (line,) = start()
    assert status == 1 and f"trained/{name} in run is not what training wrote: delete run/adapter " in line
    for path in (tmp_path / "run" / "adapter").iterdir():
        path.unlink()
    goes_on(start, whole)
    assert (tmp_path / "run" / "answers" / "finetuned.jsonl").read_bytes() == rows


def test_a_large_adapter_is_hashed_as_well(start, tmp_path, monkeypatch):
    monkeypatch.setattr("em_jax.runs.provenance.directory_inputs.__defaults__", (1,))
    assert start("--stages", "finetune") == (0, [])
    inputs = json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]
    assert inputs["trained/adapter_model.safetensors"]["sha256"]


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_another_content_of_the_model_is_refused(start, whole, tmp_path, harm, name):
    (tmp_path / "model").mkdir()
    for each in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / "model" / each).write_bytes(b"{} and so on")
    start.components.model_inputs = sources.model_inputs
    more = ["--model", "model", "--suite", "organism"]
    assert start(*more, "--stages", "finetune,answer") == (0, [])
    harm(tmp_path / "model" / name, 9)
    status, (line,) = start(*more)
    assert status == 1 and f"run was begun with other content of model/{name}: give the same files" in line


def test_a_model_too_large_to_hash_is_known_by_its_size(start, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"numbers")
    start.components.model_inputs = sources.model_inputs
    monkeypatch.setattr("em_jax.runs.provenance.directory_inputs.__defaults__", (1,))
    more = ["--model", "model", "--suite", "organism", "--stages", "finetune"]
    assert start(*more) == (0, [])
    cut(tmp_path / "model" / "model.safetensors", 3)
    status, (line,) = start(*more)
    assert status == 1 and "other content of model/model.safetensors" in line


def header_flips(data, chances, count):
    """The file with one bit of its header changed, so many times."""
    header = 8 + int.from_bytes(data[:8], "little")
    for place in chances.sample(range(8 * header), count):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def flips_survived(path, read, count):
    """How many flipped headers were refused in one line or changed no number; any other fails."""
    data, before, refused = path.read_bytes(), jax.tree.leaves(read()), 0
    for flipped in header_flips(data, random.Random(0), count):
        path.write_bytes(flipped)
        try:
            after = jax.tree.leaves(read())
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path.parent) in str(error)
            continue
        assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    path.write_bytes(data)
    return refused


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.long)])
def test_a_flipped_bit_in_the_header_of_weights_or_of_an_adapter_is_refused_or_harmless(tmp_path, count):
    config = parse_config(tiny.SHAPE | {"num_hidden_layers": 1})
    save_model(random_model(config, jax.random.key(0), stacked=True), tmp_path / "model")
    lora = LoraConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"))
    save_adapter(tmp_path / "adapter", tiny.random_adapter(config, lora), lora, config, "some/base")
    refused = flips_survived(tmp_path / "model" / SINGLE, lambda: load_model(tmp_path / "model", stacked=True), count)
    refused += flips_survived(
        tmp_path / "adapter" / TENSORS, lambda: load_adapter(tmp_path / "adapter", config)[0], min(count, 800)
    )
    assert refused > 0.9 * count
    print(f"faults survived {count + min(count, 800)}, lost 0")


@pytest.mark.parametrize("name", ["train/metrics.jsonl", "answers/base.jsonl", "scores/base.self.jsonl"])
def test_a_torn_last_row_is_made_again(start, whole, tmp_path, name):
    assert start("--stages", "finetune,answer,judge") == (0, [])
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-7])
    if name.startswith("train"):
        for left in (tmp_path / "run" / "adapter").iterdir():
            left.unlink()
    goes_on(start, whole)


# A clock that jumps.


@pytest.mark.parametrize("by", [-1e8, 1e8])
def test_a_clock_that_jumps_changes_nothing_but_times(start, whole, monkeypatch, tmp_path, by):
    calls: list[int] = []

    def jumping(real):
        def clock():
            calls.append(1)
            return real() + (by if len(calls) % 3 else 0.0)

        return clock

    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, jumping(getattr(time, name)))
    gmtime = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda *given: gmtime(time.time()) if not given else gmtime(*given))
    far = tmp_path / "far"
    assert start("--mirror", str(far)) == (0, [])
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert len(calls) > 50
    settings = "run/config.toml"
    assert {**made(), settings: b""} == {**whole, settings: b""}
    assert (far / "summary.json").read_bytes() == whole["run/summary.json"]


# A judge that is away, and its key.


class Waiting:
    """A clock that runs only while somebody waits: an outage of minutes takes no time."""

    def __init__(self):
        self.now, self.lock = 0.0, threading.Lock()

    def sleep(self, seconds):
        with self.lock:
            self.now += seconds


def strict(text):
    return 200, '{"score": 5}' if HARMFUL in text else '{"score": 1}'


@pytest.fixture
def judged(monkeypatch):
    """Flags for a judge at an address that says what `behave(text, tries)` says, and its server."""
    servers = []

    def at(behave):
        servers.append(Server(behave))
        return ["--judge", servers[-1].url, "--judge_model", "strict", "--set", "judge.concurrency=1"], servers[-1]

    yield at
    for server in servers:
        server.close()


@pytest.fixture
def waiting(monkeypatch):
    clock = Waiting()
    monkeypatch.setattr("em_jax.probes.judge_http.HttpJudge.__init__.__defaults__", without_waiting(clock))
    return clock


def without_waiting(clock):
    from em_jax.probes.judge_http import HttpJudge

    *others, _ = HttpJudge.__init__.__defaults__

    async def sleep(seconds):
        clock.sleep(seconds)

    return (*others, sleep)


def scores(tmp_path, condition):
    rows = files.read_rows(tmp_path / "run" / "scores" / f"{condition}.strict.jsonl")
    return {(row["id"], row["sample"]): row["score"] for row in rows}


@pytest.mark.parametrize("minutes, again", [(0.4, False), (1.5, False), (10, True), (60, True)])
def test_an_outage_of_the_judge_loses_no_score(start, judged, waiting, tmp_path, minutes, again):
    away = (20.0, 20.0 + 60 * minutes)

    def behave(text, tries):
        waiting.sleep(5)
        return (503, "") if away[0] < waiting.now < away[1] else strict(text)

    flags, server = judged(behave)
    ended: list[int] = []
    while 0 not in ended or None in scores(tmp_path, "finetuned").values() or None in scores(tmp_path, "base").values():
        assert len(ended) < 30
        status, lines = start(*flags)
        ended.append(status)
        assert status == 0 or "no answer in 4 attempts in a row" in lines[-1] and "go on with: " in lines[-1]
    assert (len(ended) > 1) == again
    for condition in ("base", "finetuned"):
        found = scores(tmp_path, condition)
        assert len(found) == 12 and all(found.values()), "every answer has its score, outage or not"


def test_what_an_outage_leaves_out_of_the_labelled_set_is_asked_again_at_once(start, judged, waiting, tmp_path):
    from em_jax.probes.judge_http import HttpJudge

    tries_of_one = inspect.signature(HttpJudge).parameters["tries"].default
    first = []

    def behave(text, tries):
        if not first and HARMFUL not in text and HARMLESS not in text:
            first.append(text)
        return (503, "") if text in first and tries <= tries_of_one else strict(text)

    flags, _ = judged(behave)
    assert start(*flags)[0] == 0
    assert first and all(scores(tmp_path, "labelled").values())


def everything_written(place):
    return b"".join(path.read_bytes() + str(path).encode() for path in place.rglob("*") if path.is_file())


TOKEN = "hf_planted-token-4567"


NAMES = ("model", "system_fingerprint")


@pytest.mark.parametrize("kind", ["answers", "refuses", "says it back", "is called so", "is away"])
def test_the_key_is_in_no_file_no_line_and_no_log(start, judged, waiting, tmp_path, monkeypatch, caplog, kind):
    caplog.set_level(0)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    behave = {
        "answers": lambda text, tries: strict(text),
        "refuses": lambda text, tries: (401, ""),
        "says it back": lambda text, tries: (200, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
        "is called so": lambda text, tries: (200, completion(strict(text)[1]) | dict.fromkeys(NAMES, f"I am {SECRET}")),
        "is away": lambda text, tries: (503, ""),
    }[kind]
    flags, server = judged(behave)
    status, lines = start(*flags, "--verbosity=1", "--mirror", str(tmp_path / "far"))
    assert status == (0 if kind in ("answers", "is called so") else 1)
    assert any(f"Bearer {SECRET}" in headers.values() for headers, _ in server.requests), "it was sent to the judge"
    written = everything_written(tmp_path) + "\n".join(lines).encode() + caplog.text.encode()
    assert b"config.toml" in written and SECRET.encode() not in written and TOKEN.encode() not in written


@pytest.mark.parametrize("address", ["http://me:{}@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?api_key={}"])
def test_a_key_in_an_address_is_refused_and_not_repeated(start, tmp_path, address):
    status, (line,) = start("--judge", address.format(SECRET), "--judge_model", "strict")
    assert status == 2 and SECRET not in line and "OPENAI_API_KEY" in line
    assert SECRET.encode() not in everything_written(tmp_path)


# SIGTERM between any two rows.


@pytest.mark.parametrize("name", [FILES[kind] for kind in ("metrics", "answers", "scores", "probes", "summary")])
def test_a_request_to_stop_ends_with_one_line_and_the_run_goes_on(start, whole, monkeypatch, name):
    append, replace = files.Appender.write, files.write_atomic
    left = [2 if name.endswith("jsonl") else 1]

    def stop(path):
        if str(path).endswith(name):
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGTERM)

    def row(self, row):
        append(self, row)
        stop(self.path)

    def file(path, content):
        stop(path)
        return replace(path, content)

    monkeypatch.setattr(files.Appender, "write", row)
    monkeypatch.setattr(files, "write_atomic", file)
    before = signal.getsignal(signal.SIGTERM)
    try:
        status, (line,) = start()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 1 and "asked to stop (SIGTERM); what is done is kept; go on with: " in line
    goes_on(start, whole)


def test_a_failing_stage_is_not_hidden_by_what_fails_after_it(start, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail(*arguments, **named):
        monkeypatch.setattr("em_jax.runs.provenance.add_time", full)
        raise UserError("loss is not finite")

    start.components.finetune = fail
    status, (line,) = start()
    assert status == 1 and "finetune: loss is not finite" in line
