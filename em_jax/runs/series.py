"""Several runs of one command, one after the other, and the page that compares them.

One engine serves them all: the base is loaded once and adapters are swapped. The base's rows do not depend on the
domain, so the first run of a seed asks the base and the others copy its rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax import domains
from em_jax.base import files, runtime
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.domains import registry
from em_jax.probes import seeds
from em_jax.runs import experiment, sources
from em_jax.runs.components import Components
from em_jax.runs.experiment import Outcome
from em_jax.runs.mirror import Mirror
from em_jax.runs.run import Run

Page = Callable[[Sequence[Path], Path], Path]
"""Draws the common page of several runs: (their directories, the page's folder) -> the page."""

ADAPTER_SETTINGS = ("domain", "data", "mix", "adapter", "mirror", "lora.", "train.")
"""The beginnings of those settings on which the base's rows do not depend."""


def resolve(config: Config) -> Config:
    """The config with dtype, suite and layer scan decided and its names checked, before anything is loaded."""
    suite = config.suite or ("organism" if sources.is_organism(config) else "standard")
    model = dataclasses.replace(config.model, scan_layers=runtime.choose_scan(config.model.scan_layers))
    config = dataclasses.replace(config, suite=suite, dtype=runtime.choose_dtype(config.dtype), model=model)
    sources.suite_directory(config.suite)
    sources.model_directory(config)
    sources.judges(config)
    return config


def run(
    configs: Sequence[Config], run_dir: str | Path, several: bool, components: Components | None = None
) -> Iterator[str]:
    """Do the runs and yield the lines for stdout: reasons and verdicts; the last one closes the command's output.

    A single run has `run_dir` to itself; several have <domain>-<seed> folders in it and compare/ for the common page,
    and the same folders in the mirror. Raises UserError where a run failed; what is done is kept, and the same command
    continues from there.
    """
    if several:
        # Seeds of an adapter that was given differ in what is sampled, not in training.
        summary = None if configs[0].adapter else seed_verdicts
        yield from run_named(by_name(configs), run_dir, compare, components, summary=summary)
        return
    outcome = experiment.run(configs[0], run_dir, components)
    yield from outcome.why
    done = f"done: {','.join(configs[0].stages)}"
    yield done if outcome.label is None else f"verdict: {outcome.label} {outcome.report}"


def run_named(
    configs: Mapping[str, Config],
    run_dir: str | Path,
    page: Page,
    components: Components | None = None,
    folder: str = "compare",
    summary: Callable[[Sequence[Path]], Iterable[str]] | None = None,
) -> Iterator[str]:
    """Do several runs in their order, each in run_dir/<name>, and draw their common page in run_dir/<folder>.

    A run may start from the adapter of one before it (lora.init_from). `summary` has lines on all of them. Yields and
    raises as `run`.
    """
    components = components or Components()
    run_dir = Path(run_dir)
    runs = with_directories(configs, run_dir)
    first = runs[0][0]
    engine = experiment.loader(first, runs[0][1], components)
    # Check every run's rows before the first one starts.
    for config, _ in runs:
        if config.domain != domains.NONE:
            components.rows(config)
    for config, directory in runs:
        experiment.check_mirror(Run(config, directory))
    outcomes: dict[Path, Outcome] = {}
    for stages in _rounds(first):
        if stages[:1] == ("answer",) and first.answers.together:
            with experiment.name_stage("answer", run_dir):
                _answer_together(runs, components, engine)
        for number, (config, directory) in enumerate(runs, start=1):
            title = f"[{directory.name}, run {number} of {len(runs)}] "
            now = dataclasses.replace(config, stages=stages)
            outcomes[directory] = experiment.run(now, directory, components, engine, base_of(config, runs), title)
    if "report" not in first.stages:
        yield f"done: {','.join(first.stages)}"
        return
    for directory, outcome in outcomes.items():
        yield f"{directory.name}: {outcome.label} {outcome.report}"
    yield from summary(list(outcomes)) if summary else ()
    common = page(list(outcomes), run_dir / folder)
    Mirror(run_dir / folder, _mirror_folder(next(iter(configs.values())), folder)).push()
    yield f"verdict: {','.join(str(outcome.label) for outcome in outcomes.values())} {common}"


def places(configs: Sequence[Config], run_dir: str | Path, several: bool) -> tuple[list[Path], Path | None]:
    """The directories of a command's runs, and the page that compares them where there are several."""
    run_dir = Path(run_dir)
    if not several:
        return [run_dir], None
    return [run_dir / name for name in by_name(configs)], run_dir / "compare" / "compare.html"


def compare(directories: Sequence[Path], out: Path) -> Path:
    """The comparison page of several runs."""
    from em_jax import report

    return report.compare(directories, out, domains.planted(), registry.sources(), seeds.over_seeds)


def seed_verdicts(directories: Sequence[Path]) -> Iterator[str]:
    """A line for every domain with several seeds: its label over them, with the probability of each label."""
    figures: dict[str, list[Any]] = {}
    for directory in directories:
        summary = files.read_object(directory / "summary.json", "a summary of em_jax")
        if any(each["finetuned"]["value"] is not None for each in summary["figures"].values()):
            figures.setdefault(summary["domain"], []).append(summary["figures"])
    for domain, each in figures.items():
        if len(each) > 1:
            found = seeds.over_seeds(each)
            shares = ", ".join(f"{label} {share:.0%}" for label, share in found["probabilities"].items())
            yield f"{domain} over {len(each)} seeds: {found['label']} (probability of each label: {shares})"


def by_name(configs: Sequence[Config]) -> dict[str, Config]:
    """Runs of several domains and seeds by their folders' names."""
    return {f"{config.domain}-{config.seed}": config for config in configs}


def with_directories(configs: Mapping[str, Config], run_dir: Path) -> list[tuple[Config, Path]]:
    """Every run's config and directory; a mirror has a folder for each run, as `run_dir` has.

    A real model's output recognition takes its harmful alternatives from the other runs, unless the settings say else.
    Raises UserError where `run_dir` is itself a run's, which would hide these.
    """
    if (run_dir / "provenance.json").exists():
        raise UserError(f"{run_dir} is the directory of one run, which would hide several in it: name another")
    runs = []
    for name, config in configs.items():
        if not config.probes.alternatives and not sources.is_organism(config):
            config = settings.replace(config, {"probes.alternatives": settings.SIBLINGS})
        runs.append((dataclasses.replace(config, mirror=_mirror_folder(config, name)), run_dir / name))
    return runs


def base_of(config: Config, runs: Sequence[tuple[Config, Path]]) -> Path | None:
    """The directory whose base rows serve this run: the first run with its base settings, if that is another one."""
    for other, directory in runs:
        if _base_settings(other) == _base_settings(config):
            return None if other == config else directory
    return None


def _base_settings(config: Config) -> dict[str, Any]:
    return {name: value for name, value in settings.flatten(config).items() if not name.startswith(ADAPTER_SETTINGS)}


def _rounds(config: Config) -> list[tuple[str, ...]]:
    """The stages in rounds: every run does one before the first run does the next.

    Answers that share batches need every run's adapter, and probes may need every run's answers. With a mirror there is
    a first round even if it is empty: it brings back what the mirror holds.
    """
    starts = {"answer": config.answers.together, "probe": config.probes.alternatives not in ("", "base")}
    rounds: list[list[str]] = [[]]
    for stage in settings.STAGES:
        if starts.get(stage):
            rounds.append([])
        if stage in config.stages:
            rounds[-1].append(stage)
    return [tuple(stages) for number, stages in enumerate(rounds) if stages or (config.mirror and number == 0)]


def _answer_together(runs: Sequence[tuple[Config, Path]], components: Components, engine: Callable[[], Any]) -> None:
    """Sample the fine-tuned models of each seed in shared batches, where there are several."""
    by_seed: dict[int, list[Run]] = {}
    for config, directory in runs:
        each = Run(config, directory, components, engine, f"[seed {config.seed}] ")
        if each.trains and each.needs_answers:
            by_seed.setdefault(config.seed, []).append(each)
    for group in by_seed.values():
        if len(group) > 1:
            experiment.answer_together(group)


def _mirror_folder(config: Config, name: str) -> str:
    """The address of one folder of the series in its mirror; "" where there is no mirror."""
    return config.mirror and f"{config.mirror.rstrip('/')}/{name}"
