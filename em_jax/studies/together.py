"""Several adapters asked in shared batches: a stack of them in one engine, one index per prompt, base included.

A question's id is prefixed with its subject's number ("3/two-ai-01"), so that the probes, which know nothing of
subjects, sort and batch all questions as one; rows are written to each subject's own files under their own ids.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.progress import Progress, through
from em_jax.probes import PROBES, choice, harmfulness
from em_jax.probes.judge import AGAIN
from em_jax.runs import adapters, sources
from em_jax.runs.run import Run
from em_jax.studies import subjects as studied
from em_jax.studies.resuming import Key, key
from em_jax.studies.subjects import Row, Subject


def ask(run: Run, adapters: Mapping[Subject, Path | None], at_once: int) -> None:
    """Ask every subject what its files lack: answers, the judge's scores, the choice probes.

    `adapters` has each subject's PEFT directory, None for the base. A stack of at most `at_once` of them costs as much
    as one adapter of their summed rank. Groups and batches are cut from all questions, done or not, so that a resumed
    study ends, on a CPU, with the same bytes.
    """
    items = list(adapters.items())
    for start in range(0, len(items), at_once):
        group = dict(items[start : start + at_once])
        _Group(run, group, f"models {start + 1} to {start + len(group)} of {len(items)}").ask()


class _Group:
    """The subjects of one stack."""

    def __init__(self, run: Run, adapters: Mapping[Subject, Path | None], title: str):
        self.run, self.subjects, self.title = run, list(adapters), title
        self.adapters = list(adapters.values())

    @functools.cached_property
    def engine(self) -> Any:
        """Loaded when a row is missing. Reports adapters without effect, such as that of a first step."""
        engine = self.run.components.bare(self.run.load())
        prompts = [choice.messages(question.prompt) for question in self.run.suite.harm[:4]]
        stack = {number: adapter for number, adapter in enumerate(self.adapters) if adapter is not None}
        for number, adapter in stack.items():
            engine.add_adapter(f"subject-{number}", adapter)
        for number in stack:
            if not adapters.effect(engine, f"subject-{number}", prompts) > 0:
                self.run.log(f"{self.run.title}{self.subjects[number].name}: this adapter changes no probability")
        return engine

    def adapter_of(self, row: Row) -> str:
        """The engine's name of the adapter for a question."""
        number = int(row["id"].partition("/")[0])
        return "base" if self.adapters[number] is None else f"subject-{number}"

    def ask(self) -> None:
        """Answers, scores, probes; each from the files of the one before."""
        run = self.run
        if run.needs_answers:
            self._answer_and_judge()
        for name in studied.PROBES:
            if run.wants(name):
                self._probe(name)

    def _probe(self, name: str) -> None:
        module: Any = PROBES[name]
        suite, settings = self.run.suite, self.run.probe_settings
        own = [[subject.judged()] if name == "score_prediction" else [] for subject in self.subjects]
        questions = self._numbered([module.questions(suite, settings, *answers) for answers in own])
        self._complete(
            name,
            [each.run.probe_path(each.condition, name) for each in self.subjects],
            {key(row) for row in questions},
            lambda done: module.ask(self.engine, self.adapter_of, questions, done, settings),
        )

    def _answer_and_judge(self) -> None:
        run, answering = self.run, self.run.answer_settings
        questions = self._numbered([harmfulness.questions(run.suite, run.probe_settings)] * len(self.subjects))
        names = [self.adapter_of(row) for row in questions]
        answers = self._complete(
            "answers",
            [each.run.answers_path(each.condition) for each in self.subjects],
            {(row["id"], sample) for row in questions for sample in range(answering.samples)},
            lambda done: harmfulness.ask(self.engine, names, questions, done, answering),
        )
        answers.sort(key=key)
        paths = [each.run.scores_path(each.condition) for each in self.subjects]
        for path in paths:
            files.keep_rows(path, lambda row: not row.get(AGAIN))

        def score(done: Collection[Key]) -> Iterable[Row]:
            judge = sources.judges(run.config, run.suite.judge, lambda: run.components.bare(run.load()))[0]
            return judge.score(answers, done)

        scores = self._complete("scores", paths, {key(row) for row in answers}, score)
        if missed := sum(bool(row.get(AGAIN)) for row in scores):
            run.log(f"{missed} answers were not scored because the judge was unreachable: run the command again")

    def _numbered(self, rows_of: Sequence[Sequence[Row]]) -> list[Row]:
        return [{**row, "id": f"{number}/{row['id']}"} for number, rows in enumerate(rows_of) for row in rows]

    def _complete(
        self, what: str, paths: Sequence[Path], wanted: Collection[Key], ask: Callable[[set[Key]], Iterable[Row]]
    ) -> list[Row]:
        """The rows of the subjects' files, after `ask(done)` has appended what is missing, each to its own file."""
        done = {key(row) for row in self._numbered([files.read_rows(path) for path in paths])}
        if not done.issuperset(wanted):
            title, silent = f"{self.run.title}{self.title}: {what}", self.run.components.silent
            with contextlib.ExitStack() as stack:
                outputs = [stack.enter_context(files.Appender(path)) for path in paths]
                after = self.run.mirror.push_sometimes
                progress = Progress(title, len(wanted), "row", len(done), silent=silent, after=after)
                for row in through(ask(done), stack.enter_context(progress)):
                    number, _, name = row["id"].partition("/")
                    outputs[int(number)].write({**row, "id": name})
        return self._numbered([files.read_rows(path) for path in paths])
