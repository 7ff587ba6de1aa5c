"""`em-jax study path RUN...`: the persona over training, from the adapters that runs kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import comma_list
from em_jax.base.errors import UsageError
from em_jax.commands import study_flags
from em_jax.config import parse_set
from em_jax.runs.processes import across_processes, choose_model


def main(arguments: Sequence[str]) -> None:
    """Ask the kept adapters of every run; print the results and the pages' paths."""
    from em_jax.runs import stored
    from em_jax.studies import path

    parser = study_flags.parser(
        "path",
        "The persona over training, from the adapters that runs kept.",
        path.Options,
        path.COUNTS,
        runs="runs trained with --set train.keep_adapters=K",
    )
    parser.add_argument("--steps", default="", metavar="LIST", help="of the kept steps, with commas (all)")
    parser.add_argument("--mesh", metavar="SIZES", help="as for em_jax.launch, where the run's own does not fit")
    parser.add_argument("--set", metavar="K=V", action="append", default=[], help="one setting, as for em_jax.launch")
    flags = parser.parse_args(arguments)
    counts = study_flags.counted(flags, path.COUNTS)
    steps = comma_list(flags.steps)
    if not all(part.isascii() and part.isdigit() for part in steps):
        raise UsageError(f"--steps expects whole numbers with commas, found {flags.steps!r}")
    if flags.out and len(flags.runs) > 1:
        raise UsageError("--out goes with one RUN: each has its own page")
    changes = dict(parse_set(text) for text in flags.set) | ({"mesh": flags.mesh} if flags.mesh else {})
    options = path.Options(**counts, steps=tuple(map(int, steps)))
    runs = [run for text in flags.runs for run in stored.find(Path(text))]
    for run in runs:
        # Errors are reported before a model is loaded.
        path.kept_adapters(run, options.steps)
        path.run_config(run, changes)
    choose_model("organism", None)

    def work(components: Any) -> None:
        from em_jax.runs.components import Components

        records = []
        for run in runs:
            out = Path(flags.out) if flags.out else run / "path"
            records.append(path.study(run, out, options, changes, components or Components()))
            print(*records[-1]["why"], sep="\n", flush=True)
            if len(records) == len(runs) > 1:
                print(*path.tally(records), sep="\n", flush=True)
            print(f"done: {out / 'path.html'}", flush=True)

    across_processes(work)
