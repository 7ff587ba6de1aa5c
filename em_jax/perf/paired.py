"""Side by side: every round runs ours and then theirs on the same work, so that a busy machine is busy for both."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[int], int]
"""Does the work of a round, given its number, and returns how many tokens that was."""


def paired(title: str, ours: Work, theirs: Work | None, rounds: int) -> dict[str, Any]:
    """Medians over `rounds` rounds after one that warms up.

    `first_round_s` is what that one took of ours, compilation included. tokens_per_s is by the wall clock; `ratio` the
    median of the rounds' ratios; `cpu_ratio` the same by processor time, which other programs on the machine disturb
    less (None without a peer).
    """
    peers = {"ours": ours} | ({"theirs": theirs} if theirs else {})
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    first = 0.0
    for number in range(rounds + 1):
        for name, work in peers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = work(number)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{title} {name} round {number}: {tokens} tokens in {wall:.2f} s", file=sys.stderr, flush=True)
            if name == "ours" and not number:
                first = wall
            if number:
                speeds[name].append((tokens / wall, tokens / max(cpu, 1e-9)))
    found: dict[str, Any] = {"rounds": rounds, "first_round_s": round(first, 2)}
    for name in ("ours", "theirs"):
        rates = [wall for wall, _ in speeds.get(name, ())]
        found[f"{name}_tokens_per_s"] = round(statistics.median(rates), 1) if rates else None
    for key, clock in (("ratio", 0), ("cpu_ratio", 1)):
        pairs = zip(speeds["ours"], speeds.get("theirs", ()))
        ratios = [mine[clock] / other[clock] for mine, other in pairs]
        found[key] = round(statistics.median(ratios), 3) if ratios else None
    return found
