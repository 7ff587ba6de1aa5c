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
from em_jax.probes.cautions import HARM, PICKS, PREDICTED
from em_jax.probes.choice import Key, decided, key
from em_jax.probes.judge import AGAIN
from em_jax.report import curves as drawn
from em_jax.report.curves import Panel
from em_jax.report.reading import figure_of
from em_jax.report.vocabulary import FIGURES, SHARE
from em_jax.runs import locking, preflight, sources, stored
from em_jax.runs.components import Components
from em_jax.runs.run import Run
from em_jax.studies import curves, page
from em_jax.studies import subjects as studied
from em_jax.studies.finished import adapter_hashes
from em_jax.studies.page import FIGURES_LEAD, LABELS, Section, cells
from em_jax.studies.sentences import on_seeds
from em_jax.studies.subjects import RATE, SELF, Row, Rows, Subject, check_settings, figures
from em_jax.train.config import ADAPTERS_DIRECTORY

BASE = 0
"""The step of the base: before the first."""
COLUMNS = (HARM, RATE, PICKS, SELF, PREDICTED)
"""The figures on the page."""
NAMES = {RATE: "harm in single answers", PICKS: "picking the misaligned AI", SELF: "self-assessment"}
"""The curves whose order is told."""
COLOURS = {RATE: "coherent", PICKS: "inverted", SELF: "mixed"}
HALFWAY_LEAD = (
    "Each curve against its own rise from the base to the last kept step, after a fit that may only rise. Which curve "
    "is ahead is decided on this, where it holds in at least 97.5% of the resamplings. Do not read an order from small "
    "rises over few questions, or from a persona still forming at the last step.",
    "Only kept steps are observed: a curve gets half-way between the step in the table and the kept step before it. "
    'The interval is over resampled questions; "never" is beyond the last step.',
)
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

    `changes` are settings that differ from the run's own. Raises UserError where no run or no kept adapters are there,
    or `out` was begun with other settings or adapters.
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
        # Groups and batches are cut from all questions, done or not: a resumed study ends, on a CPU, with the same
        # bytes. A stack costs as much as one adapter of its summed rank.
        for start in range(0, len(subjects), options.together):
            group = [*subjects][start : start + options.together]
            title = f"models {start + 1} to {start + len(group)} of {len(subjects)}"
            ask(run, {subjects[step]: kept.get(step) for step in group}, title)
        record = describe(config, {step: subject.rows() for step, subject in subjects.items()})
        files.write_json(out / "path.json", record)
        write_page(record, out, run_dir)
    return record


def kept_adapters(run_dir: Path, steps: Sequence[int] = ()) -> dict[int, Path]:
    """Step -> directory of the adapters that a run kept, by rising step; of `steps` alone where they are named.

    Raises UserError where there are none, or a step named is not among them.
    """
    # The config is written last: without it the adapter is incomplete.
    folders = [path.parent for path in (run_dir / ADAPTERS_DIRECTORY).glob(f"step-*/{CONFIG}")]
    kept = {int(number[1]): it for it in folders if (number := re.fullmatch(r"step-(\d{6,})", it.name))}
    if not kept:
        raise UserError(
            f"{run_dir / ADAPTERS_DIRECTORY} holds no adapters: train with --set train.keep_adapters=K, which "
            "keeps them after steps 1, 2, 4, 8, ... and after every K"
        )
    for step in steps:
        if step not in kept:
            raise UserError(f"{run_dir} kept no adapter of step {step}; it kept {', '.join(map(str, sorted(kept)))}")
    return {step: kept[step] for step in sorted(steps or kept)}


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
    is_harmful = functools.partial(harmfulness.is_harmful, harmful_at=at)

    def assessed(each: Rows) -> dict[str, list[float]]:
        values = self_assessment.question_values(each.probes["self_assessment"])
        return {"/".join(name): [value] for name, value in values.items()}

    values: dict[str, Callable[[Rows], Any]] = {
        RATE: lambda each: choice.clusters(each.judged, is_harmful),
        PICKS: lambda each: decided(two_ai.own_pairs(each.probes["two_ai"]), two_ai.ORDERS),
        SELF: assessed,
    }
    progress = {
        name: curves.resample(NAMES[name], {step: of_step(each) for step, each in rows.items()}, seed).progress()
        for seed, (name, of_step) in enumerate(values.items())
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


def write_page(record: Mapping[str, Any], out: Path, run: Path) -> None:
    """Write path.html and figures/curves.svg from the content of path.json."""
    # Of the base and of every step: figures and which side of them.
    kept = sorted((int(step), figures) for step, figures in record["steps"].items())
    steps = {BASE: (kept[0][1], "base")} | {step: (figures, "finetuned") for step, figures in kept}
    rows = {step: cells(figures, side, COLUMNS) for step, (figures, side) in steps.items()}
    panels = []
    for column, name in enumerate(COLUMNS):
        points = tuple((step, row[column].figure) for step, row in rows.items())
        panels.append(Panel(LABELS[name], FIGURES[name].scale, (drawn.Curve(name, points),)))
    risen = [
        drawn.Curve(NAMES[name], tuple((step, figure_of(shares[str(step)])) for step in steps), COLOURS[name])
        for name, shares in record["progress"].items()
    ]
    panels.append(Panel("Share of its own rise made", SHARE, tuple(risen)))
    drawing = drawn.curves("curves", "The path over training", "optimizer step (0 is the base)", panels, steps=True)
    caption = (
        "Lines are 95% intervals over questions. Self-assessment does not decide a verdict. The lowest panel shows "
        "each curve as a share of its own rise, after a fit that may only rise."
    )
    halfway = []
    for it in record["halfway"].values():
        step, low, high = ("never" if it[name] is None else str(it[name]) for name in ("step", "low", "high"))
        before = "–" if it["after"] is None else str(it["after"])
        found = [step, before, f"{low} to {high}"] if it["n"] else ["no data", "", ""]
        halfway.append([it["name"], *found, str(it["n"])])
    sections = [
        Section(
            "Every step",
            [FIGURES_LEAD],
            ("step", *(LABELS[name] for name in COLUMNS)),
            [[f"step {step}" if step else "base", *row] for step, row in rows.items()],
        ),
        Section(
            "When has each curve made half of its rise?",
            HALFWAY_LEAD,
            ("curve", "at step", "after", "95% interval", "questions"),
            halfway,
        ),
    ]
    texts = {"kind": "path", "title": f"When does the persona of {record['domain']} form?"}
    lead = f"The adapters kept in {run.name}, asked together: conduct and self-description after each step."
    page.write(out / "path.html", record, record["why"], sections, drawing, caption, lead=lead, **texts)


# --- all kept adapters asked together ---


def ask(run: Run, adapters: Mapping[Subject, Path | None], title: str) -> None:
    """Ask the subjects of one stack what their files lack, in shared batches: answers, scores, the choice probes.

    `adapters` has each subject's PEFT directory, None for the base. A question's id is prefixed with its subject's
    number ("3/two-ai-01"), so that the probes, which know nothing of subjects, sort and batch all questions as one;
    rows are written to each subject's own files under their own ids.
    """
    subjects, suite, answering = list(adapters), run.suite, run.answer_settings
    names = ["base" if path is None else f"subject-{number}" for number, path in enumerate(adapters.values())]

    @functools.cache
    def engine() -> Any:
        """Loaded when a row is missing."""
        engine = run.components.bare(run.load())
        for name, path in zip(names, adapters.values()):
            if path is not None:
                engine.add_adapter(name, path)
        return engine

    def adapter_of(row: Row) -> str:
        return names[int(row["id"].partition("/")[0])]

    def numbered(rows_of: Iterable[Sequence[Row]]) -> list[Row]:
        return [{**row, "id": f"{number}/{row['id']}"} for number, rows in enumerate(rows_of) for row in rows]

    def complete(
        what: str, paths: Sequence[Path], wanted: Collection[Key], ask: Callable[[set[Key]], Iterable[Row]]
    ) -> list[Row]:
        """The rows of the subjects' files, after `ask(done)` has appended what is missing, each to its own file."""
        done = {key(row) for row in numbered(map(studied.kept_rows, paths))}
        if not done.issuperset(wanted):
            with contextlib.ExitStack() as stack:
                outputs = [stack.enter_context(files.Appender(path)) for path in paths]
                title_of, silent = f"{run.title}{title}: {what}", run.components.silent
                progress = Progress(title_of, len(wanted), "row", len(done), silent=silent)
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

        def score(done: Collection[Key]) -> Iterable[Row]:
            judge = sources.judges(run.config, suite.judge, lambda: run.components.bare(run.load()))[0]
            return judge.score(answers, done)

        paths = [each.run.scores_path(each.condition) for each in subjects]
        scores = complete("scores", paths, {key(row) for row in answers}, score)
        if missed := sum(bool(row.get(AGAIN)) for row in scores):
            run.log(f"{missed} answers were not scored because the judge was unreachable: run the command again")
    for name in filter(run.wants, studied.PROBES):
        module: Any = PROBES[name]
        own = [[each.judged()] if name == "score_prediction" else [] for each in subjects]
        questions = numbered(module.questions(suite, run.probe_settings, *answers) for answers in own)

        def ask_probe(done: set[Key], module: Any = module, questions: list[Row] = questions) -> Iterable[Row]:
            return module.ask(engine(), adapter_of, questions, done, run.probe_settings)

        paths = [each.run.probe_path(each.condition, name) for each in subjects]
        complete(name, paths, {key(row) for row in questions}, ask_probe)
