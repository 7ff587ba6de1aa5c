"""An optimised XLA program read from its text: its computations, and every instruction that it runs, how often."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
LAYOUT = re.compile(r"\b(pred|(?:bf|[cfsu])\d\w*)\[([\d,]*)\](\{[^{}]*\})?")
INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
CALLED = re.compile(r"\b(?:to_apply|calls|branch_computations|(?:true|false)_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))")


class ArrayType(NamedTuple):
    """An array's type: `on_chip` where the compiler keeps it beside the arithmetic units, not in the main memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        """Its size, wherever it is. A dtype's first number is its bits."""
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return math.ceil(math.prod(self.shape) * bits / 8)


class Instruction(NamedTuple):
    """One instruction: `operands` are names in its computation, `attributes` the text behind them."""

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    arguments: str

    @property
    def bytes(self) -> int:
        """The size of its result, wherever that is."""
        return sum(one.bytes for one in self.types)

    @property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that it runs."""
        return tuple(
            name.strip().removeprefix("%")
            for names, one in CALLED.findall(self.attributes)
            for name in (names or one).split(",")
        )

    @property
    def target(self) -> str:
        """Of a custom call, what is called; "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


class ProgramText(NamedTuple):
    """The computations by name, in the order of their schedule, and the name of the first one that runs."""

    computations: dict[str, Computation]
    entry: str

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a loop runs, where the compiler says it or its condition compares a counter with a constant."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
        computation = self.computations[condition[1]] if condition else {}
        for root in computation.values():
            if root.is_root and root.opcode == "compare" and "direction=LT" in root.attributes:
                bound = computation.get(root.operands[1])
                if bound and bound.opcode == "constant":
                    return int(bound.arguments)
        return None

    def executed(
        self, while_steps: int = 1, name: str = "", times: int = 1
    ) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction that is run by itself, its computation, and how often it runs.

        Instructions within a fusion are part of the fusion. A loop whose count the compiler does not know runs
        `while_steps` times; of branches all are counted, each once. `name` is a computation (default: the entry) that
        runs so many `times`.
        """
        computation = self.computations[name or self.entry]
        for each in computation.values():
            if each.opcode == "while":
                body = re.search(r"\bbody=%?([\w.\-]+)", each.attributes)
                assert body
                count = self.trip_count(each) or while_steps
                yield from self.executed(while_steps, body[1], times * count)
            elif each.opcode in ("call", "conditional", "async-start"):
                for called in each.called:
                    yield from self.executed(while_steps, called, times)
            else:
                yield each, computation, times


def parse(text: str) -> ProgramText:
    """Read the text that a compiled program's `as_text()` gives."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .*\{$", line):
            current = computations.setdefault(start[2], {})
            entry = start[2] if start[1] else entry
        elif line == "}":  # a custom call's configuration may go over several lines
            current = None
        elif current is not None and (found := INSTRUCTION.match(line)):
            each = _instruction(bool(found[1]), found[2], found[3])
            current[each.name] = each
    return ProgramText(computations, entry)


def _instruction(is_root: bool, name: str, text: str) -> Instruction:
    """From the text behind the `=`: a type, an opcode, operands in parentheses, and attributes."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    types = tuple(_types(text[:end]))
    opcode, _, _ = text[end:].strip().partition("(")
    start = text.index("(", end)
    close = _closing(text, start)
    arguments = text[start + 1 : close]
    operands = re.findall(r"%([\w.\-]+)", arguments) or re.findall(r"[A-Za-z_][\w.\-]*", arguments)
    return Instruction(name, opcode, types, tuple(operands), text[close + 1 :], is_root, arguments)


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    raise ValueError(f"no closing parenthesis in {text!r}")


def _types(text: str) -> Iterator[ArrayType]:
    for dtype, sizes, layout in LAYOUT.findall(text):
        # S(0) is the main memory; 5 is a host's, and the others are on the chip.
        on_chip = bool(re.search(r"S\([1-46-9]\)", layout))
        yield ArrayType(dtype, tuple(int(size) for size in sizes.split(",") if size), on_chip)
