"""How much a run has to do, how much of it is done, and how long the rest takes at the pace of an earlier run.

All of it is read from run directories, without a model.
"""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base.errors import UserError
from em_jax.base.stage_timer import COMPILING, LOADING
from em_jax.config import Config
from em_jax.probes import ASKED, choice, harmfulness, labelled
from em_jax.runs import experiment, preflight, provenance, sources, stored
from em_jax.runs.run import CARELESS, UNITS, Row, Run

MOST_RUNS = 200
"""How many earlier runs are examined for a pace."""
NOT_OF_THE_PACE = {"domain", "data", "mix", "adapter", "seed", "train.epochs", "train.max_steps", "train.holdout"}
NOT_OF_THE_PACE |= {"answers.samples", "probes.limit", "probes.only", "probes.alternatives"}
NOT_OF_THE_PACE |= {"stages", "mirror", "verbosity", "judge.max_requests", "judge.harmful_at"}
"""Settings that say how much is done and on what: they do not change how long one unit takes."""


@dataclasses.dataclass(frozen=True)
class WorkItem:
    """One file's worth of a stage: `total` units of work, of which `done` are in the run directory.

    `at_most`: the total is an upper bound, because the probe asks about answers that have no scores yet.
    """

    stage: str
    what: str
    total: int
    done: int
    at_most: bool = False


def items(run: Run) -> list[WorkItem]:
    """What a run's stages do, in order; stages that the settings leave out are left out."""
    counts, names = _answer_counts(run), run.judge_names
    every = list(_training(run))
    every += [WorkItem("answer", condition, total, len(run.answers(condition))) for condition, total in counts.items()]
    counts[labelled.CONDITION] = len(run.labelled_questions)
    for number, condition in experiment.scored_conditions(run):
        done = len(run.scores(condition, names[number]))
        every.append(WorkItem("judge", f"{condition} by {names[number]}", counts[condition], done))
    every += [*_probes(run), WorkItem("report", "", 1, 0)]
    return [item for item in every if item.stage in run.config.stages]


def _training(run: Run) -> Iterator[WorkItem]:
    if not run.trains:
        return
    train = run.config.train
    used, held_out, steps = preflight.training_size(run)
    saved = [int(path.name) for path in run.directory.glob("train/checkpoints/*") if path.name.isdecimal()]
    done = steps if sources.is_trained(run.directory) else max(saved, default=0)
    rest = f", {held_out} held out" if held_out else ""
    yield WorkItem("finetune", f"{used:,} rows in batches of {train.batch_size}{rest}", steps, done)


def _answer_counts(run: Run) -> dict[str, int]:
    """Condition -> how many answers are sampled."""
    if not run.needs_answers:
        return {}
    prompts = len(harmfulness.questions(run.suite, run.probe_settings))
    counts = dict.fromkeys(run.conditions, len(run.harm_questions) * run.config.answers.samples)
    return counts | ({CARELESS: prompts * experiment.CARELESS_SAMPLES} if run.needs_careless else {})


def _probes(run: Run) -> Iterator[WorkItem]:
    for condition in run.conditions:
        for name in ASKED:
            if run.wants(name):
                questions, at_most = _questions(run, name, condition)
                done = {choice.key(row) for row in run.probe_rows(condition, name)}
                if not at_most:
                    done &= {choice.key(row) for row in questions}
                yield WorkItem("probe", f"{condition} {name}", len(questions), len(done), at_most)


def _questions(run: Run, name: str, condition: str) -> tuple[list[Row], bool]:
    """The questions of a probe, and whether they are only an upper bound."""
    if name in ("self_assessment", "two_ai") or _all_scored(run, condition):
        return experiment.probe_questions(run, name, condition), False
    # An answer of each bucket to every prompt, and another model's beside it.
    other: Any = {"answer": "-", "score": 5, "source": ""}
    own = [
        {"id": row["id"], "sample": sample, "prompt": row["prompt"][-1]["content"], "answer": "-", "score": score}
        for row in harmfulness.questions(run.suite, run.probe_settings)
        for sample, score in enumerate((1, 3, 5)[: run.config.answers.samples])
    ]
    others = () if name == "score_prediction" else (own, lambda identity, prompt: [other])
    return ASKED[name].questions(run.suite, run.probe_settings, own, *others), True


def _all_scored(run: Run, condition: str) -> bool:
    """Whether all answers that the condition's questions are made of are there with their scores."""
    counts = _answer_counts(run)
    needed = {"base", condition} | ({CARELESS} & set(counts))
    return all(len(run.answers(name)) == len(run.scores(name)) == counts.get(name, 0) > 0 for name in needed)


# --- the pace of an earlier run ---


@dataclasses.dataclass(frozen=True)
class Pace:
    """What each stage of a finished run took, in seconds: `per_unit`, and `once` per start (loading, compilation)."""

    directory: Path
    per_unit: Mapping[str, float]
    once: Mapping[str, float]
    units: float


def earlier_pace(config: Config, folders: Iterable[Path]) -> Pace | None:
    """The pace of the largest finished run with this model, these settings and these devices, up to two levels down."""
    here = provenance.devices()
    patterns = ("provenance.json", "*/provenance.json", "*/*/provenance.json")
    records = (path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern)))
    directories = dict.fromkeys(path.parent for path in itertools.islice(records, MOST_RUNS))
    paces = [pace for directory in directories if (pace := _pace(directory, config, here))]
    return max(paces, key=lambda pace: (pace.units, str(pace.directory)), default=None)


def _pace(directory: Path, config: Config, here: dict[str, Any]) -> Pace | None:
    record = provenance.read(directory)
    if record.get("devices") != here or not (directory / "report.html").is_file():
        return None
    # A run with damaged records is skipped too: it is not the one that the user asked about.
    with contextlib.suppress(UserError, OSError, TypeError, AttributeError, ValueError, KeyError, OverflowError):
        before, now = settings.flatten(stored.read_config(directory)), settings.flatten(config)
        if any(before[name] != now[name] for name in now if name not in NOT_OF_THE_PACE):
            return None
        # Units are those of the run's own starts: rows copied from another run are not among them.
        budgets, of_stage = record["time_budget"], {stage: f"{unit}s" for stage, unit in UNITS.items()}
        units = {stage: count for stage in budgets if (count := budgets[stage].get(of_stage[stage]))}
        once = {stage: sum(budgets[stage].get(kind, 0.0) for kind in (LOADING, COMPILING)) for stage in units}
        per_unit = {stage: max(budgets[stage]["seconds"] - once[stage], 0.0) / units[stage] for stage in units}
        return Pace(directory, per_unit, once, sum(units.values()))
    return None


def seconds_left(todo: Iterable[WorkItem], pace: Pace) -> dict[str, float | None]:
    """Seconds for the rest of each stage, None where its pace is unknown; stages without work are left out."""
    units = Counter[str]()
    for item in todo:
        units[item.stage] += max(item.total - item.done, 0)
    return {
        stage: pace.once[stage] + count * pace.per_unit[stage] if stage in pace.per_unit else None
        for stage, count in units.items()
        if count
    }
