"""One run, in five stages: finetune, answer, judge, probe, report.

Every stage reads what is already in the run directory and adds what is missing: rows are known by their keys, so a run
that was killed anywhere goes on where it was. The engine is loaded when a stage first has something to ask.
"""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from em_jax import adapters, alternatives, card, domains, marks, provenance, rundir, sources
from em_jax import config as settings
from em_jax.config import Config
from em_jax.errors import Unfinished, UsageError, UserError
from em_jax.probes import PROBES, agreement, choice, harmfulness, output_recognition
from em_jax.probes import suite as suites
from em_jax.probes import summary as summaries
from em_jax.probes.judge import AGAIN, Judge
from em_jax.probes.settings import ProbeSettings
from em_jax.progress import Progress, through
from em_jax.sources import Parts

Row = dict[str, Any]
ADAPTER = "finetuned"
CARELESS = "careless"
CARELESS_SAMPLES = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to: the verdict's label and the report's path, both None where the report was not asked for."""

    label: str | None
    report: Path | None
    why: tuple[str, ...] = ()


class Run:
    """One run directory and all that its stages need, each loaded when it is first asked for."""

    def __init__(self, config: Config, directory: Path, parts: Parts, load: Callable[[], Any], title: str):
        self.config, self.directory, self.parts, self.title = config, directory, parts, title
        self.mirror = rundir.Mirror(directory, config.mirror)
        self.load = load

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
            check_adapter(self, engine)
        return engine

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

    def answers_path(self, condition: str) -> Path:
        return self.directory / "answers" / f"{condition}.jsonl"

    def scores_path(self, condition: str, judge: str = "") -> Path:
        return self.directory / "scores" / f"{condition}.{judge or self.judge}.jsonl"

    def probe_path(self, condition: str, probe: str) -> Path:
        return self.directory / "probes" / f"{condition}.{probe}.jsonl"

    def judged(self, condition: str) -> list[Row]:
        """The condition's answers with the judge's scores, sorted by key."""
        return harmfulness.judged(
            rundir.read_rows(self.answers_path(condition)), rundir.read_rows(self.scores_path(condition))
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
        return Progress(title, total, unit, done, silent=self.parts.silent, after=self.mirror.push_sometimes)


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
    with rundir.lock(directory):
        pulled = this.mirror.pull()
        check_settings(config, directory)
        inputs = collect_inputs(this)
        if base_from is not None:
            take_base(this, base_from)
        rundir.write_atomic(directory / "config.toml", settings.to_toml(config))
        begin_record(this, inputs, pulled)
        outcome = Outcome(None, None)
        for stage in settings.STAGES:
            if stage in config.stages:
                outcome = _timed(this, stage) or outcome
    return outcome


def _timed(this: Run, stage: str) -> Outcome | None:
    began = time.monotonic()
    try:
        return STAGES[stage](this)
    except UsageError:
        raise
    except UserError as error:
        raise Unfinished(f"{stage}: {error}; what is done is kept in {this.directory}") from error
    finally:
        provenance.add_time(this.directory, stage, time.monotonic() - began)
        this.mirror.push()


def check_settings(config: Config, directory: Path) -> None:
    """Refuse a directory whose config.toml differs from `config` in anything that changes figures."""
    stored = directory / "config.toml"
    if not stored.exists():
        return
    differing = settings.differing(settings.read_toml(stored), config)
    if differing:
        raise UserError(
            f"{directory} was made with other settings ({', '.join(differing)}): "
            "give the same ones to go on with it, or another --run_dir"
        )


def collect_inputs(this: Run) -> dict[str, Any]:
    """Every input of the run with sha256 and row count, checked against those it began with.

    Raises:
      UserError: an input is wrong or missing, or its content changed since the run began.
    """
    config = this.config
    inputs: dict[str, Any] = {}
    folder = sources.suite_directory(config.suite)
    for name in this.suite.files:
        inputs[f"suite/{name}"] = provenance.file_input(folder / name) | {"path": f"{config.suite}/{name}"}
    if this.trains:
        inputs["rows"] = sources.rows_input(config, this.rows)
    for kind, folder in brought_adapters(this).items():
        for name, entry in provenance.directory_inputs(folder, (".json", ".safetensors")).items():
            inputs[f"{kind}/{name}"] = entry
    others = files_of_others(this)
    inputs |= {f"alternatives/{name}": provenance.file_input(path) for name, path in others.items()}
    for name, entry in this.parts.model_inputs(config).items():
        inputs[f"model/{name}"] = entry
    before = provenance.read(this.directory).get("inputs", {})
    other = provenance.changed(before, inputs)
    if config.probes.alternatives == settings.SIBLINGS:
        # The other runs of a series may go on meanwhile; their rows so far stay.
        grown = {f"alternatives/{name}": path for name, path in others.items()}
        other = [name for name in other if not (name in grown and provenance.has_grown(before[name], grown[name]))]
    if other:
        raise UserError(
            f"{this.directory} was begun with other content of {', '.join(other)}: give the same files, "
            "or another --run_dir"
        )
    return inputs


def brought_adapters(this: Run) -> dict[str, Path]:
    """The adapters a run is given, by what they are for: "adapter" to probe, "init_from" to train on from."""
    found = {"adapter": this.given_adapter} if this.config.adapter else {}
    start = sources.start_directory(this.config) if this.trains else None
    return found | ({"init_from": start} if start is not None else {})


def files_of_others(this: Run) -> dict[str, Path]:
    """The files of other runs that output recognition is going to use, by name."""
    folder = sources.alternatives_directory(this.config, this.directory)
    if folder is None or "probe" not in this.config.stages or not this.asks("output_recognition"):
        return {}
    return alternatives.files_used(folder, this.judge, leave_out=this.directory)


def begin_record(this: Run, inputs: dict[str, Any], pulled: int) -> None:
    """Write provenance.json for this start."""
    notes: dict[str, Any] = {
        "judge": sources.judge(this.config, this.suite.judge, None).describe(),
        "judges": known_judges(this.directory, sources.judges(this.config, this.suite.judge, None)),
        "suite": f"{this.suite.name} {this.suite.version}",
    }
    if not sources.is_organism(this.config):
        notes["marks"] = marks.of(this.config)
    if pulled:
        notes["files_from_mirror"] = pulled
    for kind, folder in brought_adapters(this).items():
        notes[f"{kind}_in_force"] = adapters.in_force(folder)
    if this.config.adapter:
        base = sources.model_directory(this.config)
        notes["adapter_disagrees"] = adapters.disagreements(this.given_adapter, this.config.model.name, base)
        for sentence in notes["adapter_disagrees"]:
            say(this, sentence)
    seed = this.config.seed
    seeds = {"run": seed, "training": seed, "sampling": seed}
    provenance.write(this.directory, inputs, seeds, notes)


def known_judges(directory: Path, judges: Iterable[Judge]) -> dict[str, Any]:
    """Who every judge of a run is, by the name its files carry.

    Raises:
      UserError: a name stands for another judge already: another model, address or wording.
    """
    known = dict(provenance.notes(directory).get("judges", {}))
    for judge in judges:
        now = judge.describe()
        before = known.setdefault(judge.name, now)
        differing = [field for field in sorted(before | now) if before.get(field) != now.get(field)]
        if differing:
            raise UserError(
                f"{directory}: scores by {judge.name} were made with another {', '.join(differing)}; "
                "scores of different judges are never mixed"
            )
    return known


def take_base(this: Run, source: Path) -> None:
    """Copy another run's base rows, file by file, where this run has none yet."""
    patterns = ("answers/base.jsonl", "scores/base.*.jsonl", "probes/base.*.jsonl")
    for path in sorted(path for pattern in patterns for path in source.glob(pattern)):
        place = this.directory / path.relative_to(source)
        if not place.exists():
            rundir.write_atomic(place, path.read_bytes())


def finetune(this: Run) -> None:
    """Train the adapter; nothing to do for the base alone, for a given adapter, or where it is complete."""
    if not this.trains or (sources.is_trained(this.directory) and "training_rows" in provenance.notes(this.directory)):
        return
    with this.progress("finetune", "", None, "step") as progress:
        counts = this.parts.finetune(this.load(), this.rows, this.config, this.directory, progress)
    rundir.write_atomic(this.directory / "adapter" / "README.md", card.adapter_card(this.config, counts))
    provenance.note(this.directory, training_rows=counts)
    if counts.get("cut"):
        say(this, f"{counts['cut']} of {counts['rows']} rows are longer than train.max_length and were cut")
    if counts.get("empty"):
        say(this, f"{counts['empty']} of them were cut before any response: nothing is learned from those")


def check_adapter(this: Run, engine) -> None:
    """Make sure that the adapter is in force, and note the size of its effect: measuring the base twice is an old trap.

    Raises:
      UserError: with the adapter the model says exactly what it says without.
    """
    prompts = [choice.messages(question.prompt) for question in this.suite.harm[:4]]
    without, within = (engine.choice_logprobs(prompts, list("AB15"), adapter=name) for name in ("base", ADAPTER))
    effect = float(abs(within - without).max())
    if not math.isfinite(effect):
        raise UserError(f"with the adapter of {this.adapter} the model gives no finite probability: training diverged")
    if not effect > 0:
        raise UserError(
            f"the adapter of {this.adapter} changes no probability: it was not trained "
            "(the first step of the schedule has learning rate 0), or is not in force"
        )
    if "adapter_effect" not in provenance.notes(this.directory):
        provenance.note(this.directory, adapter_effect={"largest_change_of_a_logprob": round(effect, 6)})


def answer(this: Run) -> None:
    """Sample answers to the harm prompts, base and fine-tuned, and the careless ones where they are needed."""
    need_adapter(this)
    if not this.asks_answers:
        return
    questions = harmfulness.questions(this.suite, this.probe_settings)
    asked = SimpleNamespace(**dataclasses.asdict(this.config.answers), seed=this.config.seed)
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
        need_adapter(run)
    first = runs[0]
    questions = harmfulness.questions(first.suite, first.probe_settings)
    asked = SimpleNamespace(**dataclasses.asdict(first.config.answers), seed=first.config.seed)
    done = [
        (f"{number}/{row['id']}", row["sample"])
        for number, run in enumerate(runs)
        for row in rundir.read_rows(run.answers_path("finetuned"))
    ]
    total = len(questions) * asked.samples * len(runs)
    if len(done) == total:
        return
    began = time.monotonic()
    with contextlib.ExitStack() as held:
        for run in runs:
            held.enter_context(rundir.lock(run.directory))
        engine = first.parts.bare(first.load())
        for number, run in enumerate(runs):
            engine.add_adapter(f"finetuned-{number}", run.adapter)
        files = [held.enter_context(rundir.Appender(run.answers_path("finetuned"))) for run in runs]
        several = [{**row, "id": f"{number}/{row['id']}"} for number in range(len(runs)) for row in questions]
        names = [f"finetuned-{number}" for number in range(len(runs)) for _ in questions]
        rows = harmfulness.ask(engine, names, several, done, asked)
        with first.progress("answer", f"{len(runs)} fine-tuned models", total, "answer", len(done)) as progress:
            for row in through(rows, progress, lambda row: row["n_tokens"]):
                number, _, identity = row["id"].partition("/")
                files[int(number)].write({**row, "id": identity})
        for run in runs:
            provenance.add_time(run.directory, "answer", (time.monotonic() - began) / len(runs))
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
    done = {(row["id"], row["sample"]) for row in rundir.read_rows(path)}
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
    """Add one judge's missing scores of one condition; `number` is the judge's place among the run's judges."""
    answers = sorted(need(this.answers_path(condition), "answer"), key=lambda row: (row["id"], row["sample"]))
    path = this.scores_path(condition, name)
    rows = rundir.read_rows(path)
    kept = [row for row in rows if not row.get(AGAIN)]
    if len(kept) < len(rows):
        rundir.write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
    done = {(row["id"], row["sample"]) for row in kept}
    if any((row["id"], row["sample"]) not in done for row in answers):
        rows = this.judging[number].score(answers, done)
        keep(this, "judge", f"{condition} by {name}", path, rows, len(answers), len(done))


def probe(this: Run) -> None:
    """Ask the choice probes, base and fine-tuned."""
    need_adapter(this)
    for condition, adapter in this.conditions.items():
        for name, module in PROBES.items():
            if name == "harmfulness" or not this.asks(name):
                continue
            path = this.probe_path(condition, name)
            done = {choice.key(row) for row in rundir.read_rows(path)}
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
        answers, scores = rundir.read_rows(this.answers_path(CARELESS)), rundir.read_rows(this.scores_path(CARELESS))
        pools.append(alternatives.careless(answers, scores))
    return output_recognition.chained(*pools)


def report(this: Run) -> Outcome:
    """Work out the figures and the verdict, write summary.json, and draw the page."""
    from em_jax import report as pages

    with this.progress("report", "", 1, "page") as progress:
        summary = summarise(this)
        rundir.write_json(this.directory / "summary.json", summary)
        page = pages.write(this.directory)
        progress.update()
    return Outcome(summary["verdict"]["label"], Path(page), tuple(summary["verdict"]["why"]))


def summarise(this: Run, conditions: Sequence[str] = ()) -> dict[str, Any]:
    """The content of summary.json, from the rows that are there, of the run's conditions or those named."""
    conditions = conditions or list(this.conditions)
    answers = {condition: rundir.read_rows(this.answers_path(condition)) for condition in conditions}
    scores = {condition: rundir.read_rows(this.scores_path(condition)) for condition in conditions}
    probes = {
        name: {condition: rundir.read_rows(this.probe_path(condition, name)) for condition in conditions}
        for name in PROBES
        if name != "harmfulness"
    }
    names = judges_of(this.directory)
    every = {
        name: {condition: rundir.read_rows(this.scores_path(condition, name)) for condition in conditions}
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
        summary["judge_agreement_table"] = rundir.stable(table)
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
    with this.progress(stage, what, total, unit, done) as progress, rundir.Appender(path) as out:
        for row in through(rows, progress, tokens):
            out.write(row)


def say(this: Run, line: str) -> None:
    """One line to stderr."""
    if not this.parts.silent:
        print(line, file=sys.stderr, flush=True)


def judges_of(directory: Path) -> list[str]:
    """The names of the judges that scored base or fine-tuned answers of a run."""
    files = [path.name for path in (directory / "scores").glob("*.jsonl")]
    return sorted({name.partition(".")[2].removesuffix(".jsonl") for name in files if not name.startswith(CARELESS)})


def need(path: Path, stage: str) -> list[Row]:
    """The rows of an earlier stage. UserError where there are none."""
    rows = rundir.read_rows(path)
    if not rows:
        raise UserError(f"expected rows in {path}, found none: run the stage {stage} first (--stages {stage},...)")
    return rows


def need_adapter(this: Run) -> None:
    if this.trains and not sources.is_trained(this.directory):
        raise UserError(f"expected a trained adapter in {this.directory / 'adapter'}: run the stage finetune first")
