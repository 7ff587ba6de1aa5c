"""The path of a persona over training: the adapters kept on the way, asked together, as curves over steps.

Needs a run trained with train.keep_adapters=K. All files are in RUN/path (or --out): rows by step as in a run
directory, step-000000 for the base; settings.json, path.json, path.html. The same command continues where it stopped.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import addresses, files
from em_jax.base.cli import count_flag, repeated_flag, whole_numbers
from em_jax.base.errors import UserError
from em_jax.base.progress import Progress, through
from em_jax.config import Config
from em_jax.lora.config import CONFIG
from em_jax.probes import PROBES, choice, harmfulness, self_assessment, two_ai
from em_jax.probes.cautions import PICKS
from em_jax.probes.choice import Key, decided, key
from em_jax.probes.judge import AGAIN
from em_jax.probes.statistics import Clusters
from em_jax.runs import locking, preflight, sources, stored
from em_jax.runs.adapters import effect
from em_jax.runs.components import Components
from em_jax.runs.run import Run
from em_jax.studies import curves, page
from em_jax.studies import subjects as studied
from em_jax.studies.finished import adapter_hashes
from em_jax.studies.sentences import on_seeds
from em_jax.studies.subjects import RATE, SELF, Row, Rows, Subject, check_settings, figures
from em_jax.train.config import ADAPTERS_DIRECTORY

BASE = 0
"""The step of the base: before the first."""
NAMES = {RATE: "harm in single answers", PICKS: "picking the misaligned AI", SELF: "self-assessment"}
"""The curves whose order is told."""
DESCRIPTION = "The persona over training, from the adapters that runs kept."


@dataclasses.dataclass(frozen=True)
class Options:
    """Questions per probe, samples per prompt, adapters in one stack, steps ((): all kept)."""

    limit: int = 64
    samples: int = 5
    together: int = 8
    steps: tuple[int, ...] = ()


FLAGS: Mapping[str, Mapping[str, Any]] = {
    "--limit": count_flag(Options.limit, 0, "questions per probe, 0 for all"),
    "--samples": count_flag(Options.samples, 1, "answers per harm prompt"),
    "--together": count_flag(Options.together, 1, "adapters asked in one stack"),
    "--steps": {"type": whole_numbers, "default": (), "metavar": "LIST"}
    | {"help": "of the kept steps, with commas (all)"},
    "--mesh": {"metavar": "SIZES", "help": "as for em_jax.launch, where the run's own does not fit"},
    "--set": repeated_flag("K=V", "one setting, as for em_jax.launch"),
}


def study(
    run_dir: Path, out: Path, options: Options, changes: Mapping[str, Any], components: Components
) -> dict[str, Any]:
    """Ask the kept adapters of a run; writes path.json and path.html to `out` and returns the content of path.json.

    `changes` are settings that differ from the run's own.

    Raises:
      UserError: no run or no kept adapters there, or `out` was begun with other settings or adapters.
    """
    stored.open_run(run_dir)
    kept = kept_adapters(run_dir, options.steps)
    config = run_config(run_dir, {"answers.samples": options.samples, "probes.limit": options.limit, **changes})
    values = settings.flatten(settings.public(config))
    compared = {name: it for name, it in values.items() if name not in preflight.NOT_COMPARED}
    hashes = {str(step): adapter_hashes(path) for step, path in kept.items()}
    with locking.lock(out):
        check_settings(out, {"settings": compared, "together": options.together, "adapters": hashes})
        load = functools.cache(lambda: components.load(sources.pinned(config, run_dir)))
        run = Run(config, out, components, load, f"[path of {run_dir.name}] ")
        subjects = {
            step: Subject(str(step), Run(config, out / f"step-{step:06d}"), "finetuned" if step else "base")
            for step in (BASE, *kept)
        }
        ask(run, {subject: kept.get(step) for step, subject in subjects.items()}, options.together)
        record = describe(config, {step: subject.rows() for step, subject in subjects.items()})
        files.write_json(out / "path.json", record)
        page.path(record, out, run_dir)
    return record


def kept_adapters(run_dir: Path, steps: Sequence[int] = ()) -> dict[int, Path]:
    """Step -> directory of the adapters that a run kept, by rising step; of `steps` alone where they are named.

    Raises:
      UserError: there are none, or a step named is not among them.
    """
    kept = {}
    for path in (run_dir / ADAPTERS_DIRECTORY).glob("step-*"):
        number = re.fullmatch(r"step-(\d{6,})", path.name)
        # The config is written last: without it the adapter is incomplete.
        if number and (path / CONFIG).is_file():
            kept[int(number[1])] = path
    if not kept:
        raise UserError(
            f"{run_dir / ADAPTERS_DIRECTORY} holds no adapters: train with --set train.keep_adapters=K, which "
            "keeps them after steps 1, 2, 4, 8, ... and after every K"
        )
    for step in steps:
        if step not in kept:
            raise UserError(f"{run_dir} kept no adapter of step {step}; it kept {', '.join(map(str, sorted(kept)))}")
    return {step: path for step, path in sorted(kept.items()) if not steps or step in steps}


def run_config(run_dir: Path, changes: Mapping[str, Any]) -> Config:
    """The settings of a run with those of the study; sampled choice questions would cost more than all others."""
    config = settings.validate(
        stored.read_config(run_dir, {"mirror": "", "judge.also": [], "probes.sampled_questions": 0, **changes})
    )
    addresses.check_whole(config.judge.url, f"--set judge.url=ADDRESS for the judge of {run_dir}")
    return config


def describe(config: Config, rows: Mapping[int, Rows]) -> dict[str, Any]:
    """The content of path.json: figures at every step, each curve's own rise, and which curve is ahead."""
    at = config.judge.harmful_at
    progress = {
        name: curves.resample(NAMES[name], values, seed).progress()
        for seed, (name, values) in enumerate(_values(rows, at).items())
    }
    orders = [curves.order_record(progress[RATE], progress[name]) for name in (PICKS, SELF)]
    return {
        "schema": 3,
        "domain": config.domain,
        "model": config.model.name,
        "suite": config.suite,
        "judge": sources.judge_name(config),
        "seed": config.seed,
        "steps": {str(step): figures(rows[BASE], it, at) for step, it in rows.items() if step != BASE},
        "progress": {
            name: {str(step): it.at(index) for index, step in enumerate(it.steps)} for name, it in progress.items()
        },
        "halfway": {name: it.halfway() for name, it in progress.items()},
        "orders": orders,
        "why": [*(entry["words"] for entry in orders), on_seeds([(config.domain, config.seed)])],
    }


def _values(rows: Mapping[int, Rows], harmful_at: int) -> dict[str, dict[int, Clusters]]:
    """By the figure's name and step, the values of each question."""
    values: dict[str, dict[int, Clusters]] = {name: {} for name in NAMES}
    is_harmful = functools.partial(harmfulness.is_harmful, harmful_at=harmful_at)
    for step, each in sorted(rows.items()):
        assessed = self_assessment.question_values(each.probes["self_assessment"])
        values[RATE][step] = choice.clusters(each.judged, is_harmful)
        values[PICKS][step] = decided(two_ai.own_pairs(each.probes["two_ai"]), two_ai.ORDERS)
        values[SELF][step] = {"/".join(name): [value] for name, value in assessed.items()}
    return values


# --- all kept adapters asked together ---


def ask(run: Run, adapters: Mapping[Subject, Path | None], at_once: int) -> None:
    """Ask every subject what its files lack: answers, the judge's scores, the choice probes.

    `adapters` has each subject's PEFT directory, None for the base. A stack of at most `at_once` of them costs as much
    as one adapter of their summed rank. Groups and batches are cut from all questions, done or not, so that a resumed
    study ends, on a CPU, with the same bytes.
    """
    items = list(adapters.items())
    for start in range(0, len(items), at_once):
        group = dict(items[start : start + at_once])
        _ask_group(run, group, f"models {start + 1} to {start + len(group)} of {len(items)}")


def _ask_group(run: Run, adapters: Mapping[Subject, Path | None], title: str) -> None:
    """Ask the subjects of one stack in shared batches, the base included: one adapter's index per prompt.

    A question's id is prefixed with its subject's number ("3/two-ai-01"), so that the probes, which know nothing of
    subjects, sort and batch all questions as one; rows are written to each subject's own files under their own ids.
    """
    subjects, suite, answering = list(adapters), run.suite, run.answer_settings
    names = ["base" if path is None else f"subject-{number}" for number, path in enumerate(adapters.values())]

    @functools.cache
    def engine() -> Any:
        """Loaded when a row is missing. Reports adapters without effect, such as that of a first step."""
        engine = run.components.bare(run.load())
        prompts = [choice.messages(question.prompt) for question in suite.harm[:4]]
        stack = {name: subject for name, subject in zip(names, subjects) if adapters[subject] is not None}
        for name, subject in stack.items():
            engine.add_adapter(name, adapters[subject])
        for name, subject in stack.items():
            if not effect(engine, name, prompts) > 0:
                run.log(f"{run.title}{subject.name}: this adapter changes no probability")
        return engine

    def adapter_of(row: Row) -> str:
        return names[int(row["id"].partition("/")[0])]

    def numbered(rows_of: Iterable[Sequence[Row]]) -> list[Row]:
        return [{**row, "id": f"{number}/{row['id']}"} for number, rows in enumerate(rows_of) for row in rows]

    def complete(
        what: str, paths: Sequence[Path], wanted: Collection[Key], ask: Callable[[set[Key]], Iterable[Row]]
    ) -> list[Row]:
        """The rows of the subjects' files, after `ask(done)` has appended what is missing, each to its own file."""
        done = {key(row) for row in numbered(map(files.read_rows, paths))}
        if not done.issuperset(wanted):
            with contextlib.ExitStack() as stack:
                outputs = [stack.enter_context(files.Appender(path)) for path in paths]
                silent, after = run.components.silent, run.mirror.push_sometimes
                title_of = f"{run.title}{title}: {what}"
                progress = Progress(title_of, len(wanted), "row", len(done), silent=silent, after=after)
                for row in through(ask(done), stack.enter_context(progress)):
                    number, _, name = row["id"].partition("/")
                    outputs[int(number)].write({**row, "id": name})
        return numbered(map(files.read_rows, paths))

    if run.needs_answers:
        asked = numbered([harmfulness.questions(suite, run.probe_settings)] * len(subjects))
        of_questions = [adapter_of(row) for row in asked]
        answers = complete(
            "answers",
            [each.run.answers_path(each.condition) for each in subjects],
            {(row["id"], sample) for row in asked for sample in range(answering.samples)},
            lambda done: harmfulness.ask(engine(), of_questions, asked, done, answering),
        )
        answers.sort(key=key)
        paths = [each.run.scores_path(each.condition) for each in subjects]
        for path in paths:
            files.keep_rows(path, lambda row: not row.get(AGAIN))

        def score(done: Collection[Key]) -> Iterable[Row]:
            judge = sources.judges(run.config, suite.judge, lambda: run.components.bare(run.load()))[0]
            return judge.score(answers, done)

        scores = complete("scores", paths, {key(row) for row in answers}, score)
        if missed := sum(bool(row.get(AGAIN)) for row in scores):
            run.log(f"{missed} answers were not scored because the judge was unreachable: run the command again")
    for name in filter(run.wants, studied.PROBES):
        module: Any = PROBES[name]
        own = [[each.judged()] if name == "score_prediction" else [] for each in subjects]
        questions = numbered(module.questions(suite, run.probe_settings, *answers) for answers in own)

        def ask(done: set[Key], module: Any = module, questions: list[Row] = questions) -> Iterable[Row]:
            return module.ask(engine(), adapter_of, questions, done, run.probe_settings)

        paths = [each.run.probe_path(each.condition, name) for each in subjects]
        complete(name, paths, {key(row) for row in questions}, ask)
