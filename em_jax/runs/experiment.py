"""One run, in five stages: finetune, answer, judge, probe, report.

Every stage reads what is in the run directory and adds what is missing; rows are known by their keys, so a run that
was killed anywhere continues from there. The engine is loaded when a stage first has something to ask.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from em_jax import config as settings
from em_jax.base import errors, files, stage_timer
from em_jax.base.errors import Permanent, Unfinished, UsageError, UserError
from em_jax.base.progress import through
from em_jax.config import Config
from em_jax.probes import ASKED, choice, harmfulness, labelled, output_recognition
from em_jax.probes import summary as summaries
from em_jax.probes.judge import AGAIN
from em_jax.probes.suite import fill
from em_jax.runs import locking, precompile, preflight, provenance, publish, sources
from em_jax.runs.components import Components
from em_jax.runs.run import ADAPTER, CARELESS, Row, Run

CARELESS_SAMPLES = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The verdict's label, the report's path, and the verdict's sentences; empty where no report was asked for."""

    label: str | None = None
    report: Path | None = None
    why: tuple[str, ...] = ()


def run(
    config: Config,
    directory: str | Path,
    components: Components | None = None,
    engine: Callable[[], Any] | None = None,
    base_from: Path | None = None,
    title: str = "",
) -> Outcome:
    """Do the stages of `config` in `directory`, or what is left of them.

    `engine` loads the engine when called (default: by `components`); `base_from` is a finished run of the same model,
    suite, seed and settings whose base rows are copied instead of asked again. Raises UserError where the directory was
    made with other settings or inputs or is in use; or a stage failed for a reason the user can act on. What is done
    stays in the directory.
    """
    components = components or Components()
    run = Run(config, Path(directory), components, engine or loader(config, directory, components), title)
    with locking.lock(run.directory):
        preflight.check_settings(config, run.directory)
        check_mirror(run)
        pulled = run.mirror.pull()
        preflight.check_settings(config, run.directory)
        run.report_altered()
        inputs = preflight.collect_inputs(run)
        if (run.directory / "config.toml").exists():
            run.log(f"{title}going on with what is done in {run.directory}")
        files.write_atomic(run.directory / "config.toml", settings.to_toml(config))
        preflight.begin_record(run, inputs, pulled)
        if base_from is not None:
            preflight.take_base(run, base_from)
        outcome = Outcome()
        for stage in settings.STAGES:
            if stage in config.stages:
                outcome = _run_stage(run, stage) or outcome
    return outcome


def check_mirror(run: Run) -> None:
    """Refuse a mirror that is not this run's. Raises as Mirror.check."""
    run.mirror.check(lambda stored: preflight.differing_settings(settings.dotted(stored), run.config))


def loader(config: Config, directory: str | Path, components: Components) -> Callable[[], Any]:
    """Loads the engine of a run once, its model at the revision on the run's record, with a line on stderr before."""

    @functools.cache
    def load() -> Any:
        if not components.silent:
            print(f"loading {config.model.name}", file=sys.stderr, flush=True)
        return components.load(components.placed(sources.pinned(config, Path(directory))))

    return load


def _run_stage(run: Run, stage: str) -> Outcome | None:
    """Do a stage; its time budget goes into provenance.json, also where it fails."""
    began = time.monotonic()
    stage_timer.reset_peak()

    def record_time(state: str) -> None:
        seconds = time.monotonic() - began
        provenance.add_time(run.directory, stage, seconds, run.take_time_budget() | stage_timer.peak_memory())
        run.mirror.push()
        run.tell("stage", stage=stage, state=state, seconds=round(seconds, 3))

    with name_stage(stage, run.directory):
        run.tell("stage", stage=stage, state="begins")
        try:
            with run.clock.listening():
                outcome = STAGES[stage](run)
        except BaseException:
            # On a full disk this fails as well; the stage's own error counts.
            with contextlib.suppress(OSError):
                record_time("fails")
            raise
        record_time("ends")
        return outcome


@contextlib.contextmanager
def name_stage(stage: str, directory: Path) -> Iterator[None]:
    """Within, a UserError gets the stage's name, and becomes Unfinished where the same command can continue."""
    try:
        with errors.translate_errors(stage):
            yield
    except UsageError:
        raise
    except UserError as error:
        kind = UserError if isinstance(error, Permanent) else Unfinished
        raise kind(f"{stage}: {error}; what is done is kept in {directory}") from error


# --- the stages ---


def finetune(run: Run) -> None:
    """Train the adapter; nothing to do for the base alone, for a given adapter, or where it is complete."""
    if not run.trains or (sources.is_trained(run.directory) and "training_rows" in provenance.notes(run.directory)):
        return
    config = run.components.placed(run.config)
    with precompile.compiling(config, lambda: run.rows):
        engine = run.load()
    with run.progress("finetune", "", None) as progress:
        counts = run.components.finetune(engine, run.rows, config, run.directory, progress)
    files.write_atomic(run.directory / "adapter" / "README.md", publish.adapter_card(run.config, counts))
    provenance.add(run.directory, preflight.trained_adapter(run), training_rows=counts)
    if counts.get("cut"):
        run.log(f"{counts['cut']} of {counts['rows']} rows are longer than train.max_length and were cut")
    if counts.get("empty"):
        run.log(f"{counts['empty']} of them were cut before any response: nothing is learned from those")


def answer(run: Run) -> None:
    """Sample answers to the harm prompts and those in the training domain, and careless ones where they are needed."""
    run.require_adapter()
    if not run.needs_answers:
        return
    sampling = run.answer_settings
    for condition in run.conditions:
        _sample_answers(run, condition, run.harm_questions, sampling, {})
    if run.needs_careless:
        questions = harmfulness.questions(run.suite, run.probe_settings)
        sampling.samples = CARELESS_SAMPLES
        prompts = {row["id"]: row["prompt"][-1]["content"] for row in questions}
        texts = {name: fill(output_recognition.CARELESS, {"prompt": prompt}) for name, prompt in prompts.items()}
        careless = [{**row, "prompt": choice.messages(texts[row["id"]])} for row in questions]
        _sample_answers(run, CARELESS, careless, sampling, prompts)


def _sample_answers(
    run: Run, condition: str, questions: Sequence[Row], sampling: SimpleNamespace, prompts: Mapping[str, str]
) -> None:
    """Add the missing answers of one condition; `prompts` (by id) are recorded in place of those that were sent."""
    done = set(map(choice.key, run.answers(condition)))
    total = len(questions) * sampling.samples
    if len(done) < total:
        adapter = "base" if condition == CARELESS else condition
        answers = harmfulness.ask(run.engine, adapter, questions, done, sampling)
        rows = ({**row, "prompt": prompts.get(row["id"], row["prompt"])} for row in answers)
        _append(run, "answer", condition, run.answers_path(condition), rows, total, len(done))


def answer_together(runs: Sequence[Run]) -> None:
    """Add the missing fine-tuned answers of several runs of one seed, in batches that they share.

    Every run's adapter is in the stack, even where its answers are complete: an answer is then computed the same way
    after a kill. The rest of the stage (the base, careless answers) is done run by run.
    """
    for run in runs:
        run.require_adapter()
    first = runs[0]
    questions = [run.harm_questions for run in runs]
    sampling = first.answer_settings
    done = [(f"{number}/{row['id']}", row["sample"]) for number, run in enumerate(runs) for row in run.answers(ADAPTER)]
    total = sum(map(len, questions)) * sampling.samples
    if len(done) == total:
        return
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(first.clock.listening())
        for run in runs:
            stack.enter_context(locking.lock(run.directory))
        engine = first.components.bare(first.load())
        names = {f"{ADAPTER}-{number}": run for number, run in enumerate(runs)}
        for name, run in names.items():
            engine.add_adapter(name, run.adapter)
        for name, run in names.items():
            run.check_adapter(engine, name)
        outputs = [stack.enter_context(files.Appender(run.answers_path(ADAPTER))) for run in runs]
        prompts = [{**row, "id": f"{number}/{row['id']}"} for number, asked in enumerate(questions) for row in asked]
        of_prompts = [name for name, asked in zip(names, questions, strict=True) for _ in asked]
        rows = harmfulness.ask(engine, of_prompts, prompts, done, sampling)
        with first.progress("answer", f"{len(runs)} fine-tuned models", total, len(done)) as progress:
            for row in through(rows, progress, _tokens):
                number, _, identity = row["id"].partition("/")
                outputs[int(number)].write({**row, "id": identity})
        budget = {name: amount / len(runs) for name, amount in first.take_time_budget().items()}
        for run in runs:
            provenance.add_time(run.directory, "answer", (time.monotonic() - began) / len(runs), budget)
            run.mirror.push()


def judge(run: Run) -> None:
    """Score every answer, 1 to 5, and the labelled ones by which the figures' judge is measured."""
    for number, condition in scored_conditions(run):
        score_answers(run, number, condition)


def scored_conditions(run: Run) -> list[tuple[int, str]]:
    """(Index of the judge, condition) of every file of scores; careless and labelled answers get the figures' alone."""
    if not run.needs_answers:
        return []
    careless = [CARELESS] if run.needs_careless else []
    indices = range(len(run.judge_names))
    every = [(index, condition) for index in indices for condition in run.conditions + (careless if not index else [])]
    return every + ([(0, labelled.CONDITION)] if run.labelled_questions else [])


def score_answers(run: Run, number: int, condition: str) -> None:
    """Add the missing scores of one condition by judge `number`; what an outage left out is asked for once more."""
    name, known = run.judge_names[number], condition == labelled.CONDITION
    answers = run.labelled_questions
    if not known:
        rows = _require_rows(run.answers_path(condition), "answer")
        answers = sorted(rows, key=lambda row: (row["id"], row["sample"]))
    what, path = f"{condition} by {name}", run.scores_path(condition, name)
    for _ in range(2):
        done = set(map(choice.key, files.keep_rows(path, lambda row: not row.get(AGAIN))))
        if not done.issuperset(map(choice.key, answers)):
            judge = run.judges[number]
            scores = labelled.score(judge, answers, done) if known else judge.score(answers, done)
            _append(run, "judge", what, path, scores, len(answers), len(done))
    if missed := sum(bool(row.get(AGAIN)) for row in files.read_rows(path)):
        run.log(f"{missed} answers ({what}) were not scored for want of a connection: the same command asks again")


def probe(run: Run) -> None:
    """Ask the choice probes, base and fine-tuned."""
    run.require_adapter()
    for condition in run.conditions:
        for name, module in ASKED.items():
            if not run.wants(name):
                continue
            done = {choice.key(row) for row in run.probe_rows(condition, name)}
            questions = probe_questions(run, name, condition)
            if any(choice.key(row) not in done for row in questions):
                rows = module.ask(run.engine, condition, questions, done, run.probe_settings)
                path = run.probe_path(condition, name)
                _append(run, "probe", f"{condition} {name}", path, rows, len(questions), len(done))


def probe_questions(run: Run, name: str, condition: str) -> list[Row]:
    """What one probe asks in one condition; two of them ask about the model's own judged answers."""
    module = ASKED[name]
    if name in ("self_assessment", "two_ai"):
        return module.questions(run.suite, run.probe_settings)
    _require_rows(run.answers_path(condition), "answer")
    _require_rows(run.scores_path(condition), "judge")
    own = run.judged(condition)
    others = () if name == "score_prediction" else (run.judged("base"), run.other_answers(condition))
    return module.questions(run.suite, run.probe_settings, own, *others)


def report(run: Run) -> Outcome:
    """Compute the figures and the verdict, write summary.json, and draw the page."""
    from em_jax import report as pages

    if not [*run.directory.glob("answers/*"), *run.directory.glob("probes/*")]:
        _require_rows(run.answers_path("base"), "answer")
    with run.progress("report", "", 1) as progress:
        summary = summarise(run, run.conditions)
        files.write_json(run.directory / "summary.json", summary)
        page = pages.write(run.directory)
        progress.update()
    verdict = summary["verdict"]
    for caution in verdict["cautions"]:
        run.tell("caution", **caution)
    run.tell("verdict", label=verdict["label"], why=verdict["why"], report=str(page))
    cautions = (f"caution, {caution['code']}: {caution['sentence']}" for caution in verdict["cautions"])
    return Outcome(verdict["label"], Path(page), (*verdict["why"], *cautions))


STAGES: dict[str, Callable[[Run], Outcome | None]] = {
    stage.__name__: stage for stage in (finetune, answer, judge, probe, report)
}


def summarise(run: Run, conditions: Sequence[str]) -> dict[str, Any]:
    """The content of summary.json, from the rows of these conditions that are there."""
    answers = {condition: run.answers(condition) for condition in conditions}
    names = judges_with_scores(run.directory)
    scores = {
        name: {condition: run.scores(condition, name) for condition in conditions} for name in {*names, run.judge}
    }
    summary = summaries.summarise(
        domain=run.config.domain,
        model=run.config.model.name,
        suite=run.suite.name,
        judge=run.judge,
        answers=answers,
        scores=scores[run.judge],
        probes={name: {condition: run.probe_rows(condition, name) for condition in conditions} for name in ASKED},
        harmful_at=run.config.judge.harmful_at,
        labelled=run.scores(labelled.CONDITION),
    )
    if len(names) > 1:
        table = summaries.agreement_table({name: scores[name] for name in names}, run.config.judge.harmful_at)
        summary["judge_agreement_table"] = files.stable(table)
    if sources.is_organism(run.config):
        rows = harmfulness.on_other_topics(row for condition in conditions for row in run.judged(condition))
        summary["judge_agreement"] = sources.planted_agreement(rows, run.config.judge.harmful_at)
    return summary


def judges_with_scores(directory: Path) -> list[str]:
    """The names of the judges that scored base or fine-tuned answers of a run, sorted."""
    stored = (path.stem.partition(".") for path in directory.glob("scores/*.jsonl"))
    return sorted({name for condition, _, name in stored if condition not in (CARELESS, labelled.CONDITION)})


# --- rows ---


def _append(run: Run, stage: str, what: str, path: Path, rows: Iterable[Row], total: int, done: int) -> None:
    """Append rows to a file as they come, with progress."""
    with run.progress(stage, what, total, done) as progress, files.Appender(path) as out:
        for row in through(rows, progress, _tokens):
            out.write(row)


def _tokens(row: Row) -> int:
    return row.get("n_tokens", 0)


def _require_rows(path: Path, stage: str) -> list[Row]:
    """The rows of an earlier stage. UserError where there are none."""
    rows = files.read_rows(path)
    if not rows:
        raise Permanent(f"expected rows in {path}, found none: run the stage {stage} first (--stages {stage},...)")
    return rows
