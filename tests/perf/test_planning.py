"""Plans without a compiler: capacity, advice, the page, and the lines for what cannot be."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from em_jax import config as settings
from em_jax.base.cli import command
from em_jax.base.errors import UsageError
from em_jax.commands import plan as main
from em_jax.formats.model_config import config_fields
from em_jax.model.config import TransformerConfig
from em_jax.perf import compiling, planning
from em_jax.perf.compiling import CompiledProgram, needed_bytes
from em_jax.perf.planning import PlanRequest, plan
from em_jax.perf.program_work import Kernel, ProgramWork
from em_jax.runs.chips import CHIPS, GIB, Chip, parse_topology

CONFIG = TransformerConfig(480, 64, 96, 2, 4, 2, 16)


def plan_request(**changes) -> PlanRequest:
    values = {
        "mesh": "fsdp=8",
        "train.remat": "none",
        "answers.slots": 64,
        "train.max_length": 64,
        "lora.rank": 2,
    } | changes
    config = settings.replace(settings.Config(), values)
    real = settings.replace(config, {"train.rows_per_pass": 1})
    chip = Chip("made up", 20 * GIB, 1e12, 1e11, 1e10, 2)
    return PlanRequest(CONFIG, config, real, chip, jax.devices(), capacity=64, examples=100, prompts=10, price=2.0)


def by_rows(each, fixed=0):
    """A compiler for which a program needs `each` GiB a row beyond `fixed`; it remembers what it was given."""
    seen = []

    def compile(program):
        rows = max((x.shape[0] for x in program.traced.jaxpr.in_avals if x.ndim and x.dtype == np.int32), default=0)
        rows = 0 if program.name in ("update", "prefill") else rows
        seen.append((program.name, rows))
        return CompiledProgram(program.name, {"rows": int(GIB * (fixed + each * rows))}, 0.5, True)

    compile.seen = seen
    return compile


@pytest.mark.fast
def test_topologies():
    assert parse_topology("v5e:4x4") == (CHIPS["v5e"], 16)
    assert parse_topology("v5p:2x2x2") == (CHIPS["v5p"], 8)
    assert CHIPS["v5e"].memory == 15.75 * GIB
    for wrong in ("v5e", "h300:8", "v5e:4xfour", "v5e:", "v5e:0x4"):
        with pytest.raises(UsageError, match="v4, v5e, v5p, v6e"):
            parse_topology(wrong)
    # The compiler itself would end the process.
    for wrong in ("v5e:4x4x4", "v5p:2x2"):
        with pytest.raises(UsageError, match="axes"):
            parse_topology(wrong)
    for wrong in ("v5e:32x32", "v4:64x64x64", "h100:9"):
        with pytest.raises(UsageError, match="expected up to"):
            parse_topology(wrong)


@pytest.mark.fast
def test_what_the_compiler_says_of_a_program_it_refuses():
    long = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    assert needed_bytes(long + "temporaries (300.50G) exceeds available HBM (15.75G).") == int(300.5 * GIB)
    assert needed_bytes("RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm. Exceeded by 4.25G.") == 20 * GIB
    assert needed_bytes("RESOURCE_EXHAUSTED: out of vmem") is None
    assert needed_bytes("INVALID_ARGUMENT: (3.00G) exceeds available") is None


def test_a_plan_that_fits_counts_what_is_free():
    found = plan(plan_request(), "train", by_rows(1, fixed=2))
    assert found.fits and found.free == 2 * GIB and not found.advice
    assert {program.name for program in found.programs} == {"training pass", "training pass, real rows", "update"}
    figures = found.figures
    assert figures["tokens_per_s"] == pytest.approx(16 * 64 / figures["step_s"])
    assert figures["run_cost"] == pytest.approx(figures["run_hours"] * 8 * 2.0)
    assert figures["step_s"] <= figures["step_s_without_overlap"]


def test_what_does_not_fit_names_the_rows_that_do():
    compile = by_rows(1, fixed=2)
    asked = {"train.batch_size": 64, "train.rows_per_pass": 64, "train.remat": "elementwise"}
    found = plan(plan_request(**asked), "train", compile)
    assert not found.fits and found.free == -46 * GIB
    assert found.advice == ["train.rows_per_pass=8 fits: 10.00 GiB free"]
    assert ("training pass", 32) not in compile.seen  # reckoned as too many: not even compiled
    assert found.figures["tokens_per_s"] > 0


@pytest.mark.fast
def test_the_given_mesh_and_weights_are_tried_first_and_nothing_twice():
    tried = planning._changes(plan_request(**{"train.batch_size": 64}), 40 * GIB, training=True)
    assert tried[0].keys() <= {"train.remat", "train.rows_per_pass"} and tried[-1]["model.quantization"] == "int8"
    assert len(tried) == len({json.dumps(change) for change in tried}) > 1


@pytest.mark.parametrize("each, fixed", [(1, 2), (2, 3), (0.5, 13)])
def test_what_is_advised_fits_as_it_stands(each, fixed):
    """Its settings alone, put into the request, must fit; an int8 base is a quarter as large here."""

    def compile(program):
        held = fixed / 4 if any(leaf.dtype == np.int8 for leaf in program.traced.jaxpr.in_avals) else fixed
        return by_rows(each, held)(program)

    asked = {"train.batch_size": 64}
    found = plan(plan_request(**asked), "train", compile)
    assert not found.fits
    words = found.advice[-1].partition(" fits: ")[0].split(" with ")
    advised = dict(word.removeprefix("--").split("=", 1) for word in words)
    advised = {name: settings.parse_set(f"{name}={value}")[1] for name, value in advised.items()}
    assert plan(plan_request(**asked | advised), "train", compile).fits, found.advice


def test_where_nothing_fits_a_larger_slice_is_advised():
    found = plan(plan_request(**{"train.remat": "full"}), "train", by_rows(0, fixed=50))
    assert not found.fits and found.advice[-1].startswith("nothing else here fits")


def test_sampling_advice_names_the_answers_that_fit():
    found = plan(plan_request(), "sample", by_rows(1, fixed=2))
    assert not found.fits and found.advice == ["answers.slots=16 fits: 2.00 GiB free"]
    assert found.figures["tokens_per_s"] == pytest.approx(64 / found.figures["step_s"])


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--model", "qwen9-8b"], ["72b", "'qwen9-8b'"]),
        (["--topology", "v9:4x4"], ["v5e", "'v9:4x4'"]),
        (["--mesh", "fsdp=32"], ["32 devices", "16 chips"]),
        (["--mesh", "fsdp=4"], ["4 devices", "16 chips"]),
        (["--mesh", "fsdp=1,tensor=16"], ["axis N (q_heads) of size 40", "tensor=16", "fsdp=16", "fsdp=2,tensor=8"]),
        (["--model", "qwen2.5-0.5b", "--mesh", "fsdp=4,tensor=4"], ["size 14", "fsdp=8,tensor=2"]),
        (["--what", "serve"], ["train, sample, both"]),
        (["--set", "train.rank=2"], ["lora.rank"]),
        (["--price", "-1"], ["--price"]),
        (["--set", "answers.slots=-1"], ["answers.slots"]),
    ],
)
def test_what_cannot_be_is_one_line(arguments, names, capsys, monkeypatch):
    """Reported before the compiler is needed, so with and without it."""
    monkeypatch.setattr(compiling, "prepare", lambda platform: None)
    monkeypatch.setattr(compiling, "is_installed", lambda platform: False)
    topology = [] if "--topology" in arguments else ["--topology", "v5e:4x4"]
    status = command("em_jax plan", main.main, [*topology, *arguments])
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1 and all(name in captured.err for name in names), captured.err


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "prepare", lambda platform: None)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert command("em_jax plan", main.main, ["--topology", "v5e:4x4"]) == 1
    line = capsys.readouterr().err.strip()
    assert ".[plan]" in line and "\n" not in line


def test_json_is_one_object_of_the_tightest_and_the_first():
    given = plan_request()
    found = {"train": plan(given, "train", by_rows(1)), "sample": plan(given, "sample", by_rows(1 / 8, fixed=9))}
    results = json.loads(json.dumps(main.as_json(found, given.chip)))
    assert results["fits"] and results["free_bytes"] == 3 * GIB and results["bytes_per_device"] == 17 * GIB
    assert results["compile_s"] == 2.5 and results["tokens_per_s"] == results["train"]["tokens_per_s"]
    page = main.text(found, given, main._flags(["--topology", "v5e:2x4", "--price", "2"]))
    assert "fits: " in page and "cost" in page and "fsdp=8" in page


def test_the_command_plans_what_its_flags_say(monkeypatch, capsys, tmp_path):
    """All of it but the compiler: eight CPU devices stand in for the slice."""
    (tmp_path / "config.json").write_text(json.dumps(config_fields(CONFIG)))
    monkeypatch.setattr(compiling, "prepare", lambda platform: None)
    monkeypatch.setattr(compiling, "is_installed", lambda platform: True)
    monkeypatch.setattr(compiling, "devices", lambda topology: jax.devices())
    monkeypatch.setattr(planning, "plan", partial(plan, compile=by_rows(1 / 8)))
    arguments = ["--model", str(tmp_path), "--topology", "v5e:2x4", "--mesh", "fsdp=8", "--what", "both"]
    arguments += ["--set", "train.max_length=64", "--set", "lora.rank=2", "--room", "64", "--price", "2"]
    arguments += ["--set", "answers.slots=64"]
    assert command("em_jax plan", main.main, arguments) == 0
    page = capsys.readouterr().out
    assert "answers at once, 64 tokens each" in page and "fits: " in page and "cost" in page
    assert command("em_jax plan", main.main, [*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["chips"] == 8 and results["fits"] and {"train", "sample"} <= results.keys()


def test_the_parts_of_a_gpus_step_are_those_of_its_kernels():
    """The plan printed "0.1681 s (matmuls 0.0817, memory 0.199, ...; 0.168 without overlap)"."""
    work = ProgramWork((Kernel(int(3e9), int(1e12), 4), Kernel(int(1e6), 0, 9)), (), ())
    request = dataclasses.replace(plan_request(), chip=CHIPS["h100"])
    compiled = {name: CompiledProgram(name, {}, 0.0, True, work) for name in ("training pass", "update")}
    figures = planning.training_figures(request, compiled)
    assert max(figures["matmuls_s"], figures["memory_s"]) <= figures["step_s"]
    assert figures["memory_s"] > 12e9 / CHIPS["h100"].bandwidth
