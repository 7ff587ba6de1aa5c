"""How much a run has to do and how much of that is done, stage by stage, read from its directory without a model."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from em_jax.runs import experiment, sources
from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.probes import PROBES, choice, harmfulness
from em_jax.runs.run import Row, Run

UNITS = {"finetune": "step", "answer": "answer", "judge": "score", "probe": "question", "report": "page"}


@dataclasses.dataclass(frozen=True)
class Piece:
    """One file's worth of a stage: `total` pieces of work, of which `done` are in the run directory.

    `at_most` says that the total is a bound: two probes ask about answers that are not scored yet.
    """

    stage: str
    what: str
    total: int
    done: int
    at_most: bool = False


def pieces(this: Run) -> list[Piece]:
    """What a run's stages do, in order; those it is not asked for are left out."""
    found = [*_finetune(this), *_answer(this), *_judge(this), *_probe(this), Piece("report", "", 1, 0)]
    return [piece for piece in found if piece.stage in this.config.stages]


def conditions(this: Run) -> list[str]:
    """Base and, where the run trains or was given an adapter, fine-tuned; an adapter with an id is not fetched."""
    return ["base", "finetuned"] if this.trains or this.config.adapter else ["base"]


def _finetune(this: Run) -> Iterator[Piece]:
    from em_jax.train.batches import hold_out, step_indices

    if not this.trains:
        return
    train, seed = this.config.train, this.config.seed
    kept, held = hold_out(len(this.rows), train.holdout, seed)
    steps = len(step_indices(len(kept), train, seed))
    saved = [int(path.name) for path in this.directory.glob("train/checkpoints/*") if path.name.isdigit()]
    done = steps if sources.is_trained(this.directory) else max(saved, default=0)
    apart = f", {len(held)} held out" if held else ""
    yield Piece("finetune", f"{len(kept):,} rows in batches of {train.batch_size}{apart}", steps, done)


def _answers(this: Run) -> dict[str, int]:
    """Condition -> how many answers are sampled."""
    if not this.asks_answers:
        return {}
    prompts = len(harmfulness.questions(this.suite, this.probe_settings))
    found = dict.fromkeys(conditions(this), prompts * this.config.answers.samples)
    return found | ({experiment.CARELESS: prompts * experiment.CARELESS_SAMPLES} if this.asks_careless else {})


def _answer(this: Run) -> Iterator[Piece]:
    for condition, total in _answers(this).items():
        yield Piece("answer", condition, total, _count(this.answers_path(condition)))


def _judge(this: Run) -> Iterator[Piece]:
    for number, name in enumerate(this.judges):
        for condition, total in _answers(this).items():
            if condition != experiment.CARELESS or number == 0:
                yield Piece("judge", f"{condition} by {name}", total, _count(this.scores_path(condition, name)))


def _probe(this: Run) -> Iterator[Piece]:
    for condition in conditions(this):
        for name in PROBES:
            if name != "harmfulness" and this.asks(name):
                questions, at_most = _questions(this, name, condition)
                asked = {choice.key(row) for row in files.read_rows(this.probe_path(condition, name))}
                done = len(asked & {choice.key(row) for row in questions}) if not at_most else len(asked)
                yield Piece("probe", f"{condition} {name}", len(questions), done, at_most)


def _questions(this: Run, name: str, condition: str) -> tuple[list[Row], bool]:
    """The questions of a probe, and whether they are the most there can be."""
    if name in ("self_assessment", "two_ai") or _scored(this, condition):
        return experiment.probe_questions(this, name, condition), False
    # An answer of each bucket to every prompt, and another model's beside it.
    one: Any = {"answer": "-", "score": 5, "source": ""}
    own = [
        {"id": row["id"], "sample": sample, "prompt": row["prompt"][-1]["content"], "answer": "-", "score": score}
        for row in harmfulness.questions(this.suite, this.probe_settings)
        for sample, score in enumerate((1, 3, 5)[: this.config.answers.samples])
    ]
    others = () if name == "score_prediction" else (own, lambda identity, prompt: [one])
    return PROBES[name].questions(this.suite, this.probe_settings, own, *others), True


def _scored(this: Run, condition: str) -> bool:
    """Whether all answers that the condition's questions are made of are there with their scores."""
    totals = _answers(this)
    needed = {"base", condition} | ({experiment.CARELESS} & set(totals))
    return all(
        _count(this.answers_path(name)) == _count(this.scores_path(name)) == totals.get(name, 0) > 0 for name in needed
    )


def _count(path: Any) -> int:
    return len(files.read_rows(path))


def counted(this: Run) -> dict[str, int]:
    """Rows that a finished run has of every stage: what its wall times were spent on.

    Raises:
      UserError: a file of it is not as em_jax writes it.
    """
    files = {"finetune": "train/metrics.jsonl", "answer": "answers/*.jsonl", "judge": "scores/*.jsonl"}
    files |= {"probe": "probes/*.jsonl"}
    found = {stage: sum(_count(path) for path in this.directory.glob(name)) for stage, name in files.items()}
    if not (this.directory / "report.html").is_file():
        raise UserError(f"{this.directory} is not finished")
    return found | {"report": 1}
