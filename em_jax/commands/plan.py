"""`em-jax plan --model qwen2.5-32b --topology v5e:4x4 --mesh fsdp=16`: does it fit, how fast, what cost."""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from em_jax import config as settings
from em_jax.base import runtime
from em_jax.base.cli import Parser, one_of, repeated_flag, whole
from em_jax.base.errors import UsageError
from em_jax.base.progress import duration
from em_jax.formats.model_config import named_config
from em_jax.runs import chips
from em_jax.runs.chips import GIB

WHAT = ("train", "sample", "both")
FROM_TEXT = {
    "kernels": "kernels",
    "launches": "launches",
    "traffic_bytes": "bytes",
    "collective_bytes": "collective_bytes",
    "async_collective_share": "async_collective_share",
}
"""What --json says of a program's compiled text (null where that is not read), and where ProgramWork has it."""
FIGURES = {
    "step_s": "  reckoned, at the chip's peaks: {step_s:.4g} s (matmuls {matmuls_s:.3g}, memory {memory_s:.3g}, "
    "collectives {collectives_s:.3g}; {step_s_without_overlap:.3g} without overlap), {flops:.3g} FLOPs, "
    "{tokens_per_s:,.0f} tokens/s",
    "kernels_s": "  kernels of a step, each at the larger of its operations and bytes: {kernels_s:.4g} s; operations "
    "alone {flops_s:.4g} s",
}
"""The lines of a plan for those of its figures that it has."""


def main(arguments: Sequence[str]) -> None:
    """Compile what the flags name and print it: a page of text, or with --json exactly one object."""
    flags = _flags(arguments)
    if not flags.topology:
        return _rank(flags)
    chip, count = chips.parse_topology(flags.topology)
    config = _settings(flags, chip)
    # A wrong flag is reported before anything heavy is imported.
    with runtime.native_stderr_dropped():
        from em_jax.perf import compiling, ranking

    compiling.prepare(chip.platform)
    # Before the mesh, which must fit a slice that exists. Without the compiler the other flags are checked first.
    devices = compiling.devices(flags.topology) if compiling.is_installed(chip.platform) else None
    model = _model_config(flags, config, count)
    from em_jax.perf.planning import KINDS, PlanRequest, placed, plan
    from em_jax.runs import placement

    capacity = flags.room or placement.run_size(config).capacity
    full, real = placed(config, model, chip, count)
    price = ranking.read_prices(flags.price_file).get(chip.name) if flags.price_file else flags.price
    request = PlanRequest(
        model, full, real, chip, devices or compiling.devices(flags.topology),
        capacity=capacity, examples=flags.examples, prompts=_num_prompts(config), price=price
    )  # fmt: skip
    plans = {name: plan(request, name) for name in KINDS if (flags.what or "train") in (name, "both")}
    results = {"model": flags.model, "topology": flags.topology, "chips": count, "mesh": _mesh(request)}
    results |= as_json(plans, chip)
    print(json.dumps(results) if flags.json else text(plans, request, flags))


def _rank(flags: argparse.Namespace) -> None:
    """Without a topology: every slice and machine by time and cost, reckoned."""
    from em_jax.perf import ranking

    config = _settings(flags)
    prices = ranking.read_prices(flags.price_file) if flags.price_file else {}
    model = named_config(flags.model)
    rows = ranking.rank(model, config, ranking.paper_workload(config, flags.examples), prices)
    results = {"model": flags.model, "workload": "paper", "reckoned": rows}
    print(json.dumps(results) if flags.json else "\n".join(ranking.lines(rows, flags.model)))


def as_json(plans: dict[str, Any], chip: chips.Chip) -> dict[str, Any]:
    """One object: the memory of the tightest kind of work, the speed of the first, and every kind under its name."""
    each = {name: _plan_json(plan) for name, plan in plans.items()}
    first, tightest = next(iter(each.values())), min(each.values(), key=lambda plan: plan["free_bytes"])
    shared = {name: tightest[name] for name in ("fits", "free_bytes", "bytes_per_device")}
    shared["capacity_bytes"] = chip.capacity
    shared["compile_s"] = round(sum(plan["compile_s"] for plan in each.values()), 2)
    shared |= {name: first[name] for name in ("step_s", "tokens_per_s")}
    shared["advice"] = [line for plan in each.values() for line in plan["advice"]]
    return shared | each


def _plan_json(plan: Any) -> dict[str, Any]:
    programs = {
        program.name: program.kinds
        | {"compile_s": round(program.seconds, 2)}
        | {name: getattr(program.work, attribute, None) for name, attribute in FROM_TEXT.items()}
        for program in plan.programs
    }
    return {
        "fits": plan.fits,
        "free_bytes": plan.free,
        "bytes_per_device": plan.programs[0].bytes,
        "compile_s": round(sum(program.seconds for program in plan.programs), 2),
        "programs": programs,
        **plan.figures,
        "advice": plan.advice,
    }


def text(plans: dict[str, Any], request: Any, flags: argparse.Namespace) -> str:
    """The page."""
    chip = request.chip
    count = len(request.devices)
    chips_text = f"{count} chip" + "s" * (count > 1)
    share = f" ({chip.share:.0%} of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION)" if chip.share < 1 else ""
    lines = [f"{flags.model} on {flags.topology} ({chips_text}), mesh {_mesh(request)}"]
    train = request.settings.train
    titles = {
        "train": f"{train.batch_size} x {train.max_length} tokens a step, {request.shapes.rows} rows a pass, "
        f"remat {train.remat}",
        "sample": f"{request.slots} answers at once, {request.capacity} tokens each; a step is a token in each",
    }
    for name, plan in plans.items():
        figures = plan.figures
        lines += ["", f"{name}: {titles[name]}"]
        for program in plan.programs:
            lines.append(f"  {program.name}: compiled in {program.seconds:.1f} s; bytes per device")
            lines += [f"    {size / GIB:8.2f} GiB  {kind}" for kind, size in program.kinds.items()]
            lines.append(f"    {program.bytes / GIB:8.2f} GiB  of {chip.capacity / GIB:.2f} GiB{share}")
            lines += _work_lines(program)
        verdict = "fits: {:.2f} GiB free per chip" if plan.fits else "does not fit: {:.2f} GiB too much per chip"
        lines.append("  " + verdict.format(abs(plan.free) / GIB))
        lines += [f"    {line}" for line in plan.advice]
        lines += [words.format(**figures) for figure, words in FIGURES.items() if figures.get(figure)]
        if figures.get("bytes_per_token"):
            per_token, launches = figures["bytes_per_token"], figures["launches_per_token"]
            floors = f"{per_token / figures['floor_bytes_per_token']:.2f} times the floor"
            counted = f"; {launches:,.0f} launches" if launches else ""
            lines.append(f"  a token: {per_token / 1e9:.4g} GB through a chip's memory, {floors}{counted}")
        cost = f" and cost {figures['run_cost']:.2f}" if request.price is not None else ""
        answers, took = request.settings.answers, duration(3600 * figures["run_hours"]) + cost
        if name == "sample":
            asked = f"{answers.samples} answers of {answers.max_new_tokens} tokens to {request.prompts} prompts"
            lines.append(f"  {asked}, by base and fine-tuned, take {took}")
        else:
            step = f"{figures['real_rows_step_s']:.3g} s a step, {figures['real_rows_tokens_per_s']:,.0f} tokens/s"
            rows = f"rows as long as insecure-code's (mean 243 tokens), remat {request.real.train.remat}"
            lines.append(f"  {rows}: {step}; {request.examples} rows take {took}")
    return "\n".join(lines)


def _work_lines(program: Any) -> list[str]:
    """What the compiled text says of one run of a program."""
    if not (work := program.work):
        return ["    its compiled text is not read: it has instructions that this jaxlib does not know"] * program.whole
    share = work.async_collective_share
    hidden = "no collectives" if share is None else (
        f"{work.collective_bytes / 1e9:.3g} GB of collectives, {share:.0%} of them under other work"
    )  # fmt: skip
    return [
        f"    in the compiled text: {work.bytes / 1e9:.4g} GB through memory, {work.launches:,} kernels run, {hidden}",
        f"    custom calls: {', '.join(work.kernels) or 'none'}",
    ]


def _mesh(request: Any) -> str:
    mesh = request.shapes.sharding.mesh
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()) if mesh else "of one chip"


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="em-jax plan",
        description="Compile a run for a TPU slice or for GPUs from shapes alone: bytes per chip, kernels, least time "
        "of a step, cost; or rank them by the time and cost of the paper's runs. Needs no device; "
        "pip install '.[plan]' brings the TPU's compiler, '.[plan-gpu]' the GPU's.",
    )
    model_help = "such as qwen2.5-32b, qwen3-8b or llama-3.1-70b, an id of one, or a directory (qwen2.5-32b)"
    slice_help = "v5e:4x4, v5p:2x2x2 (v4, v5e, v5p, v6e), h100:1, h200:8 (a100, h100, h200); without it all are ranked"
    parser.add_argument("--model", metavar="NAME", default="qwen2.5-32b", help=model_help)
    parser.add_argument("--topology", metavar="SLICE", default="", help=slice_help)
    parser.add_argument("--mesh", metavar="SIZES", help="data=1,fsdp=16,tensor=1 (default: as a run would choose)")
    what_help = "train (default), sample or both"
    parser.add_argument("--what", metavar="WORK", type=one_of(*WHAT), help=what_help)
    parser.add_argument("--config", **repeated_flag("FILE", "a preset or a TOML file"))
    parser.add_argument("--set", **repeated_flag("KEY=VALUE", "one setting, repeatable"))
    parser.add_argument("--room", metavar="N", type=whole(1), help="tokens of prompt and answer (as a run's)")
    parser.add_argument("--examples", metavar="N", type=whole(1), default=6000, help="rows of a run (6000)")
    parser.add_argument("--price", metavar="P", type=float, help="per chip and hour: prints what a run costs")
    parser.add_argument("--price-file", metavar="FILE", default="", help="prices for the ranking: TOML, v5e = 1.2")
    workload_help = "what the ranking reckons: paper (default), one verdict and the eight runs"
    parser.add_argument("--workload", metavar="NAME", type=one_of("paper"), default="paper", help=workload_help)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args(arguments)
    if not flags.topology and (flags.mesh or flags.room or flags.what or flags.price is not None):
        told = "--mesh, --room, --what and --price are of one slice: expected --topology too"
        raise UsageError(f"{told} (the ranking takes --price-file)")
    if flags.price is not None and not (math.isfinite(flags.price) and flags.price >= 0):
        raise UsageError(f"--price: expected 0 or more, found {flags.price}")
    return flags


def _settings(flags: argparse.Namespace, chip: chips.Chip | None = None) -> settings.Config:
    """The settings; on a chip layers are stacked as there."""
    values = settings.read_given(flags.config, flags.set)
    if flags.mesh is not None:
        values["mesh"] = flags.mesh
    config = settings.validate(settings.replace(settings.Config(), values))
    if chip is None:
        return config
    scan = runtime.choose_scan(config.model.scan_layers, chip.platform)
    return settings.replace(config, {"model.scan_layers": scan})


def _num_prompts(config: settings.Config) -> int:
    """The number of harm prompts that are answered, and of prompts in the domain that has most."""
    from em_jax.probes import suite_files
    from em_jax.runs import sources

    suite = suite_files.load(sources.suite_directory(config.suite or "standard"))
    in_domain = Counter(prompt.domain for prompt in suite.in_domain)
    counts = (len(suite.harm), max(in_domain.values(), default=0))
    return sum(min(count, config.probes.limit or count) for count in counts)


def _model_config(flags: argparse.Namespace, config: settings.Config, count: int) -> Any:
    """The model's sizes; UsageError where the settings' mesh is not of `count` chips, or the model does not divide."""
    from em_jax.runs.placement import check_mesh

    mesh = settings.parse_mesh(config.mesh)
    if mesh and math.prod(mesh.values()) != count:
        raise UsageError(
            f"--mesh {config.mesh} is of {math.prod(mesh.values())} devices, {flags.topology} has {count} chips;"
            " expected sizes whose product is the number of chips"
        )
    model = named_config(flags.model)
    if mesh:
        check_mesh(mesh, model.dims)
    return model
