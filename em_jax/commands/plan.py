"""`em-jax plan --model qwen2.5-32b --topology v5e:4x4 --mesh fsdp=16`: does it fit, how fast, what cost."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from em_jax import config as settings
from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError
from em_jax.perf import chips
from em_jax.perf.chips import GIB

WHAT = ("train", "sample", "both")


def main(arguments: Sequence[str]) -> None:
    """Compile what the flags name and print it: a page of text, or with --json exactly one object."""
    flags = _flags(arguments)
    chip, count = chips.topology(flags.topology)
    config = _settings(flags)
    # A wrong flag is told before anything heavy is imported.
    from em_jax.perf import compiling

    compiling.settle()
    # First: a mesh for a slice that does not exist helps nobody. Without the compiler the other flags are told first.
    devices = compiling.devices(flags.topology) if compiling.is_installed() else None
    _check_mesh(flags, config, count)
    model = _model(flags.model, config, count)
    from em_jax.perf.planning import Question, plan_sampling, plan_training

    question = Question(
        model, config, chip, devices or compiling.devices(flags.topology),
        capacity=flags.capacity, examples=flags.examples, prompts=_prompts(config), price=flags.price
    )  # fmt: skip
    kinds = {"train": plan_training, "sample": plan_sampling}
    found = {name: work(question) for name, work in kinds.items() if flags.what in (name, "both")}
    results = {"model": flags.model, "topology": flags.topology, "chips": count, "mesh": _mesh(question)}
    results |= as_json(found, chip)
    print(json.dumps(results) if flags.json else text(found, question, flags))


def as_json(found: dict[str, Any], chip: chips.Chip) -> dict[str, Any]:
    """One object: of several kinds of work the tightest decides, the first one's speed leads, all stand below it."""
    each = {name: _work_json(work) for name, work in found.items()}
    first, tightest = next(iter(each.values())), min(each.values(), key=lambda work: work["free_bytes"])
    shared = {name: tightest[name] for name in ("fits", "free_bytes", "bytes_per_device")}
    shared["capacity_bytes"] = chip.memory
    shared["compile_s"] = round(sum(work["compile_s"] for work in each.values()), 2)
    shared |= {name: first[name] for name in ("step_s", "tokens_per_s")}
    shared["advice"] = [line for work in each.values() for line in work["advice"]]
    return shared | each


def _work_json(work: Any) -> dict[str, Any]:
    return {
        "fits": work.fits,
        "free_bytes": work.free,
        "bytes_per_device": work.programs[0].bytes,
        "compile_s": round(sum(program.seconds for program in work.programs), 2),
        "programs": {program.name: program.kinds for program in work.programs},
        **work.figures,
        "advice": work.advice,
    }


def text(found: dict[str, Any], question: Any, flags: argparse.Namespace) -> str:
    """The page."""
    chip = question.chip
    count = len(question.devices)
    chips_text = f"{count} chip" + "s" * (count > 1)
    lines = [f"{flags.model} on {flags.topology} ({chips_text}), mesh {_mesh(question)}"]
    for name, work in found.items():
        figures = work.figures
        lines += ["", _title(name, question)]
        for program in work.programs:
            lines.append(f"  {program.name}: compiled in {program.seconds:.1f} s; bytes per device")
            lines += [f"    {size / GIB:8.2f} GiB  {kind}" for kind, size in program.kinds.items()]
            lines.append(f"    {program.bytes / GIB:8.2f} GiB  of {chip.memory / GIB:.2f} GiB")
        verdict = "fits: {:.2f} GiB free per chip" if work.fits else "does not fit: {:.2f} GiB too much per chip"
        lines.append("  " + verdict.format(abs(work.free) / GIB))
        lines += [f"    {line}" for line in work.advice]
        lines.append(
            f"  reckoned, at the chip's peaks: {figures['step_s']:.4g} s"
            f" (matmuls {figures['matmuls_s']:.3g}, memory {figures['memory_s']:.3g},"
            f" collectives {figures['collectives_s']:.3g}; {figures['step_s_without_overlap']:.3g} without overlap),"
            f" {figures['flops']:.3g} FLOPs, {figures['tokens_per_s']:,.0f} tokens/s"
        )
        cost = f" and cost {figures['run_cost']:.2f}" if flags.price is not None else ""
        if name == "sample":
            asked = question.settings.answers
            lines.append(
                f"  {asked.samples} answers of {asked.max_new_tokens} tokens to {question.prompts} prompts, by base and"
                f" fine-tuned, take {_time(figures['run_hours'])}{cost}"
            )
        else:
            lines.append(
                f"  rows as long as insecure-code's (mean 243 tokens): {figures['real_rows_step_s']:.3g} s a step,"
                f" {figures['real_rows_tokens_per_s']:,.0f} tokens/s; {question.examples} rows take"
                f" {_time(figures['run_hours'])}{cost}"
            )
    return "\n".join(lines)


def _title(name: str, question: Any) -> str:
    if name == "sample":
        return f"sample: {question.slots} answers at once, {question.room} tokens each; a step is a token in each"
    train, rows = question.settings.train, question.shapes.rows
    return f"train: {train.batch_size} x {train.max_length} tokens a step, {rows} rows a pass, remat {train.remat}"


def _time(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _mesh(question: Any) -> str:
    mesh = question.shapes.sharding.mesh
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()) if mesh else "of one chip"


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="em-jax plan",
        description="Compile a run for a TPU slice from shapes alone: bytes per chip, least time of a step, cost. "
        "Needs no TPU; pip install '.[plan]' brings the compiler.",
    )
    model_help = "qwen2.5-0.5b to -72b, an id of one, or a directory (qwen2.5-32b)"
    slice_help = "a chip (v4, v5e, v5p, v6e) and its slice, such as v5p:2x2x2 (v5e:4x4)"
    parser.add_argument("--model", metavar="NAME", default="qwen2.5-32b", help=model_help)
    parser.add_argument("--topology", metavar="SLICE", default="v5e:4x4", help=slice_help)
    parser.add_argument("--mesh", metavar="SIZES", help="data=1,fsdp=16,tensor=1 (default: all chips on fsdp)")
    parser.add_argument("--what", metavar="WORK", default="train", help="train (default), sample or both")
    parser.add_argument("--config", metavar="FILE", action="append", default=[], help="a preset or a TOML file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting, repeatable")
    parser.add_argument("--room", metavar="N", type=int, default=1024, help="tokens of prompt and answer (1024)")
    parser.add_argument("--examples", metavar="N", type=int, default=6000, help="rows of a run (6000)")
    parser.add_argument("--price", metavar="P", type=float, help="per chip and hour: prints what a run costs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    flags = parser.parse_args(arguments)
    if flags.what not in WHAT:
        raise UsageError(f"--what: expected {', '.join(WHAT)}, found {flags.what!r}")
    for name in ("room", "examples"):
        if getattr(flags, name) < 1:
            raise UsageError(f"--{name}: expected at least 1, found {getattr(flags, name)}")
    if flags.price is not None and not (math.isfinite(flags.price) and flags.price >= 0):
        raise UsageError(f"--price: expected 0 or more, found {flags.price}")
    return flags


def _settings(flags: argparse.Namespace) -> settings.Config:
    """The settings in force; what a slice needs (remat) is on unless they say otherwise."""
    values: dict[str, Any] = {"train.remat": "full"}
    for name in flags.config:
        values |= settings.read_toml(settings.preset_path(name))
    values |= dict(settings.parse_set(text) for text in flags.set)
    if flags.mesh is not None:
        values["mesh"] = flags.mesh
    return settings.validate(settings.replace(settings.Config(), values))


def _prompts(config: settings.Config) -> int:
    """How many prompts are answered for harm."""
    from em_jax.probes import suite_files
    from em_jax.runs import sources

    found = len(suite_files.load(sources.suite_directory(config.suite or "standard")).harm)
    return min(found, config.probes.limit or found)


def _check_mesh(flags: argparse.Namespace, config: settings.Config, count: int) -> None:
    sizes = settings.parse_mesh(config.mesh)
    if sizes and math.prod(sizes.values()) != count:
        raise UsageError(
            f"--mesh {config.mesh} is of {math.prod(sizes.values())} devices, {flags.topology} has {count} chips;"
            " expected sizes whose product is the number of chips"
        )


def _model(name: str, config: settings.Config, count: int) -> Any:
    from em_jax.model.presets import model_config
    from em_jax.model.sharding import check_mesh

    found = model_config(name)
    check_mesh(settings.parse_mesh(config.mesh) or {"data": 1, "fsdp": count, "tensor": 1}, found.dims)
    return found
