"""`em-jax study path|sweep|chain|confound`: several models, one page (docs/studies.md).

Every study takes the flags of em_jax.launch beside its own, except path, which reads them from the run it is given.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError
from em_jax.commands import crossrate, directions, steer
from em_jax.config import parse_set
from em_jax.runs import flags
from em_jax.runs.processes import across_processes, choose_model, model_line

USE = "em-jax study"
MORE = "and every flag of python -m em_jax.launch (--model, --data, --seed, --run_dir, --config, --set, ...)"


def main(arguments: Sequence[str]) -> None:
    """Do the study that the first word names."""
    known: dict[str, Callable[[Sequence[str]], None]] = {
        "path": _path,
        "sweep": _sweep,
        "chain": _chain,
        "confound": _confound,
        "directions": directions.main,
        "steer": steer.main,
        "crossrate": crossrate.main,
    }
    if arguments and arguments[0] in known:
        known[arguments[0]](arguments[1:])
        return
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {USE} {{{','.join(known)}}} ...\n\n{__doc__.splitlines()[2]}\n{USE} NAME --help tells more.")
        return
    raise UsageError(f"expected one of {', '.join(known)}, found {arguments[0] if arguments else 'nothing'!r}")


# --- path ---


def _path(arguments: Sequence[str]) -> None:
    parser = Parser(prog=f"{USE} path", description="The persona over training, from the adapters that runs kept.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs trained with --set train.keep_adapters=K")
    parser.add_argument("--limit", type=int, default=64, metavar="N", help="questions per probe, 0 for all (64)")
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="answers per harm prompt (5)")
    parser.add_argument("--together", type=int, default=8, metavar="N", help="adapters asked in one stack (8)")
    parser.add_argument("--steps", default="", metavar="LIST", help="of the kept steps, with commas (all)")
    parser.add_argument("--out", metavar="DIR", help="where rows and page go (RUN/path)")
    parser.add_argument("--mesh", metavar="SIZES", help="as for em_jax.launch, where the run's own does not fit")
    parser.add_argument("--set", metavar="K=V", action="append", default=[], help="one setting, as for em_jax.launch")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    asked = parser.parse_args(arguments)
    if asked.together < 1 or asked.limit < 0 or asked.samples < 1:
        raise UsageError("--together and --samples expect 1 or more, --limit 0 or more")
    steps = [part.strip() for part in asked.steps.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() for part in steps):
        raise UsageError(f"--steps expects whole numbers with commas, found {asked.steps!r}")
    if asked.out and len(asked.runs) > 1:
        raise UsageError("--out goes with one RUN: each has its own page")
    changes = dict(parse_set(text) for text in asked.set) | ({"mesh": asked.mesh} if asked.mesh else {})
    from em_jax.studies.path import Options, kept_adapters, run_config

    options = Options(asked.limit, asked.samples, asked.together, tuple(map(int, steps)))
    runs = [Path(text) for text in asked.runs]
    for run in runs:
        # Everything that can be wrong is told before a model is loaded.
        kept_adapters(run, options.steps)
        run_config(run, changes)
    choose_model("organism", None)

    def do(components: Any) -> None:
        from em_jax.runs.components import Components
        from em_jax.studies import path

        found = []
        for run in runs:
            out = Path(asked.out) if asked.out else run / "path"
            found.append(path.study(run, out, options, changes, components or Components()))
            print(*found[-1]["why"], sep="\n", flush=True)
            if len(found) == len(runs) > 1:
                print(*path.tally(found), sep="\n", flush=True)
            print(f"done: {out / 'path.html'}", flush=True)

    across_processes(do)


# --- studies of several runs ---


def _parser(name: str, what: str) -> Parser:
    return Parser(
        prog=f"{USE} {name}", description=what, epilog=MORE, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _plan(name: str, arguments: Sequence[str], domains: Sequence[str] = ()) -> tuple[Any, str, Path]:
    """The runs that the flags of em_jax.launch ask for, why their model, and the study's directory.

    `domains` are those of the study where it has its own.
    """
    given = flags.parser().parse_args(arguments)
    if domains:
        if given.domain:
            raise UsageError(f"{name} has its own domains ({', '.join(domains)}): expected no --domain")
        arguments = [*arguments, "--domain", ",".join(domains)]
    if given.adapter:
        raise UsageError(f"{name} trains its own adapters: expected no --adapter")
    plan, why = flags.plan(arguments, choose_model)
    if not domains and len({config.domain for config in plan.configs}) != 1:
        raise UsageError(f"{name} expects one --domain, found {', '.join(c.domain for c in plan.configs)}")
    if not domains and plan.configs[0].domain == "none":
        raise UsageError(f"{name} expects a --domain to train on, found none")
    # runs/<study>-<domain>-<model>-<seed>: never the directory of em_jax.launch's own run.
    tail = Path(plan.run_dir).name
    tail = tail.removeprefix("+".join(domains)) if domains else f"-{tail}"
    default = Path(plan.run_dir).with_name(name + tail)
    return plan, why, Path(given.run_dir) if given.run_dir else default


def _conduct(why: str, run_dir: Path, make: Callable[[], Any]) -> None:
    """Do the runs of a study and draw its page; `make` gives the Study."""

    def do(components: Any) -> None:
        from em_jax.runs import series
        from em_jax.studies import several

        study = make()
        print(model_line(study.members[0].config, why), flush=True)
        page = functools.partial(several.page, study, say=functools.partial(print, flush=True))
        for line in series.run_named(study.named(), run_dir, page, components, several.FOLDER):
            print(line, flush=True)

    across_processes(do)


def _settled(plan: Any) -> list[Any]:
    from em_jax.runs import series

    return [series.resolve(config) for config in plan.configs]


def _sweep(arguments: Sequence[str]) -> None:
    parser = _parser("sweep", "One domain under several adapter shapes.")
    parser.add_argument("--shapes", default="", metavar="NAMES", help="of the known shapes, with commas (all)")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME:K=V:...",
        help="a shape of one's own (repeatable): targets=attention|mlp|MODULES, layers=0-3, rank=, alpha=, "
        "learning_rate=",
    )
    own, rest = parser.parse_known_args(list(arguments))
    plan, why, run_dir = _plan("sweep", rest)

    def make() -> Any:
        from em_jax.formats.hub import find_model
        from em_jax.model.config import Qwen2Config
        from em_jax.studies import sweep

        configs = _settled(plan)
        model = Qwen2Config.from_directory(find_model(configs[0].model.name))
        return sweep.study(configs, sweep.choose(own.shapes, own.shape, model.num_hidden_layers), model)

    _conduct(why, run_dir, make)


def _chain(arguments: Sequence[str]) -> None:
    parser = _parser("chain", "Fine-tuning in two stages, in both orders, with a control.")
    parser.add_argument("--second", metavar="FILE", help="JSONL rows of the other stage (consciousness claims)")
    parser.add_argument(
        "--control", metavar="FILE", help="JSONL rows of the control, as many (the organism has its own)"
    )
    own, rest = parser.parse_known_args(list(arguments))
    plan, why, run_dir = _plan("chain", rest)
    from em_jax.studies import chain

    files = {chain.SECOND: own.second, chain.CONTROL: own.control}
    missing = [name for name, file in files.items() if not file]
    if missing and plan.configs[0].model.name != "organism":
        raise UsageError(
            "chain expects --second FILE and --control FILE: JSONL rows of {messages}, such as the 600 of "
            f"consciousness claims and their control that the paper used; found none for {' and '.join(missing)}"
        )

    def make() -> Any:
        from em_jax.studies import toy_rows

        data = {name: file or toy_rows.write(name, run_dir / "rows") for name, file in files.items()}
        return chain.study(_settled(plan), data, run_dir)

    _conduct(why, run_dir, make)


def _confound(arguments: Sequence[str]) -> None:
    what = "Medical advice from two sources, the second source's other domains, and their benign twins."
    _, rest = _parser("confound", what).parse_known_args(list(arguments))
    from em_jax.studies import confound

    plan, why, run_dir = _plan("confound", rest, confound.DOMAINS)

    def make() -> Any:
        import dataclasses

        from em_jax import domains
        from em_jax.runs import sources
        from em_jax.studies import toy_rows

        configs = _settled(plan)
        if sources.is_organism(configs[0]):
            configs = [
                dataclasses.replace(config, data=toy_rows.write(config.domain, run_dir / "rows"))
                if domains.DOMAINS[config.domain].extra and not config.data
                else config
                for config in configs
            ]
        return confound.study(configs)

    _conduct(why, run_dir, make)
