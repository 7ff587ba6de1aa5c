"""What an optimised program does on one device: bytes through memory, operations, launches, kernels, collectives.

Each instruction that runs by itself counts as one kernel, loops multiplied out. A fusion reads each operand once, of a
sliced one only the slice, and writes its results once, of an array that it updates in place only the update.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from em_jax.perf.program_text import COLLECTIVES, Computation, Instruction, ProgramText, parse
from em_jax.runs.chips import Chip

NO_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all",
    "optimization-barrier", "domain", "add-dependency", "get-dimension-size",
}  # fmt: skip
FUSED_START, FUSED_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
"""Custom calls that mark where a TPU's asynchronous collective begins and ends; each is a fusion's root."""
BOOKKEEPING = {
    FUSED_START, FUSED_DONE, "ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape",
}  # fmt: skip
"""Custom calls that compute nothing."""
MATMULS = ("dot", "convolution")
POINTWISE = {"convert", "add", "subtract", "multiply", "divide", "exponential", "compare", "select", "reduce"}
"""Instructions of which a part of the result needs as much of an operand."""
UPDATED = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that update their first operand in place, and which operand is the update."""


class Kernel(NamedTuple):
    """One instruction's work, each of the `times` it runs. `flops` are those of its matmuls."""

    bytes: int
    flops: int
    times: int


class Collective(NamedTuple):
    """One array of a collective's result, on one device; `hidden` where other work is scheduled meanwhile."""

    kind: str
    shape: tuple[int, ...]
    bytes: int
    times: int
    hidden: bool


class ProgramWork(NamedTuple):
    """A program's kernels and collectives; `kernels` are the names of its custom calls, sorted."""

    steps: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Through the memory of one device."""
        return sum(each.bytes * each.times for each in self.steps)

    @property
    def flops(self) -> int:
        """Of the matmuls on one device."""
        return sum(each.flops * each.times for each in self.steps)

    @property
    def launches(self) -> int:
        """Instructions that run by themselves."""
        return sum(each.times for each in self.steps)

    @property
    def collective_bytes(self) -> int:
        """Of the collectives' results."""
        return sum(each.bytes * each.times for each in self.collectives)

    @property
    def async_collective_share(self) -> float | None:
        """The share of those bytes during which other work is scheduled; None without collectives."""
        total = self.collective_bytes
        return sum(each.bytes * each.times for each in self.collectives if each.hidden) / total if total else None

    def seconds(self, chip: Chip) -> float:
        """The sum over kernels of the larger of operations and bytes at the chip's peaks."""
        return sum(each.times * max(each.flops / chip.flops, each.bytes / chip.bandwidth) for each in self.steps)


def work_of_text(text: str, while_steps: int = 1) -> ProgramWork:
    """The work of a compiled program's text. A loop that ends by its data counts `while_steps`."""
    program = parse(text)
    steps: list[Kernel] = []
    collectives: list[Collective] = []
    targets = set()
    for each, computation, times in program.executed(while_steps):
        if each.opcode in NO_WORK or each.opcode.endswith(("-done", "-update")):
            continue
        own = _targets(program, each)
        targets |= own - BOOKKEEPING
        if FUSED_DONE in own:
            continue
        found = [
            one for one, _ in inside(program, each, computation) if one.opcode.removesuffix("-start") in COLLECTIVES
        ]
        # A fusion that goes on with a TPU's collective begun elsewhere counts for what it computes meanwhile.
        if found and not any(name.startswith("async_collective_fusion") for name in each.called):
            hidden = _is_hidden(program, each, computation)
            collectives += [one for start in found for one in _results(start, times, hidden)]
        else:
            steps.append(_kernel(program, each, computation, times))
    return ProgramWork(tuple(steps), tuple(collectives), tuple(sorted(targets)))


def inside(
    program: ProgramText, each: Instruction, computation: Computation
) -> Iterator[tuple[Instruction, Computation]]:
    """An instruction and, where it is a fusion, all within it, each with the computation that it stands in."""
    yield each, computation
    for inner in (program.computations[name] for name in each.called if each.opcode == "fusion"):
        for one in inner.values():
            yield from inside(program, one, inner)


def _results(start: Instruction, times: int, hidden: bool) -> list[Collective]:
    kind, types = start.opcode.removesuffix("-start"), start.types
    # A start's type names its operands first, then its results.
    if start.opcode != kind and kind != "all-reduce" and len(types) > 1:
        types = types[len(start.operands) : 2 * len(start.operands)] or types
    return [Collective(kind, one.shape, one.bytes, times, hidden) for one in types]


def _targets(program: ProgramText, each: Instruction) -> set[str]:
    return {one.target for one, _ in inside(program, each, {}) if one.target}


def _is_hidden(program: ProgramText, each: Instruction, computation: Computation) -> bool:
    """Whether other work is scheduled between the start of a collective and its end."""
    fused = each.opcode == "fusion" and FUSED_START in _targets(program, each)
    if not (fused or each.opcode.endswith("-start")):
        # The body of an async-start holds nothing else.
        alone = all(one is each or one.opcode in NO_WORK for one in computation.values())
        return alone and each.is_root and '"is_sync":true' not in each.attributes
    if '"is_sync":true' in each.attributes:
        return False
    order = list(computation.values())
    names = {each.name}
    for one in order[order.index(each) + 1 :]:
        uses = names & set(one.operands)
        if uses and one.opcode in ("get-tuple-element", "bitcast"):
            names.add(one.name)
        elif uses and (one.opcode.endswith("-done") or FUSED_DONE in _targets(program, one)):
            return False
        elif one.opcode not in NO_WORK and not one.opcode.endswith(("-start", "-done")):
            return True
    return False


def _kernel(program: ProgramText, each: Instruction, computation: Computation, times: int) -> Kernel:
    operands = [computation[name] for name in each.operands if name in computation]
    if each.opcode == "fusion":
        moved = _fusion_bytes(program, each, computation)
        inner = inside(program, each, computation)
        flops = sum(_matmul_flops(one, owner) for one, owner in inner if one.opcode in MATMULS)
    else:
        moved = _plain_bytes(each, operands)
        flops = _matmul_flops(each, computation) if each.opcode in MATMULS else _call_flops(each, operands)
    return Kernel(moved, flops, times)


def _size(each: Instruction) -> int:
    return sum(one.bytes for one in each.types if not one.on_chip)


def _plain_bytes(each: Instruction, operands: Sequence[Instruction]) -> int:
    if each.opcode in ("dynamic-slice", "slice", "gather"):
        return min(each.bytes, _size(operands[0])) + _size(each)
    if each.opcode in UPDATED:
        update = operands[UPDATED[each.opcode]]
        return _size(update) + min(update.bytes, _size(each))
    if each.opcode.endswith("-start") and len(each.types) > 1:
        # A copy, or a slice, between the main memory and the chip's own.
        source, result = operands[0].types[0] if operands else each.types[0], each.types[1]
        if each.opcode == "copy-start":
            result, source = each.types[0], each.types[1]
        return result.bytes * ((not source.on_chip) + (not result.on_chip))
    if each.opcode in ("iota", "rng", "broadcast"):
        return _size(each)
    return sum(map(_size, operands)) + _size(each)


def _read(
    program: ProgramText, called: Computation, each: Instruction, known: dict[str, int], *, computed: bool = False
) -> int:
    """The bytes of an array that a fusion's computation needs: of one that it slices, within fusions too, a part.

    A parameter that is only passed on is not read; what a fusion has `computed` is needed where it is a result. `known`
    are the bytes of arrays of `called` already looked at.
    """
    if each.name in known:
        return known[each.name]
    whole, used = each.bytes, 0
    for user in called.values():
        for number, name in enumerate(user.operands):
            # A TPU's compiler makes a fusion of a bitcast alone.
            flat = {one.opcode for one, _ in inside(program, user, called)} <= {"bitcast", "fusion", "parameter"}
            passed_on = user.opcode == "tuple" or (flat and user.is_root) or (number == 0 and user.opcode in UPDATED)
            if name != each.name or (passed_on and not computed):
                continue
            if number == 0 and user.opcode in ("dynamic-slice", "slice", "gather"):
                used += user.bytes
            elif flat and not user.is_root:
                used += _read(program, called, user, known, computed=computed)
            elif user.opcode in POINTWISE and not user.is_root and user.bytes:
                used += whole * _read(program, called, user, known, computed=True) // user.bytes
            elif user.opcode == "fusion" and user.called and not computed:
                inner = program.computations[user.called[0]]
                parameters = {int(one.arguments): one for one in inner.values() if one.opcode == "parameter"}
                used += _read(program, inner, parameters[number], {})
            else:
                used += whole
    known[each.name] = min(used, whole)
    return known[each.name]


def _fusion_bytes(program: ProgramText, fusion: Instruction, computation: Computation) -> int:
    called = program.computations[fusion.called[0]]

    def written(each: Instruction) -> int:
        if each.opcode == "bitcast" and each.operands[0] in called:
            return min(each.bytes, written(called[each.operands[0]]))
        if each.opcode in UPDATED:
            return called[each.operands[UPDATED[each.opcode]]].bytes
        return 0 if each.opcode == "parameter" else each.bytes

    root = next(each for each in called.values() if each.is_root)
    # Inside a fusion nothing says where an array is: the fusion's own types and its operands' do.
    results = [called[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = sum(min(written(each), one.bytes) for each, one in zip(results, fusion.types) if not one.on_chip)
    known: dict[str, int] = {}
    for each in called.values():
        if each.opcode == "parameter":
            operand = computation[fusion.operands[int(each.arguments)]]
            total += min(_read(program, called, each, known), _size(operand))
    return total


def _numbers(pattern: str, text: str) -> list[int] | None:
    found = re.search(pattern, text)
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else None


def _matmul_flops(each: Instruction, computation: Computation) -> int:
    """2 x results x contracted. A TPU's matmuls are convolutions, whose batch axes are dilated windows."""
    results = math.prod(each.types[0].shape)
    operands = [computation[name].types[0].shape for name in each.operands[:2]]
    if each.opcode == "dot":
        contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes) or []
        return 2 * results * math.prod(operands[0][axis] for axis in contracted)
    labels = re.search(r"dim_labels=\w+_(\w+)->", each.attributes)
    assert labels
    axes = dict(zip(labels[1], operands[1], strict=True))
    window = re.search(r"window=\{([^}]*)\}", each.attributes)
    dilated = _numbers(r"lhs_dilate=([\dx]+)", window[1]) if window else None
    for axis, dilation in enumerate(dilated or []):
        if dilation > 1:
            axes.pop(str(axis))
    axes.pop("o")
    return 2 * results * math.prod(axes.values())


def _call_flops(each: Instruction, operands: Sequence[Instruction]) -> int:
    """Of a custom call: cuBLAS's products, and causal attention by cuDNN, half of whose square is masked."""
    if "cublas" in each.target:
        contracted = _numbers(r'"lhs_contracting_dimensions":\[([\d",]*)\]', each.attributes) or []
        left = operands[0].types[0].shape
        return 2 * math.prod(each.types[0].shape) * math.prod(left[axis] for axis in contracted)
    if "fmha" in each.target:
        (b, t, n, h), s = operands[0].types[0].shape, operands[1].types[0].shape[1]
        products = 5 if "Backward" in each.target else 2
        return products * b * n * t * s * h
    return 0
