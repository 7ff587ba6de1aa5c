"""Paired rounds: each runs ours and then theirs on the same work, so that other load on the machine slows both."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[int], int]
"""Does the work of a round, given its number, and returns how many tokens that was."""


def paired_rounds(title: str, ours: Work, theirs: Work | None, rounds: int) -> dict[str, Any]:
    """Medians over `rounds` rounds after a first one that warms up.

    `first_round_s` is our time in that one, compilation included. tokens_per_s is by the wall clock; `ratio` is the
    median of the rounds' ratios; `cpu_ratio` is the same by processor time, which other programs on the machine disturb
    less (None without a peer).
    """
    sides = {"ours": ours} | ({"theirs": theirs} if theirs else {})
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
