"""One run directory: its settings, the names of its files, and what its stages need, loaded on first use."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from em_jax import config as settings
from em_jax import domains
from em_jax.base import files
from em_jax.base.errors import LONGEST, Permanent, UserError
from em_jax.base.progress import Progress
from em_jax.base.sanitize import sanitize_line
from em_jax.base.stage_timer import LOADING, Clock
from em_jax.config import Config
from em_jax.probes import choice, harmfulness, in_domain, labelled
from em_jax.probes import suite_files as suites
from em_jax.probes.judge import Judge
from em_jax.probes.output_recognition import Alternatives, chained, pool
from em_jax.probes.settings import ProbeSettings
from em_jax.runs import adapters, provenance, sources
from em_jax.runs.components import Components
from em_jax.runs.mirror import Mirror

Row = dict[str, Any]
ADAPTER = "finetuned"
"""The condition with the run's adapter, which is also the engine's name for that adapter."""
CARELESS = "careless"
"""The condition of the base's careless answers."""
UNITS = {"finetune": "step", "answer": "answer", "judge": "score", "probe": "question", "report": "page"}
"""What each stage counts."""


class Run:
    """One run directory and what its stages need.

    `load` returns the engine that the runs of a series share; without it the run loads none. `title` precedes every
    line of progress.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        components: Components | None = None,
        load: Callable[[], Any] | None = None,
        title: str = "",
    ):
        self.config, self.directory, self.title = config, directory, title
        self.components = components or Components()
        self.mirror = Mirror(directory, config.mirror)
        self.clock = Clock()
        self._progress: list[Progress] = []
        self._load = load

    # --- loaded on first use ---

    def load(self) -> Any:
        """The engine as the runs of a series share it."""
        if self._load is None:
            raise UserError("this command loads no model: judge self scores in the judge stage of em_jax.launch alone")
        with self.clock.span(LOADING):
            return self._load()

    @functools.cached_property
    def engine(self) -> Any:
        """The engine, with the run's adapter under the name "finetuned" where there is one."""
        engine = self.components.bare(self.load())
        if self.adapter is not None:
            engine.add_adapter(ADAPTER, self.adapter)
            self.check_adapter(engine, ADAPTER)
        return engine

    @functools.cached_property
    def suite(self) -> suites.Suite:
        return suites.load(sources.suite_directory(self.config.suite))

    @functools.cached_property
    def rows(self) -> list[list[dict[str, str]]]:
        """The conversations to fine-tune on."""
        return self.components.rows(self.config)

    @functools.cached_property
    def judges(self) -> list[Judge]:
        """The judges, that of the figures first; one object each, so max_requests counts over all conditions."""
        engine = (lambda: self.engine) if "self" in self.judge_names else None
        return sources.judges(self.config, self.suite.judge, engine)

    # --- the adapter ---

    @property
    def trains(self) -> bool:
        return self.config.domain != domains.NONE and not self.config.adapter

    @functools.cached_property
    def adapter(self) -> Path | None:
        """The adapter's directory: that of --adapter (fetched where it is an id), or the run's own, or None."""
        if self.config.adapter:
            return adapters.find(sources.at_revision(self.config.adapter, "adapter", self.directory))
        return self.directory / "adapter" if self.trains else None

    def require_adapter(self) -> None:
        """Raises UserError where this run trains an adapter and has not yet."""
        if self.trains and not sources.is_trained(self.directory):
            raise Permanent(f"expected a trained adapter in {self.directory / 'adapter'}: run the stage finetune first")

    def check_adapter(self, engine: Any, name: str) -> None:
        """Record by how much an adapter changes probabilities. UserError where it changes none or one is not finite."""
        prompts = [choice.messages(question.prompt) for question in self.suite.harm[:4]]
        effect = adapters.effect(engine, name, prompts)
        if not math.isfinite(effect):
            raise Permanent(
                f"with the adapter of {self.adapter} the model gives no finite probability: training diverged"
            )
        if not effect > 0:
            raise Permanent(
                f"the adapter of {self.adapter} changes no probability: its steps had learning rate 0 or no response "
                "within train.max_length, or it is not in force"
            )
        if "adapter_effect" not in provenance.notes(self.directory):
            effects = {"largest_change_of_a_logprob": round(effect, 6)}
            provenance.add(self.directory, adapter_effect=effects)

    # --- what is asked ---

    @property
    def conditions(self) -> list[str]:
        """The conditions, which are also the engine's names of their adapters: base, and finetuned with an adapter."""
        return ["base", ADAPTER] if self.trains or self.config.adapter else ["base"]

    def wants(self, *probes: str) -> bool:
        """Whether any of these probes is among those of the settings."""
        return not self.config.probes.only or any(probe in self.config.probes.only for probe in probes)

    @property
    def needs_answers(self) -> bool:
        """Whether a wanted probe uses the model's own answers."""
        return self.wants("harmfulness", "output_recognition", "score_prediction")

    @property
    def needs_careless(self) -> bool:
        """Whether output recognition may fall back on careless answers of the base."""
        opposite = self.config.probes.alternatives != "base"
        return opposite and self.wants("output_recognition") and not sources.is_organism(self.config)

    @property
    def probe_settings(self) -> ProbeSettings:
        values = dataclasses.asdict(self.config.probes)
        del values["only"]
        return ProbeSettings(**values, seed=self.config.seed)

    @property
    def trained_domains(self) -> list[str]:
        """The domain and the one that is mixed in, by the names under which a suite has their prompts."""
        mixed = settings.parse_mix(self.config.mix)[:1] if self.config.mix else ()
        return [*dict.fromkeys(map(domains.asked_as, (self.config.domain, *mixed)))]

    @functools.cached_property
    def in_domain_questions(self) -> list[Row]:
        """The prompts in the training domains: the suite's, or for a domain of one's own those of held-out rows."""
        limit = self.config.probes.limit
        if asked := in_domain.questions(self.suite, self.trained_domains, limit):
            return asked
        if self.config.domain in domains.DOMAINS or not self.trains:
            return []
        from em_jax.train.batches import hold_out

        kept_back = hold_out(len(self.rows), self.config.train.holdout, self.config.seed)[1]
        return in_domain.held_out(self.rows, kept_back, limit)

    @property
    def harm_questions(self) -> list[Row]:
        """The harm prompts, then those in the training domain: the order of the former decides their samples' seeds."""
        return harmfulness.questions(self.suite, self.probe_settings) + self.in_domain_questions

    @property
    def labelled_questions(self) -> list[Row]:
        """The answers of known harm that the figures' judge scores."""
        return labelled.questions(self.suite.labelled, self.config.probes.limit)

    @property
    def answer_settings(self) -> SimpleNamespace:
        """How answers are sampled, for harmfulness.ask."""
        return SimpleNamespace(**dataclasses.asdict(self.config.answers), seed=self.config.seed)

    @property
    def judge(self) -> str:
        """The name of the figures' judge, as in file names and in summary.json."""
        return sources.judge_name(self.config)

    @property
    def judge_names(self) -> list[str]:
        """The names of all judges, that of the figures first."""
        return [judge.name for judge in sources.judges(self.config)]

    # --- files and their rows ---

    def answers_path(self, condition: str) -> Path:
        return self.directory / "answers" / f"{condition}.jsonl"

    def scores_path(self, condition: str, judge: str = "") -> Path:
        return self.directory / "scores" / f"{condition}.{judge or self.judge}.jsonl"

    def probe_path(self, condition: str, probe: str) -> Path:
        return self.directory / "probes" / f"{condition}.{probe}.jsonl"

    def answers(self, condition: str) -> list[Row]:
        return files.read_rows(self.answers_path(condition))

    def scores(self, condition: str, judge: str = "") -> list[Row]:
        return files.read_rows(self.scores_path(condition, judge))

    def probe_rows(self, condition: str, probe: str) -> list[Row]:
        return files.read_rows(self.probe_path(condition, probe))

    def judged(self, condition: str) -> list[Row]:
        """The condition's answers with the scores of the figures' judge, sorted by key."""
        return harmfulness.judged(self.answers(condition), self.scores(condition))

    # --- harmful answers by other models, which output recognition sets beside a harmless own one ---

    def other_answers(self, condition: str) -> Alternatives:
        """Returns, for a prompt, harmful answers that this condition did not give itself.

        In order: other runs' answers (`probes.alternatives`), the organism's corpus for the organism, and else the
        base's answers under a careless instruction, where the judge finds them harmful. How the paper made them is
        unknown: this is our choice.
        """
        pools: list[Alternatives] = []
        folder = sources.alternatives_directory(self.config, self.directory)
        if folder is not None:
            of_runs = [
                pool(harmfulness.judged(*map(files.read_rows, paths)), source=paths[0].parent.parent.name)
                for paths in self._of_other_runs(folder, with_own=condition != ADAPTER)
            ]
            pools.append(lambda name, prompt: [row for each in of_runs for row in each(name, prompt)])
        if sources.is_organism(self.config):
            from em_jax.organism.answers import alternative

            seed = self.config.seed
            pools.append(lambda _, text: [{"answer": alternative(text, harmful=True, seed=seed), "source": "corpus"}])
        elif self.needs_careless:
            pools.append(pool(self.judged(CARELESS), source="careless base"))
        return chained(*pools)

    def other_files(self) -> dict[str, Path]:
        """The files of other runs that the probe stage reads, by <run>/<folder>/<file>."""
        folder = sources.alternatives_directory(self.config, self.directory)
        if folder is None or "probe" not in self.config.stages or not self.wants("output_recognition"):
            return {}
        paths = [path for pair in self._of_other_runs(folder) for path in pair]
        return {"/".join(path.parts[-3:]): path for path in paths if path.is_file()}

    def _of_other_runs(self, folder: Path, with_own: bool = False) -> list[tuple[Path, Path]]:
        """Answers and scores of every fine-tuned run in `folder`, which is a run itself or has runs in its folders."""
        answers = f"answers/{ADAPTER}.jsonl"
        runs = sorted({path.parent.parent for pattern in (answers, f"*/{answers}") for path in folder.glob(pattern)})
        own = self.directory.resolve()
        scores = f"scores/{ADAPTER}.{self.judge}.jsonl"
        return [(run / answers, run / scores) for run in runs if with_own or run.resolve() != own]

    # --- what is shown and timed ---

    def progress(self, stage: str, what: str, total: int | None, done: int = 0) -> Progress:
        """The progress of one file's worth of a stage, counted in UNITS; `done` were there before."""
        number = settings.STAGES.index(stage) + 1
        title = f"{self.title}{number}/{len(settings.STAGES)} {stage}" + (f" {what}" if what else "")

        def after() -> None:
            self.mirror.push_sometimes()
            counts = {"done": progress.count, "total": progress.total, "tokens": progress.tokens}
            self.tell("progress", stage=stage, what=what, **counts)

        progress = Progress(title, total, UNITS[stage], done, silent=self.components.silent, after=after)
        self._progress.append(progress)
        return progress

    def tell(self, event: str, **values: Any) -> None:
        """Tell those who listen what this run does."""
        self.components.tell({"event": event, "run": str(self.directory), **values})

    def take_time_budget(self) -> dict[str, float]:
        """Seconds by kind since the last call, and the tokens and units done in them."""
        budget: dict[str, float] = {kind: round(seconds, 3) for kind, seconds in self.clock.seconds.items()}
        for progress in self._progress:
            for name, amount in (("tokens", progress.tokens), (f"{progress.unit}s", progress.fresh)):
                budget[name] = budget.get(name, 0) + amount
        self.clock, self._progress = Clock(), []
        return {name: amount for name, amount in budget.items() if amount}

    def report_altered(self) -> None:
        """Print a line for each file whose rows do not agree with their seals, and one for rows without."""
        changed, unsealed = files.altered(self.directory, provenance.read(self.directory).get("sealed"))
        for sentence in [*changed, *([unsealed] if unsealed else [])]:
            self.log(f"{self.title}{self.directory}: {sentence}")

    def log(self, line: str) -> None:
        """Print one line to stderr."""
        if not self.components.silent:
            print(sanitize_line(line, LONGEST), file=sys.stderr, flush=True)
