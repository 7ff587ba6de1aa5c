"""Several runs of one command, one after the other, and the page that compares them.

One engine serves them all: the base is loaded once and adapters are swapped. The base's rows do not depend on the
domain, so the first run of a seed asks the base and the others take its rows over.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax import domains
from em_jax.runs import experiment, mirror, sources
from em_jax.base import runtime
from em_jax.config import Config
from em_jax.domains import registry
from em_jax.runs.experiment import Outcome
from em_jax.runs.run import Run
from em_jax.runs.sources import Parts

Page = Callable[[Mapping[str, Path], Path], Path]
"""Draws the common page of several runs: (their directories by name, the page's folder) -> the page."""

# What the base's rows do not depend on.
OF_THE_ADAPTER = ("domain", "data", "adapter", "lora.", "train.")


def settled(config: Config) -> Config:
    """The config with dtype and suite decided and its names checked, before anything is loaded or written."""
    suite = config.suite or ("organism" if sources.is_organism(config) else "standard")
    scan = runtime.choose_scan(config.model.scan_layers)
    model = dataclasses.replace(config.model, scan_layers=scan)
    config = dataclasses.replace(config, suite=suite, dtype=runtime.choose_dtype(config.dtype), model=model)
    sources.suite_directory(config.suite)
    sources.model_directory(config)
    sources.judges(config, None, None)
    return config


def run(configs: Sequence[Config], run_dir: str | Path, several: bool, parts: Parts | None = None) -> Iterator[str]:
    """Do the runs and yield the lines for stdout: reasons and verdicts; the last one closes the command's output.

    A single run has `run_dir` to itself; several have <domain>-<seed> folders in it and compare/ for the common page,
    and the same folders in the mirror.

    Raises:
      UserError: a run failed; what is done is kept, and the same command goes on from there.
    """
    if several:
        yield from run_named(named(configs), run_dir, compare, parts)
        return
    parts = parts or Parts()
    outcome = experiment.run(configs[0], Path(run_dir), parts, functools.cache(lambda: _loaded(configs[0], parts)))
    yield from outcome.why
    yield _done(configs[0]) if outcome.label is None else f"verdict: {outcome.label} {outcome.report}"


def compare(places: Mapping[str, Path], out: Path) -> Path:
    """The comparison page of runs on several domains."""
    from em_jax import report

    return report.compare(list(places.values()), out, domains.planted(), registry.sources())


def _done(config: Config) -> str:
    return f"done: {','.join(config.stages)}"


def run_named(
    named: Mapping[str, Config],
    run_dir: str | Path,
    page: Page,
    parts: Parts | None = None,
    folder: str = "compare",
) -> Iterator[str]:
    """Do several runs in their order, each in run_dir/<name>, and draw their common page in run_dir/<folder>.

    A run may start from the adapter of one before it (lora.init_from). Yields and raises as `run`.
    """
    parts = parts or Parts()
    run_dir = Path(run_dir)
    configs = list(named.values())
    engine = functools.cache(lambda: _loaded(configs[0], parts))
    runs = laid_out(named, run_dir)
    # Every run's rows are checked before the first one starts.
    for config, _ in runs:
        if config.domain != domains.NONE:
            parts.rows(config)
    outcomes: dict[Path, Outcome] = {}
    for stages in _phases(runs[0][0]):
        if stages[:1] == ("answer",) and runs[0][0].answers.together:
            with experiment.kept("answer", run_dir):
                _answer_together(runs, parts, engine)
        for number, (config, place) in enumerate(runs, start=1):
            title = f"[{place.name}, run {number} of {len(runs)}] "
            now = dataclasses.replace(config, stages=stages, mirror=_mirror(config, place.name))
            outcomes[place] = experiment.run(now, place, parts, engine, base_of(config, runs), title)
    if "report" not in configs[0].stages:
        yield _done(configs[0])
        return
    for place, outcome in outcomes.items():
        yield f"{place.name}: {outcome.label} {outcome.report}"
    common = page({place.name: place for place in outcomes}, run_dir / folder)
    mirror.Mirror(run_dir / folder, _mirror(configs[0], folder)).push()
    yield f"verdict: {','.join(str(outcome.label) for outcome in outcomes.values())} {common}"


def _loaded(config: Config, parts: Parts) -> Any:
    """The engine, with a line on stderr before: a large model takes minutes."""
    if not parts.silent:
        print(f"loading {config.model.name}", file=sys.stderr, flush=True)
    return parts.load(config)


def _answer_together(runs: Sequence[tuple[Config, Path]], parts: Parts, engine: Callable[[], Any]) -> None:
    """Sample the fine-tuned models of each seed in shared batches, where there are several."""
    by_seed: dict[int, list[Run]] = {}
    for config, place in runs:
        run = Run(config, place, parts, engine, f"[seed {config.seed}] ")
        if run.trains and run.asks_answers:
            by_seed.setdefault(config.seed, []).append(run)
    for several in by_seed.values():
        if len(several) > 1:
            experiment.answer_together(several)


def named(configs: Sequence[Config]) -> dict[str, Config]:
    """Runs of several domains and seeds by their folders' names."""
    return {f"{config.domain}-{config.seed}": config for config in configs}


def laid_out(named: Mapping[str, Config], run_dir: Path) -> list[tuple[Config, Path]]:
    """Every run's config and directory."""
    return [(_with_siblings(config), run_dir / name) for name, config in named.items()]


def _with_siblings(config: Config) -> Config:
    """A real model's output recognition takes its harmful alternatives from the other runs of the series."""
    if config.probes.alternatives or sources.is_organism(config):
        return config
    return settings.replace(config, {"probes.alternatives": settings.SIBLINGS})


def _mirror(config: Config, name: str) -> str:
    """The place of one folder of the series in its mirror; "" where there is no mirror."""
    return config.mirror and f"{config.mirror.rstrip('/')}/{name}"


def _phases(config: Config) -> list[tuple[str, ...]]:
    """The stages in rounds: every run does one before the first run does the next.

    Answers that share batches need every run's adapter, and probes may need every run's answers. With a mirror the
    first round is there even if it is empty: it brings back what the runs have there.
    """
    shares, waits = config.answers.together, config.probes.alternatives not in ("", "base")
    cuts = [stage for stage, cut in (("answer", shares), ("probe", waits)) if cut]
    rounds: list[list[str]] = [[]]
    for stage in settings.STAGES:
        if stage in cuts:
            rounds.append([])
        if stage in config.stages:
            rounds[-1].append(stage)
    return [tuple(stages) for number, stages in enumerate(rounds) if stages or (config.mirror and number == 0)]


def base_of(config: Config, runs: Sequence[tuple[Config, Path]]) -> Path | None:
    """The directory whose base rows serve this run: the first of the same seed, if that is another one."""
    for other, place in runs:
        if _base_settings(other) == _base_settings(config):
            return None if other == config else place
    return None


def _base_settings(config: Config) -> dict[str, Any]:
    values = settings.flatten(config)
    return {name: value for name, value in values.items() if not name.startswith(OF_THE_ADAPTER)}
