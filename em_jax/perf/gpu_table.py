"""The speeds of one accelerator in one call of bounded time: a table that is written again after every row."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.perf.bench_workload import Workload
from em_jax.perf.measuring import measure
from em_jax.perf.quick import by_work

LEAST = 90.0
"""A row that would begin with fewer seconds left is not begun."""
ROUNDS = 2
ROWS = (
    ("training, 16 real rows a step", "none", "", "train"),
    ("decoding", "none", "", "decode"),
    ("decoding, int8", "int8", "", "decode"),
    ("training against transformers", "none", "transformers", "train"),
    ("decoding against transformers", "none", "transformers", "decode"),
    ("decoding against vLLM", "none", "vllm", "decode"),
)
"""Title, quantization, peer, kind of work: ours first, so that a short call has them."""
PACKAGES = {"": (), "transformers": ("peft", "torch"), "vllm": ("vllm",)}
"""A peer's row is left out where these are not installed."""
COLUMNS = ("ours_tokens_per_s", "theirs_tokens_per_s", "ratio", "mfu", "bandwidth_share", "first_round_s")


def write(path: Path, work: Workload, model: str, deadline: float) -> str:
    """Measure what fits before `deadline` (of time.monotonic) and write the Markdown table; returns its text.

    `model` says what was measured.
    """
    results: list[tuple[str, dict[str, Any] | str]] = []
    text = ""
    for title, quantization, against, what in ROWS:
        if not all(map(find_spec, PACKAGES[against])):
            continue
        left = deadline - time.monotonic()
        if left < LEAST:
            results.append((title, f"not measured: {max(left, 0):.0f} s were left"))
        else:
            print(f"{title}: {left:.0f} s left", file=sys.stderr, flush=True)
            try:
                asked = dataclasses.replace(work, quantization=quantization)
                results.append((title, measure(asked, against, [what], ROUNDS)))
            except Exception as error:  # one row that fails (out of memory) must not cost the others
                results.append((title, f"failed: {' '.join(str(error).split())[:160]}"))
        text = "\n".join(_lines(results, model)) + "\n"
        files.write_atomic(path, text)
    return text


def _lines(results: list[tuple[str, dict[str, Any] | str]], model: str) -> Iterator[str]:
    device = next((found["device"] for _, found in results if isinstance(found, dict)), "unknown device")
    yield f"Measured on one {device}, {model}, medians of {ROUNDS} rounds after a first one."
    yield ""
    yield "| work | tokens/s | theirs | ratio | MFU | share of the memory's bandwidth | first round, s |"
    yield "|---|---|---|---|---|---|---|"
    for title, found in results:
        if isinstance(found, str):
            yield f"| {title} | {found} | | | | | |"
            continue
        for name, row in by_work(found).items():
            cells = ["-" if row.get(key) is None else f"{row[key]:g}" for key in COLUMNS]
            yield f"| {title}{', ten samples of a prompt' if name == 'ten_samples' else ''} | {' | '.join(cells)} |"
