"""One run, in five stages: finetune, answer, judge, probe, report.

Every stage reads what is already in the run directory and adds what is missing: rows are known by their keys, so a run
that was killed anywhere goes on where it was. The engine is loaded when a stage first has something to ask.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from em_jax.runs import precompile, alternatives, preflight, model_card, provenance, locking, sources
from em_jax.base import failures, files, stage_timer
from em_jax import config as settings
from em_jax.config import Config
from em_jax.base.errors import OutOfMemory, Unfinished, UsageError, UserError
from em_jax.probes import PROBES, agreement, choice, harmfulness, output_recognition
from em_jax.probes import summary as summaries
from em_jax.probes.judge import AGAIN
from em_jax.base.progress import through
from em_jax.runs.run import ADAPTER, Row, Run
from em_jax.runs.sources import Parts

CARELESS = "careless"
CARELESS_SAMPLES = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to: the verdict's label and the report's path, both None where the report was not asked for."""

    label: str | None
    report: Path | None
    why: tuple[str, ...] = ()


def run(
    config: Config,
    directory: str | Path,
    parts: Parts | None = None,
    engine: Callable[[], Any] | None = None,
    base_from: Path | None = None,
    title: str = "",
) -> Outcome:
    """Do the stages of `config` in `directory`, or what is left of them.

    `engine` loads the engine when called (default: by `parts`); `base_from` is a finished run of the same model,
    suite, seed and settings whose base rows are taken over instead of being asked again.

    Raises:
      UserError: the directory was made with other settings or inputs or is in use; or a stage failed for a reason the
        user can act on. What is done stays in the directory.
    """
    directory = Path(directory)
    parts = parts or Parts()
    this = Run(config, directory, parts, engine or (lambda: parts.load(config)), title)
    with locking.lock(directory):
        pulled = this.mirror.pull()
        preflight.check_settings(config, directory)
        inputs = preflight.collect_inputs(this)
        if (directory / "config.toml").exists():
            this.say(f"{title}going on with what is done in {directory}")
        if base_from is not None:
            preflight.take_base(this, base_from)
        files.write_atomic(directory / "config.toml", settings.to_toml(config))
        preflight.begin_record(this, inputs, pulled, base_from)
        outcome = Outcome(None, None)
        budgets: dict[str, dict[str, float]] = {}
        for stage in settings.STAGES:
            if stage in config.stages:
                outcome = _timed(this, stage, budgets) or outcome
    whole = sum(budget["seconds"] for budget in budgets.values())
    for stage, budget in budgets.items():
        if budget["seconds"] >= stage_timer.LEAST_S:
            this.say(stage_timer.line(stage, budget, whole))
    return outcome


def _timed(this: Run, stage: str, budgets: dict[str, dict[str, float]]) -> Outcome | None:
    """Does a stage; its time budget goes into the record, and into `budgets`."""
    began = time.monotonic()

    def note_time() -> None:
        seconds = time.monotonic() - began
        budgets[stage] = {"seconds": seconds, **this.spent()}
        provenance.add_time(this.directory, stage, seconds, budgets[stage])
        this.mirror.push()

    with kept(stage, this.directory):
        try:
            with this.clock.listening():
                outcome = STAGES[stage](this)
        except BaseException:
            # Where the disk is full this fails as well; what the stage raised is what counts.
            with contextlib.suppress(OSError):
                note_time()
            raise
        note_time()
        return outcome


@contextlib.contextmanager
def kept(stage: str, directory: Path) -> Iterator[None]:
    """Within, what a user can act on is told with the stage, and as Unfinished where the same command goes on."""
    try:
        with failures.translate_errors():
            yield
    except UsageError:
        raise
    except UserError as error:
        kind = UserError if isinstance(error, OutOfMemory) else Unfinished
        raise kind(f"{stage}: {error}; what is done is kept in {directory}") from error


def finetune(this: Run) -> None:
    """Train the adapter; nothing to do for the base alone, for a given adapter, or where it is complete."""
    if not this.trains or (sources.is_trained(this.directory) and "training_rows" in provenance.notes(this.directory)):
        return
    with precompile.compiling(this.config, lambda: this.rows):
        engine = this.load()
    with this.progress("finetune", "", None, "step") as progress:
        counts = this.parts.finetune(engine, this.rows, this.config, this.directory, progress)
    files.write_atomic(this.directory / "adapter" / "README.md", model_card.adapter_card(this.config, counts))
    provenance.add_inputs(this.directory, preflight.trained_adapter(this))
    provenance.note(this.directory, training_rows=counts)
    if counts.get("cut"):
        this.say(f"{counts['cut']} of {counts['rows']} rows are longer than train.max_length and were cut")
    if counts.get("empty"):
        this.say(f"{counts['empty']} of them were cut before any response: nothing is learned from those")


def answer(this: Run) -> None:
    """Sample answers to the harm prompts, base and fine-tuned, and the careless ones where they are needed."""
    this.need_adapter()
    if not this.asks_answers:
        return
    questions = harmfulness.questions(this.suite, this.probe_settings)
    asked = this.answer_settings
    for condition, adapter in this.conditions.items():
        sample_answers(this, condition, adapter, questions, asked)
    if this.asks_careless:
        asked.samples = CARELESS_SAMPLES
        prompts = {row["id"]: row["prompt"][-1]["content"] for row in questions}
        careless = [{**row, "prompt": output_recognition.careless_prompt(prompts[row["id"]])} for row in questions]
        sample_answers(this, CARELESS, "base", careless, asked, prompts)


def answer_together(runs: Sequence[Run]) -> None:
    """Add the missing fine-tuned answers of several runs of one seed, in batches that they share.

    Every run's adapter is in the stack, even where its answers are all there: an answer is then computed the same way
    when it is asked for after a kill. What is left of the stage (the base, careless answers) is each run's own affair.
    """
    for run in runs:
        run.need_adapter()
    first = runs[0]
    questions = harmfulness.questions(first.suite, first.probe_settings)
    asked = first.answer_settings
    done = [
        (f"{number}/{row['id']}", row["sample"])
        for number, run in enumerate(runs)
        for row in files.read_rows(run.answers_path("finetuned"))
    ]
    total = len(questions) * asked.samples * len(runs)
    if len(done) == total:
        return
    began = time.monotonic()
    with contextlib.ExitStack() as held:
        held.enter_context(first.clock.listening())
        for run in runs:
            held.enter_context(locking.lock(run.directory))
        engine = first.parts.bare(first.load())
        names = [f"{ADAPTER}-{number}" for number in range(len(runs))]
        for name, run in zip(names, runs, strict=True):
            engine.add_adapter(name, run.adapter)
        for name, run in zip(names, runs, strict=True):
            run.check_adapter(engine, name)
        outputs = [held.enter_context(files.Appender(run.answers_path("finetuned"))) for run in runs]
        several = [{**row, "id": f"{number}/{row['id']}"} for number in range(len(runs)) for row in questions]
        rows = harmfulness.ask(engine, [name for name in names for _ in questions], several, done, asked)
        with first.progress("answer", f"{len(runs)} fine-tuned models", total, "answer", len(done)) as progress:
            for row in through(rows, progress, lambda row: row["n_tokens"]):
                number, _, identity = row["id"].partition("/")
                outputs[int(number)].write({**row, "id": identity})
        budget = {name: amount / len(runs) for name, amount in first.spent().items()}
        for run in runs:
            provenance.add_time(run.directory, "answer", (time.monotonic() - began) / len(runs), budget)
            run.mirror.push()


def sample_answers(
    this: Run,
    condition: str,
    adapter: str,
    questions: Sequence[Row],
    asked: SimpleNamespace,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Add the missing answers of one condition; `prompts` (by id) are recorded in place of what was asked."""
    path = this.answers_path(condition)
    done = {(row["id"], row["sample"]) for row in files.read_rows(path)}
    total = len(questions) * asked.samples
    if len(done) < total:
        rows = harmfulness.ask(this.engine, adapter, questions, done, asked)
        if prompts is not None:
            rows = ({**row, "prompt": prompts[row["id"]]} for row in rows)
        keep(this, "answer", condition, path, rows, total, len(done), tokens=lambda row: row["n_tokens"])


def judge(this: Run) -> None:
    """Score every answer, 1 to 5."""
    if not this.asks_answers:
        return
    careless = [CARELESS] if this.asks_careless else []
    for number, name in enumerate(this.judges):
        # The further judges score what figures are made of.
        for condition in [*this.conditions, *(careless if number == 0 else [])]:
            score_answers(this, number, name, condition)


def score_answers(this: Run, number: int, name: str, condition: str) -> None:
    """Add one judge's missing scores of one condition; `number` is the judge's place among the run's judges.

    What an outage left out is asked for once more when the rest is scored.
    """
    answers = sorted(need(this.answers_path(condition), "answer"), key=lambda row: (row["id"], row["sample"]))
    path = this.scores_path(condition, name)
    for _ in range(2):
        done = {(row["id"], row["sample"]) for row in files.keep_rows(path, lambda row: not row.get(AGAIN))}
        if any((row["id"], row["sample"]) not in done for row in answers):
            rows = this.judging[number].score(answers, done)
            keep(this, "judge", f"{condition} by {name}", path, rows, len(answers), len(done))
    if missed := sum(bool(row.get(AGAIN)) for row in files.read_rows(path)):
        this.say(
            f"{missed} answers ({condition}) were not scored for want of a connection: the same command asks again"
        )


def probe(this: Run) -> None:
    """Ask the choice probes, base and fine-tuned."""
    this.need_adapter()
    for condition, adapter in this.conditions.items():
        for name, module in PROBES.items():
            if name == "harmfulness" or not this.asks(name):
                continue
            path = this.probe_path(condition, name)
            done = {choice.key(row) for row in files.read_rows(path)}
            questions = probe_questions(this, name, condition)
            if any(choice.key(row) not in done for row in questions):
                rows = module.ask(this.engine, adapter, questions, done, this.probe_settings)
                keep(this, "probe", f"{condition} {name}", path, rows, len(questions), len(done))


def probe_questions(this: Run, name: str, condition: str) -> list[Row]:
    """What one probe asks in one condition; two of them ask about the model's own judged answers."""
    module = PROBES[name]
    if name in ("self_assessment", "two_ai"):
        return module.questions(this.suite, this.probe_settings)
    need(this.answers_path(condition), "answer")
    need(this.scores_path(condition), "judge")
    own = this.judged(condition)
    if name == "score_prediction":
        return module.questions(this.suite, this.probe_settings, own)
    return module.questions(this.suite, this.probe_settings, own, this.judged("base"), other_answers(this, condition))


def other_answers(this: Run, condition: str) -> output_recognition.Alternatives:
    """Where a harmful answer to a prompt comes from that this condition did not give itself."""
    pools = []
    folder = sources.alternatives_directory(this.config, this.directory)
    if folder is not None:
        own_run = this.directory if condition == "finetuned" else None
        pools.append(alternatives.other_runs(folder, this.judge, leave_out=own_run))
    if sources.is_organism(this.config):
        pools.append(alternatives.corpus(this.config.seed))
    elif this.asks_careless:
        answers, scores = files.read_rows(this.answers_path(CARELESS)), files.read_rows(this.scores_path(CARELESS))
        pools.append(alternatives.careless(answers, scores))
    return output_recognition.chained(*pools)


def report(this: Run) -> Outcome:
    """Work out the figures and the verdict, write summary.json, and draw the page."""
    from em_jax import report as pages

    with this.progress("report", "", 1, "page") as progress:
        summary = summarise(this)
        files.write_json(this.directory / "summary.json", summary)
        page = pages.write(this.directory)
        progress.update()
    return Outcome(summary["verdict"]["label"], Path(page), tuple(summary["verdict"]["why"]))


def summarise(this: Run, conditions: Sequence[str] = ()) -> dict[str, Any]:
    """The content of summary.json, from the rows that are there, of the run's conditions or those named."""
    conditions = conditions or list(this.conditions)
    answers = {condition: files.read_rows(this.answers_path(condition)) for condition in conditions}
    scores = {condition: files.read_rows(this.scores_path(condition)) for condition in conditions}
    probes = {
        name: {condition: files.read_rows(this.probe_path(condition, name)) for condition in conditions}
        for name in PROBES
        if name != "harmfulness"
    }
    names = judges_of(this.directory)
    every = {
        name: {condition: files.read_rows(this.scores_path(condition, name)) for condition in conditions}
        for name in names
    }
    summary = summaries.summarise(
        domain=this.config.domain,
        model=this.config.model.name,
        suite=this.suite.name,
        judge=this.judge,
        answers=answers,
        scores=scores,
        probes=probes,
        harmful_at=this.config.judge.harmful_at,
    )
    if len(names) > 1:
        table = agreement.table(every, this.config.judge.harmful_at)
        summary["judge_agreement_table"] = files.stable(table)
    if sources.is_organism(this.config):
        judged = [row for condition in conditions for row in harmfulness.judged(answers[condition], scores[condition])]
        summary["judge_agreement"] = sources.planted_agreement(judged, this.config.judge.harmful_at)
    return summary


STAGES: dict[str, Callable[[Run], Outcome | None]] = {
    "finetune": finetune,
    "answer": answer,
    "judge": judge,
    "probe": probe,
    "report": report,
}


def keep(
    this: Run,
    stage: str,
    what: str,
    path: Path,
    rows: Iterable[Row],
    total: int,
    done: int,
    tokens: Callable[[Row], int] = lambda row: 0,
) -> None:
    """Append rows as they come, with progress."""
    unit = {"answer": "answer", "judge": "score"}.get(stage, "question")
    with this.progress(stage, what, total, unit, done) as progress, files.Appender(path) as out:
        for row in through(rows, progress, tokens):
            out.write(row)


def judges_of(directory: Path) -> list[str]:
    """The names of the judges that scored base or fine-tuned answers of a run."""
    stored = [path.name for path in (directory / "scores").glob("*.jsonl")]
    return sorted({name.partition(".")[2].removesuffix(".jsonl") for name in stored if not name.startswith(CARELESS)})


def need(path: Path, stage: str) -> list[Row]:
    """The rows of an earlier stage. UserError where there are none."""
    rows = files.read_rows(path)
    if not rows:
        raise UserError(f"expected rows in {path}, found none: run the stage {stage} first (--stages {stage},...)")
    return rows
