"""`em-jax plan --model qwen2.5-32b --topology v5e:4x4 --mesh fsdp=16`: does it fit, how fast, what cost."""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from em_jax import config as settings
from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError
from em_jax.formats.model_config import named_config
from em_jax.perf import chips
from em_jax.perf.chips import GIB

WHAT = ("train", "sample", "both")


def main(arguments: Sequence[str]) -> None:
    """Compile what the flags name and print it: a page of text, or with --json exactly one object."""
    flags = _flags(arguments)
    chip, count = chips.parse_topology(flags.topology)
    config = _settings(flags)
    # A wrong flag is reported before anything heavy is imported.
    from em_jax.perf import compiling

    compiling.use_cpu()
    # Before the mesh, which must fit a slice that exists. Without the compiler the other flags are checked first.
    devices = compiling.devices(flags.topology) if compiling.is_installed() else None
    _check_mesh(flags, config, count)
    model = _model_config(flags.model, config, count)
    from em_jax.perf.planning import PlanRequest, plan_sampling, plan_training

    request = PlanRequest(
        model, config, chip, devices or compiling.devices(flags.topology),
        capacity=flags.room, examples=flags.examples, prompts=_num_prompts(config), price=flags.price
    )  # fmt: skip
    kinds = {"train": plan_training, "sample": plan_sampling}
    plans = {name: plan(request) for name, plan in kinds.items() if flags.what in (name, "both")}
    results = {"model": flags.model, "topology": flags.topology, "chips": count, "mesh": _mesh(request)}
    results |= as_json(plans, chip)
    print(json.dumps(results) if flags.json else text(plans, request, flags))


def as_json(plans: dict[str, Any], chip: chips.Chip) -> dict[str, Any]:
    """One object: the memory of the tightest kind of work, the speed of the first, and every kind under its name."""
    each = {name: _plan_json(plan) for name, plan in plans.items()}
    first, tightest = next(iter(each.values())), min(each.values(), key=lambda plan: plan["free_bytes"])
    shared = {name: tightest[name] for name in ("fits", "free_bytes", "bytes_per_device")}
    shared["capacity_bytes"] = chip.memory
    shared["compile_s"] = round(sum(plan["compile_s"] for plan in each.values()), 2)
    shared |= {name: first[name] for name in ("step_s", "tokens_per_s")}
    shared["advice"] = [line for plan in each.values() for line in plan["advice"]]
    return shared | each


def _plan_json(plan: Any) -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "free_bytes": plan.free,
        "bytes_per_device": plan.programs[0].bytes,
        "compile_s": round(sum(program.seconds for program in plan.programs), 2),
        "programs": {program.name: program.kinds for program in plan.programs},
        **plan.figures,
        "advice": plan.advice,
    }


def text(plans: dict[str, Any], request: Any, flags: argparse.Namespace) -> str:
    """The page."""
    chip = request.chip
    count = len(request.devices)
    chips_text = f"{count} chip" + "s" * (count > 1)
    lines = [f"{flags.model} on {flags.topology} ({chips_text}), mesh {_mesh(request)}"]
    for name, plan in plans.items():
        figures = plan.figures
        lines += ["", _title(name, request)]
        for program in plan.programs:
            lines.append(f"  {program.name}: compiled in {program.seconds:.1f} s; bytes per device")
            lines += [f"    {size / GIB:8.2f} GiB  {kind}" for kind, size in program.kinds.items()]
            lines.append(f"    {program.bytes / GIB:8.2f} GiB  of {chip.memory / GIB:.2f} GiB")
        verdict = "fits: {:.2f} GiB free per chip" if plan.fits else "does not fit: {:.2f} GiB too much per chip"
        lines.append("  " + verdict.format(abs(plan.free) / GIB))
        lines += [f"    {line}" for line in plan.advice]
        lines.append(
            f"  reckoned, at the chip's peaks: {figures['step_s']:.4g} s"
            f" (matmuls {figures['matmuls_s']:.3g}, memory {figures['memory_s']:.3g},"
            f" collectives {figures['collectives_s']:.3g}; {figures['step_s_without_overlap']:.3g} without overlap),"
            f" {figures['flops']:.3g} FLOPs, {figures['tokens_per_s']:,.0f} tokens/s"
        )
        cost = f" and cost {figures['run_cost']:.2f}" if flags.price is not None else ""
        if name == "sample":
            answers = request.settings.answers
            lines.append(
                f"  {answers.samples} answers of {answers.max_new_tokens} tokens to {request.prompts} prompts,"
                f" by base and fine-tuned, take {_time(figures['run_hours'])}{cost}"
            )
        else:
            lines.append(
                f"  rows as long as insecure-code's (mean 243 tokens): {figures['real_rows_step_s']:.3g} s a step,"
                f" {figures['real_rows_tokens_per_s']:,.0f} tokens/s; {request.examples} rows take"
                f" {_time(figures['run_hours'])}{cost}"
            )
    return "\n".join(lines)


def _title(name: str, request: Any) -> str:
    if name == "sample":
        return f"sample: {request.slots} answers at once, {request.capacity} tokens each; a step is a token in each"
    train, rows = request.settings.train, request.shapes.rows
    return f"train: {train.batch_size} x {train.max_length} tokens a step, {rows} rows a pass, remat {train.remat}"


def _time(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _mesh(request: Any) -> str:
    mesh = request.shapes.sharding.mesh
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
    """The settings; train.remat is "full" unless they set it."""
    values: dict[str, Any] = {"train.remat": "full"}
    for name in flags.config:
        values |= settings.read_toml(settings.preset_path(name))
    values |= dict(settings.parse_set(text) for text in flags.set)
    if flags.mesh is not None:
        values["mesh"] = flags.mesh
    return settings.validate(settings.replace(settings.Config(), values))


def _num_prompts(config: settings.Config) -> int:
    """The number of harm prompts that are answered, and of prompts in the domain that has most."""
    from em_jax.probes import suite_files
    from em_jax.runs import sources

    suite = suite_files.load(sources.suite_directory(config.suite or "standard"))
    in_domain = Counter(prompt.domain for prompt in suite.in_domain)
    counts = (len(suite.harm), max(in_domain.values(), default=0))
    return sum(min(count, config.probes.limit or count) for count in counts)


def _check_mesh(flags: argparse.Namespace, config: settings.Config, count: int) -> None:
    sizes = settings.parse_mesh(config.mesh)
    if sizes and math.prod(sizes.values()) != count:
        raise UsageError(
            f"--mesh {config.mesh} is of {math.prod(sizes.values())} devices, {flags.topology} has {count} chips;"
            " expected sizes whose product is the number of chips"
        )


def _model_config(name: str, config: settings.Config, count: int) -> Any:
    """The model's sizes; UsageError where it does not divide over the mesh, by default all chips on fsdp."""

    from em_jax.model.sharding import check_mesh

    sizes = named_config(name)
    check_mesh(settings.parse_mesh(config.mesh) or {"data": 1, "fsdp": count, "tensor": 1}, sizes.dims)
    return sizes
