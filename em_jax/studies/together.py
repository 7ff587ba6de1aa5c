"""Several adapters asked in shared batches: a stack of them in one engine, one index per prompt, base included.

Every question goes under the subject's number and its own id ("3/two-ai-01"), so that the probes, which know nothing of
subjects, sort and batch them all as one; rows are written to each subject's own files under their own ids.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.progress import Progress, through
from em_jax.probes import PROBES, choice, harmfulness
from em_jax.probes.judge import AGAIN
from em_jax.runs import sources
from em_jax.runs.run import Run
from em_jax.studies.subjects import PROBES as ASKED
from em_jax.studies.subjects import Row, Subject


def ask(this: Run, adapters: Mapping[Subject, Path | None], at_once: int) -> None:
    """Ask every subject what it has not been asked yet: answers, the judge's scores, the choice probes.

    `adapters` has each subject's PEFT directory, None for the base. At most `at_once` of them are in the stack: it acts
    as one adapter of their summed rank. Groups and batches are cut from all that is asked, done or not, so that a
    resumed study ends, on a CPU, with the same bytes.
    """
    subjects = list(adapters)
    for start in range(0, len(subjects), at_once):
        group = subjects[start : start + at_once]
        _Group(this, group, adapters, f"models {start + 1} to {start + len(group)} of {len(subjects)}").ask()


class _Group:
    """The subjects of one stack."""

    def __init__(self, this: Run, subjects: Sequence[Subject], adapters: Mapping[Subject, Path | None], title: str):
        self.this, self.subjects, self.adapters, self.title = this, subjects, adapters, title
        self._engine: Any = None

    @property
    def engine(self) -> Any:
        """Made when something is left to ask."""
        if self._engine is None:
            self._engine = self.this.components.bare(self.this.load())
            for number, subject in enumerate(self.subjects):
                if self.adapters[subject] is not None:
                    self._engine.add_adapter(f"subject-{number}", self.adapters[subject])
            self._check()
        return self._engine

    def _check(self) -> None:
        """Say which adapters change nothing: the first steps of a schedule may, but one that was never in force too."""
        prompts = [choice.messages(question.prompt) for question in self.this.suite.harm[:4]]
        before = self._engine.choice_logprobs(prompts, list("AB15"), adapter="base")
        for number, subject in enumerate(self.subjects):
            if self.adapters[subject] is None:
                continue
            after = self._engine.choice_logprobs(prompts, list("AB15"), adapter=f"subject-{number}")
            if not abs(after - before).max() > 0:
                self.this.log(f"{self.this.title}{subject.name}: this adapter changes no probability")

    def adapter(self, row: Row) -> str:
        """The engine's name of the adapter a question goes to."""
        number = int(row["id"].partition("/")[0])
        return "base" if self.adapters[self.subjects[number]] is None else f"subject-{number}"

    def ask(self) -> None:
        """Answers, scores, probes; each from what is in the files."""
        if self.this.needs_answers:
            self._answer()
            self._judge()
        for name in ASKED:
            if self.this.wants(name):
                self._probe(name)

    def _answer(self) -> None:
        this = self.this
        questions = self._marked([harmfulness.questions(this.suite, this.probe_settings)] * len(self.subjects))
        paths = [subject.answers_path() for subject in self.subjects]
        done = {(row["id"], row["sample"]) for row in self._read(paths)}
        asked = this.answer_settings
        total = len(questions) * asked.samples
        if len(done) < total:
            names = [self.adapter(row) for row in questions]
            rows = harmfulness.ask(self.engine, names, questions, done, asked)
            self._keep("answers", paths, rows, total, len(done))

    def _judge(self) -> None:
        answers = self._read([subject.answers_path() for subject in self.subjects])
        answers.sort(key=lambda row: (row["id"], row["sample"]))
        paths = [subject.scores_path() for subject in self.subjects]
        for path in paths:
            files.keep_rows(path, lambda row: not row.get(AGAIN))
        done = {(row["id"], row["sample"]) for row in self._read(paths)}
        if len(done) < len(answers):
            judge = sources.judges(
                self.this.config, self.this.suite.judge, lambda: self.this.components.bare(self.this.load())
            )[0]
            self._keep("scores", paths, judge.score(answers, done), len(answers), len(done))
        if missed := sum(bool(row.get(AGAIN)) for row in self._read(paths)):
            self.this.log(f"{missed} answers were not scored for want of a connection: the same command asks again")

    def _probe(self, name: str) -> None:
        this, module = self.this, PROBES[name]
        if name == "score_prediction":
            own = [
                harmfulness.judged(files.read_rows(s.answers_path()), files.read_rows(s.scores_path()))
                for s in self.subjects
            ]
            each = [module.questions(this.suite, this.probe_settings, rows) for rows in own]
        else:
            each = [module.questions(this.suite, this.probe_settings)] * len(self.subjects)
        questions = self._marked(each)
        paths = [subject.probe_path(name) for subject in self.subjects]
        done = {choice.key(row) for row in self._read(paths)}
        if any(choice.key(row) not in done for row in questions):
            rows = module.ask(self.engine, self.adapter, questions, done, this.probe_settings)
            self._keep(name, paths, rows, len(questions), len(done))

    def _marked(self, each: Sequence[Sequence[Row]]) -> list[Row]:
        return [{**row, "id": f"{number}/{row['id']}"} for number, rows in enumerate(each) for row in rows]

    def _read(self, paths: Sequence[Path]) -> list[Row]:
        return self._marked([files.read_rows(path) for path in paths])

    def _keep(self, what: str, paths: Sequence[Path], rows: Iterable[Row], total: int, done: int) -> None:
        """Append each row to its subject's file as it comes."""
        title = f"{self.this.title}{self.title}: {what}"
        with contextlib.ExitStack() as held:
            outputs = [held.enter_context(files.Appender(path)) for path in paths]
            silent, after = self.this.components.silent, self.this.mirror.push_sometimes
            progress = held.enter_context(Progress(title, total, "row", done, silent=silent, after=after))
            for row in through(rows, progress):
                number, _, identity = row["id"].partition("/")
                outputs[int(number)].write({**row, "id": identity})
