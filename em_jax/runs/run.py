"""One run: its settings, the names in its directory, and what its stages need, each loaded when first asked for."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from em_jax.runs import adapters, provenance, mirror, sources
from em_jax import domains
from em_jax.base import files
from em_jax import config as settings
from em_jax.config import Config
from em_jax.base.errors import LONGEST, UserError
from em_jax.probes import choice, harmfulness
from em_jax.probes import suite_files as suites
from em_jax.probes.judge import Judge
from em_jax.probes.settings import ProbeSettings
from em_jax.base.progress import Progress
from em_jax.runs.sources import Parts
from em_jax.base.stage_timer import LOADING, Clock
from em_jax.base.sanitize import sanitize_line

Row = dict[str, Any]
ADAPTER = "finetuned"


class Run:
    """One run directory and all that its stages need, each loaded when it is first asked for."""

    def __init__(self, config: Config, directory: Path, parts: Parts, load: Callable[[], Any], title: str):
        self.config, self.directory, self.parts, self.title = config, directory, parts, title
        self.mirror = mirror.Mirror(directory, config.mirror)
        self.clock = Clock()
        self.work: list[Progress] = []
        self._load = load

    def load(self) -> Any:
        """The engine as it is shared by the runs of a series."""
        with self.clock.span(LOADING):
            return self._load()

    @functools.cached_property
    def suite(self) -> suites.Suite:
        return suites.load(sources.suite_directory(self.config.suite))

    @functools.cached_property
    def rows(self) -> list[list[dict[str, str]]]:
        """The conversations to fine-tune on."""
        return self.parts.rows(self.config)

    @functools.cached_property
    def engine(self):
        """The engine, with the run's adapter under the name "finetuned" where there is one."""
        engine = self.parts.bare(self.load())
        if self.adapter is not None:
            engine.add_adapter(ADAPTER, self.adapter)
            self.check_adapter(engine, ADAPTER)
        return engine

    def check_adapter(self, engine, name: str) -> None:
        """Make sure that the run's adapter is in force, and note its effect: measuring the base twice is an old trap.

        `name` is the engine's for it.

        Raises:
          UserError: with the adapter the model says exactly what it says without, or nothing finite.
        """
        prompts = [choice.messages(question.prompt) for question in self.suite.harm[:4]]
        without, within = (engine.choice_logprobs(prompts, list("AB15"), adapter=asked) for asked in ("base", name))
        effect = float(abs(within - without).max())
        if not math.isfinite(effect):
            raise UserError(
                f"with the adapter of {self.adapter} the model gives no finite probability: training diverged"
            )
        if not effect > 0:
            raise UserError(
                f"the adapter of {self.adapter} changes no probability: it was not trained "
                "(the first step of the schedule has learning rate 0), or is not in force"
            )
        if "adapter_effect" not in provenance.notes(self.directory):
            provenance.note(self.directory, adapter_effect={"largest_change_of_a_logprob": round(effect, 6)})

    def need_adapter(self) -> None:
        """Raises UserError where this run trains an adapter and has not yet."""
        if self.trains and not sources.is_trained(self.directory):
            raise UserError(f"expected a trained adapter in {self.directory / 'adapter'}: run the stage finetune first")

    @property
    def trains(self) -> bool:
        return self.config.domain != domains.NONE and not self.config.adapter

    @property
    def adapter(self) -> Path | None:
        """The adapter's directory: the one given, or the run's own once it is complete."""
        if self.config.adapter:
            return self.given_adapter
        return self.directory / "adapter" if self.trains else None

    @functools.cached_property
    def given_adapter(self) -> Path:
        """The directory of --adapter, fetched where it is an id."""
        return adapters.find(self.config.adapter)

    @property
    def conditions(self) -> dict[str, str]:
        """Condition -> the engine's name of its adapter."""
        return {"base": "base"} | ({"finetuned": ADAPTER} if self.adapter is not None else {})

    @property
    def judge(self) -> str:
        """The judge's name, as it stands in file names and in summary.json."""
        return sources.judge_name(self.config)

    @property
    def judges(self) -> list[str]:
        """The names of all judges, that of the figures first."""
        return [judge.name for judge in sources.judges(self.config, None, None)]

    @functools.cached_property
    def judging(self) -> list[Judge]:
        """The judges at work, one object each for the whole run: what they may spend is counted over all conditions."""
        needs_engine = "self" in self.judges
        return sources.judges(self.config, self.suite.judge, (lambda: self.engine) if needs_engine else None)

    @property
    def probe_settings(self) -> ProbeSettings:
        asked = self.config.probes
        return ProbeSettings(
            limit=asked.limit,
            samples=asked.samples,
            sampled_questions=asked.sampled_questions,
            alternatives="base" if asked.alternatives == "base" else "opposite",
            choice_tokens=asked.choice_tokens,
            language_tokens=asked.language_tokens,
            seed=self.config.seed,
        )

    @property
    def answer_settings(self) -> SimpleNamespace:
        """How answers are sampled, for harmfulness.ask."""
        return SimpleNamespace(**dataclasses.asdict(self.config.answers), seed=self.config.seed)

    def answers_path(self, condition: str) -> Path:
        return self.directory / "answers" / f"{condition}.jsonl"

    def scores_path(self, condition: str, judge: str = "") -> Path:
        return self.directory / "scores" / f"{condition}.{judge or self.judge}.jsonl"

    def probe_path(self, condition: str, probe: str) -> Path:
        return self.directory / "probes" / f"{condition}.{probe}.jsonl"

    def judged(self, condition: str) -> list[Row]:
        """The condition's answers with the judge's scores, sorted by key."""
        return harmfulness.judged(
            files.read_rows(self.answers_path(condition)), files.read_rows(self.scores_path(condition))
        )

    def asks(self, *probes: str) -> bool:
        """Whether any of these probes is wanted."""
        return not self.config.probes.only or any(probe in self.config.probes.only for probe in probes)

    @property
    def asks_answers(self) -> bool:
        """Whether any probe wanted looks at the model's own answers."""
        return self.asks("harmfulness", "output_recognition", "score_prediction")

    @property
    def asks_careless(self) -> bool:
        """Whether the base's careless answers are the last resort of output recognition."""
        opposite = self.probe_settings.alternatives == "opposite"
        return opposite and self.asks("output_recognition") and not sources.is_organism(self.config)

    def progress(self, stage: str, what: str, total: int | None, unit: str, done: int = 0) -> Progress:
        number = settings.STAGES.index(stage) + 1
        title = f"{self.title}{number}/{len(settings.STAGES)} {stage}" + (f" {what}" if what else "")
        made = Progress(title, total, unit, done, silent=self.parts.silent, after=self.mirror.push_sometimes)
        self.work.append(made)
        return made

    def spent(self) -> dict[str, float]:
        """What the time since the last call went to, by kind, and the tokens and pieces done in it."""
        found: dict[str, float] = {kind: round(seconds, 3) for kind, seconds in self.clock.seconds.items()}
        for progress in self.work:
            for name, amount in (("tokens", progress.tokens), (f"{progress.unit}s", progress.fresh)):
                found[name] = found.get(name, 0) + amount
        self.clock, self.work = Clock(), []
        return {name: amount for name, amount in found.items() if amount}

    def say(self, line: str) -> None:
        """One line to stderr."""
        if not self.parts.silent:
            print(sanitize_line(line, LONGEST), file=sys.stderr, flush=True)
