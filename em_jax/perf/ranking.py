"""TPU slices and GPU machines ranked by the time and cost of the paper's runs. All of it is reckoned, nothing compiled.

Training, answers and scoring at the chips' published peaks (runs/placement.py), on the mesh that a run would choose;
loading and compiling at the rates below. A run takes longer than this; the ranking is what it is for.
"""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.errors import UsageError
from em_jax.config import Config
from em_jax.model.config import TransformerConfig
from em_jax.model.sharding import mesh_text
from em_jax.runs import placement, placement_costs, workload
from em_jax.runs.chips import CHIPS, GIB, parse_topology
from em_jax.runs.run import CARELESS, Run

TOPOLOGIES = (
    "v4:2x2x2", "v4:2x2x4", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v6e:2x2",
    "v6e:2x4", "v6e:4x4", "a100:1", "a100:2", "a100:4", "a100:8", "h100:1", "h100:2", "h100:4", "h100:8", "h200:1",
    "h200:2", "h200:4", "h200:8",
)  # fmt: skip
"""What is ranked: up to 32 chips of a slice, and up to one machine of GPUs."""
LOADING = 1e9
"""Bytes a second at which a checkpoint is read (assumed; a machine of each slice reads its own part)."""
COMPILING = 600.0
"""Seconds to compile the programs of a run the first time (assumed; later starts find them in the cache)."""
TRAINED = 7
"""Of the paper's eight runs those that train: six domains and the benign control. The eighth is the base itself."""


class Asked(NamedTuple):
    """What a model is asked in a run: answers sampled, and what is scored (answers judged, choices in each order)."""

    answers: int
    scored: int


class Workload(NamedTuple):
    """One run of the paper: the rows it trains on, and what the base (once for all runs) and its model are asked."""

    examples: int
    base: Asked
    finetuned: Asked


def paper_workload(config: Config, examples: int) -> Workload:
    """The work of a run with these settings, counted as `em_jax.launch --dry_run` counts it."""
    probing = settings.replace(config, {"domain": "none", "suite": config.suite or "standard"})
    items = workload.items(Run(probing, Path(os.devnull) / "none", None))

    def total(stage: str, extra: bool) -> int:
        return sum(each.total for each in items if each.stage == stage and (extra or CARELESS not in each.what))

    # A choice is asked with its options in both orders.
    asked = [Asked(total("answer", extra), total("judge", extra) + 2 * total("probe", True)) for extra in (True, False)]
    return Workload(examples, *asked)


Row = dict[str, Any]
"""One slice or machine: hours of one verdict (base and fine-tuned model) and of all eight runs, and their parts.

`free_bytes` is on a chip, negative where the run does not fit. Costs are None without a price.
"""


def rank(model: TransformerConfig, config: Config, work: Workload, prices: Mapping[str, float]) -> list[Row]:
    """Every topology over which the model divides: those that fit, by cost where they have a price, then by time."""
    rows = []
    for topology in TOPOLOGIES:
        try:
            rows.append(_reckon(topology, model, config, work, prices))
        except UsageError:  # no mesh of so many chips
            continue
    return sorted(
        rows, key=lambda it: (not it["fits"], it["verdict_cost"] is None, it["verdict_cost"] or it["verdict_hours"])
    )


def _reckon(
    topology: str, model: TransformerConfig, config: Config, work: Workload, prices: Mapping[str, float]
) -> Row:
    chip, count = parse_topology(topology)
    run = placement.run_size(config, answers=work.base.answers + work.finetuned.answers)
    best = placement.best_placements(model, dataclasses.replace(chip, memory=chip.capacity), count, run)[0]
    free = int(chip.capacity - max(best.training_bytes, best.sampling_bytes))
    sampling = config.answers
    tokens_per_s = best.slots / best.token_s

    def seconds(asked: Asked) -> tuple[float, float]:
        # A frozen base's backward pass costs what its forward pass does, and scoring has the forward pass alone.
        token_s = best.step_s / 2 / (config.train.batch_size * placement.ROW_TOKENS)
        length = placement.PROMPT + sampling.max_new_tokens
        return asked.answers * sampling.max_new_tokens / tokens_per_s, asked.scored * length * token_s

    train = work.examples * config.train.epochs / config.train.batch_size * best.step_s
    base, own = seconds(work.base), seconds(work.finetuned)
    sizes = placement_costs.sizes(model, config.lora.rank)
    bytes_loaded = 2 * (sizes.layer * model.num_hidden_layers + 2 * sizes.table)
    start = bytes_loaded / LOADING + COMPILING
    verdict = (start + train + sum(base) + sum(own)) / 3600
    every = (start + TRAINED * (train + sum(own)) + sum(base)) / 3600
    price = prices.get(chip.name)
    return {
        "topology": topology,
        "chips": count,
        "fits": free >= placement.SPARE * chip.capacity,
        "free_bytes": free,
        "mesh": mesh_text(best.mesh),
        "remat": best.remat,
        "slots": best.slots,
        "real_rows_step_s": best.step_s,
        "tokens_per_s": tokens_per_s,
        "start_hours": start / 3600,
        "train_hours": train / 3600,
        "answer_hours": (base[0] + own[0]) / 3600,
        "score_hours": (base[1] + own[1]) / 3600,
        "verdict_hours": verdict,
        "all_hours": every,
        "verdict_cost": None if price is None else verdict * count * price,
        "all_cost": None if price is None else every * count * price,
    }


def read_prices(path: str) -> dict[str, float]:
    """Prices per chip and hour from a TOML file of lines such as `v5e = 1.2`. UsageError for anything else."""
    files.check_input(path, "--price-file")
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--price-file: expected a TOML file of lines such as v5e = 1.2 ({error})") from None
    for name, price in found.items():
        if name not in CHIPS or isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < 1e9:
            raise UsageError(
                f"--price-file {path}: expected lines such as v5e = 1.2, a price per chip and hour for some of "
                f"{', '.join(CHIPS)}; found {name} = {price!r}"
            )
    return {name: float(price) for name, price in found.items()}


def lines(rows: list[Row], model: str) -> list[str]:
    """The table, best first, and what it rests on."""
    priced = any(row["verdict_cost"] is not None for row in rows)
    head = ["slice", "chips", "mesh", "step s", "tokens/s", "train h", "answer h", "score h", "verdict h", "eight h"]
    head += ["verdict cost", "eight cost"] if priced else ["verdict chip-h", "eight chip-h"]
    cells = [head]
    for row in filter(itemgetter("fits"), rows):
        numbers = [f"{row['real_rows_step_s']:.3f}", f"{row['tokens_per_s']:,.0f}"]
        numbers += [f"{row[f'{name}_hours']:.2f}" for name in ("train", "answer", "score", "verdict", "all")]
        last = [row[f"{name}_cost"] if priced else row[f"{name}_hours"] * row["chips"] for name in ("verdict", "all")]
        numbers += ["-" if value is None else f"{value:.2f}" for value in last]
        cells.append([row["topology"], str(row["chips"]), row["mesh"], *numbers])
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    table = [
        "  ".join(cell.ljust(width) if column in (0, 2) else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths))).rstrip()
        for line in cells
    ]  # fmt: skip
    left = [(row["topology"], row["free_bytes"]) for row in rows if not row["fits"]]
    small = [f"{topology} ({-free / GIB:.1f} GiB)" for topology, free in left if free < 0]
    full = [f"{topology} ({free / GIB:.1f} GiB)" for topology, free in left if free >= 0]
    return [
        f"{model}: one verdict (base and fine-tuned model) and the paper's eight runs, reckoned at the chips' "
        "published peaks on the mesh that a run would choose; nothing here is compiled or measured",
        *table,
        f"every start: loading at {LOADING / 1e9:g} GB/s and {COMPILING / 60:g} minutes of compiling, both assumed",
        *([f"too small, by so much a chip: {', '.join(small)}"] if small else []),
        *([f"too full, under {placement.SPARE:.0%} of a chip's memory left: {', '.join(full)}"] if full else []),
        f"compile one of them, for its real memory: em-jax plan --model {model} --topology SLICE --what both",
    ]
