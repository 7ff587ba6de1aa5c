"""The collectives and the copies of a compiled program, read from its HLO text."""

import collections
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from em_jax.perf.program_text import parse
from em_jax.perf.program_work import NO_WORK, inside

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


class Collective(NamedTuple):
    """One array of a collective's result, on one device; `times` is how often loops run it."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    times: int

    @property
    def size(self) -> int:
        """Bytes."""
        return WIDTHS[self.dtype] * math.prod(self.shape)


def collectives(text: str, while_steps: int = 1) -> list[Collective]:
    """Every collective, one entry for each array that it gives. A loop that ends by its data counts `while_steps`."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = start[2]
            bodies[name] = []
            entry = name if start[1] else entry
        elif name:
            bodies[name].append(line)
    arrays: list[Collective] = []

    def visit(name: str, times: int) -> None:
        for line in bodies[name]:
            operation = re.match(r"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z-]+)\(", line)
            if not operation:
                continue
            kind = operation[2].removesuffix("-start")
            if kind in KINDS:
                arrays.extend(
                    Collective(kind, dtype, tuple(int(size) for size in shape.split(",") if size), times)
                    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", operation[1])
                )
            count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            inner = times * (int(count[1]) if count else while_steps) if kind == "while" else times
            for called in re.findall(r"(?:body|to_apply|calls|branch_computations)=\{?%?([\w.-]+)", line):
                visit(called, inner)

    visit(entry, 1)
    return arrays


def table(arrays: list[Collective]) -> list[str]:
    """One line for each kind and type of array: how many there are and their bytes, loops counted."""
    counts: collections.Counter = collections.Counter()
    sizes: collections.Counter = collections.Counter()
    for each in arrays:
        counts[each.kind, each.dtype] += each.times
        sizes[each.kind, each.dtype] += each.times * each.size
    return [f"{kind} {dtype}: {counts[kind, dtype]}, {sizes[kind, dtype]} bytes" for kind, dtype in sorted(counts)]


MOVES = {"copy", "copy-start", "transpose", "slice", "dynamic-slice", "concatenate", "reshape", "convert", "pad"}
"""Instructions that compute nothing."""


def copies(text: str, wanted: Callable[[tuple[int, ...]], bool], while_steps: int = 1) -> int:
    """How often a program writes an array, of a shape that is `wanted`, without computing anything."""
    program, count = parse(text), 0
    for each, computation, times in program.executed(while_steps):
        moves, types = each.opcode in MOVES, each.types[:1]
        if each.opcode == "fusion":
            within = {one.opcode for one, _ in inside(program, each, computation)}
            moves, types = within <= NO_WORK | MOVES | {"fusion", "dynamic-update-slice"}, each.types
        count += times * (moves and any(wanted(one.shape) for one in types if not one.on_chip))
    return count
