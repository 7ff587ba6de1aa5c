"""`em-jax bench [--against transformers] [--json]`: tokens per second of training and decoding."""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from em_jax.base import runtime
from em_jax.base.cli import Parser, one_of, some_of, whole
from em_jax.base.errors import UsageError
from em_jax.formats.model_config import read_config
from em_jax.perf import quick

WHAT = ("train", "decode")
PEERS = ("transformers", "tunix", "vllm")
PLANNED = 64
"""Steps whose layout is planned together, whatever the rounds: many steps share few shapes to compile, as in a run."""


def main(arguments: Sequence[str]) -> None:
    """Measure and print: a table, or with --json exactly one object with `train` and `decode`."""
    flags = _flags(arguments)
    if flags.against or flags.gpu_table:
        # A peer needs memory of the same card.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    start = time.monotonic()
    runtime.configure_jax()
    from em_jax.perf import measuring

    flags.against = flags.against or ("transformers" if flags.gpu_table else "")  # its checkpoint serves every peer
    lines: list[str] = []
    with _workload(flags) as work:
        if flags.gpu_table:
            from em_jax.perf import gpu_table

            path, deadline = pathlib.Path(flags.gpu_table), start + 60 * flags.minutes
            model = flags.model or f"{flags.shape or 'organism'} with random weights"
            print(gpu_table.write(path, work, model, deadline), end="")
            return
        asked = (work, flags.against, flags.what, flags.rounds, flags.trace)
        if flags.quick:
            import jax

            device = jax.devices()[0].device_kind
            path = quick.result_path(device, jax.device_count(), flags.shape or "organism", work.config)
            last = quick.read(path)
            # Each kind of work is kept as it is measured: what a killed bench measured is not lost.
            results = measuring.measure(*asked, keep=functools.partial(quick.keep, path=path))
            results["before"] = quick.compare(results, last)
            lines = quick.lines(results["before"], path)
        else:
            results = measuring.measure(*asked)
    print(json.dumps(results) if flags.json else "\n".join([_table(results), *lines]))


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    from em_jax.model.remat import KEPT

    parser = Parser(
        prog="em-jax bench",
        description="LoRA training and decoding speed, paired with a peer in the same call: rounds alternate, medians "
        "are printed, both have all cores. Rows have the lengths of real insecure-code rows (mean 244 tokens, 44% of "
        "them response); transformers pads them two by two as the published recipe does, tunix all 16 of a step.",
    )
    peer_help = "transformers, tunix or vllm (default: none)"
    parser.add_argument("--against", metavar="PEER", type=one_of("", *PEERS), default="", help=peer_help)
    parser.add_argument("--shape", metavar="NAME", default="", help="random weights of this shape (default organism)")
    parser.add_argument("--model", metavar="DIR", default="", help="a checkpoint instead of a shape")
    parser.add_argument("--rows", metavar="FILE", default="", help="train on these rows (JSONL; needs --model)")
    remat_help = "of ours: none (on a CPU), selective (elsewhere), ..."
    parser.add_argument("--remat", metavar="POLICY", type=one_of("", "none", *KEPT), default="", help=remat_help)
    parser.add_argument("--what", metavar="LIST", type=some_of(*WHAT), default=WHAT, help="train, decode or both")
    parser.add_argument("--rounds", metavar="N", type=whole(1), default=5, help="rounds counted, after one to warm up")
    parser.add_argument("--new_tokens", metavar="N", type=whole(1), default=64, help="tokens drawn per answer")
    parser.add_argument("--trace", metavar="DIR", default="", help="write a profile of one more round of ours there")
    quick_help = "a short measurement of a shape, beside the last one on this kind of device (kept in your cache)"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    table_help = "measure all that is asked of a GPU, ours and each installed peer, and write a Markdown table there"
    parser.add_argument("--gpu-table", metavar="FILE", default="", help=table_help)
    parser.add_argument("--minutes", metavar="N", type=float, default=10.0, help="the time of --gpu-table (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args(arguments)
    if flags.shape and flags.model:
        raise UsageError("--shape and --model exclude each other: random weights, or a checkpoint's")
    if flags.quick:
        if flags.against or flags.model or flags.rows or flags.trace:
            raise UsageError("--quick measures a shape by itself: expected no --against, --model, --rows or --trace")
        flags.rounds, flags.new_tokens = quick.ROUNDS, quick.NEW_TOKENS
    if flags.against == "vllm" and "train" in flags.what:
        raise UsageError("--against vllm measures decoding alone: expected --what decode")
    if flags.gpu_table and (flags.quick or flags.trace or flags.json or not flags.minutes > 0):
        raise UsageError("--gpu-table: expected --minutes above 0, and no --quick, --trace or --json")
    if flags.rows and not flags.model:
        raise UsageError("--rows needs --model: its tokenizer turns rows into tokens")
    if flags.trace and find_spec("libtpu") and not runtime.tpu_chips() and not os.environ.get("JAX_PLATFORMS"):
        raise UsageError("--trace: the profiler of the installed libtpu crashes without a TPU; set JAX_PLATFORMS=cpu")
    return flags


@contextlib.contextmanager
def _workload(flags: argparse.Namespace) -> Iterator[Any]:
    """The workload that the flags name; random weights are written to a directory where a peer must load them too."""
    import jax
    import jax.numpy as jnp

    from em_jax.formats.checkpoint import save_model
    from em_jax.formats.hub import find_model
    from em_jax.model.parameters import random_model
    from em_jax.perf import bench_workload

    directory: pathlib.Path | None = None
    with tempfile.TemporaryDirectory() as scratch:
        if flags.model:
            directory = pathlib.Path(find_model(flags.model))
            config = read_config(directory)
        else:
            config = bench_workload.shape_config(flags.shape or "organism")
            if flags.against:
                directory = pathlib.Path(scratch)
                dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
                save_model(random_model(config, jax.random.key(0), dtype=dtype), directory)
        count = max(flags.rounds + 1, PLANNED)
        if flags.rows and directory:
            steps = _steps_of_rows(flags.rows, directory, count)
        else:
            steps = bench_workload.synthetic_steps(count, config.vocab_size)
        prompts = bench_workload.synthetic_prompts(bench_workload.DECODING_ROWS, config.vocab_size)
        yield bench_workload.Workload(config, directory, steps, prompts, flags.new_tokens, flags.remat)


def _steps_of_rows(path: str, directory: pathlib.Path, count: int) -> list[list[Any]]:
    """`count` steps of the rows in a file, in the order of training, again from the first where they are too few."""
    from em_jax.domains import rows
    from em_jax.formats.chat_tokenizer import ChatTokenizer
    from em_jax.perf.bench_workload import BATCH
    from em_jax.train.batches import encode_rows, step_indices
    from em_jax.train.config import TrainConfig

    chats = rows.read(path)
    if len(chats) < BATCH:
        raise UsageError(f"--rows: expected at least {BATCH} rows, found {len(chats)}")
    train = TrainConfig()
    examples, _ = encode_rows(dict(enumerate(chats)), ChatTokenizer.from_directory(directory), train.max_length)
    whole = [step for step in step_indices(len(examples), train, 0) if len(step) == BATCH]
    return [[examples[i] for i in whole[number % len(whole)]] for number in range(count)]


def _table(results: dict[str, Any]) -> str:
    from em_jax.perf import measuring

    lines = [f"{'':12} {'ours':>10} {'theirs':>10} {'ratio':>7} {'by cpu':>7}   (tokens/s, medians)"]
    rows = quick.by_work(results)
    for name, row in rows.items():
        cells = [row[key] for key in ("ours_tokens_per_s", "theirs_tokens_per_s", "ratio", "cpu_ratio")]
        texts = ["-" if cell is None else f"{cell:g}" for cell in cells]
        lines.append(f"{name:12} {texts[0]:>10} {texts[1]:>10} {texts[2]:>7} {texts[3]:>7}")
    firsts = ", ".join(f"{name} {row['first_round_s']:g} s" for name, row in rows.items())
    lines.append(f"{results['device']}; first round, compilation included: {firsts}")
    if results["peak_bytes"] is not None:
        lines.append(f"peak memory {results['peak_bytes'] / 2**30:.2f} GiB")
    if (train := rows.get("train", {})).get("theirs_peak_bytes"):
        sides = [f"{name} {(train[f'{name}_peak_bytes'] or 0) / 2**30:.2f} GiB" for name in ("ours", "theirs")]
        lines.append(f"peak memory of training on 16 rows a step, each in a process of its own: {', '.join(sides)}")
    if rows.get("train", {}).get("mfu") is not None:
        lines += [f"MFU {rows['train']['mfu']:.3f}", measuring.FORMULA]
    if rows.get("decode", {}).get("bandwidth_share") is not None:
        lines.append(f"decoding reads at {rows['decode']['bandwidth_share']:.3f} of the memory's bandwidth")
    return "\n".join(lines)
