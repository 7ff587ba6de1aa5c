"""Measures training and decoding: paired rounds of ours and a peer, shares of the device's peaks, memory of a step."""

import functools
import multiprocessing
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from em_jax.base import runtime, stage_timer
from em_jax.config import Config, replace
from em_jax.model.config import TransformerConfig
from em_jax.perf import bench_workload
from em_jax.perf.bench_workload import Peer, Workload
from em_jax.runs.chips import chip_of
from em_jax.runs.placement_costs import sizes
from em_jax.train.batches import Example

FORMULA = "MFU: 4 x matrices per token, 4DV per place with loss, 6 T^2 NHL per example of T tokens (causal attention)"
MEMORY_STEPS = 2
"""Steps that are taken: the second one finds the memory that the first one kept."""
Work = Callable[[int], int]
"""Does the work of a round, given its number, and returns how many tokens that was."""


def measure(
    work: Workload,
    against: str,
    what: Sequence[str],
    rounds: int,
    trace: str = "",
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Tokens per second by kind of work; the peer's are None without one.

    Training counts the examples' own tokens, never padding. `decode` asks 64 prompts at once; its `ten_samples` draws
    ten answers to each of 6 prompts. Where the device's peaks are known, `mfu` and
    `bandwidth_share` are our share of them, else None. With `trace` a profile of one more round of ours is written.
    `keep` gets the results after each kind of work.
    """
    from em_jax.perf.ours import Ours  # not in a peer's process, whose memory is measured

    makers: dict[str, Callable[[Workload], Peer]] = {"ours": Ours}
    if against:  # its class is imported only where it is asked for: it needs packages that few have
        makers["theirs"] = pkgutil.resolve_name(f"em_jax.perf.{against}_peer:{against.capitalize()}")
    peers = {name: make(work) for name, make in makers.items()}
    ours, results = peers["ours"], dict[str, Any]()
    losses: dict[Peer, list[float]] = {peer: [] for peer in peers.values()}

    def train(peer: Peer, number: int) -> int:
        losses[peer].append(peer.train(number))
        return sum(len(example.ids) for example in work.steps[number])

    def decode(prompts: int, samples: int, peer: Peer, number: int) -> int:
        return peer.decode(work.prompts[:prompts], samples)

    def rounds_of(title: str, do: Callable[..., int]) -> dict[str, Any]:
        return paired_rounds(title, {name: functools.partial(do, peer) for name, peer in peers.items()}, rounds)

    if "train" in what:
        for peer in losses:
            peer.prepare(range(rounds + 1))
        results["train"] = rounds_of("train", train)
        if against:
            # Both have the same weights and rows: different losses would mean different work.
            pairs = zip(*losses.values(), strict=True)
            results["train"]["loss_gap"] = max(abs(a - b) / abs(b) for a, b in pairs)
            results["train"] |= {f"{name}_peak_bytes": peak_bytes(make, work) for name, make in makers.items()}
        keep(results)
    if "decode" in what:
        results["decode"] = rounds_of("decode", functools.partial(decode, bench_workload.DECODING_ROWS, 1))
        keep(results)
        several = functools.partial(decode, 6, bench_workload.SAMPLES)
        results["decode"]["ten_samples"] = rounds_of("ten_samples", several)
        keep(results)
    device = jax.devices()[0]
    _add_shares(results, work, device)
    results["device"] = device.device_kind
    results["peak_bytes"] = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if trace:
        with jax.profiler.trace(trace):
            if "train" in what:
                ours.train(0)
            if "decode" in what:
                decode(bench_workload.DECODING_ROWS, 1, ours, 0)
    return results


def _add_shares(results: dict[str, Any], work: Workload, device: Any) -> None:
    """Add our share of the device's peaks to each kind of work."""
    from em_jax.perf.roofline import decode_floor  # late: a peer's process, whose memory is measured, needs none of it
    from em_jax.runs.programs import Shapes

    chip, known = chip_of(device)
    if "train" in results:
        examples = [example for step in work.steps for example in step]
        per_token = train_flops(work.config, examples) / sum(len(example.ids) for example in examples)
        speed = results["train"]["ours_tokens_per_s"]
        results["train"]["flops_per_token"] = per_token
        results["train"]["mfu"] = round(per_token * speed / chip.flops, 4) if known else None
    if "decode" in results:
        rows = min(bench_workload.DECODING_ROWS, len(work.prompts))
        length = round(sum(map(len, work.prompts[:rows])) / rows + work.new_tokens / 2)
        steps = results["decode"]["ours_tokens_per_s"] / rows
        settings = replace(Config(), {"model.quantization": work.quantization})
        read = decode_floor(Shapes(work.config, settings), rows, length)
        results["decode"]["bandwidth_share"] = round(steps * read / chip.bandwidth, 4) if known else None


def paired_rounds(title: str, sides: Mapping[str, Work], rounds: int) -> dict[str, Any]:
    """Medians over `rounds` rounds of both `sides`, ours and perhaps theirs, after a first one that warms up.

    `first_round_s` is our time in that one, compilation included. tokens_per_s is by the wall clock; `ratio` is the
    median of the rounds' ratios; `cpu_ratio` is the same by processor time, which other programs on the machine disturb
    less (None without a peer).
    """
    speeds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    first = 0.0
    for number in range(rounds + 1):
        for name, work in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = work(number)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{title} {name} round {number}: {tokens} tokens in {wall:.2f} s", file=sys.stderr, flush=True)
            if number:
                speeds[name].append((tokens / wall, tokens / max(cpu, 1e-9)))
            elif name == "ours":
                first = wall
    result: dict[str, Any] = {"rounds": rounds, "first_round_s": round(first, 2)}
    for name, pairs in speeds.items():
        result[f"{name}_tokens_per_s"] = round(statistics.median(wall for wall, _ in pairs), 1) if pairs else None
    for key, clock in (("ratio", 0), ("cpu_ratio", 1)):
        ratios = [mine[clock] / other[clock] for mine, other in zip(speeds["ours"], speeds["theirs"])]
        result[key] = round(statistics.median(ratios), 3) if ratios else None
    return result


def peak_bytes(make_peer: Callable[[Any], Any], work: Any) -> int | None:
    """The most memory that a process held which loads the model and trains; None but on a CPU, or where it died.

    Without the machine code that compiling takes for a moment the figure would be smaller; a run compiles too.
    """
    if jax.default_backend() != "cpu":
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_train, make_peer, work).result()
        except BrokenProcessPool:
            return None


def _train(make_peer: Callable[[Any], Any], work: Any) -> int:
    runtime.configure_jax()
    peer = make_peer(work)
    peer.prepare(range(MEMORY_STEPS))
    for step in range(MEMORY_STEPS):
        peer.train(step)
    return stage_timer.peak_memory()[stage_timer.PEAK]


def train_flops(config: TransformerConfig, examples: Sequence[Example]) -> float:
    """Operations that LoRA training of these examples needs, without the adapter's own and without recomputation.

    The base is frozen, so the backward pass costs as much as the forward pass: 2 operations per weight and token each,
    4 in all; the head only at tokens with loss; attention two products forward and four backward over half of T x T.
    """
    tokens = sum(len(example.ids) for example in examples)
    loss_tokens = sum(sum(example.mask[1:]) for example in examples)
    squares = sum(len(example.ids) ** 2 for example in examples)
    heads = config.num_attention_heads * config.head_dim
    head = 4 * loss_tokens * config.hidden_size * config.vocab_size
    return config.num_hidden_layers * (4 * tokens * sizes(config, rank=0).layer + 6 * squares * heads) + head
