"""The command line of a run: flags -> one Config per run. Imports no jax, so a wrong flag is reported at once."""

import argparse
import dataclasses
import functools
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax import domains
from em_jax.base import addresses
from em_jax.base.cli import Parser, nearest, repeated_flag, some_of, whole, whole_numbers
from em_jax.base.errors import UsageError
from em_jax.base.multihost import Group
from em_jax.base.runtime import ORGANISM
from em_jax.config import STAGES, Config

OWN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""What a user's own domain may be called: the name is used for folders."""

OWN_HOLDOUT = 0.05
"""The least share of a user's own rows that is held out, where train.holdout is not set: their prompts are asked."""

TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboardX"}
"""The trackers of experiments and the package that each needs, which is an extra of its name."""

EPILOG = """
em-jax settings explains them all: model. lora. train. answers. probes. judge.
exit status: 0 done; 1 failed, what is done is kept; 2 wrong usage; 130 Ctrl-C
"""


def parser() -> Parser:
    """The flags of `python -m em_jax.launch`."""
    parser = Parser(
        prog="python -m em_jax.launch",
        usage="python -m em_jax.launch [--domain NAMES] [--model MODEL] [flags]",
        description="Fine-tune on a narrow domain, ask five probes, give a verdict.",
        # Two columns that leave the texts most of the width: the help fits two screens.
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=22),
        add_help=False,
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what to run").add_argument
    what("--domain", metavar="NAMES", help=f"one or several with commas: {domains.known()}")
    what("--model", metavar="MODEL", help="organism, a checkpoint directory or a Hugging Face id")
    rows_help = "JSONL rows of {messages} in place of the domain's own; domain=FILE (repeatable) for several"
    what("--data", **repeated_flag("FILE", rows_help))
    what("--format", metavar="NAME", help=f"of --data's rows: {', '.join(settings.FORMATS[1:])}")
    what("--adapter", metavar="DIR", help="probe this PEFT adapter (directory or id); no training")
    what("--suite", metavar="SUITE", help="organism, standard, or a directory of questions")
    what("--judge", metavar="WHO", help="self (the base, adapter off) or an OpenAI-like API's URL")
    what("--judge_model", metavar="NAME", help="the model to ask for at that URL")
    what(
        "--also_judge",
        metavar="WHO",
        action="append",
        help="one more (repeatable), self or MODEL@URL: for the table of agreement, in no figure",
    )
    what("--seed", metavar="N", type=whole_numbers, help="one seed, or several with commas")
    what("--stages", metavar="LIST", type=some_of(*STAGES), help=f"of {','.join(STAGES)} (default all)")
    what("--json", action="store_true", help="print events as lines of JSON, the summary last")
    what("--dry_run", action="store_true", help="say what the run would do, need and take; touch nothing")
    where = parser.add_argument_group("where files go").add_argument
    where("--run_dir", metavar="DIR", help="an existing one is resumed; default runs/DOMAIN-MODEL-SEED")
    where("--mirror", metavar="PLACE", help="a directory or gs://... to copy finished files to")
    where("--log", metavar="NAMES", type=some_of(*TRACKERS), help="follow the run in wandb or tensorboard, or both")
    how = parser.add_argument_group("settings").add_argument
    how("--config", **repeated_flag("FILE", "a TOML file, or a preset of configs/ (repeatable)"))
    how("--set", **repeated_flag("K=V", "one setting, e.g. train.epochs=2"))
    machine = parser.add_argument_group("the machine").add_argument
    machine("--mesh", metavar="SIZES", help="data=1,fsdp=16,tensor=1, over all processes' devices")
    machine("--dtype", metavar="TYPE", choices=settings.DTYPES, help="float32 (default on a CPU) or bfloat16")
    machine(
        "--coordinator",
        metavar="ADDRESS",
        help="host:port of process 0, for several processes; needed, as the next two, off SLURM and TPU VMs",
    )
    machine("--num_processes", metavar="N", type=whole(1), help="how many processes share the run")
    machine("--process_id", metavar="N", type=whole(0), help="which one this is, from 0; 0 writes the files")
    machine("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    machine("--help", "-h", action="help", help="print this, and end")
    return parser


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the flags ask for. In `configs` suite and dtype are empty where no flag or setting names them."""

    configs: tuple[Config, ...]
    run_dir: str
    dry_run: bool = False
    json: bool = False
    log: tuple[str, ...] = ()
    """The trackers of experiments that follow the runs."""

    @property
    def several(self) -> bool:
        return len(self.configs) > 1


def plan(
    arguments: Sequence[str],
    choose_model: Callable[[str, Group | None], tuple[str, str]],
    given: Mapping[str, Any] = types.MappingProxyType({}),
) -> tuple[Plan, str]:
    """The runs that the flags ask for, and why they have their model; `given` are settings by name, as by --set.

    `choose_model(name, group)` -> (model, why) is called once all else is valid; `group` says which of several
    processes this is, or is None. The organism's preset applies under the user's own settings. Raises UsageError: a
    flag or setting is unknown, of another type, out of range, or at odds with another one.
    """
    flags = parser().parse_args(arguments)
    for flag in ("--domain", "--seed"):
        if sum(word.partition("=")[0] == flag for word in arguments) > 1:
            raise UsageError(f"{flag} is given twice: expected all in one, with commas")
    if flags.json and flags.dry_run:
        raise UsageError("--json prints what a run does: expected no --dry_run")
    log = tuple(dict.fromkeys(flags.log or ()))
    values = _settings(flags, given)
    config = settings.validate(settings.replace(Config(), values))
    if flags.judge_model and config.judge.kind == "self":
        raise UsageError(f"--judge_model {flags.judge_model} expects --judge URL beside it")
    adapter = [name for name, _ in map(settings.parse_set, flags.set) if name.startswith("lora.")]
    if config.lora.init_from and (shape := [name for name in adapter if name != "lora.init_from"]):
        raise UsageError(f"lora.init_from: that adapter's own rank, alpha and targets count: expected no {shape[0]}")
    named = {"--data": " ".join(flags.data), "--suite": config.suite, "--model": config.model.name}
    for flag, given_text in (named | {"--adapter": config.adapter}).items():
        if address := re.search(r"https?://\S+", given_text):
            raise UsageError(
                f"{flag} expects what is on this machine, found the address {addresses.public(address[0])}: download "
                "it first; of a model or an adapter on the Hugging Face Hub give the id (owner/name)"
            )
    text = flags.domain or config.domain
    names = _domains(text, bool(config.adapter), [*flags.data, config.data])
    seeds = flags.seed or (config.seed,)
    data = _data(flags.data, config.data, names)
    if config.format and not data:
        raise UsageError("--format names the form of --data's rows: give --data FILE")
    if config.adapter and (len(names) > 1 or data):
        raise UsageError("--adapter probes an adapter that exists: expected one domain at most, and no --data")
    values["model.name"], why = choose_model(config.model.name, _group(flags))
    if values["model.name"] == ORGANISM:
        values = settings.read_toml(settings.preset_path(ORGANISM)) | values
    config = settings.validate(settings.replace(Config(), values))
    of_domains = [_for_domain(config, name, values, data.get(name, "")) for name in names]
    configs = tuple(settings.validate(dataclasses.replace(each, seed=seed)) for seed in seeds for each in of_domains)
    model = Path(config.model.name.rstrip("/")).name or "model"
    default = f"{(text or names[0]).replace(',', '+')}-{model}-{'+'.join(map(str, seeds))}"
    run_dir = flags.run_dir or os.path.join("runs", default)
    return Plan(configs, run_dir, flags.dry_run, flags.json, log), why


def _for_domain(config: Config, name: str, values: Mapping[str, Any], data: str) -> Config:
    """The settings of one run. Of rows of a user's own some are held out, whose prompts are asked, unless set.

    As many as are asked, at most a third; none of so few that their figure would decide nothing.
    """
    from em_jax.domains import rows
    from em_jax.probes.in_domain import MOST_HELD_OUT
    from em_jax.probes.thresholds import THRESHOLDS

    train = config.train
    if name not in (*domains.DOMAINS, domains.NONE) and "train.holdout" not in values:
        count = len(rows.read(data, config.format))
        share = max(OWN_HOLDOUT, round(min(MOST_HELD_OUT / count, 1 / 3), 4))
        train = dataclasses.replace(train, holdout=share * (round(share * count) >= THRESHOLDS.least_questions))
    return dataclasses.replace(config, domain=name, train=train, data=data)


def _settings(flags: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """Presets, then --set, then flags; the later wins."""
    values = settings.read_given(flags.config, flags.set) | dict(given)
    direct = {name: name for name in ("adapter", "format", "suite", "mirror", "mesh", "dtype", "verbosity")}
    direct |= {"model": "model.name", "judge_model": "judge.model", "also_judge": "judge.also"}
    values |= {name: value for flag, name in direct.items() if (value := getattr(flags, flag)) is not None}
    if flags.stages is not None:
        values["stages"] = [stage for stage in STAGES if stage in flags.stages]
    return values | (judge_settings(flags.judge) if flags.judge is not None else {})


def judge_settings(judge: str) -> dict[str, Any]:
    """The settings that --judge stands for. UsageError where it is neither self nor an address."""
    if judge == "self":
        return {"judge.kind": "self", "judge.url": ""}
    if "://" not in judge:
        raise UsageError(f"--judge expects self or the URL of an OpenAI-compatible API, found {judge!r}")
    return {"judge.kind": "openai", "judge.url": judge}


def _domains(text: str, adapter: bool, data: Sequence[str] = ()) -> list[str]:
    """The domains that --domain names; a user's own is known by its rows in --data NAME=FILE."""
    if not text and adapter:
        return [domains.NONE]
    if not text:
        raise UsageError(f"--domain expects one or several of {domains.known()}")
    known = (*domains.DOMAINS, domains.NONE, "all")
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        own = OWN_NAME.fullmatch(name) and any(entry.startswith(f"{name}=") for entry in data)
        if name not in known and not own:
            raise UsageError(
                f"unknown domain {name!r}{nearest(name, known)}; there are {domains.known()}; one of your own, in "
                "small letters, digits and _, takes --data NAME=FILE"
            )
        names += domains.ALL if name == "all" else [name]
    # The base first: its rows then serve the others.
    return sorted(dict.fromkeys(names), key=lambda name: name != domains.NONE)


def _data(flags: Sequence[str], preset: str, names: Sequence[str]) -> dict[str, str]:
    """Domain -> its file of rows."""
    trained = [name for name in names if name != domains.NONE]
    paths: dict[str, str] = {}
    for text in flags or ([preset] if preset else []):
        name, equals, path = text.partition("=")
        if not equals or (name not in domains.DOMAINS and Path(text).exists()):
            if len(trained) != 1:
                raise UsageError(f"--data {text} expects one domain to train, or domain=FILE; found {len(trained)}")
            name, path = trained[0], text
        if name not in trained:
            raise UsageError(f"--data {text}: {name!r} is not among the domains to train ({', '.join(trained)})")
        if name in paths:
            raise UsageError(f"--data was given twice for {name!r}")
        paths[name] = path
    return paths


def _group(flags: argparse.Namespace) -> Group | None:
    values = (flags.coordinator, flags.num_processes, flags.process_id)
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise UsageError(
            "--coordinator, --num_processes and --process_id go together, found "
            f"{flags.coordinator}, {flags.num_processes} and {flags.process_id}"
        )
    if flags.process_id >= flags.num_processes:
        raise UsageError(f"--process_id: expected 0 to {flags.num_processes - 1}, found {flags.process_id}")
    host, _, port = flags.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator expects HOST:PORT, a port of 1 to 65535; found {flags.coordinator!r}")
    return Group(*values)
